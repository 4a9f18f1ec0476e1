//! Element-wise activations, gated and biased ones.

use burn::tensor::activation::{gelu, sigmoid, silu};
use burn::tensor::{DType, Tensor};

use super::{Gelu, Nonlinearity};

/// The function of the second half of the channels that gates the first, in geglu and swiglu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Gelu,
    Silu,
}

/// Plain burn operations, in f32.
pub(crate) fn unary_reference<const D: usize>(x: Tensor<D>, activation: Nonlinearity) -> Tensor<D> {
    let dtype = x.dtype();
    applied(x.cast(DType::F32), activation).cast(dtype)
}

/// In `x`'s own dtype.
pub(crate) fn applied<const D: usize>(x: Tensor<D>, activation: Nonlinearity) -> Tensor<D> {
    match activation {
        Nonlinearity::Gelu(Gelu::Exact) => gelu(x),
        Nonlinearity::Gelu(Gelu::Tanh) => {
            // (1 + tanh(u)) / 2 is the sigmoid of 2 u.
            let slope = 2.0 * std::f64::consts::FRAC_2_PI.sqrt();
            x.clone() * sigmoid((x.clone().square() * (0.044_715 * slope) + slope) * x)
        }
        Nonlinearity::QuickGelu => x.clone() * sigmoid(x * 1.702),
        Nonlinearity::Silu => silu(x),
    }
}

/// Of a gated activation's output.
pub(super) fn gated_shape([batch, tokens, channels]: [usize; 3]) -> [usize; 3] {
    [batch, tokens, channels / 2]
}

/// Plain burn operations, in f32.
pub fn geglu_reference(x: Tensor<3>) -> Tensor<3> {
    gated_reference(x, gelu)
}

/// Plain burn operations, in f32.
pub fn swiglu_reference(x: Tensor<3>) -> Tensor<3> {
    gated_reference(x, silu)
}

fn gated_reference(x: Tensor<3>, activation: impl Fn(Tensor<3>) -> Tensor<3>) -> Tensor<3> {
    let dtype = x.dtype();
    let half = x.dims()[2] / 2;
    let value = x.clone().narrow(2, 0, half).cast(DType::F32);
    let gate = x.narrow(2, half, half).cast(DType::F32);
    (value * activation(gate)).cast(dtype)
}

/// Plain burn operations, in f32.
pub fn bias_gelu_reference(x: Tensor<3>, bias: &Tensor<1>, form: Gelu) -> Tensor<3> {
    let dtype = x.dtype();
    let channels = x.dims()[2];
    let x = x.cast(DType::F32) + bias.clone().cast(DType::F32).reshape([1, 1, channels]);
    applied(x, Nonlinearity::Gelu(form)).cast(dtype)
}

/// One vectorised pass.
#[cfg(feature = "cpu")]
pub(crate) fn unary_cpu<const D: usize>(x: Tensor<D>, activation: Nonlinearity) -> Tensor<D> {
    use super::cpu::{self, Host, elementwise};

    let (dtype, shape) = (x.dtype(), x.dims());
    cpu::tensor(elementwise::unary(&Host::new(x).f32(), activation), shape, dtype)
}

/// One vectorised pass.
#[cfg(feature = "cpu")]
pub(crate) fn gated_cpu(x: Tensor<3>, gate: Gate) -> Tensor<3> {
    use super::cpu::{self, Host, elementwise};

    let dtype = x.dtype();
    let [batch, tokens, channels] = x.dims();
    let half = channels / 2;
    let values = elementwise::gated(&Host::new(x).f32(), half, gate);
    cpu::tensor(values, [batch, tokens, half], dtype)
}

/// One vectorised pass.
#[cfg(feature = "cpu")]
pub(crate) fn bias_gelu_cpu(x: Tensor<3>, bias: &Tensor<1>, form: Gelu) -> Tensor<3> {
    use super::cpu::{self, Host, elementwise};

    let (dtype, shape) = (x.dtype(), x.dims());
    let bias = Host::new(bias.clone());
    cpu::tensor(elementwise::bias_gelu(&Host::new(x).f32(), &bias.f32(), form), shape, dtype)
}
