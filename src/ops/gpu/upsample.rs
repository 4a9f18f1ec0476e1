//! Nearest-neighbour upsampling by two.

use burn::tensor::Tensor;

use super::plan::{Language, Plan, Source, Target, source, word};
use super::{Buffer, in_parts, joined};

const WGSL: Source = source!("wgsl/upsample_nearest_2x.wgsl");
const CUDA: Source = source!("cuda/common.cuh", "cuda/upsample_nearest_2x.cu");

/// `x`: `[batch, height, width, channels]` of the input.
pub(crate) fn plan(target: Target, x: [usize; 4]) -> Option<Plan> {
    let [batch, height, width, channels] = x;
    let vector = target.width(&[channels]);
    let vectors = batch * height * width * channels / vector;
    Some(Plan {
        target,
        source: match target.language {
            Language::Wgsl => WGSL,
            Language::Cuda => CUDA,
        },
        entry: "upsample_nearest_2x",
        constants: vec![("WIDTH", word(vector)?)],
        maps: Vec::new(),
        // Four times as many vectors are written.
        params: vec![word(4 * vectors)? / 4, word(width)?, word(channels / vector)?],
        grid: target.elementwise(vectors)?,
    })
}

pub(crate) fn nearest_2x(x: Tensor<4>) -> Option<Tensor<4>> {
    let [batch, height, width, channels] = x.dims();
    let target = Target::of(&x)?;
    let plan = |batch| plan(target, [batch, height, width, channels]);
    joined(in_parts(batch, plan, |plan, part| {
        let x = Buffer::of(part.of(&x), target)?;
        let y = x.empty([part.pictures, 2 * height, 2 * width, channels], target.elem);
        plan.launch(&[&x], &[&y])?;
        y.tensor()
    })?)
}
