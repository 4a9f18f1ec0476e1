//! Element-wise activations, gated and biased ones.

use burn::tensor::activation::{gelu, sigmoid, silu};
use burn::tensor::{DType, Tensor};

use super::Gelu;

/// An element-wise activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unary {
    Gelu,
    QuickGelu,
    Silu,
}

/// The function of the second half of the channels that gates the first, in geglu and swiglu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Gelu,
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
    match form {
        Gelu::Exact => gelu(x),
        Gelu::Tanh => {
            // (1 + tanh(u)) / 2 is the sigmoid of 2 u.
            let slope = 2.0 * std::f64::consts::FRAC_2_PI.sqrt();
            x.clone() * sigmoid((x.clone().square() * (0.044_715 * slope) + slope) * x)
        }
    }
    .cast(dtype)
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
