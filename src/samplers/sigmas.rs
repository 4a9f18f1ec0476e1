//! Noise levels and the timesteps that belong to them.

use super::SigmaSchedule;
use super::beta_quantile::beta_quantile;
use super::config::{Prediction, SchedulerConfig};
use super::spacing::linspace;

/// The noise levels of the training timesteps, to look up in.
pub(super) struct TrainSigmas {
    sigmas: Vec<f32>,
    logs: Vec<f32>,
}

impl TrainSigmas {
    pub(super) fn new(sigmas: Vec<f32>) -> Self {
        let logs = sigmas.iter().map(|sigma| f64::from(*sigma).ln() as f32).collect();
        Self { sigmas, logs }
    }

    pub(super) fn smallest(&self) -> f32 {
        self.sigmas.first().copied().unwrap_or(f32::NAN)
    }

    pub(super) fn largest(&self) -> f32 {
        self.sigmas.last().copied().unwrap_or(f32::NAN)
    }

    /// Linear interpolation between timesteps; the end values beyond them.
    pub(super) fn at(&self, timestep: f64) -> f64 {
        let last = self.sigmas.len().saturating_sub(1);
        let below = (timestep.max(0.0) as usize).min(last);
        let above = (below + 1).min(last);
        let low = self.sigmas.get(below).map_or(f64::NAN, |sigma| f64::from(*sigma));
        let high = self.sigmas.get(above).map_or(f64::NAN, |sigma| f64::from(*sigma));
        let fraction = (timestep - below as f64).clamp(0.0, 1.0);
        if above == below { low } else { (high - low) * fraction + low }
    }

    /// The timestep with noise level `sigma`: linear in the logarithm between timesteps.
    pub(super) fn timestep(&self, sigma: f64) -> f64 {
        let log = sigma.max(1e-10).ln();
        let not_above = self.logs.partition_point(|known| f64::from(*known) <= log);
        let below = not_above.saturating_sub(1).min(self.logs.len().saturating_sub(2));
        let (Some(&low), Some(&high)) = (self.logs.get(below), self.logs.get(below + 1)) else {
            return 0.0;
        };
        // the width of the interval in single precision: it decides a timestep at an interval's end
        let weight = ((f64::from(low) - log) / f64::from(low - high)).clamp(0.0, 1.0);
        (1.0 - weight) * below as f64 + weight * (below + 1) as f64
    }
}

/// `n` noise levels from `largest` to `smallest`.
pub(super) fn spread(schedule: SigmaSchedule, largest: f64, smallest: f64, n: usize) -> Vec<f64> {
    match schedule {
        SigmaSchedule::Karras => {
            const RHO: f64 = 7.0;
            let high = largest.powf(1.0 / RHO);
            let low = smallest.powf(1.0 / RHO);
            let ramp = linspace(0.0, 1.0, n);
            ramp.into_iter().map(|t| (high + t * (low - high)).powf(RHO)).collect()
        }
        SigmaSchedule::Exponential => {
            linspace(largest.ln(), smallest.ln(), n).into_iter().map(f64::exp).collect()
        }
        SigmaSchedule::Beta => {
            let shares = linspace(0.0, 1.0, n).into_iter().map(|t| 1.0 - t);
            shares.map(|p| smallest + beta_quantile(p) * (largest - smallest)).collect()
        }
    }
}

/// [`spread`] between the bounds of the configuration, or these.
pub(super) fn spread_within(
    config: &SchedulerConfig,
    schedule: SigmaSchedule,
    largest: f64,
    smallest: f64,
    n: usize,
) -> Vec<f64> {
    let largest = config.sigma_max.unwrap_or(largest);
    let smallest = config.sigma_min.unwrap_or(smallest);
    spread(schedule, largest, smallest, n)
}

/// Clean estimate from sample and output where the sample is `x₀ + σ ε`.
pub(super) fn clean_estimate(prediction: Prediction, sigma: f64) -> (f64, f64) {
    let variance = sigma * sigma + 1.0;
    match prediction {
        Prediction::Epsilon => (1.0, -sigma),
        Prediction::Velocity => (1.0 / variance, -sigma / variance.sqrt()),
        Prediction::Sample => (0.0, 1.0),
    }
}

/// What the model sees of a sample `x₀ + σ ε`: unit variance.
pub(super) fn input_scale(sigma: f64) -> f64 {
    1.0 / (sigma * sigma + 1.0).sqrt()
}
