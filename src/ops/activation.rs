//! Element-wise activations and the gated gelu.

use burn::tensor::activation::{gelu, sigmoid, silu};
use burn::tensor::{DType, Tensor};

/// An element-wise activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unary {
    Gelu,
    QuickGelu,
    Silu,
}

/// Plain burn operations, in f32.
pub(crate) fn unary_reference<const D: usize>(x: Tensor<D>, unary: Unary) -> Tensor<D> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let y = match unary {
        Unary::Gelu => gelu(x),
        Unary::QuickGelu => x.clone() * sigmoid(x * 1.702),
        Unary::Silu => silu(x),
    };
    y.cast(dtype)
}

/// Plain burn operations, in f32.
pub fn geglu_reference(x: Tensor<3>) -> Tensor<3> {
    let dtype = x.dtype();
    let half = x.dims()[2] / 2;
    let value = x.clone().narrow(2, 0, half).cast(DType::F32);
    let gate = x.narrow(2, half, half).cast(DType::F32);
    (value * gelu(gate)).cast(dtype)
}

/// One vectorised pass.
#[cfg(feature = "cpu")]
pub(crate) fn unary_cpu<const D: usize>(x: Tensor<D>, unary: Unary) -> Tensor<D> {
    use super::cpu::{self, Host, elementwise};

    let (dtype, shape) = (x.dtype(), x.dims());
    cpu::tensor(elementwise::unary(&Host::new(x).f32(), unary), shape, dtype)
}

/// One vectorised pass.
#[cfg(feature = "cpu")]
pub(crate) fn geglu_cpu(x: Tensor<3>) -> Tensor<3> {
    use super::cpu::{self, Host, elementwise};

    let dtype = x.dtype();
    let [batch, tokens, channels] = x.dims();
    let half = channels / 2;
    cpu::tensor(elementwise::geglu(&Host::new(x).f32(), half), [batch, tokens, half], dtype)
}
