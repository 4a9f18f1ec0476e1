//! Which training timesteps the steps of a request stand on, from noisy to clean: Lin et al., 2023,
//! arXiv:2305.08891, table 2, with the rounding of NumPy.

use super::config::{SchedulerConfig, Spacing};

/// Whole timesteps for samplers that stand on both ends of the schedule: DDIM, DDPM, PNDM.
pub(super) fn whole(config: &SchedulerConfig, steps: usize, spacing: Spacing) -> Vec<i64> {
    let train = config.num_train_timesteps;
    match spacing {
        Spacing::Linspace => {
            let grid = linspace(0.0, (train - 1) as f64, steps);
            grid.iter().rev().map(|t| t.round_ties_even() as i64).collect()
        }
        Spacing::Leading => {
            let ratio = train / steps;
            (0..steps).rev().map(|i| (i * ratio + config.steps_offset) as i64).collect()
        }
        Spacing::Trailing => trailing(train, train, steps),
    }
}

/// Timesteps for samplers that work with sigmas, which interpolate: Euler, Heun.
pub(super) fn fractional(config: &SchedulerConfig, steps: usize, spacing: Spacing) -> Vec<f32> {
    match spacing {
        Spacing::Linspace => {
            let grid = linspace(0.0, (config.num_train_timesteps - 1) as f64, steps);
            grid.iter().rev().map(|&t| t as f32).collect()
        }
        Spacing::Leading | Spacing::Trailing => {
            whole(config, steps, spacing).into_iter().map(|t| t as f32).collect()
        }
    }
}

/// Whole timesteps for multistep solvers, which leave the clean end of the schedule to the step
/// after the last. They begin below `last`, the part of the schedule that is in use.
pub(super) fn multistep(config: &SchedulerConfig, steps: usize, spacing: Spacing, last: usize) -> Vec<i64> {
    match spacing {
        Spacing::Linspace => {
            let grid = linspace(0.0, last as f64 - 1.0, steps + 1);
            grid.iter().skip(1).rev().map(|t| t.round_ties_even() as i64).collect()
        }
        Spacing::Leading => {
            let ratio = last / (steps + 1);
            (1..=steps).rev().map(|i| (i * ratio + config.steps_offset) as i64).collect()
        }
        Spacing::Trailing => trailing(config.num_train_timesteps, last, steps),
    }
}

/// Back from `last` by `train / steps`. NumPy's `arange` can count one too many here, by rounding,
/// and diffusers then evaluates the model at timestep -1; that step is left out.
fn trailing(train: usize, last: usize, steps: usize) -> Vec<i64> {
    let ratio = train as f64 / steps as f64;
    let start = last as f64;
    // NumPy's own stride: the second value less the first, which may differ from -ratio
    let stride = (start - ratio) - start;
    let count = (start / ratio).ceil() as usize;
    let grid = (0..count.min(steps)).map(|i| start + i as f64 * stride);
    grid.map(|t| t.round_ties_even() as i64 - 1).collect()
}

/// `numpy.linspace`.
pub(super) fn linspace(start: f64, stop: f64, n: usize) -> Vec<f64> {
    if n < 2 {
        return vec![start; n];
    }
    let step = (stop - start) / (n - 1) as f64;
    let inner = (0..n - 1).map(|i| i as f64 * step + start);
    inner.chain(std::iter::once(stop)).collect()
}
