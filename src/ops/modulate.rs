//! What a transformer's conditioning does to its tokens: one scale, shift and gate a picture.

use burn::tensor::{DType, Tensor};

/// `[batch, channels]` as f32, for every token of its picture.
pub(crate) fn for_tokens(x: &Tensor<2>) -> Tensor<3> {
    let [batch, channels] = x.dims();
    x.clone().cast(DType::F32).reshape([batch, 1, channels])
}

/// Plain burn operations, statistics in f32.
pub fn layer_norm_modulate_reference(
    x: Tensor<3>,
    scale: &Tensor<2>,
    shift: &Tensor<2>,
    eps: f32,
) -> Tensor<3> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let centred = x.clone() - x.mean_dim(2);
    let variance = centred.clone().square().mean_dim(2);
    let normalised = centred / (variance + eps).sqrt();
    (normalised * (for_tokens(scale) + 1.0) + for_tokens(shift)).cast(dtype)
}

/// Plain burn operations, in f32.
pub fn gate_residual_reference(residual: Tensor<3>, x: Tensor<3>, gate: &Tensor<2>) -> Tensor<3> {
    let dtype = residual.dtype();
    (residual.cast(DType::F32) + for_tokens(gate) * x.cast(DType::F32)).cast(dtype)
}

/// The layer norm of each picture's tokens with its own weights, sums in f64.
#[cfg(feature = "cpu")]
pub(crate) fn layer_norm_modulate_cpu(
    x: Tensor<3>,
    scale: &Tensor<2>,
    shift: &Tensor<2>,
    eps: f32,
) -> Tensor<3> {
    use super::cpu::{self, Host, norm::layer_norm};

    let dtype = x.dtype();
    let shape = x.dims();
    let [_, tokens, channels] = shape;
    let (x, scale, shift) = (Host::new(x), Host::new(scale.clone()), Host::new(shift.clone()));
    let (x, scale, shift) = (x.f32(), scale.f32(), shift.f32());
    let mut out = Vec::with_capacity(x.len());
    let affine = scale.chunks_exact(channels.max(1)).zip(shift.chunks_exact(channels.max(1)));
    for (x, (scale, shift)) in x.chunks_exact((tokens * channels).max(1)).zip(affine) {
        let weight: Vec<f32> = scale.iter().map(|scale| 1.0 + scale).collect();
        out.extend(layer_norm(x, &weight, shift, eps));
    }
    cpu::tensor(out, shape, dtype)
}
