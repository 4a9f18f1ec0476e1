//! Group, layer and root-mean-square normalisation. Sums in f64: one pass over the input gives mean and variance without
//! cancellation that f32 could see.

use super::isa::multiversion;
use super::math::{fma, fma64, swish};
use super::parallel::{self, Shared};

/// Multiply-adds that normalising one element costs, for the decision to use threads.
const WORK: usize = 24;

/// One group normalisation's shapes and parameters.
pub(crate) struct GroupNorm<'a> {
    /// Pixels of a picture.
    pub(crate) pixels: usize,
    pub(crate) channels: usize,
    pub(crate) groups: usize,
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) eps: f32,
    pub(crate) silu: bool,
}

impl GroupNorm<'_> {
    /// `x`: `[batch, pixels, channels]`. A task takes a picture and some of its groups.
    pub(crate) fn compute(&self, x: &[f32]) -> Vec<f32> {
        let mut out = parallel::output(x.len());
        let picture = self.pixels * self.channels;
        if picture == 0 {
            return out;
        }
        let batch = x.len() / picture;
        let tasks = parallel::tasks(WORK * x.len());
        // A multiple of 16 channels, so that two threads never write to one cache line.
        let size = self.channels / self.groups;
        let unit = (1..=16).find(|n| (n * size).is_multiple_of(16)).unwrap_or(16);
        let splits = tasks.div_ceil(batch).min(self.groups.div_ceil(unit)).max(1);
        let c = Shared::new(&mut out);
        let jobs = if tasks == 1 { 1 } else { batch * splits };
        parallel::run(jobs, |job| {
            for index in parallel::part(batch * splits, jobs, 1, job) {
                let start = index / splits * picture;
                let groups = parallel::part(self.groups, splits, unit, index % splits);
                self.groups(&x[start..start + picture], groups, start, c);
            }
        });
        out
    }

    fn groups(&self, x: &[f32], groups: std::ops::Range<usize>, offset: usize, out: Shared<'_, f32>) {
        let size = self.channels / self.groups;
        let channels = groups.start * size..groups.end * size;
        if channels.is_empty() {
            return;
        }
        let mut sums = vec![[0.0; 2]; 0];
        channel_sums(x, self.channels, channels.clone(), &mut sums);
        let width = channels.len();
        parallel::with_scratch([width, width], |[scale, shift]| {
            let count = (self.pixels * size) as f64;
            for group in 0..groups.len() {
                let members = group * size..(group + 1) * size;
                let [sum, squares] = sums[members.clone()]
                    .iter()
                    .fold([0.0, 0.0], |[s, q], [sum, squares]| [s + sum, q + squares]);
                let mean = sum / count;
                let variance = (squares / count - mean * mean).max(0.0);
                let factor = (variance + f64::from(self.eps)).sqrt().recip();
                for member in members {
                    let factor = f64::from(self.weight[channels.start + member]) * factor;
                    scale[member] = factor as f32;
                    shift[member] = (f64::from(self.bias[channels.start + member]) - mean * factor) as f32;
                }
            }
            affine(x, self.channels, channels.clone(), scale, shift, self.silu, offset, out);
        });
    }
}

multiversion! {
    /// Sum and sum of squares of each channel of `range` over the rows of `x`, in order.
    fn channel_sums(x: &[f32], channels: usize, range: std::ops::Range<usize>, sums: &mut Vec<[f64; 2]>) {
        let width = range.len();
        for start in (0..width).step_by(16) {
            let lanes = (width - start).min(16);
            let first = range.start + start;
            let (mut sum, mut squares) = ([0.0_f64; 16], [0.0_f64; 16]);
            if lanes == 16 {
                for row in x.chunks_exact(channels) {
                    let Some((values, _)) = row[first..].split_first_chunk::<16>() else { continue };
                    for lane in 0..16 {
                        let value = f64::from(values[lane]);
                        sum[lane] += value;
                        squares[lane] = fma64::<FMA>(value, value, squares[lane]);
                    }
                }
            } else {
                for row in x.chunks_exact(channels) {
                    for (lane, value) in row[first..first + lanes].iter().enumerate() {
                        let value = f64::from(*value);
                        sum[lane] += value;
                        squares[lane] = fma64::<FMA>(value, value, squares[lane]);
                    }
                }
            }
            sums.extend(sum.into_iter().zip(squares).take(lanes).map(|(sum, squares)| [sum, squares]));
        }
    }
}

