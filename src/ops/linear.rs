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

#[cfg(feature = "cpu")]
pub(crate) use reference as cpu;
