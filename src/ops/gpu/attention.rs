//! Multi-head scaled dot-product attention.

use burn::tensor::{DType, Tensor};

use super::hopper::{Hopper, TensorMap};
use super::plan::{Grid, Language, Plan, Source, THREADS, Target, source, word};
use super::{Buffer, in_parts, joined};
use crate::ops::Mask;

const WGSL: Source = source!("wgsl/attention.wgsl");
const CUDA: Source = source!("cuda/common.cuh", "cuda/mma.cuh", "cuda/attention.cu");
const SM90: Source = source!("cuda/common.cuh", "cuda/wgmma.cuh", "cuda/attention_sm90.cu");

/// Sizes of a head that `attention.cu` is compiled and proven for.
pub(crate) const CUDA_HEAD_DIMS: &[usize] = &[8, 16, 24, 32, 40, 64, 80, 96, 128, 160, 512];

/// What a picture must ask, in floating-point operations, for `attention_sm90`, which runs on a stream of our own: 40 µs
/// at 500 TFLOP/s. Such a launch costs some tens of microseconds (see `hopper.rs`). The kernel is expected to run at
/// about three times the rate of sm_80's, which at this size is worth about 80 µs. Expected, not measured.
const LEAST_WORK: u64 = 20_000_000_000;

/// One call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention {
    pub(crate) batch: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) mask: Mask,
}

impl Attention {
    /// `None` for empty sizes and for sizes of a head that the kernel is not written for.
    pub(crate) fn plan(&self, target: Target) -> Option<Plan> {
        let &Self { batch, queries, keys, heads, head_dim, mask } = self;
        if batch * queries * keys * heads * head_dim == 0 {
            return None;
        }
        if target.halves_on_hopper().is_some_and(|hopper| self.suits(hopper)) {
            return self.on_hopper(target);
        }
        let causal = u32::from(mask == Mask::Causal);
        let scale = (head_dim as f32).sqrt().recip();
        let mut params = vec![word(queries)?, word(keys)?, word(heads)?, scale.to_bits()];
        let (source, constants, grid) = match target.language {
            Language::Wgsl => {
                if !head_dim.is_multiple_of(8) || head_dim > 512 {
                    return None;
                }
                word(batch * queries.max(keys) * heads * head_dim)?;
                params.push(causal);
                // At most 256 threads share the queries of a workgroup, 8 of them by 8 dims each.
                let tile = if head_dim > 256 { 32 } else { 64 };
                let constants = vec![("WIDTH", 4), ("D", word(head_dim)?), ("QUERIES", word(tile)?)];
                (WGSL, constants, target.grid([queries.div_ceil(tile), heads, batch], THREADS)?)
            }
            Language::Cuda => {
                if !CUDA_HEAD_DIMS.contains(&head_dim) {
                    return None;
                }
                let (tile, threads) = match (target.elem, head_dim) {
                    (DType::F32, 512) => (8, 128),
                    (DType::F32, _) => (32, 128),
                    (_, 512) => (32, 256),
                    _ => (64, 128),
                };
                let constants = vec![("HEAD_DIM", word(head_dim)?), ("CAUSAL", causal)];
                (CUDA, constants, target.spread(batch * heads * queries.div_ceil(tile), threads)?)
            }
        };
        Some(Plan { target, source, entry: "attention", constants, maps: Vec::new(), params, grid })
    }

    /// Whether `attention_sm90` is worth its launch, by what one picture asks.
    fn suits(&self, hopper: Hopper) -> bool {
        let &Self { queries, keys, heads, head_dim, .. } = self;
        let sizes = [4, queries, keys, heads, head_dim];
        let work = sizes.iter().fold(1, |all: u64, &size| all.saturating_mul(size as u64));
        hopper.own_stream && Block::of(head_dim).is_some() && work >= LEAST_WORK
    }

    /// `attention_sm90`; `None` for sizes of a head that it is not written for.
    pub(crate) fn on_hopper(&self, target: Target) -> Option<Plan> {
        let &Self { batch, queries, keys, heads, head_dim, mask } = self;
        let block = Block::of(head_dim)?;
        // Tiles reach beyond the last row.
        [queries, keys].into_iter().try_for_each(|rows| word(rows.checked_add(256)?).map(drop))?;
        let map = |rows: usize, of_box| {
            TensorMap::tiled(&[head_dim, heads, rows, batch], &[CHANNELS, 1, of_box, 1])
        };
        let scale = (head_dim as f32).sqrt().recip();
        let tiles = queries.div_ceil((block.consumers * QUERIES) as usize);
        let grid = target.spread(batch * heads * tiles, (128 * (1 + block.consumers)) as usize)?;
        Some(Plan {
            target,
            source: SM90,
            entry: "attention_sm90",
            constants: vec![
                ("HEAD_DIM", word(head_dim)?),
                ("CAUSAL", u32::from(mask == Mask::Causal)),
                ("DYNAMIC", 1),
            ],
            maps: vec![map(queries, QUERIES)?, map(keys, block.keys)?, map(keys, block.keys)?],
            params: vec![word(queries)?, word(keys)?, word(heads)?, scale.to_bits()],
            grid: Grid { shared_bytes: block.memory(), ..grid },
        })
    }
}

/// Channels of a box, queries of a warpgroup.
const CHANNELS: u32 = 64;
const QUERIES: u32 = 64;

/// What a block of `attention_sm90.cu` has, by the table in its header.
#[derive(Debug, Clone, Copy)]
struct Block {
    boxes: u32,
    consumers: u32,
    keys: u32,
    stages: u32,
}

impl Block {
    fn of(head_dim: usize) -> Option<Self> {
        let (boxes, consumers, keys, stages) = match head_dim {
            40 | 64 => (1, 3, 128, 4),
            80 | 128 => (2, 3, 128, 2),
            160 => (3, 2, 96, 2),
            _ => return None,
        };
        Some(Self { boxes, consumers, keys, stages })
    }

    /// Boxes of queries and of the stages' keys and values, a barrier, three a stage, the start's alignment.
    fn memory(self) -> u32 {
        let rows = QUERIES * self.consumers + 2 * self.keys * self.stages;
        2 * CHANNELS * self.boxes * rows + 8 + 24 * self.stages + 1024
    }
}

pub(crate) fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    heads: usize,
    mask: Mask,
) -> Option<Tensor<3>> {
    let [batch, queries, channels] = q.dims();
    let keys = k.dims()[1];
    let target = Target::of(&q)?;
    let head_dim = channels.checked_div(heads)?;
    let call = |batch| Attention { batch, queries, keys, heads, head_dim, mask };
    let plan = |batch| call(batch).plan(target);
    joined(in_parts(batch, plan, |plan, part| {
        let buffer = |x| Buffer::of(part.of(x), target);
        let (q, k, v) = (buffer(&q)?, buffer(&k)?, buffer(&v)?);
        let y = q.empty([part.pictures, queries, channels], target.elem);
        let other = || call(part.pictures).plan(target.without_hopper());
        plan.launch_or(other, &[&q, &k, &v], &[&y])?;
        y.tensor()
    })?)
}
