//! PNDM: Liu et al., 2022, "Pseudo numerical methods for diffusion models on manifolds",
//! arXiv:2202.09778. Linear multistep (F-PNDM's second half), begun by Runge–Kutta steps or, with
//! `skip_prk_steps`, by lower orders.

use super::SamplerError;
use super::config::{Prediction, Spacing};
use super::linear::{Atom, Linear, OUTPUT, SAMPLE, register};
use super::noise_schedule::{Defaults, NoiseSchedule, Rescale, clean_estimate, signal_and_noise};
use super::plan::{Compiled, Draft, Request, Target};
use super::spacing;

/// The outputs of the last three multistep evaluations, newest first.
const OUTPUTS: [usize; 3] = [0, 1, 2];
/// The sample that the evaluations of one step share.
const START: usize = 3;
/// The weighted sum of the outputs of a Runge–Kutta step so far.
const SUM: usize = 4;
/// Runge–Kutta evaluations: three steps of four.
const RUNGE_KUTTA: usize = 12;
/// The order of both methods, and the timesteps that the Runge–Kutta start needs.
const ORDER: usize = 4;

struct Pndm<'a> {
    request: &'a Request<'a>,
    noise: NoiseSchedule,
    ends_clean: bool,
    /// Training timesteps between two steps.
    stride: i64,
    /// Timesteps of the Runge–Kutta evaluations of the whole schedule.
    runge_kutta: Vec<i64>,
    /// How many of [`OUTPUTS`] are written.
    known: usize,
}

pub(super) fn compile(request: &Request<'_>) -> Result<Compiled, SamplerError> {
    let config = request.config;
    if config.prediction == Prediction::Sample {
        return Err(SamplerError::Value {
            key: "prediction_type",
            found: "\"sample\"".to_owned(),
            expected: "epsilon or v_prediction for the sampler pndm",
        });
    }
    let grid = spacing::whole(config, request.steps, config.spacing.unwrap_or(Spacing::Leading));
    let stride = (config.num_train_timesteps / request.steps) as i64;
    let (runge_kutta, multistep) = if config.skip_prk_steps {
        (Vec::new(), repeat_second(&grid))
    } else {
        request.check_steps(ORDER, config.num_train_timesteps)?;
        (runge_kutta(&grid, stride / 2), grid.iter().skip(ORDER - 1).copied().collect())
    };
    let mut pndm = Pndm {
        request,
        noise: NoiseSchedule::new(config, &Defaults::DDPM, Rescale::Ignored),
        ends_clean: config.set_alpha_to_one.unwrap_or(false),
        stride,
        runge_kutta,
        known: 0,
    };
    let timesteps: Vec<i64> = pndm.runge_kutta.iter().copied().chain(multistep).collect();
    let used = timesteps.get(request.skipped..).unwrap_or_default();

    let mut steps = Vec::with_capacity(used.len());
    for (step, &t) in used.iter().enumerate() {
        let alpha = pndm.noise.alpha(t, step)?;
        let updates = if step < pndm.runge_kutta.len() {
            pndm.runge_kutta_step(step, t)?
        } else {
            pndm.multistep(step, t)?
        };
        steps.push(Draft {
            timestep: t as f64,
            input_scale: 1.0,
            denoised: clean_estimate(config.prediction, alpha),
            clamp: None,
            updates,
            draws_noise: false,
        });
    }
    let image_mix = signal_and_noise(pndm.noise.alpha(used.first().copied().unwrap_or(0), 0)?);
    Ok(Compiled { initial_scale: 1.0, image_mix, steps })
}

/// The second timestep is evaluated twice: the first time it corrects the step that led to it.
fn repeat_second(grid: &[i64]) -> Vec<i64> {
    let (first, rest) = grid.split_at(grid.len().min(2));
    first.iter().chain(first.get(1)).chain(rest).copied().collect()
}

/// Each of three steps is evaluated at its start, twice in its middle, and at its end.
fn runge_kutta(grid: &[i64], half: i64) -> Vec<i64> {
    let starts = grid.iter().zip(grid.iter().skip(1)).take(RUNGE_KUTTA / ORDER);
    let points = starts.flat_map(|(&start, &end)| [start, end + half, end + half, end]);
    points.collect()
}

