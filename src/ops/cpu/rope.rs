//! Root-mean-square norm of heads, then rotary positions.

use super::isa::multiversion;
use super::math::fma;
use super::norm::reciprocal_rms;
use super::parallel;

/// Multiply-adds that one element costs, for the decision to use threads.
const WORK: usize = 24;

/// What is applied to queries or keys.
pub(crate) struct NormRope<'a> {
    /// One a channel of a head.
    pub(crate) weight: &'a [f32],
    /// `[tokens, weight.len() / 2]`.
    pub(crate) cos: &'a [f32],
    pub(crate) sin: &'a [f32],
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) eps: f32,
}

impl NormRope<'_> {
    /// `x`: `[batch, tokens, heads, weight.len()]`.
    pub(crate) fn compute(&self, x: &[f32]) -> Vec<f32> {
        let mut out = parallel::output(x.len());
        let row = self.heads * self.weight.len();
        parallel::fill(&mut out, row, WORK * x.len(), |start, out| {
            rows(self, &x[start..start + out.len()], start / row.max(1), out);
        });
        out
    }
}

multiversion! {
    /// `first`: which row of all pictures `x` begins with.
    fn rows(rope: &NormRope<'_>, x: &[f32], first: usize, out: &mut [f32]) {
        let head_dim = rope.weight.len().max(1);
        let pairs = head_dim / 2;
        let (weight, _) = rope.weight.as_chunks::<2>();
        let heads = x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
        for (index, (x, out)) in heads.enumerate() {
            let at = (first + index / rope.heads) % rope.tokens * pairs;
            let table = rope.cos[at..at + pairs].iter().zip(&rope.sin[at..at + pairs]);
            let factor = reciprocal_rms::<FMA>(x, rope.eps);
            let (x, _) = x.as_chunks::<2>();
            let (out, _) = out.as_chunks_mut::<2>();
            for ((out, x), (weight, (cos, sin))) in out.iter_mut().zip(x).zip(weight.iter().zip(table)) {
                let (a, b) = (x[0] * factor * weight[0], x[1] * factor * weight[1]);
                *out = [fma::<FMA>(a, *cos, -(b * sin)), fma::<FMA>(b, *cos, a * sin)];
            }
        }
    }
}
