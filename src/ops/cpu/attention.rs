//! Attention in tiles (Dao et al. 2022, "FlashAttention"): scores of a block of queries and keys at a time, with a
//! running maximum and sum, so that no full score matrix exists.
//!
//! Keys are taken in blocks of fixed length, in order; a query's bits depend on its own row and on the keys alone.

use std::ops::Range;

use super::isa::{Isa, multiversion};
use super::kernel::{A_STRIDE, K_BLOCK, ROWS, Tile, WIDE, panel_width};
use super::math::exp;
use super::pack::{self, Elements};
use super::parallel::{self, Shared};

/// Queries in a block.
const QUERY_BLOCK: usize = 96;
/// Keys in a block.
const KEY_BLOCK: usize = 256;

/// One call's shapes and operands; `q` is `[batch, queries, heads * head_dim]`, `k` and `v` have `keys` rows.
pub(crate) struct Attention<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    pub(crate) batch: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) causal: bool,
}

/// A block of queries' running maxima and sums.
struct Running<'a> {
    maximum: &'a mut [f32],
    sum: &'a mut [f32],
}

impl Attention<'_> {
    /// `[batch, queries, heads * head_dim]`.
    pub(crate) fn compute(&self) -> Vec<f32> {
        let isa = Isa::detect();
        let channels = self.heads * self.head_dim;
        let mut out = parallel::output(self.batch * self.queries * channels);
        let pairs = self.batch * self.heads;
        // Softmax costs about as much as 32 multiply-adds a score.
        let tasks = parallel::tasks(pairs * self.queries * self.keys * (2 * self.head_dim + 32));
        let blocks = self.queries.div_ceil(QUERY_BLOCK);
        let splits = tasks.div_ceil(pairs.max(1)).clamp(1, blocks.max(1));
        let c = Shared::new(&mut out);
        let groups = if tasks == 1 { 1 } else { pairs * splits };
        parallel::run(groups, |group| {
            for index in parallel::part(pairs * splits, groups, 1, group) {
                let queries = parallel::part(self.queries, splits, QUERY_BLOCK, index % splits);
                self.head(isa, index / splits, queries, c);
            }
        });
        out
    }

    /// One picture's one head, for some of its queries.
    fn head(&self, isa: Isa, pair: usize, queries: Range<usize>, out: Shared<'_, f32>) {
        let (batch, head) = (pair / self.heads, pair % self.heads);
        let channels = self.heads * self.head_dim;
        let q = (batch * self.queries) * channels + head * self.head_dim;
        let k = (batch * self.keys) * channels + head * self.head_dim;
        let padded = self.head_dim.next_multiple_of(WIDE);
        let rows = queries.len().min(QUERY_BLOCK);
        let lengths = [
            rows * A_STRIDE,
            rows * A_STRIDE,
            KEY_BLOCK * self.head_dim,
            KEY_BLOCK * padded,
            queries.len(),
            queries.len(),
        ];
        parallel::with_scratch(lengths, |[a, scores, packed_k, packed_v, maximum, sum]| {
            maximum.fill(f32::NEG_INFINITY);
            sum.fill(0.0);
            for start in (0..self.keys).step_by(KEY_BLOCK) {
                let keys = start..(start + KEY_BLOCK).min(self.keys);
                if self.causal && keys.start >= queries.end {
                    break;
                }
                self.pack_keys(isa, k, keys.clone(), packed_k);
                self.pack_values(k, keys.clone(), packed_v);
                for first in queries.clone().step_by(QUERY_BLOCK) {
                    let block = first..(first + QUERY_BLOCK).min(queries.end);
                    let state = block.start - queries.start..block.end - queries.start;
                    let running = Running { maximum: &mut maximum[state.clone()], sum: &mut sum[state] };
                    self.scores(isa, q, block.clone(), keys.len(), packed_k, a, scores);
                    let c = out.pointer(q + block.start * channels);
                    self.softmax(block.clone(), keys.clone(), scores, running, c);
                    self.values(isa, block.len(), keys.clone(), scores, packed_v, c);
                }
            }
            for (row, sum) in queries.clone().zip(sum.iter()) {
                let start = q + row * channels;
                // SAFETY: this head's columns of this task's queries.
                #[allow(unsafe_code, reason = "disjoint parts of one output")]
                let out = unsafe { out.slice(start..start + self.head_dim) };
                scale(out, sum.recip());
            }
        });
    }

    /// Kᵀ of some keys: for each block of the head dimension, panels of 32 keys.
    fn pack_keys(&self, isa: Isa, offset: usize, keys: Range<usize>, packed: &mut [f32]) {
        let channels = self.heads * self.head_dim;
        for d in blocks(self.head_dim) {
            for first in (0..keys.len()).step_by(WIDE) {
                let count = (keys.len() - first).min(WIDE);
                let start = offset + (keys.start + first) * channels + d.start;
                let panel = &mut packed[d.start * KEY_BLOCK + first * d.len()..];
                pack::transposed(isa, Elements::F32(self.k), start, channels, count, d.len(), panel);
            }
        }
    }

    /// V of some keys: panels of 32 of the head's columns.
    fn pack_values(&self, offset: usize, keys: Range<usize>, packed: &mut [f32]) {
        let channels = self.heads * self.head_dim;
        for column in (0..self.head_dim).step_by(WIDE) {
            let count = (self.head_dim - column).min(WIDE);
            let values = &self.v[offset + keys.start * channels + column..];
            pack::straight(values, channels, count, keys.len(), &mut packed[column * KEY_BLOCK..]);
        }
    }

    /// `scores = q / sqrt(d) · kᵀ` for a block of queries and `keys` packed keys.
    #[allow(clippy::too_many_arguments, reason = "the loops' whole state")]
    fn scores(
        &self,
        isa: Isa,
        offset: usize,
        queries: Range<usize>,
        keys: usize,
        packed: &[f32],
        a: &mut [f32],
        scores: &mut [f32],
    ) {
        let channels = self.heads * self.head_dim;
        let factor = (self.head_dim as f32).sqrt().recip();
        let c = scores.as_mut_ptr();
        for d in blocks(self.head_dim) {
            for (row, out) in queries.clone().zip(a.chunks_mut(A_STRIDE)) {
                let q = &self.q[offset + row * channels..][d.clone()];
                out.iter_mut().zip(q).for_each(|(out, q)| *out = q * factor);
            }
            for first in (0..keys).step_by(WIDE) {
                let columns = (keys - first).min(WIDE);
                let panel = &packed[d.start * KEY_BLOCK + first * d.len()..];
                let product = Product {
                    rows: queries.len(),
                    columns,
                    k: d.len(),
                    a,
                    b: panel,
                    stride: A_STRIDE,
                    accumulate: d.start > 0,
                };
                // SAFETY: `scores` has A_STRIDE >= KEY_BLOCK columns in each query's row, and is ours.
                #[allow(unsafe_code, reason = "the register tile writes through a pointer")]
                unsafe {
                    product.compute(isa, c.add(first));
                }
            }
        }
    }

    /// Turns scores into `exp(score - maximum)`, zero where masked, and rescales what was summed before.
    fn softmax(
        &self,
        queries: Range<usize>,
        keys: Range<usize>,
        scores: &mut [f32],
        running: Running<'_>,
        c: *mut f32,
    ) {
        let channels = self.heads * self.head_dim;
        let state = running.maximum.iter_mut().zip(running.sum);
        for (row, (scores, (maximum, sum))) in scores.chunks_mut(A_STRIDE).zip(state).enumerate() {
            let seen = if self.causal {
                (queries.start + row + 1).saturating_sub(keys.start).min(keys.len())
            } else {
                keys.len()
            };
            let (seen, masked) = scores[..keys.len()].split_at_mut(seen);
            masked.fill(0.0);
            let correction = softmax_row(seen, maximum, sum);
            if keys.start > 0 {
                // SAFETY: this head's columns of this task's query.
                #[allow(unsafe_code, reason = "disjoint parts of one output")]
                let out = unsafe { std::slice::from_raw_parts_mut(c.add(row * channels), self.head_dim) };
                scale(out, correction);
            }
        }
    }

    /// `out += scores · v`.
    fn values(&self, isa: Isa, rows: usize, keys: Range<usize>, scores: &[f32], packed: &[f32], c: *mut f32) {
        for column in (0..self.head_dim).step_by(WIDE) {
            let product = Product {
                rows,
                columns: (self.head_dim - column).min(WIDE),
                k: keys.len(),
                a: scores,
                b: &packed[column * KEY_BLOCK..],
                stride: self.heads * self.head_dim,
                accumulate: keys.start > 0,
            };
            // SAFETY: this head's columns of this task's queries.
            #[allow(unsafe_code, reason = "the register tile writes through a pointer")]
            unsafe {
                product.compute(isa, c.add(column));
            }
        }
    }
}

