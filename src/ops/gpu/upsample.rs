//! Nearest-neighbour upsampling by two.

use burn::tensor::Tensor;

use super::{Buffer, Launch, elementwise, vector_width, word};

const UPSAMPLE: &[&str] = &[include_str!("../../../kernels/wgsl/upsample_nearest_2x.wgsl")];

pub(crate) fn nearest_2x(x: Tensor<4>) -> Option<Tensor<4>> {
    let [batch, height, width, channels] = x.dims();
    let vector = vector_width(&[channels]);
    let count = batch * height * width * channels / vector;
    let x = Buffer::of(x)?;
    let y = x.empty([batch, 2 * height, 2 * width, channels], x.dtype());
    Launch {
        source: UPSAMPLE,
        entry: "upsample_nearest_2x",
        elem: x.dtype(),
        constants: &[("WIDTH", word(vector)?)],
        inputs: &[&x],
        outputs: &[&y],
        // Four times as many vectors are written.
        params: &[word(4 * count)? / 4, word(width)?, word(channels / vector)?],
        cubes: elementwise(count)?,
    }
    .run()?;
    y.tensor()
}
