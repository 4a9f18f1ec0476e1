//! Group, layer and root-mean-square normalisation.

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
pub fn layer_norm_reference(x: Tensor<3>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f32) -> Tensor<3> {
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

/// Plain burn operations, the sum in f32.
pub fn rms_norm_reference(x: Tensor<3>, weight: &Tensor<1>, eps: f32) -> Tensor<3> {
    let dtype = x.dtype();
    let channels = x.dims()[2];
    let x = x.cast(DType::F32);
    let mean = x.clone().square().mean_dim(2);
    let weight = weight.clone().cast(DType::F32).reshape([1, 1, channels]);
    (x / (mean + eps).sqrt() * weight).cast(dtype)
}

/// One pass for sums in f64, one to apply them.
#[cfg(feature = "cpu")]
pub(crate) fn group_norm_cpu(
    x: Tensor<4>,
    groups: usize,
    weight: &Tensor<1>,
    bias: &Tensor<1>,
    eps: f32,
    activation: Activation,
) -> Tensor<4> {
    use super::cpu::{self, Host, norm::GroupNorm};

    let dtype = x.dtype();
    let shape = x.dims();
    let [_, height, width, channels] = shape;
    let (weight, bias) = (Host::new(weight.clone()), Host::new(bias.clone()));
    let norm = GroupNorm {
        pixels: height * width,
        channels,
        groups,
        weight: &weight.f32(),
        bias: &bias.f32(),
        eps,
        silu: activation == Activation::Silu,
    };
    cpu::tensor(norm.compute(&Host::new(x).f32()), shape, dtype)
}

/// Row by row, sums in f64.
#[cfg(feature = "cpu")]
pub(crate) fn layer_norm_cpu(x: Tensor<3>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f32) -> Tensor<3> {
    use super::cpu::{self, Host, norm::layer_norm};

    let dtype = x.dtype();
    let shape = x.dims();
    let (weight, bias) = (Host::new(weight.clone()), Host::new(bias.clone()));
    cpu::tensor(layer_norm(&Host::new(x).f32(), &weight.f32(), &bias.f32(), eps), shape, dtype)
}

/// Row by row, the sum in f64.
#[cfg(feature = "cpu")]
pub(crate) fn rms_norm_cpu(x: Tensor<3>, weight: &Tensor<1>, eps: f32) -> Tensor<3> {
    use super::cpu::{self, Host, norm::rms_norm};

    let dtype = x.dtype();
    let shape = x.dims();
    let weight = Host::new(weight.clone());
    cpu::tensor(rms_norm(&Host::new(x).f32(), &weight.f32(), eps), shape, dtype)
}
