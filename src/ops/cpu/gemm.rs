//! `c = residual + gate * activation(a · bᵀ + bias)`, the matrix product behind [`linear`](crate::ops::linear) and
//! [`conv2d`](crate::ops::conv2d).
//!
//! `b` is a weight as stored, `[n, k]`. `a` is whatever fills blocks of rows: tokens, or the pixels under a
//! convolution's kernel (im2col, a block at a time). Sums run over `k` in blocks whose length depends on `k` alone.

use std::ops::Range;

use super::elementwise;
use super::isa::Isa;
use super::kernel::{A_STRIDE, K_BLOCK, ROWS, Tile, WIDE, panel_width};
use super::pack::{self, Elements};
use super::parallel::{self, Shared};
use crate::ops::Nonlinearity;

/// Rows of `a` held in cache at a time.
const ROW_BLOCK: usize = 96;
/// Columns of packed `b` held in cache at a time.
const COLUMN_BLOCK: usize = 512;

/// Elements of `c` that are summed block of k after block of k before the next ones are begun.
const SUMS: usize = 192 * 1024;

/// The left operand, `[m, k]`.
pub(crate) trait Rows: Sync {
    /// Writes rows `rows`, columns `k`, into `block`, a row every [`A_STRIDE`] elements.
    fn fill(&self, rows: Range<usize>, k: Range<usize>, block: &mut [f32]);
}

/// A contiguous `[m, k]` matrix.
pub(crate) struct Matrix<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) k: usize,
}

impl Rows for Matrix<'_> {
    fn fill(&self, rows: Range<usize>, k: Range<usize>, block: &mut [f32]) {
        for (row, out) in rows.zip(block.chunks_mut(A_STRIDE)) {
            out[..k.len()].copy_from_slice(&self.values[row * self.k..][k.clone()]);
        }
    }
}

/// What meets the product element by element.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    /// `[m / rows, n]`.
    pub(crate) values: &'a [f32],
    /// How many consecutive rows of the product share one row of `values`.
    pub(crate) rows: usize,
}

/// One product.
pub(crate) struct Gemm<'a, A> {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) a: &'a A,
    pub(crate) b: Elements<'a>,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) activation: Option<Nonlinearity>,
    pub(crate) gate: Option<Operand<'a>>,
    pub(crate) residual: Option<Operand<'a>>,
}

impl<'a, A: Rows> Gemm<'a, A> {
    /// `[m, n]`.
    pub(crate) fn compute(&self) -> Vec<f32> {
        let mut out = parallel::output(self.m * self.n);
        if self.k == 0 {
            out.fill(0.0);
        }
        let isa = Isa::detect();
        let [row_parts, column_parts] = self.grid();
        let c = Shared::new(&mut out);
        parallel::run(row_parts * column_parts, |index| {
            let rows = parallel::part(self.m, row_parts, 1, index / column_parts);
            let columns = parallel::part(self.n, column_parts, WIDE, index % column_parts);
            self.task(isa, rows, columns, c);
        });
        out
    }

    /// Into how many parts of rows and of columns to cut the product. Every row part packs all of its columns'
    /// weights again, every column part fills all of its rows again.
    fn grid(&self) -> [usize; 2] {
        let tasks = parallel::tasks(self.m * self.n * self.k);
        let panels = self.n.div_ceil(WIDE);
        let cost = |row_parts: usize| {
            let column_parts = (tasks / row_parts).min(panels);
            let rows = self.m.div_ceil(row_parts);
            let columns = panels.div_ceil(column_parts) * WIDE;
            // In cycles for each element of k: a multiply-add takes 1/32, filling `a` 1/8, packing `b` 1/4.
            let parts = (row_parts * column_parts).div_ceil(rayon::current_num_threads());
            (parts * (rows * columns + 4 * rows + 8 * columns), [row_parts, column_parts])
        };
        let choices = (1..=tasks.min(self.m)).filter(|parts| tasks.is_multiple_of(*parts)).map(cost);
        choices.min().map_or([1, 1], |(_, grid)| grid)
    }

    fn task(&self, isa: Isa, rows: Range<usize>, columns: Range<usize>, c: Shared<'_, f32>) {
        if rows.is_empty() || columns.is_empty() {
            return;
        }
        // With few rows, each panel of weights is used while it is still in the first-level cache, and the rows
        // are filled once for all of them.
        let few = self.next_rows(rows.clone()).len() == rows.len();
        let column_block = if few { WIDE } else { COLUMN_BLOCK };
        let packed = column_block.min(columns.len().next_multiple_of(WIDE)) * K_BLOCK;
        parallel::with_scratch([ROW_BLOCK * A_STRIDE, packed], |[a, b]| {
            if few {
                for k in self.k_blocks() {
                    self.a.fill(rows.clone(), k.clone(), a);
                    for start in columns.clone().step_by(WIDE) {
                        let panel = start..(start + WIDE).min(columns.end);
                        self.pack(isa, panel.clone(), k.clone(), b);
                        self.tiles(isa, rows.clone(), panel, k.clone(), a, b, c);
                    }
                }
                return;
            }
            for start in columns.clone().step_by(COLUMN_BLOCK) {
                let block = start..(start + COLUMN_BLOCK).min(columns.end);
                // As many rows as keep their part of `c` in cache from one block of k to the next.
                let height = (SUMS / block.len()).next_multiple_of(ROW_BLOCK);
                for first in rows.clone().step_by(height) {
                    self.block(isa, first..(first + height).min(rows.end), block.clone(), [a, b], c);
                }
            }
        });
    }

