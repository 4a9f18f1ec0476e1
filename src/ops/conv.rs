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
    let options = ConvOptions::new_with_padding([conv.stride; 2], [(top, bottom), (left, right)], [1; 2], 1);
    let x = x.permute([0, 3, 1, 2]);
    let weight = weight.clone().permute([0, 3, 1, 2]);
    let y = conv2d(x, weight, bias.cloned(), options).permute([0, 2, 3, 1]);
    match residual {
        Some(residual) => y + residual,
        None => y,
    }
}

/// The tiled product of [`cpu::gemm`](super::cpu::gemm) over the pixels under the kernel.
#[cfg(feature = "cpu")]
pub(crate) fn cpu(
    x: Tensor<4>,
    weight: &Tensor<4>,
    bias: Option<&Tensor<1>>,
    conv: &Conv2d,
    residual: Option<Tensor<4>>,
) -> Tensor<4> {
    use super::cpu::{self, Host, gemm, im2col::Im2col};

    let dtype = x.dtype();
    let [batch, height, width, channels] = x.dims();
    let [n, kh, kw, _] = weight.dims();
    let [out_height, out_width] = conv.output_size([height, width], [kh, kw]);
    let pixels = out_height * out_width;
    let (x, weight) = (Host::new(x), Host::new(weight.clone()));
    let bias = bias.map(|bias| Host::new(bias.clone()));
    // One vector a picture, or one a pixel.
    let shared = residual.as_ref().map_or(1, |residual| {
        let [_, height, width, _] = residual.dims();
        pixels / (height * width).max(1)
    });
    let bias = bias.as_ref().map(Host::f32);
    let residual = residual.map(Host::new);
    let residual = residual.as_ref().map(Host::f32);
    let rows = Im2col {
        values: &x.f32(),
        height,
        width,
        channels,
        output: [out_height, out_width],
        kernel: [kh, kw],
        stride: conv.stride,
        padding: [conv.padding[0], conv.padding[2]],
    };
    let product = gemm::Gemm {
        m: batch * pixels,
        n,
        k: kh * kw * channels,
        a: &rows,
        b: weight.elements(),
        bias: bias.as_deref(),
        activation: None,
        gate: None,
        residual: residual.as_deref().map(|values| gemm::Operand { values, rows: shared }),
    };
    cpu::tensor(product.compute(), [batch, out_height, out_width, n], dtype)
}
