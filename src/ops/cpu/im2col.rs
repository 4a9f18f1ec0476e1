//! The rows that a convolution multiplies: the pixels under its kernel.

use std::ops::Range;

use super::gemm::Rows;
use super::isa::multiversion;
use super::kernel::A_STRIDE;

/// Rows `[batch * out_height * out_width]`, columns `[kh, kw, channels]`, of a channels-last input.
pub(crate) struct Im2col<'a> {
    /// `[batch, height, width, channels]`.
    pub(crate) values: &'a [f32],
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    /// `[height, width]`.
    pub(crate) output: [usize; 2],
    /// `[height, width]`.
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: usize,
    /// Top and left.
    pub(crate) padding: [usize; 2],
}

impl Im2col<'_> {
    /// The part `k` of the column vectors of some output pixels. A row of the kernel covers a contiguous run of the
    /// input, which is cut where it leaves the picture.
    #[inline(always)]
    fn fill_rows(&self, rows: Range<usize>, k: Range<usize>, block: &mut [f32]) {
        let [out_height, out_width] = self.output;
        let run = self.kernel[1] * self.channels;
        let line = self.width * self.channels;
        let first_ky = k.start / run;
        let mut picture = rows.start / (out_height * out_width);
        let mut oy = rows.start / out_width % out_height;
        let mut ox = rows.start % out_width;
        for block in block.chunks_mut(A_STRIDE).take(rows.len()) {
            let (y, x) = (oy * self.stride, ox * self.stride);
            // Elements of a run that lie left of the picture, and where its right edge is.
            let left = (self.padding[1].saturating_sub(x) * self.channels).min(run);
            let right = ((self.width + self.padding[1]).saturating_sub(x) * self.channels).clamp(left, run);
            let (mut ky, mut start) = (first_ky, first_ky * run);
            while start < k.end {
                let (from, to) = (k.start.saturating_sub(start), run.min(k.end - start));
                let (first, last) = (left.clamp(from, to), right.clamp(from, to));
                let out = &mut block[start + from - k.start..start + to - k.start];
                let inside = (y + ky).checked_sub(self.padding[0]).filter(|y| *y < self.height);
                match inside {
                    Some(y) if first < last => {
                        let at = (picture * self.height + y) * line + x * self.channels + first
                            - self.padding[1] * self.channels;
                        copy(&self.values[at..at + last - first], &mut out[first - from..last - from]);
                        if last - first < to - from {
                            out[..first - from].fill(0.0);
                            out[last - from..].fill(0.0);
                        }
                    }
                    _ => out.fill(0.0),
                }
                (ky, start) = (ky + 1, start + run);
            }
            ox += 1;
            if ox == out_width {
                (ox, oy) = (0, oy + 1);
                if oy == out_height {
                    (oy, picture) = (0, picture + 1);
                }
            }
        }
    }
}

/// Copies by sixteens, the last of them overlapping: runs are short, and a call of `memcpy` costs more than they do.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    let (Some(from_last), Some(to_last)) = (from.last_chunk::<16>(), to.last_chunk_mut::<16>()) else {
        return to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    };
    *to_last = *from_last;
    for (to, from) in to.as_chunks_mut::<16>().0.iter_mut().zip(from.as_chunks::<16>().0) {
        *to = *from;
    }
}

multiversion! {
    fn fill(conv: &Im2col<'_>, rows: Range<usize>, k: Range<usize>, block: &mut [f32]) {
        conv.fill_rows(rows, k, block);
    }
}

impl Rows for Im2col<'_> {
    fn fill(&self, rows: Range<usize>, k: Range<usize>, block: &mut [f32]) {
        fill(self, rows, k, block);
    }
}
