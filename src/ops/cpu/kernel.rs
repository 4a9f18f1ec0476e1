//! The register tile: `c = a · b` for up to 12 rows and 32 columns.
//!
//! Each element of `c` is one chain of fused multiply-adds over `k` in ascending order, whatever the tile's
//! height, so a row's bits do not depend on which rows share its tile.

use super::isa::Isa;

/// Longest run of `k` in one pass; longer sums add such passes in order.
pub(crate) const K_BLOCK: usize = 320;
/// Distance between the rows of a packed block of `a`: an odd number of cache lines, so that the rows of a tile
/// fall into different sets of the first-level cache.
pub(crate) const A_STRIDE: usize = K_BLOCK + 16;
/// Most rows of a tile.
pub(crate) const ROWS: usize = 12;
/// Columns of a full panel of `b`; a last panel of at most half as many columns is [`NARROW`].
pub(crate) const WIDE: usize = 32;
/// Columns of a narrow panel.
pub(crate) const NARROW: usize = 16;

/// Columns that a panel holding `columns` used ones is packed to.
#[inline]
pub(crate) fn panel_width(columns: usize) -> usize {
    if columns > NARROW { WIDE } else { NARROW }
}

/// One register tile's operands.
pub(crate) struct Tile<'a> {
    /// Rows, 1 to [`ROWS`].
    pub(crate) rows: usize,
    /// Used columns, 1 to [`WIDE`].
    pub(crate) columns: usize,
    /// Length of the sum, at most [`K_BLOCK`].
    pub(crate) k: usize,
    /// Row `r` starts at `r * A_STRIDE`.
    pub(crate) a: &'a [f32],
    /// `[k, panel_width(columns)]`.
    pub(crate) b: &'a [f32],
    /// Row `r` starts at `r * c_stride`.
    pub(crate) c: *mut f32,
    /// In elements.
    pub(crate) c_stride: usize,
    /// Add to what `c` holds, rather than overwrite it.
    pub(crate) accumulate: bool,
    /// Added to every row: `[columns]`.
    pub(crate) bias: Option<&'a [f32]>,
    /// Added to row `r`: the `columns` elements from `r * stride` on.
    pub(crate) residual: Option<(&'a [f32], usize)>,
}

impl Tile<'_> {
    /// Computes the tile.
    ///
    /// # Safety
    /// `c` must be valid for reads and writes of the tile's `columns` elements in each of its `rows`, and no other
    /// thread may touch them meanwhile.
    #[allow(unsafe_code, reason = "writes interleaved columns that other threads' tiles surround")]
    pub(crate) unsafe fn compute(&self, isa: Isa) {
        debug_assert!((1..=ROWS).contains(&self.rows) && (1..=WIDE).contains(&self.columns));
        assert!(self.a.len() >= (self.rows - 1) * A_STRIDE + self.k);
        assert!(self.b.len() >= self.k * panel_width(self.columns));
        if let Some(bias) = self.bias {
            assert!(bias.len() >= self.columns);
        }
        if let Some((residual, stride)) = self.residual {
            assert!(residual.len() >= (self.rows - 1) * stride + self.columns);
        }
        match isa {
            // SAFETY: `Isa::detect` found the features; the lengths are checked above, `c` by the caller.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512::compute(self) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { generic::compute_avx2(self) },
            // SAFETY: as above.
            Isa::Portable => unsafe { generic::compute::<{ super::isa::PORTABLE_FMA }>(self) },
        }
    }
}

/// 12 rows by two vectors: 24 accumulators, 2 registers of `b` and 1 of `a`.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "vector loads and stores through pointers")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{A_STRIDE, NARROW, Tile};

    /// # Safety
    /// As [`Tile::compute`], with its length checks done; needs AVX-512 F.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) unsafe fn compute(tile: &Tile) {
        macro_rules! by_height {
            ($vectors:literal: $($rows:literal)*) => {
                match tile.rows {
                    // SAFETY: the caller's.
                    $($rows => unsafe { fixed::<$rows, $vectors>(tile) },)*
                    _ => {}
                }
            };
        }
        if tile.columns > NARROW {
            by_height!(2: 1 2 3 4 5 6 7 8 9 10 11 12);
        } else {
            by_height!(1: 1 2 3 4 5 6 7 8 9 10 11 12);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn fixed<const R: usize, const V: usize>(tile: &Tile) {
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        let mut a = tile.a.as_ptr();
        let mut b = tile.b.as_ptr();
        for _ in 0..tile.k {
            // SAFETY: `a` has `k` elements in each row and `b` has `k` rows of `16 V`.
            unsafe {
                let mut columns = [_mm512_setzero_ps(); V];
                for (v, column) in columns.iter_mut().enumerate() {
                    *column = _mm512_loadu_ps(b.add(16 * v));
                }
                for (r, sum) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*a.add(r * A_STRIDE));
                    for v in 0..V {
                        sum[v] = _mm512_fmadd_ps(x, columns[v], sum[v]);
                    }
                }
                a = a.add(1);
                b = b.add(16 * V);
            }
        }
        // SAFETY: the masks keep to `columns`; the rest is the caller's word.
        unsafe { store::<R, V>(tile, &sums) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn store<const R: usize, const V: usize>(tile: &Tile, sums: &[[__m512; V]; R]) {
        for v in 0..V {
            let used = (tile.columns - 16 * v).min(16) as u32;
            let mask = ((1_u32 << used) - 1) as __mmask16;
            // SAFETY: masked to the tile's columns.
            unsafe {
                for (r, sum) in sums.iter().enumerate() {
                    let c = tile.c.add(r * tile.c_stride + 16 * v);
                    let mut y = sum[v];
                    if tile.accumulate {
                        y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, c), y);
                    }
                    if let Some(bias) = tile.bias {
                        y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, bias.as_ptr().add(16 * v)));
                    }
                    if let Some((residual, stride)) = tile.residual {
                        let residual = residual.as_ptr().add(r * stride + 16 * v);
                        y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, residual));
                    }
                    _mm512_mask_storeu_ps(c, mask, y);
                }
            }
        }
    }
}

