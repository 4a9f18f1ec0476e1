//! DPM-Solver++, multistep: Lu et al., 2022, "DPM-Solver++: fast solver for guided sampling of
//! diffusion probabilistic models", arXiv:2211.01095, for the flow and for the SDE, orders 1 to 3.
//!
//! A level `σ` here is in units of the clean image: the sample is `α (x₀ + σ ε)` with
//! `α = 1 / sqrt(1 + σ²)`, and half the log signal-to-noise ratio is `λ = -ln σ`.

use super::config::{FinalSigma, SchedulerConfig, Solver, Spacing};
use super::linear::{DENOISED, Linear, NOISE, SAMPLE, register};
use super::noise_schedule::{Defaults, NoiseSchedule, Rescale};
use super::plan::{Compiled, Draft, Request, Target};
use super::sigmas::{TrainSigmas, spread, spread_within};
use super::uni_pc::{Level, clean_estimate};
use super::{Sampler, SamplerError, SigmaSchedule, spacing};

/// The settings that this sampler has and none here supports.
const REFUSED: [&str; 4] = ["thresholding", "use_flow_sigmas", "use_dynamic_shifting", "variance_type"];
/// Below this many steps, `lower_order_final` ends with lower orders.
const FEW_STEPS: usize = 15;

pub(super) fn compile(request: &Request<'_>) -> Result<Compiled, SamplerError> {
    let config = request.config;
    config.refuse(&REFUSED)?;
    let second_is_heun = second_order_is_heun(config);
    let stochastic = request.sampler == Sampler::DpmPlusPlus2MSde;
    let (timesteps, levels) = grid(request)?;

    let mut steps = Vec::with_capacity(timesteps.len());
    for (i, &t) in timesteps.iter().enumerate().skip(request.skipped) {
        let known = i - request.skipped;
        let order = order(config, known, i, timesteps.len());
        // the level to step to, then those of the clean estimates, newest first
        let Some(nodes) = levels.get(i + 1 - order..=i + 1) else { break };
        let nodes: Vec<Level> = nodes.iter().rev().copied().collect();
        let Some(&level) = levels.get(i) else { break };
        let mut sample = solve(&nodes, stochastic, second_is_heun);
        if let (true, Some(&after)) = (stochastic, nodes.first()) {
            sample = sample + NOISE * fresh_noise(level, after);
        }
        steps.push(Draft {
            timestep: t as f64,
            input_scale: 1.0,
            denoised: clean_estimate(config.prediction, level),
            clamp: None,
            updates: updates(sample, known, config.solver_order),
            draws_noise: stochastic,
        });
    }
    let image_mix = levels.get(request.skipped).map_or((1.0, 0.0), |l| (l.signal, l.noise));
    Ok(Compiled { initial_scale: 1.0, image_mix, steps })
}

/// The sample, and the clean estimates that later steps look back on.
fn updates(sample: Linear, known: usize, solver_order: usize) -> Vec<(Target, Linear)> {
    let mut updates = vec![(Target::Sample, sample)];
    let kept = solver_order - 1;
    if kept > 0 {
        updates.push((Target::Register(0), DENOISED.into()));
    }
    let older = 1..kept.min(known + 1);
    updates.extend(older.map(|i| (Target::Register(i), register(i - 1).into())));
    updates
}

/// The order of step `i` of `count`, with `known` steps before it.
fn order(config: &SchedulerConfig, known: usize, i: usize, count: usize) -> usize {
    let cautious = config.lower_order_final && count < FEW_STEPS;
    let at_the_end = if i + 1 == count {
        let first = config.euler_at_final || cautious || config.final_sigma == FinalSigma::Zero;
        if first { 1 } else { config.solver_order }
    } else if i + 2 == count && cautious {
        2
    } else {
        config.solver_order
    };
    config.solver_order.min(at_the_end).min(known + 1)
}

/// Names of solvers of other families stand for the default, as in diffusers.
fn second_order_is_heun(config: &SchedulerConfig) -> bool {
    match config.solver {
        Some(Solver::Heun) => true,
        None | Some(Solver::Midpoint | Solver::LogRho | Solver::Bh1 | Solver::Bh2) => false,
    }
}

