//! Queries and keys on their way into attention: root-mean-square norm of every head, then rotary positions.

use burn::tensor::{DType, Tensor};

/// Plain burn operations, in f32.
pub fn reference(
    q: Tensor<3>,
    k: Tensor<3>,
    q_weight: &Tensor<1>,
    k_weight: &Tensor<1>,
    cos: &Tensor<2>,
    sin: &Tensor<2>,
    eps: f32,
) -> (Tensor<3>, Tensor<3>) {
    let turn = |x: Tensor<3>, weight: &Tensor<1>| {
        let dtype = x.dtype();
        let [batch, tokens, channels] = x.dims();
        let [head_dim] = weight.dims();
        let (heads, pairs) = (channels / head_dim, head_dim / 2);
        let x = x.cast(DType::F32).reshape([batch, tokens, heads, head_dim]);
        let mean = x.clone().square().mean_dim(3);
        let weight = weight.clone().cast(DType::F32).reshape([1, 1, 1, head_dim]);
        let x = (x / (mean + eps).sqrt() * weight).reshape([batch, tokens, heads, pairs, 2]);
        let (a, b) = (x.clone().narrow(4, 0, 1), x.narrow(4, 1, 1));
        let table = |table: &Tensor<2>| table.clone().cast(DType::F32).reshape([1, tokens, 1, pairs, 1]);
        let (cos, sin) = (table(cos), table(sin));
        let first = a.clone() * cos.clone() - b.clone() * sin.clone();
        let second = b * cos + a * sin;
        Tensor::cat(vec![first, second], 4).reshape([batch, tokens, channels]).cast(dtype)
    };
    (turn(q, q_weight), turn(k, k_weight))
}

/// One pass over each head, its sum in f64.
#[cfg(feature = "cpu")]
pub(crate) fn cpu(
    q: Tensor<3>,
    k: Tensor<3>,
    q_weight: &Tensor<1>,
    k_weight: &Tensor<1>,
    cos: &Tensor<2>,
    sin: &Tensor<2>,
    eps: f32,
) -> (Tensor<3>, Tensor<3>) {
    use super::cpu::{self, Host, rope::NormRope};

    let (cos, sin) = (Host::new(cos.clone()), Host::new(sin.clone()));
    let turn = |x: Tensor<3>, weight: &Tensor<1>| {
        let dtype = x.dtype();
        let shape = x.dims();
        let [_, tokens, channels] = shape;
        let [head_dim] = weight.dims();
        let weight = Host::new(weight.clone());
        let rope = NormRope {
            weight: &weight.f32(),
            cos: &cos.f32(),
            sin: &sin.f32(),
            tokens,
            heads: channels / head_dim,
            eps,
        };
        cpu::tensor(rope.compute(&Host::new(x).f32()), shape, dtype)
    };
    (turn(q, q_weight), turn(k, k_weight))
}
