//! Element-wise activations, gated and biased ones.

use burn::tensor::Tensor;

use super::plan::{Language, Plan, Source, Target, source, word};
use super::{Buffer, in_parts, joined};
use crate::ops::activation::Gate;
use crate::ops::{Gelu, Nonlinearity};

const ACTIVATION_WGSL: Source = source!("wgsl/gelu.wgsl", "wgsl/activation.wgsl");
const ACTIVATION_CUDA: Source = source!("cuda/common.cuh", "cuda/activation.cu");
const GEGLU_WGSL: Source = source!("wgsl/gelu.wgsl", "wgsl/gated.wgsl", "wgsl/geglu.wgsl");
const GEGLU_CUDA: Source = source!("cuda/common.cuh", "cuda/gated.cuh", "cuda/geglu.cu");
const SWIGLU_WGSL: Source = source!("wgsl/gelu.wgsl", "wgsl/gated.wgsl", "wgsl/swiglu.wgsl");
const SWIGLU_CUDA: Source = source!("cuda/common.cuh", "cuda/gated.cuh", "cuda/swiglu.cu");
const BIAS_GELU_WGSL: Source = source!("wgsl/gelu.wgsl", "wgsl/bias_gelu.wgsl");
const BIAS_GELU_CUDA: Source = source!("cuda/common.cuh", "cuda/bias_gelu.cu");

/// What the kernels call an activation, in CUDA and in `wgsl/epilogue.wgsl`; 0 is none.
pub(crate) fn code(activation: Nonlinearity) -> u32 {
    match activation {
        Nonlinearity::Gelu(Gelu::Exact) => 1,
        Nonlinearity::QuickGelu => 2,
        Nonlinearity::Silu => 3,
        Nonlinearity::Gelu(Gelu::Tanh) => 4,
    }
}

/// `batch` rows of `row` elements.
pub(crate) fn unary_plan(target: Target, batch: usize, row: usize, activation: Nonlinearity) -> Option<Plan> {
    let width = target.width(&[row]);
    let vectors = batch * row / width;
    let entry = match activation {
        Nonlinearity::Gelu(Gelu::Exact) => "gelu",
        Nonlinearity::Gelu(Gelu::Tanh) => "gelu_tanh",
        Nonlinearity::QuickGelu => "quick_gelu",
        Nonlinearity::Silu => "silu",
    };
    let (source, entry, params) = match target.language {
        Language::Wgsl => (ACTIVATION_WGSL, entry, vec![word(vectors)?]),
        Language::Cuda => (ACTIVATION_CUDA, "activation", vec![word(vectors)?, code(activation)]),
    };
    let constants = vec![("WIDTH", word(width)?)];
    Some(Plan {
        target,
        source,
        entry,
        constants,
        maps: Vec::new(),
        params,
        grid: target.elementwise(vectors)?,
    })
}

pub(crate) fn unary<const D: usize>(x: Tensor<D>, activation: Nonlinearity) -> Option<Tensor<D>> {
    let shape = x.dims();
    // A tensor of one dimension is one row.
    let (batch, row) = match shape.split_first() {
        Some((&batch, row)) if D > 1 => (batch, row.iter().product()),
        _ => (1, shape.iter().product()),
    };
    let target = Target::of(&x)?;
    let plan = |batch| unary_plan(target, batch, row, activation);
    joined(in_parts(batch, plan, |plan, part| {
        let x = part.of(&x);
        let shape = x.dims();
        let x = Buffer::of(x, target)?;
        let y = x.empty(shape, target.elem);
        plan.launch(&[&x], &[&y])?;
        y.tensor()
    })?)
}

/// `rows` tokens of `channels` outputs.
pub(crate) fn gated_plan(target: Target, rows: usize, channels: usize, gate: Gate) -> Option<Plan> {
    let ([wgsl, cuda], entry) = match gate {
        Gate::Gelu => ([GEGLU_WGSL, GEGLU_CUDA], "geglu"),
        Gate::Silu => ([SWIGLU_WGSL, SWIGLU_CUDA], "swiglu"),
    };
    let width = target.width(&[channels]);
    let vectors = rows * channels / width;
    Some(Plan {
        target,
        source: match target.language {
            Language::Wgsl => wgsl,
            Language::Cuda => cuda,
        },
        entry,
        constants: vec![("WIDTH", word(width)?)],
        maps: Vec::new(),
        // Twice as many vectors are read.
        params: vec![word(2 * vectors)? / 2, word(channels / width)?],
        grid: target.elementwise(vectors)?,
    })
}

pub(crate) fn gated(x: Tensor<3>, gate: Gate) -> Option<Tensor<3>> {
    let [batch, tokens, channels] = x.dims();
    let half = channels / 2;
    let target = Target::of(&x)?;
    let plan = |batch| gated_plan(target, batch * tokens, half, gate);
    joined(in_parts(batch, plan, |plan, part| {
        let x = Buffer::of(part.of(&x), target)?;
        let y = x.empty([part.pictures, tokens, half], target.elem);
        plan.launch(&[&x], &[&y])?;
        y.tensor()
    })?)
}

pub(crate) fn bias_gelu_plan(target: Target, rows: usize, channels: usize, form: Gelu) -> Option<Plan> {
    let width = target.width(&[channels]);
    let vectors = rows * channels / width;
    Some(Plan {
        target,
        source: match target.language {
            Language::Wgsl => BIAS_GELU_WGSL,
            Language::Cuda => BIAS_GELU_CUDA,
        },
        entry: match form {
            Gelu::Exact => "bias_gelu",
            Gelu::Tanh => "bias_gelu_tanh",
        },
        constants: vec![("WIDTH", word(width)?)],
        maps: Vec::new(),
        params: vec![word(vectors)?, word(channels / width)?],
        grid: target.elementwise(vectors)?,
    })
}

pub(crate) fn bias_gelu(x: Tensor<3>, bias: &Tensor<1>, form: Gelu) -> Option<Tensor<3>> {
    let [batch, tokens, channels] = x.dims();
    let target = Target::of(&x)?;
    let plan = |batch| bias_gelu_plan(target, batch * tokens, channels, form);
    joined(in_parts(batch, plan, |plan, part| {
        let (x, bias) = (Buffer::of(part.of(&x), target)?, Buffer::of(bias.clone(), target)?);
        let y = x.empty([part.pictures, tokens, channels], target.elem);
        plan.launch(&[&x, &bias], &[&y])?;
        y.tensor()
    })?)
}
