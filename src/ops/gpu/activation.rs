//! Element-wise activations and the gated gelu.

use burn::tensor::Tensor;

use super::{Buffer, Launch, elementwise, vector_width, word};
use crate::ops::activation::Unary;

const ACTIVATION: &[&str] =
    &[include_str!("../../../kernels/wgsl/gelu.wgsl"), include_str!("../../../kernels/wgsl/activation.wgsl")];
const GEGLU: &[&str] =
    &[include_str!("../../../kernels/wgsl/gelu.wgsl"), include_str!("../../../kernels/wgsl/geglu.wgsl")];

pub(crate) fn unary<const D: usize>(x: Tensor<D>, unary: Unary) -> Option<Tensor<D>> {
    let shape = x.dims();
    let count = shape.iter().product();
    let width = vector_width(&[count]);
    let x = Buffer::of(x)?;
    let y = x.empty(shape, x.dtype());
    Launch {
        source: ACTIVATION,
        entry: match unary {
            Unary::Gelu => "gelu",
            Unary::QuickGelu => "quick_gelu",
            Unary::Silu => "silu",
        },
        elem: x.dtype(),
        constants: &[("WIDTH", word(width)?)],
        inputs: &[&x],
        outputs: &[&y],
        params: &[word(count / width)?],
        cubes: elementwise(count / width)?,
    }
    .run()?;
    y.tensor()
}

pub(crate) fn geglu(x: Tensor<3>) -> Option<Tensor<3>> {
    let [batch, tokens, channels] = x.dims();
    let half = channels / 2;
    let width = vector_width(&[half]);
    let count = batch * tokens * half / width;
    let x = Buffer::of(x)?;
    let y = x.empty([batch, tokens, half], x.dtype());
    Launch {
        source: GEGLU,
        entry: "geglu",
        elem: x.dtype(),
        constants: &[("WIDTH", word(width)?)],
        inputs: &[&x],
        outputs: &[&y],
        // Twice as many vectors are read.
        params: &[word(2 * count)? / 2, word(half / width)?],
        cubes: elementwise(count)?,
    }
    .run()?;
    y.tensor()
}
