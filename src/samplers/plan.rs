//! The compiled sampler: a list of steps, each a handful of coefficients.

use super::config::SchedulerConfig;
use super::linear::Linear;
use super::{Sampler, SamplerError, SigmaSchedule, ddim, ddpm, dpm_plus_plus, euler, heun, lcm};
use super::{pndm, uni_pc};

/// What a step's updates are made of. All have the shape of the latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// The noisy sample, before its `input_scale`.
    Sample,
    /// What the model returned.
    Output,
    /// The clean estimate of [`Step::denoised`].
    Denoised,
    /// A value that an earlier step kept.
    Register(usize),
    /// This step's draw from the standard normal distribution.
    Noise,
}

/// Where an update goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The sample that the next step begins with; after the last step, the clean latents.
    Sample,
    /// A value that later steps read. Written before it is read.
    Register(usize),
}

/// `target = Σ factor · term`. No terms is zero.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// What is written.
    pub target: Target,
    /// The sum; no term occurs twice.
    pub terms: Vec<(Term, f32)>,
}

/// The clean estimate: `sample · x + output · model output`, then clamped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Denoised {
    /// The factor of the noisy sample.
    pub sample: f32,
    /// The factor of the model's output.
    pub output: f32,
    /// Values beyond ± this are cut off.
    pub clamp: Option<f32>,
}

/// One model evaluation and what follows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The time that the model is told.
    pub timestep: f32,
    /// The model sees the sample times this.
    pub input_scale: f32,
    /// How the clean estimate comes from sample and output.
    pub denoised: Denoised,
    /// All read the values from before the step, then all are written.
    pub updates: Vec<Update>,
    /// Whether the step draws noise, which it does even if no update uses it: the draws that follow
    /// depend on it.
    pub draws_noise: bool,
}

/// A sampler, compiled for one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    sampler: Sampler,
    initial_scale: f32,
    image_mix: (f32, f32),
    steps: Vec<Step>,
    registers: usize,
}

/// What a sampler compiles.
pub(super) struct Request<'a> {
    pub(super) config: &'a SchedulerConfig,
    pub(super) sampler: Sampler,
    pub(super) sigmas: Option<SigmaSchedule>,
    /// Steps of the whole schedule.
    pub(super) steps: usize,
    /// How many of them image to image leaves out at the start.
    pub(super) skipped: usize,
}

impl Request<'_> {
    /// Refuses a number of steps out of `least..=most`.
    pub(super) fn check_steps(&self, least: usize, most: usize) -> Result<(), SamplerError> {
        let found = self.steps;
        if (least..=most).contains(&found) {
            return Ok(());
        }
        Err(SamplerError::Steps { sampler: self.sampler, found, least, most })
    }
}

/// What a sampler compiles to.
pub(super) struct Compiled {
    pub(super) initial_scale: f64,
    pub(super) image_mix: (f64, f64),
    pub(super) steps: Vec<Draft>,
}

/// A [`Step`] in double precision.
pub(super) struct Draft {
    pub(super) timestep: f64,
    pub(super) input_scale: f64,
    /// Factors of sample and output.
    pub(super) denoised: (f64, f64),
    pub(super) clamp: Option<f32>,
    pub(super) updates: Vec<(Target, Linear)>,
    pub(super) draws_noise: bool,
}

impl Draft {
    fn finish(self) -> Step {
        let update = |(target, sum): (Target, Linear)| Update { target, terms: sum.into_terms() };
        Step {
            timestep: self.timestep as f32,
            input_scale: self.input_scale as f32,
            denoised: Denoised {
                sample: self.denoised.0 as f32,
                output: self.denoised.1 as f32,
                clamp: self.clamp,
            },
            updates: self.updates.into_iter().map(update).collect(),
            draws_noise: self.draws_noise,
        }
    }
}

impl Step {
    fn is_finite(&self) -> bool {
        let Denoised { sample, output, .. } = self.denoised;
        let fixed = [self.timestep, self.input_scale, sample, output];
        let terms = self.updates.iter().flat_map(|update| &update.terms);
        fixed.into_iter().chain(terms.map(|(_, factor)| *factor)).all(f32::is_finite)
    }
}

