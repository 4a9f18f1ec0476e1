//! Group and layer normalisation.

use burn::tensor::activation::silu;
use burn::tensor::{DType, Tensor};

use super::Activation;

/// Plain burn operations, statistics in f32.
pub fn group_norm_reference(
    x: Tensor<4>,
    groups: usize,
    weight: &Tensor<1>,
    bias: &Tensor<1>,
    eps: f32,
    activation: Activation,
) -> Tensor<4> {
    let dtype = x.dtype();
    let [batch, height, width, channels] = x.dims();
    let x = x.cast(DType::F32).reshape([batch, height * width, groups, channels / groups]);
    let mean = x.clone().mean_dim(3).mean_dim(1);
    let centred = x - mean;
    let variance = centred.clone().square().mean_dim(3).mean_dim(1);
    let normalised = (centred / (variance + eps).sqrt()).reshape([batch, height, width, channels]);
    let weight = weight.clone().cast(DType::F32).reshape([1, 1, 1, channels]);
    let bias = bias.clone().cast(DType::F32).reshape([1, 1, 1, channels]);
    let y = normalised * weight + bias;
    match activation {
        Activation::None => y,
        Activation::Silu => silu(y),
    }
    .cast(dtype)
}

/// Plain burn operations, statistics in f32.
pub fn layer_norm_reference(
    x: Tensor<3>,
    weight: &Tensor<1>,
    bias: &Tensor<1>,
    eps: f32,
) -> Tensor<3> {
    let dtype = x.dtype();
    let channels = x.dims()[2];
    let x = x.cast(DType::F32);
    let centred = x.clone() - x.mean_dim(2);
    let variance = centred.clone().square().mean_dim(2);
    let normalised = centred / (variance + eps).sqrt();
    let weight = weight.clone().cast(DType::F32).reshape([1, 1, channels]);
    let bias = bias.clone().cast(DType::F32).reshape([1, 1, channels]);
    (normalised * weight + bias).cast(dtype)
}

#[cfg(feature = "cpu")]
pub(crate) use {group_norm_reference as group_norm_cpu, layer_norm_reference as layer_norm_cpu};
