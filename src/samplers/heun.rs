//! Heun's method on the probability flow: Karras et al., 2022, arXiv:2206.00364, algorithm 1 without
//! churn. A step is an Euler step, then the mean of the derivatives at its two ends; the last step,
//! to a clean image, has no second derivative.

use super::SamplerError;
use super::config::{Prediction, SchedulerConfig, Spacing};
use super::euler::{derivative, ends, initial_scale};
use super::linear::{Atom, Linear, SAMPLE, register};
use super::noise_schedule::{Defaults, NoiseSchedule, Rescale};
use super::plan::{Compiled, Draft, Request, Target};
use super::sigmas::{TrainSigmas, clean_estimate, input_scale, spread_within};
use super::spacing;

/// The derivative at the beginning of the step.
const DERIVATIVE: Atom = register(0);
/// The sample at the beginning of the step.
const START: Atom = register(1);

pub(super) fn compile(request: &Request<'_>) -> Result<Compiled, SamplerError> {
    let config = request.config;
    let noise = NoiseSchedule::new(config, &Defaults::HEUN, Rescale::Ignored);
    let train = TrainSigmas::new(noise.sigmas());
    let spacing = config.spacing.unwrap_or(Spacing::Linspace);

    let mut timesteps = spacing::fractional(config, request.steps, spacing);
    let mut sigmas: Vec<f64> = timesteps.iter().map(|t| train.at(f64::from(*t))).collect();
    if let Some(schedule) = request.sigmas.or(config.sigma_schedule) {
        let (largest, smallest) = ends(&sigmas);
        sigmas = spread_within(config, schedule, largest, smallest, request.steps);
        timesteps = sigmas.iter().map(|sigma| train.timestep(*sigma) as f32).collect();
    }
    let sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
    let initial_scale = initial_scale(&sigmas, spacing);

    let levels: Vec<(f64, f64)> =
        timesteps.iter().zip(&sigmas).map(|(t, s)| (f64::from(*t), f64::from(*s))).collect();
    let levels = levels.get(request.skipped..).unwrap_or_default();
    let mut steps = Vec::with_capacity(2 * levels.len());
    for (i, &(t, sigma)) in levels.iter().enumerate() {
        let Some(&(t_after, after)) = levels.get(i + 1) else {
            steps.push(predict(config, t, sigma, 0.0));
            break;
        };
        steps.push(predict(config, t, sigma, after));
        steps.push(correct(config, t_after, sigma, after));
    }
    let first = levels.first().map_or(0.0, |(_, sigma)| *sigma);
    Ok(Compiled { initial_scale, image_mix: (1.0, first), steps })
}

/// The Euler step from `sigma` to `after`, which keeps where it came from.
fn predict(config: &SchedulerConfig, t: f64, sigma: f64, after: f64) -> Draft {
    let slope = slope(config, sigma);
    let sample = Linear::from(SAMPLE) + slope.clone() * (after - sigma);
    let mut updates = vec![(Target::Sample, sample)];
    if after > 0.0 {
        updates.push((Target::Register(0), slope));
        updates.push((Target::Register(1), SAMPLE.into()));
    }
    draft(config, t, sigma, updates)
}

/// The same step again, from the model's answer at its end.
fn correct(config: &SchedulerConfig, t: f64, sigma: f64, after: f64) -> Draft {
    let mean = (Linear::from(DERIVATIVE) + slope(config, after)) * 0.5;
    let sample = Linear::from(START) + mean * (after - sigma);
    draft(config, t, after, vec![(Target::Sample, sample)])
}

/// The derivative; with a clamp it depends on the clean estimate even if the model predicts noise.
fn slope(config: &SchedulerConfig, sigma: f64) -> Linear {
    if clamp(config).is_some() {
        return derivative(Prediction::Sample, sigma);
    }
    derivative(config.prediction, sigma)
}

fn clamp(config: &SchedulerConfig) -> Option<f32> {
    config.clip_sample.unwrap_or(false).then_some(config.clip_sample_range)
}

fn draft(config: &SchedulerConfig, t: f64, sigma: f64, updates: Vec<(Target, Linear)>) -> Draft {
    Draft {
        timestep: t,
        input_scale: input_scale(sigma),
        denoised: clean_estimate(config.prediction, sigma),
        clamp: clamp(config),
        updates,
        draws_noise: false,
    }
}
