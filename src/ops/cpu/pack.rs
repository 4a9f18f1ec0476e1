//! Rearranging operands into what the register tile reads.

use half::{bf16, f16};

use super::isa::Isa;
use super::kernel::{K_BLOCK, WIDE, panel_width};

/// A weight matrix as stored.
#[derive(Clone, Copy)]
pub(crate) enum Elements<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl Elements<'_> {
    /// `out = self[start..][..out.len()]` as f32.
    #[inline]
    fn read(&self, start: usize, out: &mut [f32]) {
        use half::slice::HalfFloatSliceExt;
        let range = start..start + out.len();
        match self {
            Self::F32(values) => out.copy_from_slice(&values[range]),
            Self::F16(values) => values[range].convert_to_f32_slice(out),
            Self::Bf16(values) => values[range].convert_to_f32_slice(out),
        }
    }
}

/// Packs `rows` rows of a row-major matrix, from element `start` on at `stride`, `k` elements each, into the panel
/// `[k, panel_width(rows)]`: the transpose, with zeros for missing rows.
pub(crate) fn transposed(
    isa: Isa,
    matrix: Elements,
    start: usize,
    stride: usize,
    rows: usize,
    k: usize,
    panel: &mut [f32],
) {
    let width = panel_width(rows);
    let panel = &mut panel[..k * width];
    if rows < width {
        panel.fill(0.0);
    }
    if let Elements::F32(values) = matrix {
        return transpose(isa, &values[start..], stride, rows, k, panel);
    }
    // Four rows at a time through a buffer of converted ones.
    let mut buffer = [0.0; 4 * K_BLOCK];
    for row in (0..rows).step_by(4) {
        let count = (rows - row).min(4);
        for (r, out) in buffer.chunks_exact_mut(K_BLOCK).take(count).enumerate() {
            matrix.read(start + (row + r) * stride, &mut out[..k]);
        }
        scalar(&buffer, K_BLOCK, count, 0..k, &mut panel[row..], width);
    }
}

fn transpose(isa: Isa, values: &[f32], stride: usize, rows: usize, k: usize, panel: &mut [f32]) {
    let width = panel_width(rows);
    #[allow(unused_mut, reason = "only x86-64 has a vector form")]
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 && rows == width {
        done = k / 4 * 4;
        assert!(values.len() >= (rows - 1) * stride + k && panel.len() >= k * width);
        for row in (0..width).step_by(16) {
            // SAFETY: AVX-512 was detected; rows `row..row + 16` of `done <= k` elements are in bounds on both sides.
            #[allow(unsafe_code, reason = "vector loads and stores through pointers")]
            unsafe {
                let (from, to) = (values.as_ptr().add(row * stride), panel.as_mut_ptr().add(row));
                sixteen_rows(from, stride, done, to, width);
            }
        }
    }
    let _ = isa;
    scalar(values, stride, rows, done..k, panel, width);
}

/// `panel[k][row] = values[row][k]`.
fn scalar(
    values: &[f32],
    stride: usize,
    rows: usize,
    k: std::ops::Range<usize>,
    panel: &mut [f32],
    width: usize,
) {
    for k in k {
        for row in 0..rows {
            panel[k * width + row] = values[row * stride + k];
        }
    }
}

/// Four columns of sixteen rows become four vectors: quarter-vectors loaded so that each 128-bit lane holds one
/// row of a 4×4 block, then a transpose within lanes.
///
/// # Safety
/// `from` must hold 16 rows of `k` elements at `stride`, `to` must hold `k` rows of 16 at `width`; `k % 4 == 0`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
#[allow(unsafe_code, reason = "vector loads and stores through pointers")]
unsafe fn sixteen_rows(from: *const f32, stride: usize, k: usize, to: *mut f32, width: usize) {
    use std::arch::x86_64::*;
    for column in (0..k).step_by(4) {
        // SAFETY: the caller's.
        unsafe {
            let from = from.add(column);
            let quarter = |row: usize| _mm_loadu_ps(from.add(row * stride));
            let lanes = |row: usize| {
                let x = _mm512_castps128_ps512(quarter(row));
                let x = _mm512_insertf32x4::<1>(x, quarter(row + 4));
                let x = _mm512_insertf32x4::<2>(x, quarter(row + 8));
                _mm512_insertf32x4::<3>(x, quarter(row + 12))
            };
            let (r0, r1, r2, r3) = (lanes(0), lanes(1), lanes(2), lanes(3));
            let (low01, high01) = (_mm512_unpacklo_ps(r0, r1), _mm512_unpackhi_ps(r0, r1));
            let (low23, high23) = (_mm512_unpacklo_ps(r2, r3), _mm512_unpackhi_ps(r2, r3));
            let pair = |a, b| (_mm512_castps_pd(a), _mm512_castps_pd(b));
            let (a, b) = pair(low01, low23);
            let (c, d) = pair(high01, high23);
            let columns = [
                _mm512_unpacklo_pd(a, b),
                _mm512_unpackhi_pd(a, b),
                _mm512_unpacklo_pd(c, d),
                _mm512_unpackhi_pd(c, d),
            ];
            for (i, x) in columns.into_iter().enumerate() {
                _mm512_storeu_ps(to.add((column + i) * width), _mm512_castpd_ps(x));
            }
        }
    }
}

/// Packs `k` rows of a row-major matrix at `stride`, `columns` (at most [`WIDE`]) elements each, into the panel
/// `[k, panel_width(columns)]`, with zeros for missing columns.
pub(crate) fn straight(values: &[f32], stride: usize, columns: usize, k: usize, panel: &mut [f32]) {
    debug_assert!(columns <= WIDE);
    let width = panel_width(columns);
    for (k, row) in panel.chunks_exact_mut(width).take(k).enumerate() {
        row[..columns].copy_from_slice(&values[k * stride..][..columns]);
        row[columns..].fill(0.0);
    }
}
