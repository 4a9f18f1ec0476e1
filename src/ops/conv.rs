//! Cross-correlation over channels-last feature maps.

use burn::tensor::Tensor;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;

use super::Conv2d;

/// Plain burn operations, through the channels-first convolution.
pub fn reference(
    x: Tensor<4>,
    weight: &Tensor<4>,
    bias: Option<&Tensor<1>>,
    conv: &Conv2d,
    residual: Option<Tensor<4>>,
) -> Tensor<4> {
    let [top, bottom, left, right] = conv.padding;
    let options =
        ConvOptions::new_with_padding([conv.stride; 2], [(top, bottom), (left, right)], [1; 2], 1);
    let x = x.permute([0, 3, 1, 2]);
    let weight = weight.clone().permute([0, 3, 1, 2]);
    let y = conv2d(x, weight, bias.cloned(), options).permute([0, 2, 3, 1]);
    match residual {
        Some(residual) => y + residual,
        None => y,
    }
}

#[cfg(feature = "cpu")]
pub(crate) use reference as cpu;
