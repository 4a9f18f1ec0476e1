//! UniPC: Zhao et al., 2023, "UniPC: a unified predictor-corrector framework for fast sampling of
//! diffusion models", arXiv:2302.04867, orders 1 to 3, algorithms 5 to 8.
//!
//! Each evaluation first corrects the sample that it was made at, then predicts the next.

use super::config::{FinalSigma, Prediction, SchedulerConfig, Solver, Spacing};
use super::linear::{DENOISED, Linear, OUTPUT, SAMPLE, register};
use super::noise_schedule::{Defaults, NoiseSchedule, Rescale};
use super::plan::{Compiled, Draft, Request, Target};
use super::sigmas::{TrainSigmas, spread_within};
use super::{SamplerError, SigmaSchedule, dpm_plus_plus, spacing};

/// The corrected sample of the evaluation before.
const LAST_SAMPLE: usize = 0;
/// The newest of the converted outputs; older ones follow.
const NEWEST: usize = 1;
/// The settings that this sampler has and none here supports.
const REFUSED: [&str; 5] =
    ["thresholding", "use_flow_sigmas", "use_dynamic_shifting", "solver_p", "shift_terminal"];

/// A noise level: the sample is `signal · x₀ + noise · ε`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Level {
    pub(super) signal: f64,
    pub(super) noise: f64,
    /// Half the log signal-to-noise ratio; infinite where there is no noise.
    pub(super) lambda: f64,
}

impl Level {
    /// The level of `sigma`, in units of the clean image, rounded to single precision.
    pub(super) fn new(sigma: f64) -> Self {
        let sigma = f64::from(sigma as f32);
        let signal = 1.0 / (sigma * sigma + 1.0).sqrt();
        Self { signal, noise: sigma * signal, lambda: -sigma.ln() }
    }
}

/// Clean estimate from sample and output at a level.
pub(super) fn clean_estimate(prediction: Prediction, level: Level) -> (f64, f64) {
    match prediction {
        Prediction::Epsilon => (1.0 / level.signal, -level.noise / level.signal),
        Prediction::Velocity => (level.signal, -level.noise),
        Prediction::Sample => (0.0, 1.0),
    }
}

pub(super) fn compile(request: &Request<'_>) -> Result<Compiled, SamplerError> {
    let config = request.config;
    config.refuse(&REFUSED)?;
    let (timesteps, levels) = grid(request);
    let solver = UniPc { config, levels: &levels };

    let mut steps = Vec::with_capacity(timesteps.len());
    let mut order_before = 0;
    for (i, &t) in timesteps.iter().enumerate().skip(request.skipped) {
        let known = i - request.skipped;
        let Some(&level) = levels.get(i) else { break };
        let output = solver.converted(level);
        let corrects = known > 0 && !config.disable_corrector.contains(&(i - 1));
        let sample = if corrects { solver.correct(i, order_before, &output) } else { SAMPLE.into() };
        let left = if config.lower_order_final { timesteps.len() - i } else { usize::MAX };
        let order = config.solver_order.min(left).min(known + 1);
        let predicted = solver.predict(i, order, &sample, &output);
        order_before = order;

        let mut updates = vec![
            (Target::Sample, predicted),
            (Target::Register(LAST_SAMPLE), sample),
            (Target::Register(NEWEST), output),
        ];
        let older = 1..config.solver_order.min(known + 1);
        updates
            .extend(older.map(|back| (Target::Register(NEWEST + back), register(NEWEST + back - 1).into())));
        steps.push(Draft {
            timestep: t as f64,
            input_scale: 1.0,
            denoised: clean_estimate(config.prediction, level),
            clamp: None,
            updates,
            draws_noise: false,
        });
    }
    let image_mix = levels.get(request.skipped).map_or((1.0, 0.0), |l| (l.signal, l.noise));
    Ok(Compiled { initial_scale: 1.0, image_mix, steps })
}

struct UniPc<'a> {
    config: &'a SchedulerConfig,
    levels: &'a [Level],
}