/// The head dimension in blocks that one pass of the register tile sums.
fn blocks(length: usize) -> impl Iterator<Item = Range<usize>> {
    (0..length).step_by(K_BLOCK).map(move |start| start..(start + K_BLOCK).min(length))
}

/// Some rows times one panel.
struct Product<'a> {
    rows: usize,
    columns: usize,
    k: usize,
    a: &'a [f32],
    b: &'a [f32],
    stride: usize,
    accumulate: bool,
}

impl Product<'_> {
    /// # Safety
    /// `c` must be valid and unshared for `columns` elements in each of `rows` rows at `stride`.
    #[allow(unsafe_code, reason = "the register tile writes through a pointer")]
    unsafe fn compute(&self, isa: Isa, c: *mut f32) {
        let heights = self.rows.div_ceil(ROWS);
        for index in 0..heights {
            let part = parallel::part(self.rows, heights, 1, index);
            let tile = Tile {
                rows: part.len(),
                columns: self.columns,
                k: self.k,
                a: &self.a[part.start * A_STRIDE..],
                b: &self.b[..self.k * panel_width(self.columns)],
                c: c.wrapping_add(part.start * self.stride),
                c_stride: self.stride,
                accumulate: self.accumulate,
                bias: None,
                residual: None,
            };
            // SAFETY: the caller's.
            unsafe { tile.compute(isa) };
        }
    }
}

