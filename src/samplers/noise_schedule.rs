//! The training noise schedule, in the single precision that models were trained in: near timestep
//! 0, `1 - alpha` has few digits, and which ones they are shows in the image.

use super::SamplerError;
use super::config::{BetaSchedule, Prediction, SchedulerConfig};

/// The betas of a scheduler whose configuration does not say.
pub(super) struct Defaults {
    pub(super) start: f64,
    pub(super) end: f64,
    pub(super) schedule: BetaSchedule,
}

impl Defaults {
    pub(super) const DDPM: Self = Self { start: 0.0001, end: 0.02, schedule: BetaSchedule::Linear };
    pub(super) const HEUN: Self = Self { start: 0.00085, end: 0.012, schedule: BetaSchedule::Linear };
    pub(super) const LCM: Self = Self { start: 0.00085, end: 0.012, schedule: BetaSchedule::ScaledLinear };
}

/// What a sampler makes of `rescale_betas_zero_snr`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rescale {
    /// The sampler has no such setting.
    Ignored,
    /// The last alpha is 0.
    ToZero,
    /// The last alpha is 2⁻²⁴, so that the largest sigma is finite.
    NearZero,
}

/// The share of the clean image that is left at each training timestep, `ᾱ`.
pub(super) struct NoiseSchedule {
    alphas: Vec<f32>,
}

impl NoiseSchedule {
    pub(super) fn new(config: &SchedulerConfig, defaults: &Defaults, rescale: Rescale) -> Self {
        let mut betas = betas(config, defaults);
        let rescaled = rescale != Rescale::Ignored && config.rescale_betas_zero_snr.unwrap_or(false);
        if rescaled {
            betas = rescale_to_zero_snr(&betas);
        }
        let mut alphas = cumulative_alphas(&betas);
        if let (true, Rescale::NearZero, Some(last)) = (rescaled, rescale, alphas.last_mut()) {
            *last = 2.0_f32.powi(-24);
        }
        Self { alphas }
    }

    /// `ᾱ` at each timestep.
    pub(super) fn alphas(&self) -> &[f32] {
        &self.alphas
    }

    /// `ᾱ` at the timestep that step number `step` needs.
    pub(super) fn alpha(&self, timestep: i64, step: usize) -> Result<f32, SamplerError> {
        let alpha = usize::try_from(timestep).ok().and_then(|index| self.alphas.get(index));
        let last = self.alphas.len() as i64 - 1;
        alpha.copied().ok_or(SamplerError::Timestep { step, timestep, last })
    }

    /// `ᾱ` after a step down to `timestep`, which is beyond the schedule's end if negative.
    pub(super) fn alpha_after(
        &self,
        timestep: i64,
        step: usize,
        final_alpha_is_one: bool,
    ) -> Result<f32, SamplerError> {
        match (timestep < 0, final_alpha_is_one) {
            (true, true) => Ok(1.0),
            (true, false) => self.alpha(0, step),
            (false, _) => self.alpha(timestep, step),
        }
    }

    /// The noise level at each timestep in units of the clean image, `sqrt((1 - ᾱ) / ᾱ)`.
    pub(super) fn sigmas(&self) -> Vec<f32> {
        self.alphas.iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect()
    }
}

/// Clean estimate from sample and output where the sample is `sqrt(ᾱ) x₀ + sqrt(1 - ᾱ) ε`.
pub(super) fn clean_estimate(prediction: Prediction, alpha: f32) -> (f64, f64) {
    let (signal, noise) = signal_and_noise(alpha);
    match prediction {
        Prediction::Epsilon => (1.0 / signal, -noise / signal),
        Prediction::Velocity => (signal, -noise),
        Prediction::Sample => (0.0, 1.0),
    }
}

/// `(sqrt(ᾱ), sqrt(1 - ᾱ))`.
pub(super) fn signal_and_noise(alpha: f32) -> (f64, f64) {
    (f64::from(alpha.sqrt()), f64::from((1.0 - alpha).sqrt()))
}

fn betas(config: &SchedulerConfig, defaults: &Defaults) -> Vec<f32> {
    if let Some(betas) = &config.trained_betas {
        return betas.clone();
    }
    let n = config.num_train_timesteps;
    let start = config.beta_start.unwrap_or(defaults.start);
    let end = config.beta_end.unwrap_or(defaults.end);
    match config.beta_schedule.unwrap_or(defaults.schedule) {
        BetaSchedule::Linear => linspace_f32(start as f32, end as f32, n),
        BetaSchedule::ScaledLinear => {
            let roots = linspace_f32(start.sqrt() as f32, end.sqrt() as f32, n);
            roots.into_iter().map(|root| root * root).collect()
        }
        BetaSchedule::SquaredCosine => squared_cosine(n),
    }
}

fn squared_cosine(n: usize) -> Vec<f32> {
    const OFFSET: f64 = 0.008;
    const LARGEST: f64 = 0.999;
    let alpha = |i: usize| {
        let t = i as f64 / n as f64;
        ((t + OFFSET) / (1.0 + OFFSET) * std::f64::consts::PI / 2.0).cos().powi(2)
    };
    (0..n).map(|i| (1.0 - alpha(i + 1) / alpha(i)).min(LARGEST) as f32).collect()
}

/// `n` numbers from `start` to `end` in the rounding of `torch.linspace`: the first half counts from
/// the start, the second back from the end, each product fused with its sum.
pub(super) fn linspace_f32(start: f32, end: f32, n: usize) -> Vec<f32> {
    if n < 2 {
        return vec![start; n];
    }
    let step = (end - start) / (n - 1) as f32;
    let number = |i: usize| {
        if i < n / 2 { step.mul_add(i as f32, start) } else { (-step).mul_add((n - 1 - i) as f32, end) }
    };
    (0..n).map(number).collect()
}

/// Running products of `1 - beta`, kept in double precision and rounded one by one.
fn cumulative_alphas(betas: &[f32]) -> Vec<f32> {
    let products = betas.iter().scan(1.0_f64, |product, beta| {
        *product *= f64::from(1.0 - beta);
        Some(*product as f32)
    });
    products.collect()
}

/// Lin et al., 2023, arXiv:2305.08891, algorithm 1: shifts `sqrt(ᾱ)` so that it ends at 0 and scales
/// it so that it begins as before.
fn rescale_to_zero_snr(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = cumulative_alphas(betas).iter().map(|alpha| alpha.sqrt()).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else { return Vec::new() };
    let scale = first / (first - last);
    let alphas: Vec<f32> = roots.iter().map(|root| (root - last) * scale).map(|root| root * root).collect();
    let before = std::iter::once(1.0).chain(alphas.iter().copied());
    // x / 1 is x, so that the first alpha needs no case of its own
    alphas.iter().zip(before).map(|(alpha, before)| 1.0 - alpha / before).collect()
}
