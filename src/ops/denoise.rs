//! The end of a denoising step: guidance, the clean estimate, the sampler's sums.

use std::sync::Arc;

use burn::tensor::{DType, Tensor};

/// A value of one row, `[1, channels, height, width]` in f32, in a buffer that may hold other rows' as well.
///
/// A kernel writes all rows of a GPU's step into one buffer, so that the next one finds them side by side. A buffer
/// lives as long as a slot of it: what a row that left had there is freed with the last of them, as a rule when its
/// neighbours have made their next step, which writes another buffer.
#[derive(Debug, Clone)]
pub struct Slot {
    pub(super) buffer: Arc<Tensor<4>>,
    pub(super) index: usize,
}

impl Slot {
    /// A buffer of its own.
    ///
    /// * `value`: `[1, channels, height, width]` in f32
    pub fn new(value: Tensor<4>) -> Self {
        Self { buffer: Arc::new(value), index: 0 }
    }

    /// `[1, channels, height, width]`
    pub fn tensor(&self) -> Tensor<4> {
        let buffer = Tensor::clone(&self.buffer);
        if buffer.dims()[0] == 1 { buffer } else { buffer.narrow(0, self.index, 1) }
    }

    /// `[1, channels, height, width]`
    pub fn dims(&self) -> [usize; 4] {
        let [_, channels, height, width] = self.buffer.dims();
        [1, channels, height, width]
    }
}

/// Guidance of one row, by `scale` away from the negative prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guided {
    /// Which of the predictions is the negative prompt's.
    pub negative: usize,
    /// Of `negative + scale * (positive - negative)` (Ho & Salimans 2022).
    pub scale: f32,
    /// How far the result is scaled back to the positive prediction's standard deviation (Lin et al. 2023, equations 15
    /// and 16), `0.0..=1.0`.
    pub rescale: f32,
}

/// The clean estimate: `sample * x + output * guided prediction`, then cut off at ± `clamp`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The factor of the noisy sample.
    pub sample: f32,
    /// The factor of the guided prediction.
    pub output: f32,
    /// Values beyond ± this are cut off.
    pub clamp: Option<f32>,
}

/// What a sum of a step is made of.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// The guided prediction.
    Output,
    /// The clean estimate.
    Denoised,
    /// The row's `noise`.
    Noise,
    /// A value from before the step.
    Slot(&'a Slot),
}

/// One row of a [`denoise_step`](super::denoise_step).
#[derive(Debug, Clone)]
pub struct DenoiseRow<'a> {
    /// Which of the predictions is the prompt's.
    pub positive: usize,
    /// `None` where the prompt alone steers.
    pub guided: Option<Guided>,
    /// The noisy sample.
    pub sample: &'a Slot,
    /// How the clean estimate is made.
    pub estimate: Estimate,
    /// This step's draw, one value for each of the sample's.
    pub noise: Option<Vec<f32>>,
    /// What is written: a sum of factor times source each, the new sample first. A factor of zero leaves its source
    /// out, whatever that holds; no terms are zero.
    pub writes: Vec<Vec<(Source<'a>, f32)>>,
}

/// What a row wrote.
#[derive(Debug, Clone)]
pub struct Stepped {
    /// One value a write, in their order.
    pub values: Vec<Slot>,
    /// NaN and infinite values of the first.
    pub non_finite: NonFinite,
}

/// How many values of a row's sample are NaN or infinite.
#[derive(Debug, Clone)]
pub enum NonFinite {
    /// Nobody has counted.
    Unknown,
    /// So many.
    Known(usize),
    /// On the device, which would have to be waited for.
    Kept {
        /// Counts of parts of a row, `[rows, parts]` in f32.
        counts: Arc<Tensor<2>>,
        /// Which of the rows.
        row: usize,
    },
}

/// What acts, so that nothing is made of a source that does not count.
pub(super) fn without_zeros(rows: &mut [DenoiseRow]) {
    for row in rows {
        let noise = row.noise.is_some();
        for terms in &mut row.writes {
            terms.retain(|(source, factor)| *factor != 0.0 && (noise || !matches!(source, Source::Noise)));
        }
        let used = row.writes.iter().flatten().any(|(source, _)| matches!(source, Source::Noise));
        row.noise = row.noise.take().filter(|_| used);
    }
}

/// Plain burn operations, row by row.
pub fn reference(predictions: Tensor<4>, rows: &[DenoiseRow]) -> Vec<Stepped> {
    let predictions = predictions.cast(DType::F32);
    rows.iter().map(|row| row_reference(&predictions, row)).collect()
}