    fn block(
        &self,
        isa: Isa,
        rows: Range<usize>,
        columns: Range<usize>,
        [a, b]: [&mut [f32]; 2],
        c: Shared<'_, f32>,
    ) {
        for k in self.k_blocks() {
            self.pack(isa, columns.clone(), k.clone(), b);
            let mut rest = rows.clone();
            while !rest.is_empty() {
                let some = self.next_rows(rest.clone());
                rest.start = some.end;
                self.a.fill(some.clone(), k.clone(), a);
                self.tiles(isa, some, columns.clone(), k.clone(), a, b, c);
            }
        }
    }

    /// Equal blocks of at most [`K_BLOCK`].
    fn k_blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let length = self.k;
        let blocks = length.div_ceil(K_BLOCK);
        let step = length.div_ceil(blocks.max(1)).next_multiple_of(4).clamp(1, K_BLOCK);
        (0..length).step_by(step).map(move |start| start..(start + step).min(length))
    }

    /// The first rows of `rows` that fit a block and share a row of the residual, where that is broadcast.
    fn next_rows(&self, rows: Range<usize>) -> Range<usize> {
        let mut end = rows.end.min(rows.start + ROW_BLOCK);
        if let Some(Operand { rows: shared, .. }) = self.residual
            && shared > 1
        {
            end = end.min((rows.start / shared + 1) * shared);
        }
        rows.start..end
    }

    /// Packs the weights of `columns`, panel after panel.
    fn pack(&self, isa: Isa, columns: Range<usize>, k: Range<usize>, panels: &mut [f32]) {
        for (index, start) in columns.clone().step_by(WIDE).enumerate() {
            let count = (columns.end - start).min(WIDE);
            let panel = &mut panels[index * WIDE * k.len()..];
            pack::transposed(isa, self.b, start * self.k + k.start, self.k, count, k.len(), panel);
        }
    }

    /// `rows` by `columns` of the product, for one block of `k`.
    #[allow(clippy::too_many_arguments, reason = "the loops' whole state")]
    fn tiles(
        &self,
        isa: Isa,
        rows: Range<usize>,
        columns: Range<usize>,
        k: Range<usize>,
        a: &[f32],
        panels: &[f32],
        c: Shared<'_, f32>,
    ) {
        let last = k.end == self.k;
        // The tile adds the residual itself where nothing comes before it.
        let shaped = last && (self.activation.is_some() || self.gate.is_some());
        let heights = rows.len().div_ceil(ROWS);
        for (index, start) in columns.clone().step_by(WIDE).enumerate() {
            let count = (columns.end - start).min(WIDE);
            let b = &panels[index * WIDE * k.len()..][..k.len() * panel_width(count)];
            let bias = self.bias.filter(|_| last).map(|bias| &bias[start..start + count]);
            for tile in 0..heights {
                let part = parallel::part(rows.len(), heights, 1, tile);
                let row = rows.start + part.start;
                let residual = self.residual.filter(|_| last && !shaped).map(|residual| {
                    let stride = if residual.rows == 1 { self.n } else { 0 };
                    (&residual.values[row / residual.rows * self.n + start..], stride)
                });
                let tile = Tile {
                    rows: part.len(),
                    columns: count,
                    k: k.len(),
                    a: &a[part.start * A_STRIDE..],
                    b,
                    c: c.pointer(row * self.n + start),
                    c_stride: self.n,
                    accumulate: k.start > 0,
                    bias,
                    residual,
                };
                // SAFETY: the tile lies inside `[m, n]`, in rows and columns that only this task computes.
                #[allow(unsafe_code, reason = "disjoint tiles of one output")]
                unsafe {
                    tile.compute(isa);
                }
                if shaped {
                    self.shape(row..row + part.len(), start..start + count, c);
                }
            }
        }
    }

    /// Activation, gate and residual of a tile whose sums are complete, while it is still in the first-level cache.
    fn shape(&self, rows: Range<usize>, columns: Range<usize>, c: Shared<'_, f32>) {
        for row in rows {
            let of_row = |operand: Operand<'a>| {
                &operand.values[row / operand.rows * self.n + columns.start..][..columns.len()]
            };
            let start = row * self.n + columns.start;
            // SAFETY: the caller's tile, in rows and columns that only its task computes.
            #[allow(unsafe_code, reason = "disjoint tiles of one output")]
            let y = unsafe { c.slice(start..start + columns.len()) };
            elementwise::shape(self.activation, self.gate.map(of_row), self.residual.map(of_row), y);
        }
    }
}
