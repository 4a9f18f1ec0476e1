//! The sums of a denoising step, a row at a time: loops that stay in the cache and need no threads.

/// `negative + scale * (positive - negative)`, then scaled back to the deviation of `positive` by `rescale`.
pub(crate) fn combine(positive: &[f32], negative: &[f32], scale: f32, rescale: f32) -> Vec<f32> {
    let pairs = positive.iter().zip(negative);
    let mut guided: Vec<f32> =
        pairs.map(|(positive, negative)| negative + (positive - negative) * scale).collect();
    if rescale != 0.0 {
        let ratio = (deviation(positive) / deviation(&guided)) as f32;
        for value in &mut guided {
            *value = *value * ratio * rescale + *value * (1.0 - rescale);
        }
    }
    guided
}

/// The standard deviation, with Bessel's correction.
fn deviation(values: &[f32]) -> f64 {
    let mean = total(values, f64::from) / values.len() as f64;
    let squares = total(values, |value| (f64::from(value) - mean).powi(2));
    (squares / (values.len() as f64 - 1.0)).sqrt()
}

/// The sum of `of` each value, in eight lanes.
fn total(values: &[f32], of: impl Fn(f32) -> f64) -> f64 {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += of(*value);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|value| of(*value)).sum::<f64>()
}

/// The sum of values times factors, cut off at ± `clamp`.
pub(crate) fn estimate(parts: &[(&[f32], f32); 2], clamp: Option<f32>) -> Vec<f32> {
    let mut sum = Sum::new(parts[0].0.len());
    for (values, factor) in parts {
        sum.add(values, *factor);
    }
    let mut sum = sum.finish();
    if let Some(range) = clamp {
        for value in &mut sum {
            // NaN stays NaN.
            *value = match *value {
                over if over > range => range,
                under if under < -range => -range,
                within => within,
            };
        }
    }
    sum
}

/// A sum of values times factors, term by term.
pub(crate) struct Sum {
    values: Vec<f32>,
    elements: usize,
}

impl Sum {
    pub(crate) fn new(elements: usize) -> Self {
        Self { values: Vec::new(), elements }
    }

    /// A factor of zero adds nothing, whatever the values.
    pub(crate) fn add(&mut self, values: &[f32], factor: f32) {
        if factor == 0.0 {
            return;
        }
        if self.values.is_empty() {
            self.values = values.iter().map(|value| value * factor).collect();
        } else {
            self.values.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * factor);
        }
    }

    pub(crate) fn finish(self) -> Vec<f32> {
        if self.values.is_empty() { vec![0.0; self.elements] } else { self.values }
    }
}