fn row_reference(predictions: &Tensor<4>, row: &DenoiseRow) -> Stepped {
    let prediction = |index| predictions.clone().narrow(0, index, 1);
    let positive = prediction(row.positive);
    let output = match row.guided {
        Some(guided) => combine(positive, prediction(guided.negative), guided),
        None => positive,
    };
    let Estimate { sample, output: factor, clamp } = row.estimate;
    let parts = [(row.sample.tensor(), sample), (output.clone(), factor)];
    let mut denoised = sum(parts, &output);
    if let Some(range) = clamp {
        denoised = denoised.clamp(-range, range);
    }
    let noise = row.noise.as_ref().map(|values| {
        let data = burn::tensor::TensorData::new(values.clone(), output.dims());
        Tensor::<4>::from_data(data, (&output.device(), DType::F32))
    });
    let value = |source: &Source| match source {
        Source::Output => output.clone(),
        Source::Denoised => denoised.clone(),
        Source::Noise => noise.clone().unwrap_or_else(|| output.zeros_like()),
        Source::Slot(slot) => slot.tensor(),
    };
    let write = |terms: &Vec<(Source, f32)>| match terms.as_slice() {
        [(Source::Slot(slot), 1.0)] => Slot::clone(slot),
        _ => Slot::new(sum(terms.iter().map(|(source, factor)| (value(source), *factor)), &output)),
    };
    Stepped { values: row.writes.iter().map(write).collect(), non_finite: NonFinite::Unknown }
}

fn sum(terms: impl IntoIterator<Item = (Tensor<4>, f32)>, like: &Tensor<4>) -> Tensor<4> {
    let terms = terms.into_iter().filter(|(_, factor)| *factor != 0.0);
    let scaled = terms.map(|(value, factor)| if factor == 1.0 { value } else { value * factor });
    scaled.reduce(|sum, term| sum + term).unwrap_or_else(|| like.zeros_like())
}

fn combine(positive: Tensor<4>, negative: Tensor<4>, guided: Guided) -> Tensor<4> {
    let Guided { scale, rescale, .. } = guided;
    let guided = negative.clone() + (positive.clone() - negative) * scale;
    if rescale == 0.0 {
        return guided;
    }
    let deviation = |x: &Tensor<4>| {
        let values = x.shape().num_elements();
        x.clone().reshape([1, values]).var(1).sqrt().reshape([1, 1, 1, 1])
    };
    let rescaled = guided.clone() * (deviation(&positive) / deviation(&guided));
    rescaled * rescale + guided * (1.0 - rescale)
}

/// Plain burn operations: each row's slot times its factor.
pub fn input_reference(entries: &[(&Slot, f32)], dtype: DType) -> Tensor<4> {
    let scaled = |(slot, scale): &(&Slot, f32)| {
        let latents = slot.tensor();
        if *scale == 1.0 { latents } else { latents * *scale }
    };
    Tensor::cat(entries.iter().map(scaled).collect(), 0).cast(dtype)
}

/// Row by row on the host; a value that is only kept is not copied.
#[cfg(feature = "cpu")]
pub(super) fn cpu(predictions: Tensor<4>, rows: &[DenoiseRow]) -> Vec<Stepped> {
    use super::cpu::Host;

    let [_, channels, height, width] = predictions.dims();
    let predictions = Host::new(predictions);
    let predictions = predictions.f32();
    rows.iter().map(|row| row_cpu(&predictions, [1, channels, height, width], row)).collect()
}

#[cfg(feature = "cpu")]
fn row_cpu(predictions: &[f32], shape: [usize; 4], row: &DenoiseRow) -> Stepped {
    use super::cpu::{self, Host, denoise};

    let elements: usize = shape.iter().product();
    let prediction = |index: usize| &predictions[index * elements..(index + 1) * elements];
    let positive = prediction(row.positive);
    let combined;
    let output: &[f32] = match row.guided {
        Some(Guided { negative, scale, rescale }) => {
            combined = denoise::combine(positive, prediction(negative), scale, rescale);
            &combined
        }
        None => positive,
    };
    let host = Host::new(row.sample.tensor());
    let sample = host.f32();
    let Estimate { sample: of_sample, output: of_output, clamp } = row.estimate;
    let denoised = denoise::estimate(&[(&*sample, of_sample), (output, of_output)], clamp);
    let noise = row.noise.as_deref().unwrap_or(&[]);
    let mut non_finite = 0;
    let mut values = Vec::with_capacity(row.writes.len());
    for (index, terms) in row.writes.iter().enumerate() {
        if let ([(Source::Slot(slot), 1.0)], 1..) = (terms.as_slice(), index) {
            values.push(Slot::clone(slot));
            continue;
        }
        let mut sum = denoise::Sum::new(elements);
        for (source, factor) in terms {
            match source {
                Source::Output => sum.add(output, *factor),
                Source::Denoised => sum.add(&denoised, *factor),
                Source::Noise => sum.add(noise, *factor),
                Source::Slot(slot) => sum.add(&Host::new(slot.tensor()).f32(), *factor),
            }
        }
        let sum = sum.finish();
        if index == 0 {
            non_finite = sum.iter().filter(|value| !value.is_finite()).count();
        }
        values.push(Slot::new(cpu::tensor(sum, shape, DType::F32)));
    }
    Stepped { values, non_finite: NonFinite::Known(non_finite) }
}

/// One pass.
#[cfg(feature = "cpu")]
pub(super) fn input_cpu(entries: &[(&Slot, f32)], dtype: DType) -> Tensor<4> {
    use super::cpu::{self, Host};

    let [_, channels, height, width] = entries.first().map_or([0; 4], |(slot, _)| slot.dims());
    let mut values = Vec::with_capacity(entries.len() * channels * height * width);
    for (slot, scale) in entries {
        values.extend(Host::new(slot.tensor()).f32().iter().map(|value| value * scale));
    }
    cpu::tensor(values, [entries.len(), channels, height, width], dtype)
}