/// One step without its noise. `nodes`: the level to step to, then those of the newest clean
/// estimates; their number is the order plus one.
fn solve(nodes: &[Level], stochastic: bool, second_is_heun: bool) -> Linear {
    let (Some(to), Some(from)) = (nodes.first(), nodes.get(1)) else { return SAMPLE.into() };
    let h = to.lambda - from.lambda;
    // the SDE's solution is that of the flow over twice the distance, but for the sample's factor
    let z = if stochastic { 2.0 * h } else { h };
    let decay = if stochastic { (-h).exp() } else { 1.0 };
    let gain = -(-z).exp_m1();
    let newest = Linear::from(DENOISED);
    let first = SAMPLE * (to.noise / from.noise * decay) + newest.clone() * (to.signal * gain);

    let Some(before) = nodes.get(2) else { return first };
    let r0 = (from.lambda - before.lambda) / h;
    let slope = (DENOISED - register(0)) * (1.0 / r0);
    let Some(oldest) = nodes.get(3) else {
        let weight = if second_is_heun { 1.0 - gain / z } else { 0.5 * gain };
        return first + slope * (to.signal * weight);
    };
    let r1 = (before.lambda - oldest.lambda) / h;
    let slope_before = (register(0) - register(1)) * (1.0 / r1);
    let bend = slope.clone() - slope_before;
    let d1 = slope + bend.clone() * (r0 / (r0 + r1));
    let d2 = bend * (1.0 / (r0 + r1));
    // The sign of the half is that of diffusers. By analogy with the flow it would be plus for the
    // SDE too, but a checkpoint that asks for this solver was judged by its images there.
    let half = if stochastic { -0.5 } else { 0.5 };
    let curvature = half - (z - gain) / (z * z);
    first + d1 * (to.signal * (1.0 - gain / z)) + d2 * (to.signal * curvature)
}

/// The standard deviation of the noise that an SDE step adds.
fn fresh_noise(from: Level, to: Level) -> f64 {
    to.noise * (-(-2.0 * (to.lambda - from.lambda)).exp_m1()).sqrt()
}

/// Timesteps, and one noise level more.
fn grid(request: &Request<'_>) -> Result<(Vec<i64>, Vec<Level>), SamplerError> {
    let config = request.config;
    let noise = NoiseSchedule::new(config, &Defaults::DDPM, Rescale::NearZero);
    let last = unclipped(config, noise.alphas())?;
    let train = TrainSigmas::new(noise.sigmas());
    let (largest, smallest) = (f64::from(train.largest()), f64::from(train.smallest()));
    let n = request.steps;
    let rounded = config.rounds_timesteps();

    let respaced = match (request.sigmas, config.sigma_schedule, config.use_lu_lambdas) {
        (Some(schedule), _, _) | (None, Some(schedule @ SigmaSchedule::Karras), _) => {
            let round = rounded && schedule == SigmaSchedule::Karras;
            Some((spread_within(config, schedule, largest, smallest, n), round))
        }
        // even in lambda, the default of the DPM-Solver paper
        (None, _, true) => Some((spread(SigmaSchedule::Exponential, largest, smallest, n), rounded)),
        (None, Some(schedule), false) => Some((spread_within(config, schedule, largest, smallest, n), false)),
        (None, None, false) => None,
    };
    let (timesteps, sigmas) = match respaced {
        Some((sigmas, round)) => (whole_timesteps(&train, &sigmas, round), sigmas),
        None => {
            let spacing = config.spacing.unwrap_or(Spacing::Linspace);
            let timesteps = spacing::multistep(config, n, spacing, last);
            let sigmas = timesteps.iter().map(|t| train.at(*t as f64)).collect();
            (timesteps, sigmas)
        }
    };
    let end = match config.final_sigma {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => smallest,
    };
    let levels = sigmas.into_iter().chain(std::iter::once(end)).map(Level::new).collect();
    Ok((timesteps, levels))
}

/// The nearest timestep with each noise level, or the one below.
pub(super) fn whole_timesteps(train: &TrainSigmas, sigmas: &[f64], round: bool) -> Vec<i64> {
    let exact = sigmas.iter().map(|sigma| train.timestep(*sigma));
    exact.map(|t| if round { t.round_ties_even() as i64 } else { t as i64 }).collect()
}

/// How many training timesteps have a `λ` that is not below `lambda_min_clipped`.
fn unclipped(config: &SchedulerConfig, alphas: &[f32]) -> Result<usize, SamplerError> {
    let least = config.lambda_min_clipped as f32;
    let lambda = |alpha: &f32| alpha.sqrt().ln() - (1.0 - alpha).sqrt().ln();
    let kept = alphas.iter().filter(|alpha| lambda(alpha) >= least).count();
    if kept == 0 {
        return Err(SamplerError::Value {
            key: "lambda_min_clipped",
            found: config.lambda_min_clipped.to_string(),
            expected: "a number below the largest lambda of the schedule",
        });
    }
    Ok(kept)
}
