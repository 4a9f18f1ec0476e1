//! Euler's method on the probability flow: Karras et al., 2022, "Elucidating the design space of
//! diffusion-based generative models", arXiv:2206.00364, algorithm 2 without churn; and with
//! ancestral noise, as k-diffusion has it.

use super::config::{FinalSigma, Prediction, SchedulerConfig, Spacing};
use super::linear::{DENOISED, Linear, NOISE, OUTPUT, SAMPLE};
use super::noise_schedule::{Defaults, NoiseSchedule, Rescale, linspace_f32};
use super::plan::{Compiled, Draft, Request, Target};
use super::sigmas::{TrainSigmas, clean_estimate, input_scale, spread_within};
use super::{Sampler, SamplerError, spacing};

/// A timestep and a noise level for each step, and the noise level after the last.
struct Grid {
    timesteps: Vec<f32>,
    sigmas: Vec<f32>,
}

pub(super) fn compile(request: &Request<'_>) -> Result<Compiled, SamplerError> {
    let config = request.config;
    let ancestral = request.sampler == Sampler::EulerAncestral;
    if ancestral && config.prediction == Prediction::Sample {
        return Err(SamplerError::Value {
            key: "prediction_type",
            found: "\"sample\"".to_owned(),
            expected: "epsilon or v_prediction for the sampler euler_a",
        });
    }
    let spacing = config.spacing.unwrap_or(Spacing::Linspace);
    let noise = NoiseSchedule::new(config, &Defaults::DDPM, Rescale::NearZero);
    let train = TrainSigmas::new(noise.sigmas());
    let grid =
        if ancestral { interpolated(request, &train, spacing) } else { grid(request, &train, spacing) };

    let levels = grid.sigmas.windows(2).skip(request.skipped);
    let steps = grid.timesteps.iter().skip(request.skipped).zip(levels).filter_map(|(t, levels)| {
        let &[sigma, after] = levels else { return None };
        let (sigma, after) = (f64::from(sigma), f64::from(after));
        let (down, up) = if ancestral { ancestral_step(sigma, after) } else { (after, 0.0) };
        let sample = Linear::from(SAMPLE) + derivative(config.prediction, sigma) * (down - sigma);
        Some(Draft {
            timestep: f64::from(*t),
            input_scale: input_scale(sigma),
            denoised: clean_estimate(config.prediction, sigma),
            clamp: None,
            updates: vec![(Target::Sample, sample + NOISE * up)],
            draws_noise: ancestral,
        })
    });
    let steps = steps.collect();
    let first = grid.sigmas.get(request.skipped).copied().unwrap_or(0.0);
    let initial_scale = initial_scale(&grid.sigmas, spacing);
    Ok(Compiled { initial_scale, image_mix: (1.0, f64::from(first)), steps })
}

/// `dx/dσ = (x - x₀) / σ`, which is the noise itself where the model predicts it.
pub(super) fn derivative(prediction: Prediction, sigma: f64) -> Linear {
    match prediction {
        Prediction::Epsilon => OUTPUT.into(),
        Prediction::Velocity | Prediction::Sample => (SAMPLE - DENOISED) * (1.0 / sigma),
    }
}

/// Part of the way to `after` is walked back as fresh noise: the level to step down to, and the
/// noise that leads up from there.
fn ancestral_step(sigma: f64, after: f64) -> (f64, f64) {
    let up = after * ((sigma * sigma - after * after) / (sigma * sigma)).max(0.0).sqrt();
    (after * after / sigma, up)
}

/// The standard deviation of a sample at the largest noise level. Spacings that begin at the very
/// last timestep pass over the image's own share of it.
pub(super) fn initial_scale(sigmas: &[f32], spacing: Spacing) -> f64 {
    let largest = f64::from(sigmas.iter().copied().fold(0.0, f32::max));
    match spacing {
        Spacing::Linspace | Spacing::Trailing => largest,
        Spacing::Leading => (largest * largest + 1.0).sqrt(),
    }
}

fn interpolated(request: &Request<'_>, train: &TrainSigmas, spacing: Spacing) -> Grid {
    let timesteps = spacing::fractional(request.config, request.steps, spacing);
    let sigmas = timesteps.iter().map(|t| train.at(f64::from(*t)) as f32);
    let sigmas = sigmas.chain(std::iter::once(0.0)).collect();
    Grid { timesteps, sigmas }
}

fn grid(request: &Request<'_>, train: &TrainSigmas, spacing: Spacing) -> Grid {
    let config = request.config;
    let mut timesteps = spacing::fractional(config, request.steps, spacing);
    let mut sigmas: Vec<f64> = if config.log_linear {
        log_linear(train, request.steps)
    } else {
        timesteps.iter().map(|t| train.at(f64::from(*t))).collect()
    };
    if let Some(schedule) = request.sigmas.or(config.sigma_schedule) {
        let (largest, smallest) = ends(&sigmas);
        sigmas = spread_within(config, schedule, largest, smallest, request.steps);
        timesteps = sigmas.iter().map(|sigma| train.timestep(*sigma) as f32).collect();
    }
    let last = match config.final_sigma {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => train.smallest(),
    };
    if is_continuous(config) {
        // EDM preconditioning: the time is a quarter of the logarithm
        timesteps = sigmas.iter().map(|sigma| 0.25 * (*sigma as f32).ln()).collect();
    }
    let sigmas = sigmas.into_iter().map(|sigma| sigma as f32).chain(std::iter::once(last));
    Grid { timesteps, sigmas: sigmas.collect() }
}

/// The first and the last noise level.
pub(super) fn ends(sigmas: &[f64]) -> (f64, f64) {
    let end = |sigma: Option<&f64>| sigma.copied().unwrap_or(f64::NAN);
    (end(sigmas.first()), end(sigmas.last()))
}

/// Even in the logarithm over the whole training schedule, one level more than there are steps.
fn log_linear(train: &TrainSigmas, steps: usize) -> Vec<f64> {
    let logs = linspace_f32(train.largest().ln(), train.smallest().ln(), steps + 1);
    logs.into_iter().map(|log| f64::from(log.exp())).collect()
}

fn is_continuous(config: &SchedulerConfig) -> bool {
    config.continuous_timesteps && config.prediction == Prediction::Velocity
}
