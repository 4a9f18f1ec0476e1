//! Latent consistency models: Luo et al., 2023, arXiv:2310.04378, algorithm 3. A step jumps to a
//! clean estimate, then adds noise up to the next timestep.

use super::SamplerError;
use super::linear::{DENOISED, Linear, NOISE, SAMPLE};
use super::noise_schedule::{Defaults, NoiseSchedule, Rescale, clean_estimate, signal_and_noise};
use super::plan::{Compiled, Draft, Request, Target};

/// The standard deviation of the data that the boundary condition assumes.
const SIGMA_DATA: f64 = 0.5;

pub(super) fn compile(request: &Request<'_>) -> Result<Compiled, SamplerError> {
    let config = request.config;
    config.refuse(&["thresholding"])?;
    let timesteps = timesteps(request)?;
    let noise = NoiseSchedule::new(config, &Defaults::LCM, Rescale::ToZero);
    let clamp = config.clip_sample.unwrap_or(false).then_some(config.clip_sample_range);

    let mut steps = Vec::with_capacity(timesteps.len());
    for (step, &t) in timesteps.iter().skip(request.skipped).enumerate() {
        let alpha = noise.alpha(t, step)?;
        let (skip, out) = boundary(t as f64 * config.timestep_scaling);
        let clean: Linear = DENOISED * out + SAMPLE * skip;
        let after = timesteps.get(request.skipped + step + 1);
        let sample = match after {
            Some(&after) => {
                let (signal, level) = signal_and_noise(noise.alpha(after, step)?);
                clean * signal + NOISE * level
            }
            None => clean,
        };
        steps.push(Draft {
            timestep: t as f64,
            input_scale: 1.0,
            denoised: clean_estimate(config.prediction, alpha),
            clamp,
            updates: vec![(Target::Sample, sample)],
            draws_noise: after.is_some(),
        });
    }
    let first = timesteps.get(request.skipped).copied().unwrap_or(0);
    let image_mix = signal_and_noise(noise.alpha(first, 0)?);
    Ok(Compiled { initial_scale: 1.0, image_mix, steps })
}

/// A choice of the timesteps that the model was distilled on, from noisy to clean.
fn timesteps(request: &Request<'_>) -> Result<Vec<i64>, SamplerError> {
    let config = request.config;
    let distilled = config.original_inference_steps;
    if distilled > config.num_train_timesteps {
        return Err(SamplerError::Value {
            key: "original_inference_steps",
            found: distilled.to_string(),
            expected: "at most num_train_timesteps",
        });
    }
    request.check_steps(1, distilled)?;
    let stride = config.num_train_timesteps / distilled;
    let spread = distilled as f64 / request.steps as f64;
    let picked = (0..request.steps).map(|i| (i as f64 * spread).floor() as usize);
    Ok(picked.map(|i| (distilled.saturating_sub(i) * stride) as i64 - 1).collect())
}

/// Weights of sample and clean estimate: at time 0 the sample is the clean image.
fn boundary(time: f64) -> (f64, f64) {
    let variance = time * time + SIGMA_DATA * SIGMA_DATA;
    (SIGMA_DATA * SIGMA_DATA / variance, time / variance.sqrt())
}
