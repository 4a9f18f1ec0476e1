//! DDIM: Song et al., 2020, "Denoising diffusion implicit models", arXiv:2010.02502, equations 12
//! and 16.

use super::SamplerError;
use super::config::{Prediction, Spacing};
use super::linear::{DENOISED, Linear, NOISE, OUTPUT, SAMPLE};
use super::noise_schedule::{Defaults, NoiseSchedule, Rescale, clean_estimate, signal_and_noise};
use super::plan::{Compiled, Draft, Request, Target};
use super::spacing;

pub(super) fn compile(request: &Request<'_>, eta: f32) -> Result<Compiled, SamplerError> {
    let config = request.config;
    config.refuse(&["thresholding"])?;
    if !(eta.is_finite() && eta >= 0.0) {
        return Err(SamplerError::Eta { found: eta });
    }
    let noise = NoiseSchedule::new(config, &Defaults::DDPM, Rescale::ToZero);
    let timesteps = spacing::whole(config, request.steps, config.spacing.unwrap_or(Spacing::Leading));
    let stride = (config.num_train_timesteps / request.steps) as i64;
    let ends_clean = config.set_alpha_to_one.unwrap_or(true);
    let clamp = config.clip_sample.unwrap_or(true).then_some(config.clip_sample_range);

    let mut steps = Vec::with_capacity(timesteps.len());
    for (step, &t) in timesteps.iter().skip(request.skipped).enumerate() {
        let alpha = noise.alpha(t, step)?;
        let alpha_after = noise.alpha_after(t - stride, step, ends_clean)?;
        // in single precision, like the schedule: both differences cancel near timestep 0
        let variance = (1.0 - alpha_after) / (1.0 - alpha) * (1.0 - alpha / alpha_after);
        let std_dev = eta * variance.sqrt();
        let direction = (1.0 - alpha_after - std_dev * std_dev).sqrt();

        let sample = DENOISED * f64::from(alpha_after.sqrt())
            + predicted_noise(config.prediction, alpha) * f64::from(direction);
        let draws_noise = eta > 0.0;
        let sample = if draws_noise { sample + NOISE * f64::from(std_dev) } else { sample };
        steps.push(Draft {
            timestep: t as f64,
            input_scale: 1.0,
            denoised: clean_estimate(config.prediction, alpha),
            clamp,
            updates: vec![(Target::Sample, sample)],
            draws_noise,
        });
    }
    let first = timesteps.get(request.skipped).copied().unwrap_or(0);
    let image_mix = signal_and_noise(noise.alpha(first, 0)?);
    Ok(Compiled { initial_scale: 1.0, image_mix, steps })
}

/// The noise in the sample, from the model's output before any clamp.
fn predicted_noise(prediction: Prediction, alpha: f32) -> Linear {
    let (signal, noise) = signal_and_noise(alpha);
    match prediction {
        Prediction::Epsilon => OUTPUT.into(),
        Prediction::Velocity => OUTPUT * signal + SAMPLE * noise,
        Prediction::Sample => SAMPLE * (1.0 / noise) - OUTPUT * (signal / noise),
    }
}
