//! DDPM: Ho et al., 2020, "Denoising diffusion probabilistic models", arXiv:2006.11239, equation 7,
//! on any subset of the timesteps.

use super::SamplerError;
use super::config::{Spacing, Variance};
use super::linear::{DENOISED, NOISE, SAMPLE};
use super::noise_schedule::{Defaults, NoiseSchedule, Rescale, clean_estimate, signal_and_noise};
use super::plan::{Compiled, Draft, Request, Target};
use super::spacing;

pub(super) fn compile(request: &Request<'_>) -> Result<Compiled, SamplerError> {
    let config = request.config;
    config.refuse(&["thresholding", "variance_type"])?;
    let noise = NoiseSchedule::new(config, &Defaults::DDPM, Rescale::ToZero);
    let timesteps = spacing::whole(config, request.steps, config.spacing.unwrap_or(Spacing::Leading));
    let clamp = config.clip_sample.unwrap_or(true).then_some(config.clip_sample_range);
    let after = timesteps.iter().skip(1).copied().chain(std::iter::once(-1));

    let mut steps = Vec::with_capacity(timesteps.len());
    for (step, (&t, t_after)) in timesteps.iter().zip(after).skip(request.skipped).enumerate() {
        let alpha = noise.alpha(t, step)?;
        let alpha_after = noise.alpha_after(t_after, step, true)?;
        let step_alpha = alpha / alpha_after;
        let step_beta = 1.0 - step_alpha;
        let left = 1.0 - alpha;
        let left_after = 1.0 - alpha_after;

        let sample = DENOISED * f64::from(alpha_after.sqrt() * step_beta / left)
            + SAMPLE * f64::from(step_alpha.sqrt() * left_after / left);
        let draws_noise = t > 0;
        let std_dev = std_dev(config.variance, left_after / left * step_beta, step_beta)?;
        let sample = if draws_noise { sample + NOISE * std_dev } else { sample };
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

/// The noise that a step adds: that of the posterior, or of the forward process. A learned one is
/// refused before; the logarithm of the forward one is negative, and diffusers takes its root.
fn std_dev(kind: Option<Variance>, posterior: f32, forward: f32) -> Result<f64, SamplerError> {
    match kind {
        // the logarithm that one of the two takes is undone by an exponential
        None | Some(Variance::FixedSmall | Variance::FixedSmallLog) => {
            Ok(f64::from(posterior.max(1e-20)).sqrt())
        }
        Some(Variance::FixedLarge) => Ok(f64::from(forward).sqrt()),
        Some(Variance::FixedLargeLog | Variance::Learned) => Err(SamplerError::Value {
            key: "variance_type",
            found: "\"fixed_large_log\"".to_owned(),
            expected: "fixed_small, fixed_small_log or fixed_large",
        }),
    }
}
