//! Group normalisation: a picture is cut into slices, whose statistics are joined before they are applied.

use burn::tensor::{DType, Tensor};

use super::plan::{Language, Plan, Source, THREADS, Target, source, word};
use super::{Buffer, in_parts, joined};
use crate::ops::Activation;

const WGSL: Source = source!("wgsl/gelu.wgsl", "wgsl/group_norm.wgsl");
const CUDA: Source = source!("cuda/common.cuh", "cuda/group_norm.cu");

/// One call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupNorm {
    pub(crate) batch: usize,
    pub(crate) pixels: usize,
    pub(crate) channels: usize,
    pub(crate) groups: usize,
    pub(crate) eps: f32,
    pub(crate) activation: Activation,
}

/// Its launches.
pub(crate) struct Launches {
    /// Of a picture.
    pub(crate) slices: usize,
    pub(crate) statistics: Plan,
    /// Joins the slices; CUDA's last launch does that itself.
    pub(crate) combine: Option<Plan>,
    pub(crate) apply: Plan,
}

impl GroupNorm {
    /// `None` where a group has more channels than a block has room for.
    pub(crate) fn launches(&self, target: Target) -> Option<Launches> {
        match target.language {
            Language::Wgsl => self.wgsl(target),
            Language::Cuda => self.cuda(target),
        }
    }

    fn wgsl(&self, target: Target) -> Option<Launches> {
        let &Self { batch, pixels, channels, groups, eps, activation } = self;
        let cut = Cut::new(target, pixels, channels, groups)?;
        let count = batch * pixels * channels / cut.width;
        let constants = vec![
            ("WIDTH", word(cut.width)?),
            ("BLOCK", word(cut.block)?),
            ("SILU", u32::from(activation == Activation::Silu)),
        ];
        let sizes = [pixels, groups, cut.columns, cut.slices, cut.span, count];
        let mut params = sizes.into_iter().map(word).collect::<Option<Vec<_>>>()?;
        params.push(eps.to_bits());
        let plan = |entry, grid| Plan {
            target,
            source: WGSL,
            entry,
            constants: constants.clone(),
            maps: Vec::new(),
            params: params.clone(),
            grid,
        };
        let statistics = target.grid([cut.slices, groups.div_ceil(cut.block), batch], THREADS)?;
        let combine = match cut.slices {
            0 | 1 => None,
            _ => Some(plan("group_norm_combine", target.grid([groups, batch, 1], THREADS)?)),
        };
        Some(Launches {
            slices: cut.slices,
            statistics: plan("group_norm_statistics", statistics),
            combine,
            apply: plan("group_norm_apply", target.elementwise(count)?),
        })
    }

    /// As the header of `group_norm.cu` asks.
    fn cuda(&self, target: Target) -> Option<Launches> {
        const BLOCK: usize = 256;
        let &Self { batch, pixels, channels, groups, eps, activation } = self;
        let of_group = channels.checked_div(groups)?;
        let width = target.width(&[channels]);
        let fits = |tile: &usize| {
            let elements = tile * of_group;
            groups.is_multiple_of(*tile)
                && elements > 0
                && elements.is_multiple_of(width)
                && elements / width <= BLOCK
        };
        let tile = (1..=groups).rev().find(fits)?;
        let lanes = BLOCK / (tile * of_group / width);
        let span = (4 * lanes).max(pixels.div_ceil(256));
        let slices = pixels.div_ceil(span);
        // A slice's elements of a group are counted in f32.
        if span * of_group >= 1 << 24 {
            return None;
        }
        let silu = if activation == Activation::Silu { 3 } else { 0 };
        let sizes = [pixels, channels, groups, tile, span, slices];
        let mut params = sizes.into_iter().map(word).collect::<Option<Vec<_>>>()?;
        params.extend([eps.to_bits(), silu]);
        let grid = target.spread(batch * slices * (groups / tile), BLOCK)?;
        let constants = vec![("WIDTH", word(width)?)];
        let plan = |entry| {
            let (constants, params) = (constants.clone(), params.clone());
            Plan { target, source: CUDA, entry, constants, maps: Vec::new(), params, grid }
        };
        let (statistics, apply) = (plan("group_norm_statistics"), plan("group_norm"));
        Some(Launches { slices, statistics, combine: None, apply })
    }
}

/// How `group_norm.wgsl` cuts one picture: by its own shape, never by the batch.
struct Cut {
    width: usize,
    /// Vectors of one group.
    columns: usize,
    /// Groups of a workgroup.
    block: usize,
    slices: usize,
    /// Pixels of a slice.
    span: usize,
}

impl Cut {
    /// `None` where a group has more channels than a workgroup has threads for.
    fn new(target: Target, pixels: usize, channels: usize, groups: usize) -> Option<Self> {
        // Elements side by side that a block reads: a cache line of f16.
        const LINE: usize = 64;
        // Pixels that one thread sums, where the map is small.
        const PIXELS: usize = 32;
        const MOST_SLICES: usize = 128;
        let of_group = channels.checked_div(groups).filter(|&of_group| of_group > 0)?;
        let width = target.width(&[of_group]);
        let columns = of_group / width;
        let block = LINE.div_ceil(of_group).min(THREADS / columns).min(groups);
        if block == 0 || pixels == 0 {
            return None;
        }
        let rows = THREADS / (block * columns);
        let slices = pixels.div_ceil(rows * PIXELS).clamp(1, MOST_SLICES);
        let span = pixels.div_ceil(slices);
        // A longer span may leave the last slices without a pixel.
        Some(Self { width, columns, block, slices: pixels.div_ceil(span), span })
    }
}

pub(crate) fn group_norm(
    x: Tensor<4>,
    groups: usize,
    weight: &Tensor<1>,
    bias: &Tensor<1>,
    eps: f32,
    activation: Activation,
) -> Option<Tensor<4>> {
    let [batch, height, width, channels] = x.dims();
    let target = Target::of(&x)?;
    let call = GroupNorm { batch, pixels: height * width, channels, groups, eps, activation };
    let plan = |batch| GroupNorm { batch, ..call }.launches(target);
    joined(in_parts(batch, plan, |launches: &Launches, part| {
        let pictures = part.pictures;
        let x = Buffer::of(part.of(&x), target)?;
        let (weight, bias) = (Buffer::of(weight.clone(), target)?, Buffer::of(bias.clone(), target)?);
        let partial = x.empty([pictures, launches.slices, groups, 2], DType::F32);
        let y = x.empty([pictures, height, width, channels], target.elem);
        launches.statistics.launch(&[&x], &[&partial])?;
        let known = match &launches.combine {
            None => partial,
            Some(combine) => {
                let known = x.empty([pictures, groups, 2], DType::F32);
                combine.launch(&[&partial], &[&known])?;
                known
            }
        };
        launches.apply.launch(&[&x, &known, &weight, &bias], &[&y])?;
        y.tensor()
    })?)
}
