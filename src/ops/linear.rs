//! `residual + gate * activation(x · weightᵀ + bias)`.

use burn::tensor::{DType, Tensor};

use super::Nonlinearity;
use super::activation::applied;
use super::modulate::for_tokens;

/// What follows the product in [`linear_with`](super::linear_with), in the order of the fields; a part that is `None` is
/// left out. With all of them a layer ends a branch of a diffusion transformer's block (AdaLN-zero, Peebles & Xie 2023).
#[derive(Debug, Clone, Default)]
pub struct Epilogue<'a> {
    /// Added to the product: `[outputs]`.
    pub bias: Option<&'a Tensor<1>>,
    /// Of the product with its bias.
    pub activation: Option<Nonlinearity>,
    /// A factor, one row a picture: `[batch, outputs]`.
    pub gate: Option<&'a Tensor<2>>,
    /// Added last: `[batch, tokens, outputs]`.
    pub residual: Option<Tensor<3>>,
}

/// Of the output.
pub(super) fn shape(x: &Tensor<3>, weight: &Tensor<2>) -> [usize; 3] {
    let [batch, tokens, _] = x.dims();
    [batch, tokens, weight.dims()[0]]
}

/// Plain burn operations; sums as the backend's matrix product takes them (f32 on every backend used here). Activation
/// and gate are computed in f32, and then bias and residual as well.
pub fn reference(x: Tensor<3>, weight: &Tensor<2>, epilogue: Epilogue<'_>) -> Tensor<3> {
    let Epilogue { bias, activation, gate, residual } = epilogue;
    let dtype = x.dtype();
    let [batch, tokens, inputs] = x.dims();
    let outputs = weight.dims()[0];
    let within = if activation.is_some() || gate.is_some() { DType::F32 } else { dtype };
    let product = if inputs == 0 {
        Tensor::zeros([batch * tokens, outputs], (&x.device(), dtype))
    } else {
        x.reshape([batch * tokens, inputs]).matmul(weight.clone().transpose())
    };
    let mut y = product.cast(within);
    if let Some(bias) = bias {
        y = y + bias.clone().cast(within).reshape([1, outputs]);
    }
    if let Some(activation) = activation {
        y = applied(y, activation);
    }
    let mut y = y.reshape([batch, tokens, outputs]);
    if let Some(gate) = gate {
        y = y * for_tokens(gate);
    }
    if let Some(residual) = residual {
        y = y + residual.cast(within);
    }
    y.cast(dtype)
}

/// The tiled product of [`cpu::gemm`](super::cpu::gemm).
#[cfg(feature = "cpu")]
pub(crate) fn cpu(x: Tensor<3>, weight: &Tensor<2>, epilogue: Epilogue<'_>) -> Tensor<3> {
    use super::cpu::{self, Host, gemm};

    let dtype = x.dtype();
    let [batch, tokens, k] = x.dims();
    let [n, _] = weight.dims();
    if k == 0 {
        return reference(x, weight, epilogue);
    }
    let (x, weight) = (Host::new(x), Host::new(weight.clone()));
    let bias = epilogue.bias.map(|bias| Host::new(bias.clone()));
    let bias = bias.as_ref().map(Host::f32);
    let gate = epilogue.gate.map(|gate| Host::new(gate.clone()));
    let gate = gate.as_ref().map(Host::f32);
    let residual = epilogue.residual.map(Host::new);
    let residual = residual.as_ref().map(Host::f32);
    let product = gemm::Gemm {
        m: batch * tokens,
        n,
        k,
        a: &gemm::Matrix { values: &x.f32(), k },
        b: weight.elements(),
        bias: bias.as_deref(),
        activation: epilogue.activation,
        gate: gate.as_deref().map(|values| gemm::Operand { values, rows: tokens }),
        residual: residual.as_deref().map(|values| gemm::Operand { values, rows: 1 }),
    };
    cpu::tensor(product.compute(), [batch, tokens, n], dtype)
}