multiversion! {
    /// `out = x * scale + shift`, then silu if asked, for the channels `range` of each row of `x`.
    #[allow(clippy::too_many_arguments, reason = "the loop's whole state")]
    fn affine(
        x: &[f32],
        channels: usize,
        range: std::ops::Range<usize>,
        scale: &[f32],
        shift: &[f32],
        silu: bool,
        offset: usize,
        out: Shared<'_, f32>,
    ) {
        for (pixel, x) in x.chunks_exact(channels).enumerate() {
            let start = offset + pixel * channels;
            // SAFETY: this task's channels of its own picture.
            #[allow(unsafe_code, reason = "disjoint parts of one output")]
            let out = unsafe { out.slice(start + range.start..start + range.end) };
            let parameters = scale.iter().zip(shift);
            let values = out.iter_mut().zip(x[range.clone()].iter().zip(parameters));
            if silu {
                for (out, (x, (scale, shift))) in values {
                    *out = swish::<FMA>(fma::<FMA>(*x, *scale, *shift), 1.0);
                }
            } else {
                for (out, (x, (scale, shift))) in values {
                    *out = fma::<FMA>(*x, *scale, *shift);
                }
            }
        }
    }
}

/// `x`: `[rows, weight.len()]`.
pub(crate) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let mut out = parallel::output(x.len());
    let channels = weight.len();
    parallel::fill(&mut out, channels, WORK * x.len(), |start, out| {
        layer_norm_rows(&x[start..start + out.len()], weight, bias, eps, out);
    });
    out
}

multiversion! {
    fn layer_norm_rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        let channels = weight.len().max(1);
        for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
            let (mut sums, mut squares) = ([0.0_f64; 16], [0.0_f64; 16]);
            let (chunks, tail) = x.as_chunks::<16>();
            for chunk in chunks {
                for lane in 0..16 {
                    let value = f64::from(chunk[lane]);
                    sums[lane] += value;
                    squares[lane] = fma64::<FMA>(value, value, squares[lane]);
                }
            }
            for (lane, value) in tail.iter().enumerate() {
                let value = f64::from(*value);
                sums[lane] += value;
                squares[lane] = fma64::<FMA>(value, value, squares[lane]);
            }
            let count = channels as f64;
            let mean = sums.iter().sum::<f64>() / count;
            let variance = (squares.iter().sum::<f64>() / count - mean * mean).max(0.0);
            let factor = (variance + f64::from(eps)).sqrt().recip();
            let (scale, shift) = (factor as f32, (-mean * factor) as f32);
            for (out, (x, (weight, bias))) in out.iter_mut().zip(x.iter().zip(weight.iter().zip(bias))) {
                *out = fma::<FMA>(fma::<FMA>(*x, scale, shift), *weight, *bias);
            }
        }
    }
}

/// `x`: `[rows, weight.len()]`.
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = parallel::output(x.len());
    parallel::fill(&mut out, weight.len(), WORK * x.len(), |start, out| {
        rms_norm_rows(&x[start..start + out.len()], weight, eps, out);
    });
    out
}

multiversion! {
    fn rms_norm_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let channels = weight.len().max(1);
        for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
            let factor = reciprocal_rms::<FMA>(x, eps);
            for (out, (x, weight)) in out.iter_mut().zip(x.iter().zip(weight)) {
                *out = x * factor * weight;
            }
        }
    }
}

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
pub(super) fn reciprocal_rms<const FMA: bool>(x: &[f32], eps: f32) -> f32 {
    let mut squares = [0.0_f64; 16];
    let (chunks, tail) = x.as_chunks::<16>();
    for chunk in chunks {
        for lane in 0..16 {
            let value = f64::from(chunk[lane]);
            squares[lane] = fma64::<FMA>(value, value, squares[lane]);
        }
    }
    for (lane, value) in tail.iter().enumerate() {
        let value = f64::from(*value);
        squares[lane] = fma64::<FMA>(value, value, squares[lane]);
    }
    let mean = squares.iter().sum::<f64>() / x.len() as f64;
    (mean + f64::from(eps)).sqrt().recip() as f32
}