impl Plan {
    /// Compiles a sampler.
    ///
    /// * `sampler`: `None` is the one that the checkpoint names
    /// * `sigmas`: replaces the sigma schedule of the checkpoint
    /// * `steps`: steps from pure noise to a clean image
    /// * `strength`: `None` begins with noise; `Some` begins with an image, mixed with the noise of
    ///   the last `strength · steps` steps, in `0.0..=1.0`
    ///
    /// # Errors
    /// When the configuration asks for what is not supported, when the sampler cannot do what the
    /// request asks for, or when the schedule leads to a division by zero: see [`SamplerError`].
    pub fn new(
        config: &SchedulerConfig,
        sampler: Option<Sampler>,
        sigmas: Option<SigmaSchedule>,
        steps: usize,
        strength: Option<f32>,
    ) -> Result<Self, SamplerError> {
        let sampler = sampler.map_or_else(|| config.sampler(), Ok)?;
        if let (Some(sigmas), false) = (sigmas, sampler.takes_sigma_schedule()) {
            return Err(SamplerError::NoSigmaSchedule { sampler, sigmas });
        }
        let mut request = Request { config, sampler, sigmas, steps, skipped: 0 };
        request.check_steps(1, config.num_train_timesteps)?;
        request.skipped = skipped(steps, strength)?;

        let compiled = match sampler {
            Sampler::Ddim { eta } => ddim::compile(&request, eta),
            Sampler::Ddpm => ddpm::compile(&request),
            Sampler::Euler | Sampler::EulerAncestral => euler::compile(&request),
            Sampler::DpmPlusPlus2M | Sampler::DpmPlusPlus2MSde => dpm_plus_plus::compile(&request),
            Sampler::Heun => heun::compile(&request),
            Sampler::Pndm => pndm::compile(&request),
            Sampler::UniPc => uni_pc::compile(&request),
            Sampler::Lcm => lcm::compile(&request),
        }?;
        let plan = Self::finish(sampler, compiled)?;
        match strength {
            Some(strength) if plan.steps.is_empty() => Err(SamplerError::NoStepLeft { steps, strength }),
            _ => Ok(plan),
        }
    }

    fn finish(sampler: Sampler, compiled: Compiled) -> Result<Self, SamplerError> {
        let steps: Vec<Step> = compiled.steps.into_iter().map(Draft::finish).collect();
        let (clean, noise) = compiled.image_mix;
        let start = [compiled.initial_scale, clean, noise];
        if !start.into_iter().all(|factor| (factor as f32).is_finite()) {
            return Err(SamplerError::NotFinite { sampler, step: steps.len() });
        }
        if let Some(step) = steps.iter().position(|step| !step.is_finite()) {
            return Err(SamplerError::NotFinite { sampler, step });
        }
        let written = steps.iter().flat_map(|step| &step.updates).map(|update| update.target);
        let registers = written.map(|target| match target {
            Target::Sample => 0,
            Target::Register(index) => index + 1,
        });
        Ok(Self {
            sampler,
            initial_scale: compiled.initial_scale as f32,
            image_mix: (clean as f32, noise as f32),
            registers: registers.max().unwrap_or(0),
            steps,
        })
    }

    /// The sampler that the plan runs.
    #[must_use]
    pub fn sampler(&self) -> Sampler {
        self.sampler
    }

    /// Text to image begins with standard normal noise times this.
    #[must_use]
    pub fn initial_scale(&self) -> f32 {
        self.initial_scale
    }

    /// Image to image begins with `a · clean + b · noise` for this `(a, b)`.
    #[must_use]
    pub fn image_mix(&self) -> (f32, f32) {
        self.image_mix
    }

    /// One entry a model evaluation, in order.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How many values besides the sample live from step to step.
    #[must_use]
    pub fn registers(&self) -> usize {
        self.registers
    }

    /// Which registers hold a value after the first `steps` steps.
    pub(crate) fn held(&self, steps: usize) -> Vec<bool> {
        let mut held = vec![false; self.registers];
        for step in self.steps.iter().take(steps) {
            let before = held.clone();
            let is_there = |(term, _): &(Term, f32)| match term {
                Term::Register(index) => before.get(*index).is_some_and(|held| *held),
                Term::Noise => step.draws_noise,
                Term::Sample | Term::Output | Term::Denoised => true,
            };
            for update in &step.updates {
                if let Target::Register(index) = update.target
                    && let Some(held) = held.get_mut(index)
                {
                    *held = update.terms.iter().any(is_there);
                }
            }
        }
        held
    }
}

/// How many steps of a schedule image to image leaves out.
fn skipped(steps: usize, strength: Option<f32>) -> Result<usize, SamplerError> {
    let Some(strength) = strength else { return Ok(0) };
    if !(0.0..=1.0).contains(&strength) {
        return Err(SamplerError::Strength { found: strength });
    }
    // The whole part of the product is what counts. 0.7 of 10 steps is 7 if 0.7 is the decimal
    // number, but 6 if it is the nearest f32; so the shortest decimal number that means this f32.
    let decimal = strength.to_string().parse().unwrap_or_else(|_| f64::from(strength));
    let kept = (steps as f64 * decimal) as usize;
    if kept == 0 {
        return Err(SamplerError::NoStepLeft { steps, strength });
    }
    Ok(steps.saturating_sub(kept))
}