impl Pndm<'_> {
    /// One evaluation of a classical Runge–Kutta step.
    fn runge_kutta_step(&mut self, step: usize, t: i64) -> Result<Vec<(Target, Linear)>, SamplerError> {
        let stage = step % ORDER;
        let start = self.runge_kutta.get(step - stage).copied().unwrap_or(t);
        let after = if stage.is_multiple_of(2) { t - self.stride / 2 } else { t };
        let output = Linear::from(OUTPUT);
        let sum = Linear::from(register(SUM));
        let from = if stage == 0 { SAMPLE } else { register(START) };

        let mut updates = Vec::new();
        let slope = match stage {
            0 => {
                updates.extend(self.keep_output());
                updates.push((Target::Register(START), SAMPLE.into()));
                updates.push((Target::Register(SUM), OUTPUT * (1.0 / 6.0)));
                output
            }
            1 | 2 => {
                updates.push((Target::Register(SUM), sum + OUTPUT * (1.0 / 3.0)));
                output
            }
            _ => sum + OUTPUT * (1.0 / 6.0),
        };
        updates.push((Target::Sample, self.transfer(from, slope, start, after, step)?));
        Ok(updates)
    }

    /// One evaluation of the Adams–Bashforth method, of the order that the outputs so far allow.
    fn multistep(&mut self, step: usize, t: i64) -> Result<Vec<(Target, Linear)>, SamplerError> {
        let [a, b, c] = OUTPUTS.map(register);
        let output = Linear::from(OUTPUT);
        if step == 1 {
            // the second look at the first step: the mean of the slopes at its ends
            let slope = (output + Linear::from(a)) * 0.5;
            let from = register(START);
            return Ok(vec![(Target::Sample, self.transfer(from, slope, t + self.stride, t, step)?)]);
        }
        let slope = match self.known {
            0 => output,
            1 => (output * 3.0 - a.into()) * (1.0 / 2.0),
            2 => (output * 23.0 - a * 16.0 + b * 5.0) * (1.0 / 12.0),
            _ => (output * 55.0 - a * 59.0 + b * 37.0 - c * 9.0) * (1.0 / 24.0),
        };
        let mut updates = self.keep_output();
        if step == 0 {
            updates.push((Target::Register(START), SAMPLE.into()));
        }
        let sample = self.transfer(SAMPLE, slope, t, t - self.stride, step)?;
        updates.push((Target::Sample, sample));
        Ok(updates)
    }

    /// Shifts the output into [`OUTPUTS`].
    fn keep_output(&mut self) -> Vec<(Target, Linear)> {
        let mut updates = vec![(Target::Register(OUTPUTS[0]), OUTPUT.into())];
        let older = OUTPUTS.iter().zip(OUTPUTS.iter().skip(1)).take(self.known);
        updates.extend(older.map(|(&from, &to)| (Target::Register(to), register(from).into())));
        self.known = OUTPUTS.len().min(self.known + 1);
        updates
    }

    /// The paper's transfer part, equation 9: `from` at `start`, moved to `after` along `slope`.
    fn transfer(
        &self,
        from: Atom,
        slope: Linear,
        start: i64,
        after: i64,
        step: usize,
    ) -> Result<Linear, SamplerError> {
        let alpha = self.noise.alpha(start, step)?;
        let alpha_after = self.noise.alpha_after(after, step, self.ends_clean)?;
        let slope = match self.request.config.prediction {
            Prediction::Velocity => {
                let (signal, noise) = signal_and_noise(alpha);
                slope * signal + from * noise
            }
            Prediction::Epsilon | Prediction::Sample => slope,
        };
        let difference = f64::from(alpha_after - alpha);
        let (alpha, alpha_after) = (f64::from(alpha), f64::from(alpha_after));
        let (left, left_after) = (1.0 - alpha, 1.0 - alpha_after);
        let divisor = alpha * left_after.sqrt() + (alpha * left * alpha_after).sqrt();
        Ok(from * (alpha_after / alpha).sqrt() - slope * (difference / divisor))
    }
}
