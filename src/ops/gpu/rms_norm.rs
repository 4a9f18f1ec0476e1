//! Root-mean-square normalisation.

use burn::tensor::Tensor;

use super::layer_norm::rows_plan;
use super::plan::{Plan, Source, Target, source};
use super::{Buffer, in_parts, joined};

const WGSL: Source = source!("wgsl/rows.wgsl", "wgsl/rms_norm.wgsl");
const CUDA: Source = source!("cuda/common.cuh", "cuda/rows.cuh", "cuda/rms_norm.cu");

/// `None` for rows that CUDA's registers cannot hold.
pub(crate) fn plan(target: Target, rows: usize, channels: usize, eps: f32) -> Option<Plan> {
    rows_plan(target, [WGSL, CUDA], "rms_norm", rows, channels, eps)
}

pub(crate) fn rms_norm(x: Tensor<3>, weight: &Tensor<1>, eps: f32) -> Option<Tensor<3>> {
    let [batch, tokens, channels] = x.dims();
    let target = Target::of(&x)?;
    let plan = |batch| plan(target, batch * tokens, channels, eps);
    joined(in_parts(batch, plan, |plan, part| {
        let (x, weight) = (Buffer::of(part.of(&x), target)?, Buffer::of(weight.clone(), target)?);
        let y = x.empty([part.pictures, tokens, channels], target.elem);
        plan.launch(&[&x, &weight], &[&y])?;
        y.tensor()
    })?)
}
