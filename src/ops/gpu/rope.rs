//! Queries and keys on their way into attention: root-mean-square norm of every head, then rotary positions.

use burn::tensor::{DType, Tensor};

use super::plan::{LANES, Language, Plan, Source, THREADS, Target, source, word};
use super::{Buffer, in_parts, joined};

const WGSL: Source = source!("wgsl/rows.wgsl", "wgsl/qk_norm_rope.wgsl");
const CUDA: Source = source!("cuda/common.cuh", "cuda/rows.cuh", "cuda/qk_norm_rope.cu");

/// Channels of a head that CUDA's kernel is compiled for.
const MOST_CHANNELS: usize = 256;

/// One call's shapes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QkNormRope {
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
    pub(crate) q_heads: usize,
    pub(crate) k_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) eps: f32,
}

impl QkNormRope {
    /// `None` for no heads of one of both, and for heads that are too large for a warp on CUDA.
    pub(crate) fn plan(self, target: Target) -> Option<Plan> {
        if self.q_heads * self.k_heads == 0 {
            return None;
        }
        let rows = self.batch * self.tokens;
        let heads = rows * (self.q_heads + self.k_heads);
        let (source, constants, columns, grid) = match target.language {
            Language::Wgsl => {
                word(heads * self.head_dim)?;
                let grid = target.spread(heads.div_ceil(THREADS / LANES), THREADS)?;
                // A vector is a pair.
                (WGSL, vec![("WIDTH", 2)], self.head_dim / 2, grid)
            }
            Language::Cuda => {
                if self.head_dim > MOST_CHANNELS {
                    return None;
                }
                let width = if self.head_dim.is_multiple_of(4) { 4 } else { 2 };
                let packs = self.head_dim.div_ceil(32 * width);
                let constants = vec![("WIDTH", word(width)?), ("PACKS", word(packs)?)];
                // A warp a head.
                (CUDA, constants, self.head_dim, target.spread(heads.div_ceil(4), 128)?)
            }
        };
        let sizes = [rows, self.tokens, self.q_heads, self.k_heads, columns];
        let mut params = sizes.into_iter().map(word).collect::<Option<Vec<_>>>()?;
        params.push(self.eps.to_bits());
        Some(Plan { target, source, entry: "qk_norm_rope", constants, maps: Vec::new(), params, grid })
    }
}

/// `None` for tables that are not in f32.
pub(crate) fn qk_norm_rope(
    [q, k]: [Tensor<3>; 2],
    [q_weight, k_weight]: [&Tensor<1>; 2],
    [cos, sin]: [&Tensor<2>; 2],
    eps: f32,
) -> Option<(Tensor<3>, Tensor<3>)> {
    let [batch, tokens, channels] = q.dims();
    let [_, _, k_channels] = k.dims();
    let [head_dim] = q_weight.dims();
    if cos.dtype() != DType::F32 || sin.dtype() != DType::F32 {
        return None;
    }
    let target = Target::of(&q)?;
    let q_heads = channels.checked_div(head_dim)?;
    let k_heads = k_channels.checked_div(head_dim)?;
    let plan = |batch| QkNormRope { batch, tokens, q_heads, k_heads, head_dim, eps }.plan(target);
    let turned = in_parts(batch, plan, |plan, part| {
        let (q, k) = (Buffer::of(part.of(&q), target)?, Buffer::of(part.of(&k), target)?);
        let weights = (Buffer::of(q_weight.clone(), target)?, Buffer::of(k_weight.clone(), target)?);
        let tables = (Buffer::of(cos.clone(), target)?, Buffer::of(sin.clone(), target)?);
        let q_out = q.empty([part.pictures, tokens, channels], target.elem);
        let k_out = k.empty([part.pictures, tokens, k_channels], target.elem);
        plan.launch(&[&q, &k, &weights.0, &weights.1, &tables.0, &tables.1], &[&q_out, &k_out])?;
        Some((q_out.tensor()?, k_out.tensor()?))
    })?;
    let (q, k) = turned.into_iter().unzip();
    Some((joined(q)?, joined(k)?))
}
