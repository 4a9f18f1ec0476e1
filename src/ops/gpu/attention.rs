//! Multi-head scaled dot-product attention.

use burn::tensor::{DType, Tensor};

use super::Buffer;
use super::plan::{Language, Plan, Source, THREADS, Target, source, word};
use crate::ops::Mask;

const WGSL: Source = source!("wgsl/attention.wgsl");
const CUDA: Source = source!("cuda/common.cuh", "cuda/mma.cuh", "cuda/attention.cu");

/// Sizes of a head that `attention.cu` is compiled and proven for.
pub(crate) const CUDA_HEAD_DIMS: &[usize] = &[8, 16, 24, 32, 40, 64, 80, 96, 128, 160, 512];

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
        Some(Plan { target, source, entry: "attention", constants, params, grid })
    }
}

pub(crate) fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    heads: usize,
    mask: Mask,
) -> Option<Tensor<3>> {
    let shape = q.dims();
    let [batch, queries, channels] = shape;
    let keys = k.dims()[1];
    let target = Target::of(&q)?;
    let head_dim = channels.checked_div(heads)?;
    let plan = Attention { batch, queries, keys, heads, head_dim, mask }.plan(target)?;
    let (q, k, v) = (Buffer::of(q, target)?, Buffer::of(k, target)?, Buffer::of(v, target)?);
    let y = q.empty(shape, target.elem);
    plan.launch(&[&q, &k, &v], &[&y])?;
    y.tensor()
}
