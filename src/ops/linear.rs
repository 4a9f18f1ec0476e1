//! `x · weightᵀ + bias (+ residual)`.

use burn::tensor::Tensor;

/// Plain burn operations; sums as the backend's matrix product takes them (f32 on every backend used here).
pub fn reference(
    x: Tensor<3>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    residual: Option<Tensor<3>>,
) -> Tensor<3> {
    let [batch, tokens, inputs] = x.dims();
    let outputs = weight.dims()[0];
    let mut y = x.reshape([batch * tokens, inputs]).matmul(weight.clone().transpose());
    if let Some(bias) = bias {
        y = y + bias.clone().reshape([1, outputs]);
    }
    let y = y.reshape([batch, tokens, outputs]);
    match residual {
        Some(residual) => y + residual,
        None => y,
    }
}

/// The tiled product of [`cpu::gemm`](super::cpu::gemm).
#[cfg(feature = "cpu")]
pub(crate) fn cpu(
    x: Tensor<3>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    residual: Option<Tensor<3>>,
) -> Tensor<3> {
    use super::cpu::{self, Host, gemm};

    let dtype = x.dtype();
    let [batch, tokens, k] = x.dims();
    let [n, _] = weight.dims();
    let (x, weight) = (Host::new(x), Host::new(weight.clone()));
    let bias = bias.map(|bias| Host::new(bias.clone()));
    let bias = bias.as_ref().map(Host::f32);
    let residual = residual.map(Host::new);
    let residual = residual.as_ref().map(Host::f32);
    let product = gemm::Gemm {
        m: batch * tokens,
        n,
        k,
        a: &gemm::Matrix { values: &x.f32(), k },
        b: weight.elements(),
        bias: bias.as_deref(),
        residual: residual.as_deref().map(|values| gemm::Residual { values, rows: 1 }),
    };
    cpu::tensor(product.compute(), [batch, tokens, n], dtype)
}