impl UniPc<'_> {
    /// What the solver integrates: clean estimates, or noise.
    fn converted(&self, level: Level) -> Linear {
        if self.config.predict_x0 {
            return DENOISED.into();
        }
        let Level { signal, noise, .. } = level;
        match self.config.prediction {
            Prediction::Epsilon => OUTPUT.into(),
            Prediction::Velocity => OUTPUT * signal + SAMPLE * noise,
            Prediction::Sample => SAMPLE * (1.0 / noise) - OUTPUT * (signal / noise),
        }
    }

    /// UniP: from level `i` to `i + 1`, with the outputs at `i`, `i - 1`, …
    fn predict(&self, i: usize, order: usize, sample: &Linear, output: &Linear) -> Linear {
        let basis = self.basis(i, i + 1, order);
        let start = basis.start(sample, output);
        let weights = match order {
            1 => return start,
            // the paper's choice for order 2, section 3.4
            2 => vec![0.5],
            _ => basis.weights(order - 1),
        };
        let slopes = basis
            .ratios
            .iter()
            .zip(NEWEST..)
            .map(|(ratio, index)| (Linear::from(register(index)) - output.clone()) * (1.0 / ratio));
        slopes.zip(weights).fold(start, |sum, (slope, w)| sum - slope * (basis.scale * w))
    }

    /// UniC: the step from level `i - 1` to `i` again, with the output at its end.
    fn correct(&self, i: usize, order: usize, output: &Linear) -> Linear {
        let basis = self.basis(i - 1, i, order);
        let last = Linear::from(register(LAST_SAMPLE));
        let before = Linear::from(register(NEWEST));
        let start = basis.start(&last, &before);
        let weights = if order == 1 { vec![0.5] } else { basis.weights(order) };
        let older = basis
            .ratios
            .iter()
            .zip(NEWEST + 1..)
            .map(|(ratio, index)| (Linear::from(register(index)) - before.clone()) * (1.0 / ratio));
        let slopes = older.chain(std::iter::once(output.clone() - before.clone()));
        slopes.zip(weights).fold(start, |sum, (slope, w)| sum - slope * (basis.scale * w))
    }

    fn basis(&self, from: usize, to: usize, order: usize) -> Basis {
        let level = |i: usize| self.levels.get(i).copied().unwrap_or(Level::new(f64::NAN));
        let (start, end) = (level(from), level(to));
        let h = end.lambda - start.lambda;
        let ratio = |back: usize| (level(from - back).lambda - start.lambda) / h;
        let ratios = (1..order).map(ratio).collect();
        let (hh, factor, kept) = if self.config.predict_x0 {
            (-h, end.signal, end.noise / start.noise)
        } else {
            (h, end.noise, end.signal / start.signal)
        };
        let b_h = match self.config.solver {
            Some(Solver::Bh1) => hh,
            // names of solvers of other families stand for the default, as in diffusers
            _ => hh.exp_m1(),
        };
        Basis { hh, b_h, kept, gain: factor * hh.exp_m1(), scale: factor * b_h, ratios }
    }
}

/// One step's numbers.
struct Basis {
    hh: f64,
    /// The paper's `B(h)`.
    b_h: f64,
    /// The share of the sample that stays.
    kept: f64,
    /// The first-order factor of the output.
    gain: f64,
    /// The factor of the weighted slopes.
    scale: f64,
    /// Distances of the earlier outputs, in units of the step; negative.
    ratios: Vec<f64>,
}

impl Basis {
    /// The first-order part.
    fn start(&self, sample: &Linear, output: &Linear) -> Linear {
        sample.clone() * self.kept - output.clone() * self.gain
    }

    /// Weights of the slopes at `ratios` and, if `count` is one more, at the step's end: the solution
    /// of the paper's linear system `R ρ = b`, theorem 3.1.
    fn weights(&self, count: usize) -> Vec<f64> {
        let nodes: Vec<f64> = self.ratios.iter().copied().chain(std::iter::once(1.0)).take(count).collect();
        let mut phi = self.hh.exp_m1() / self.hh - 1.0;
        let mut factorial = 1.0;
        let mut rows = Vec::with_capacity(count);
        for power in 0..count as i32 {
            let mut row: Vec<f64> = nodes.iter().map(|node| node.powi(power)).collect();
            row.push(phi * factorial / self.b_h);
            rows.push(row);
            factorial *= f64::from(power + 2);
            phi = phi / self.hh - 1.0 / factorial;
        }
        solve(rows)
    }
}

/// Gaussian elimination; each row ends with its right-hand side. A singular system gives values that
/// are not finite.
fn solve(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let n = rows.len();
    for column in 0..n {
        let size = |row: &Vec<f64>| row.get(column).map_or(0.0, |value| value.abs());
        let pivot = (column..n).max_by(|&a, &b| size(&rows[a]).total_cmp(&size(&rows[b])));
        rows.swap(column, pivot.unwrap_or(column));
        let pivot_row = rows[column].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(index, _)| *index != column) {
            let factor = row[column] / pivot_row[column];
            for (value, pivot) in row.iter_mut().zip(&pivot_row) {
                *value -= factor * pivot;
            }
        }
    }
    rows.iter().enumerate().map(|(i, row)| row[n] / row[i]).collect()
}

/// Timesteps, and one noise level more.
fn grid(request: &Request<'_>) -> (Vec<i64>, Vec<Level>) {
    let config = request.config;
    let noise = NoiseSchedule::new(config, &Defaults::DDPM, Rescale::NearZero);
    let train = TrainSigmas::new(noise.sigmas());
    let (largest, smallest) = (f64::from(train.largest()), f64::from(train.smallest()));
    let n = request.steps;
    let (timesteps, sigmas, smallest) = match request.sigmas.or(config.sigma_schedule) {
        Some(schedule) => {
            let sigmas = spread_within(config, schedule, largest, smallest, n);
            let round = schedule == SigmaSchedule::Karras;
            let end = sigmas.last().copied().unwrap_or(smallest);
            (dpm_plus_plus::whole_timesteps(&train, &sigmas, round), sigmas, end)
        }
        None => {
            let spacing = config.spacing.unwrap_or(Spacing::Linspace);
            let timesteps = spacing::multistep(config, n, spacing, config.num_train_timesteps);
            let sigmas = timesteps.iter().map(|t| train.at(*t as f64)).collect();
            (timesteps, sigmas, smallest)
        }
    };
    let end = match config.final_sigma {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => smallest,
    };
    let levels = sigmas.into_iter().chain(std::iter::once(end)).map(Level::new).collect();
    (timesteps, levels)
}
