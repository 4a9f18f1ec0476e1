//! Cheap previews: an affine map from latents to colours, fitted to the checkpoint's own encoder.

use ::image::RgbImage;

use super::{Pipeline, download, upload};
use crate::device::guard;
use crate::error::{Result, Stage};
use crate::image::from_unit;
use crate::job::Job;

/// The corners of the colour cube and its middle.
const COLOURS: [[f32; 3]; 9] = [
    [-1.0, -1.0, -1.0],
    [-1.0, -1.0, 1.0],
    [-1.0, 1.0, -1.0],
    [-1.0, 1.0, 1.0],
    [1.0, -1.0, -1.0],
    [1.0, -1.0, 1.0],
    [1.0, 1.0, -1.0],
    [1.0, 1.0, 1.0],
    [0.0, 0.0, 0.0],
];

/// For red, green and blue: one factor a latent channel, then a constant.
#[derive(Debug)]
pub(super) struct LatentColours(Vec<Vec<f64>>);

impl Pipeline {
    /// Small pictures of a job's clean estimate, one pixel a latent, without running the decoder.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device fails.
    pub fn preview(&self, job: &Job) -> Result<Vec<RgbImage>> {
        guard(Stage::Decode, || {
            let colours = match self.0.preview.get() {
                Some(colours) => colours,
                None => {
                    let fitted = self.fit_colours()?;
                    self.0.preview.get_or_init(|| fitted)
                }
            };
            let latents = job.rows.iter().map(|row| row.denoised.as_ref().unwrap_or(&row.latents));
            latents
                .map(|latents| {
                    let [_, _, height, width] = latents.dims();
                    let values = download(latents.tensor(), Stage::Decode)?;
                    Ok(colours.paint(&values, width, height))
                })
                .collect()
        })
    }

    /// Encodes flat colours and solves for the map back (least squares with a little damping, since
    /// flat colours leave some directions of the latents unseen).
    fn fit_colours(&self) -> Result<LatentColours> {
        const LATENTS: usize = 8;
        let autoencoder = &self.0.model.autoencoder;
        let side = LATENTS * autoencoder.config().factor();
        let pixels =
            COLOURS.iter().flatten().flat_map(|value| std::iter::repeat_n(*value, side * side)).collect();
        let posterior = autoencoder.encode(upload(pixels, [COLOURS.len(), 3, side, side], self.device()));
        let channels = autoencoder.config().latent_channels;
        let scale = f64::from(autoencoder.config().scaling_factor);
        let values = download(posterior.mean, Stage::EncodeImage)?;
        let means: Vec<f64> = values
            .chunks_exact(LATENTS * LATENTS)
            .map(|map| map.iter().map(|value| f64::from(*value)).sum::<f64>() / map.len() as f64 * scale)
            .collect();
        let rows: Vec<Vec<f64>> = means
            .chunks_exact(channels)
            .map(|latent| latent.iter().copied().chain([1.0]).collect())
            .collect();
        Ok(LatentColours(
            (0..3).map(|channel| solve(&rows, &COLOURS.map(|colour| f64::from(colour[channel])))).collect(),
        ))
    }
}

impl LatentColours {
    fn paint(&self, latents: &[f32], width: usize, height: usize) -> RgbImage {
        let area = width * height;
        let unit: Vec<f32> = (0..area)
            .flat_map(|pixel| {
                self.0.iter().map(move |factors| {
                    let channels = latents.iter().skip(pixel).step_by(area).map(|value| f64::from(*value));
                    let signed: f64 =
                        channels.chain([1.0]).zip(factors).map(|(value, factor)| value * factor).sum();
                    (signed * 0.5 + 0.5).clamp(0.0, 1.0) as f32
                })
            })
            .collect();
        from_unit(width as u32, height as u32, &unit)
    }
}

/// `x` that minimises `|rows · x - wanted|² + damping · |x|²`, by the normal equations.
fn solve(rows: &[Vec<f64>], wanted: &[f64]) -> Vec<f64> {
    let size = rows.first().map_or(0, Vec::len);
    let dot = |i: usize, j: usize| rows.iter().map(|row| row[i] * row[j]).sum::<f64>();
    let damping = 1e-3 * (0..size).map(|i| dot(i, i)).sum::<f64>() / size.max(1) as f64;
    let mut system: Vec<Vec<f64>> = (0..size)
        .map(|i| {
            let right = rows.iter().zip(wanted).map(|(row, wanted)| row[i] * wanted).sum();
            (0..size).map(|j| dot(i, j) + if i == j { damping } else { 0.0 }).chain([right]).collect()
        })
        .collect();
    // Gauss-Jordan; the damped matrix is positive definite, so no pivot vanishes.
    for pivot in 0..size {
        let row = system[pivot].clone();
        for (index, other) in system.iter_mut().enumerate() {
            if index != pivot {
                let factor = other[pivot] / row[pivot];
                other.iter_mut().zip(&row).for_each(|(value, from)| *value -= factor * from);
            }
        }
    }
    system.iter().enumerate().map(|(i, row)| row[size] / row[i]).collect()
}

#[cfg(test)]
mod tests {
    use super::solve;

    #[test]
    fn a_linear_relation_is_found_again() {
        let rows: Vec<Vec<f64>> =
            (0..50).map(|i| vec![f64::from(i % 7) * 10.0, f64::from(i % 5) * 10.0, 1.0]).collect();
        let wanted: Vec<f64> = rows.iter().map(|row| 2.0 * row[0] - 0.5 * row[1]).collect();
        let found = solve(&rows, &wanted);
        assert!((found[0] - 2.0).abs() < 0.01 && (found[1] + 0.5).abs() < 0.01, "{found:?}");
    }
}
