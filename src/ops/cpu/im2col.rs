//! The rows that a convolution multiplies: the pixels under its kernel.

use std::ops::Range;

use super::gemm::Rows;
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
    /// The part `k` of output pixel `row`'s column vector. A row of the kernel covers a contiguous run of the
    /// input, which is cut where it leaves the picture.
    #[inline]
    fn fill_row(&self, row: usize, k: Range<usize>, out: &mut [f32]) {
        let [out_height, out_width] = self.output;
        let (picture, pixel) = (row / (out_height * out_width), row % (out_height * out_width));
        let (y, x) = (pixel / out_width * self.stride, pixel % out_width * self.stride);
        let run = self.kernel[1] * self.channels;
        let line = self.width * self.channels;
        // Elements of a run that lie left of the picture, and where its right edge is.
        let left = (self.padding[1].saturating_sub(x) * self.channels).min(run);
        let right = ((self.width + self.padding[1]).saturating_sub(x) * self.channels).clamp(left, run);
        let mut at = k.start;
        while at < k.end {
            let (ky, from) = (at / run, at % run);
            let to = run.min(from + k.end - at);
            let out = &mut out[at - k.start..][..to - from];
            at += to - from;
            let inside = (y + ky).checked_sub(self.padding[0]).filter(|y| *y < self.height);
            let (first, last) = (left.clamp(from, to), right.clamp(from, to));
            let Some(y) = inside.filter(|_| first < last) else {
                out.fill(0.0);
                continue;
            };
            let start = (picture * self.height + y) * line + x * self.channels + first
                - self.padding[1] * self.channels;
            out[..first - from].fill(0.0);
            out[first - from..last - from].copy_from_slice(&self.values[start..start + last - first]);
            out[last - from..].fill(0.0);
        }
    }
}

impl Rows for Im2col<'_> {
    fn fill(&self, rows: Range<usize>, k: Range<usize>, block: &mut [f32]) {
        for (row, out) in rows.zip(block.chunks_mut(A_STRIDE)) {
            self.fill_row(row, k.clone(), &mut out[..k.len()]);
        }
    }
}