/// 4 rows by 16 columns at a time, left to the compiler's vectoriser: 8 accumulators of AVX2.
#[allow(unsafe_code, reason = "writes interleaved columns that other threads' tiles surround")]
mod generic {
    use super::{A_STRIDE, Tile, panel_width};
    use crate::ops::cpu::math::fma;

    const LANES: usize = 16;

    /// # Safety
    /// As [`Tile::compute`]; needs AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn compute_avx2(tile: &Tile) {
        // SAFETY: the caller's.
        unsafe { compute::<true>(tile) }
    }

    /// # Safety
    /// As [`Tile::compute`].
    #[inline(always)]
    pub(super) unsafe fn compute<const FMA: bool>(tile: &Tile) {
        let mut row = 0;
        while row < tile.rows {
            let rows = (tile.rows - row).min(4);
            for column in (0..tile.columns).step_by(LANES) {
                let sums = match rows {
                    1 => product::<1, FMA>(tile, row, column),
                    2 => product::<2, FMA>(tile, row, column),
                    3 => product::<3, FMA>(tile, row, column),
                    _ => product::<4, FMA>(tile, row, column),
                };
                for (r, sums) in sums.iter().enumerate().take(rows) {
                    // SAFETY: the caller's.
                    unsafe { store(tile, row + r, column, sums) };
                }
            }
            row += rows;
        }
    }

    #[inline(always)]
    fn product<const R: usize, const FMA: bool>(tile: &Tile, row: usize, column: usize) -> [[f32; LANES]; 4] {
        let mut sums = [[0.0; LANES]; R];
        let rows: [&[f32]; R] = std::array::from_fn(|r| &tile.a[(row + r) * A_STRIDE..][..tile.k]);
        let panel = tile.b.chunks_exact(panel_width(tile.columns));
        for (k, b) in panel.take(tile.k).enumerate() {
            let b = &b[column..column + LANES];
            for r in 0..R {
                let a = rows[r][k];
                for lane in 0..LANES {
                    sums[r][lane] = fma::<FMA>(a, b[lane], sums[r][lane]);
                }
            }
        }
        let mut all = [[0.0; LANES]; 4];
        all[..R].copy_from_slice(&sums);
        all
    }

    /// # Safety
    /// `tile.c` must be valid for the row's columns.
    #[inline(always)]
    unsafe fn store(tile: &Tile, row: usize, column: usize, sums: &[f32; LANES]) {
        for (lane, &sum) in sums.iter().enumerate().take(tile.columns - column) {
            let column = column + lane;
            // SAFETY: `row` and `column` lie in the tile.
            let c = unsafe { &mut *tile.c.add(row * tile.c_stride + column) };
            let mut y = if tile.accumulate { *c + sum } else { sum };
            if let Some(bias) = tile.bias {
                y += bias[column];
            }
            if let Some((residual, stride)) = tile.residual {
                y += residual[row * stride + column];
            }
            *c = y;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiples of 1/64 whose sums of products are exact in f32.
    fn exact(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 11) % 127) as f32 / 64.0 - 1.0).collect()
    }

    fn compute(isa: Isa, rows: usize, columns: usize, k: usize) -> Vec<f32> {
        let (a, b) = (exact(rows * A_STRIDE, 1), exact(k * panel_width(columns), 2));
        let (bias, residual) = (exact(columns, 3), exact(rows * 40, 4));
        let mut c = exact(rows * 33, 5);
        let tile = Tile {
            rows,
            columns,
            k,
            a: &a,
            b: &b,
            c: c.as_mut_ptr(),
            c_stride: 33,
            accumulate: true,
            bias: Some(&bias),
            residual: Some((&residual, 40)),
        };
        // SAFETY: `c` has `rows` rows of 33 >= `columns` elements and is ours alone.
        #[allow(unsafe_code, reason = "the tile writes through a pointer")]
        unsafe {
            tile.compute(isa);
        }
        c
    }

    fn expected(rows: usize, columns: usize, k: usize) -> Vec<f32> {
        let (a, b) = (exact(rows * A_STRIDE, 1), exact(k * panel_width(columns), 2));
        let (bias, residual) = (exact(columns, 3), exact(rows * 40, 4));
        let mut c = exact(rows * 33, 5);
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            let products = (0..k).map(|k| a[row * A_STRIDE + k] * b[k * panel_width(columns) + column]);
            c[row * 33 + column] += products.sum::<f32>() + bias[column] + residual[row * 40 + column];
        }
        c
    }

    #[test]
    fn every_instruction_set_computes_every_tile_and_nothing_beside_it() {
        let best = Isa::detect();
        let mut sets = vec![Isa::Portable, best];
        #[cfg(target_arch = "x86_64")]
        if best == Isa::Avx512 {
            sets.push(Isa::Avx2);
        }
        for isa in sets {
            for rows in 1..=ROWS {
                for columns in 1..=WIDE {
                    for k in [1, 2, 37] {
                        let what = format!("{isa:?} {rows}x{columns}x{k}");
                        assert_eq!(compute(isa, rows, columns, k), expected(rows, columns, k), "{what}");
                    }
                }
            }
        }
    }
}
