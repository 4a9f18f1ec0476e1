//! Multi-head scaled dot-product attention.

use burn::tensor::Tensor;

use super::{Buffer, Launch, word};
use crate::ops::Mask;

const ATTENTION: &[&str] = &[include_str!("../../../kernels/wgsl/attention.wgsl")];

/// `None` for sizes of a head that the kernel is not written for.
pub(crate) fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    heads: usize,
    mask: Mask,
) -> Option<Tensor<3>> {
    let [batch, queries, channels] = q.dims();
    let keys = k.dims()[1];
    let head_dim = channels.checked_div(heads)?;
    if head_dim % 8 != 0 || head_dim > 512 || batch * queries * keys * head_dim == 0 {
        return None;
    }
    // At most 256 threads share the queries of a workgroup, 8 of them by 8 dims each.
    let rows = if head_dim > 256 { 32 } else { 64 };
    let (q, k, v) = (Buffer::of(q)?, Buffer::of(k)?, Buffer::of(v)?);
    let y = q.empty([batch, queries, channels], q.dtype());
    word(batch * queries.max(keys) * channels)?;
    let scale = (head_dim as f32).sqrt().recip();
    Launch {
        source: ATTENTION,
        entry: "attention",
        elem: q.dtype(),
        constants: &[("WIDTH", 4), ("D", word(head_dim)?), ("QUERIES", word(rows)?)],
        inputs: &[&q, &k, &v],
        outputs: &[&y],
        params: &[
            word(queries)?,
            word(keys)?,
            word(heads)?,
            scale.to_bits(),
            u32::from(mask == Mask::Causal),
        ],
        cubes: [queries.div_ceil(rows), heads, batch],
    }
    .run()?;
    y.tensor()
}