multiversion! {
    /// `scores = exp(scores - m)` with `m` the larger of `maximum` and theirs; updates `maximum` and `sum` and
    /// returns what earlier sums are to be multiplied by. Sixteen partial maxima and sums, joined in order.
    fn softmax_row(scores: &mut [f32], maximum: &mut f32, sum: &mut f32) -> f32 {
        let larger = |a: f32, b: f32| if a > b { a } else { b };
        let mut largest = [*maximum; 16];
        let (chunks, tail) = scores.as_chunks::<16>();
        for chunk in chunks {
            for lane in 0..16 {
                largest[lane] = larger(largest[lane], chunk[lane]);
            }
        }
        let joined = largest.iter().chain(tail).copied().fold(*maximum, larger);
        let mut sums = [0.0_f32; 16];
        let (chunks, tail) = scores.as_chunks_mut::<16>();
        for chunk in chunks {
            for lane in 0..16 {
                chunk[lane] = exp::<FMA>(chunk[lane] - joined);
                sums[lane] += chunk[lane];
            }
        }
        for (lane, score) in tail.iter_mut().enumerate() {
            *score = exp::<FMA>(*score - joined);
            sums[lane] += *score;
        }
        let correction = if *maximum == joined { 1.0 } else { exp::<FMA>(*maximum - joined) };
        *maximum = joined;
        *sum = *sum * correction + sums.iter().sum::<f32>();
        correction
    }
}

fn scale(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|value| *value *= factor);
}
