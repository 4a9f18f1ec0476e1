//! Multi-head scaled dot-product attention.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Tensor};

use super::Mask;

/// Plain burn operations, in f32.
pub fn reference(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize, mask: Mask) -> Tensor<3> {
    let dtype = q.dtype();
    let [batch, queries, channels] = q.dims();
    let keys = k.dims()[1];
    let head_dim = channels / heads;
    let split =
        |x: Tensor<3>, rows| x.cast(DType::F32).reshape([batch, rows, heads, head_dim]).permute([0, 2, 1, 3]);
    // The scale goes to the queries, so that large scores cannot overflow first.
    let q = split(q, queries) * (head_dim as f32).sqrt().recip();
    let mut scores = q.matmul(split(k, keys).transpose());
    if mask == Mask::Causal {
        let hidden = Tensor::<2, Bool>::tril_mask([queries, keys], 0, &scores.device());
        let hidden = hidden.reshape([1, 1, queries, keys]).expand([batch, heads, queries, keys]);
        scores = scores.mask_fill(hidden, f32::NEG_INFINITY);
    }
    let y = softmax(scores, 3).matmul(split(v, keys));
    y.permute([0, 2, 1, 3]).reshape([batch, queries, channels]).cast(dtype)
}

/// The tiled form of [`cpu::attention`](super::cpu::attention).
#[cfg(feature = "cpu")]
pub(crate) fn cpu(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize, mask: Mask) -> Tensor<3> {
    use super::cpu::{self, Host, attention::Attention};

    let dtype = q.dtype();
    let [batch, queries, channels] = q.dims();
    let [_, keys, _] = k.dims();
    let (q, k, v) = (Host::new(q), Host::new(k), Host::new(v));
    let attention = Attention {
        q: &q.f32(),
        k: &k.f32(),
        v: &v.f32(),
        batch,
        queries,
        keys,
        heads,
        head_dim: channels / heads,
        causal: mask == Mask::Causal,
    };
    cpu::tensor(attention.compute(), [batch, queries, channels], dtype)
}
