//! What a transformer's conditioning does to its tokens: one scale, shift and gate a picture.

use burn::tensor::Tensor;

use super::plan::{Language, Plan, Source, Target, source, word};
use super::{Buffer, in_parts, joined, layer_norm};

const GATE_WGSL: Source = source!("wgsl/gate_residual.wgsl");
const GATE_CUDA: Source = source!("cuda/common.cuh", "cuda/gate_residual.cu");

/// `x`: `[batch, tokens, channels]`; `None` for rows that CUDA's registers cannot hold.
pub(crate) fn layer_norm_modulate_plan(target: Target, x: [usize; 3], eps: f32) -> Option<Plan> {
    let [batch, tokens, channels] = x;
    let mut plan = layer_norm::plan(target, batch * tokens, channels, eps)?;
    plan.entry = "layer_norm_modulate";
    plan.params.push(word(tokens)?);
    Some(plan)
}

pub(crate) fn layer_norm_modulate(
    x: Tensor<3>,
    scale: &Tensor<2>,
    shift: &Tensor<2>,
    eps: f32,
) -> Option<Tensor<3>> {
    let [batch, tokens, channels] = x.dims();
    let target = Target::of(&x)?;
    let plan = |batch| layer_norm_modulate_plan(target, [batch, tokens, channels], eps);
    joined(in_parts(batch, plan, |plan, part| {
        let x = Buffer::of(part.of(&x), target)?;
        let (scale, shift) = (Buffer::of(part.of(scale), target)?, Buffer::of(part.of(shift), target)?);
        let y = x.empty([part.pictures, tokens, channels], target.elem);
        plan.launch(&[&x, &scale, &shift], &[&y])?;
        y.tensor()
    })?)
}

/// `x`: `[batch, tokens, channels]`.
pub(crate) fn gate_residual_plan(target: Target, x: [usize; 3]) -> Option<Plan> {
    let [batch, tokens, channels] = x;
    let width = target.width(&[channels]);
    let picture = tokens * channels / width;
    Some(Plan {
        target,
        source: match target.language {
            Language::Wgsl => GATE_WGSL,
            Language::Cuda => GATE_CUDA,
        },
        entry: "gate_residual",
        constants: vec![("WIDTH", word(width)?)],
        maps: Vec::new(),
        params: vec![word(batch * picture)?, word(picture)?, word(channels / width)?],
        grid: target.elementwise(batch * picture)?,
    })
}

pub(crate) fn gate_residual(residual: Tensor<3>, x: Tensor<3>, gate: &Tensor<2>) -> Option<Tensor<3>> {
    let [batch, tokens, channels] = x.dims();
    let target = Target::of(&x)?;
    let plan = |batch| gate_residual_plan(target, [batch, tokens, channels]);
    joined(in_parts(batch, plan, |plan, part| {
        let (residual, x) = (Buffer::of(part.of(&residual), target)?, Buffer::of(part.of(&x), target)?);
        let gate = Buffer::of(part.of(gate), target)?;
        let y = x.empty([part.pictures, tokens, channels], target.elem);
        plan.launch(&[&residual, &x, &gate], &[&y])?;
        y.tensor()
    })?)
}
