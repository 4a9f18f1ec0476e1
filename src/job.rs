//! One request in flight.

pub(crate) mod saved;

use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;

pub use self::saved::SavedJobError;
use crate::guidance::GuidancePlan;
use crate::request::Request;
use crate::samplers::noise::Generator;
use crate::samplers::{Plan, Step, Target, Term};

/// A request between [`start`](crate::Pipeline::start) and [`finish`](crate::Pipeline::finish):
/// its pictures move through the schedule together, one [`step`](crate::Pipeline::step) at a time.
#[derive(Debug)]
pub struct Job {
    pub(crate) request: Request,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) plan: Plan,
    pub(crate) index: usize,
    pub(crate) rows: Vec<Row>,
    /// Text states of the prompt, `[1, tokens, channels]`.
    pub(crate) positive: Tensor<3>,
    /// The negative prompt's, with the guidance that uses them.
    pub(crate) guided: Option<(GuidancePlan, Tensor<3>)>,
    /// What the user should know, such as a prompt that was cut.
    pub(crate) notes: Vec<String>,
    /// The pipeline that started it.
    pub(crate) pipeline: Arc<str>,
    pub(crate) begun: Instant,
    pub(crate) encoding: Duration,
    pub(crate) denoising: Duration,
}

/// One picture of a job.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) seed: u64,
    pub(crate) generator: Generator,
    /// `[1, channels, height, width]` in f32.
    pub(crate) latents: Tensor<4>,
    /// Earlier values that the sampler reads again.
    pub(crate) registers: Vec<Option<Tensor<4>>>,
    /// The clean estimate of the last step, for previews.
    pub(crate) denoised: Option<Tensor<4>>,
}

impl Job {
    /// Model evaluations done.
    pub fn step(&self) -> usize {
        self.index
    }

    /// Model evaluations of the whole job; Heun makes about two a step, image to image fewer than asked.
    pub fn total(&self) -> usize {
        self.plan.steps().len()
    }

    /// Whether every step is done.
    pub fn is_done(&self) -> bool {
        self.index >= self.total()
    }

    /// Width and height of the pictures, in pixels.
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// The seeds of the pictures.
    pub fn seeds(&self) -> impl Iterator<Item = u64> + '_ {
        self.rows.iter().map(|row| row.seed)
    }

    /// Time since the job was started.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The step to come, if any.
    pub(crate) fn next(&self) -> Option<&Step> {
        self.plan.steps().get(self.index)
    }

    /// The negative half for the step to come, if guidance acts in it.
    pub(crate) fn negative(&self) -> Option<&(GuidancePlan, Tensor<3>)> {
        self.guided.as_ref().filter(|(plan, _)| plan.acts(self.index, self.total()))
    }
}

impl Row {
    /// Carries out one sampler step on this row.
    ///
    /// * `output`: what the network predicted, guided, `[1, channels, height, width]` in f32
    pub(crate) fn advance(&self, step: &Step, output: Tensor<4>) -> Row {
        let mut row = self.clone();
        let estimate = self.latents.clone() * step.denoised.sample + output.clone() * step.denoised.output;
        let denoised = match step.denoised.clamp {
            Some(range) => estimate.clamp(-range, range),
            None => estimate,
        };
        let noise = step.draws_noise.then(|| {
            let shape = self.latents.dims();
            let values = row.generator.randn(shape.iter().product());
            crate::pipeline::upload(values, shape, &self.latents.device())
        });
        for update in &step.updates {
            let mut sum: Option<Tensor<4>> = None;
            for (term, factor) in &update.terms {
                let value = match term {
                    Term::Sample => Some(self.latents.clone()),
                    Term::Output => Some(output.clone()),
                    Term::Denoised => Some(denoised.clone()),
                    Term::Register(index) => self.registers.get(*index).cloned().flatten(),
                    Term::Noise => noise.clone(),
                };
                let scaled = value.map(|value| value * *factor);
                sum = match (sum, scaled) {
                    (Some(sum), Some(scaled)) => Some(sum + scaled),
                    (sum, scaled) => sum.or(scaled),
                };
            }
            match update.target {
                Target::Sample => row.latents = sum.unwrap_or_else(|| self.latents.zeros_like()),
                Target::Register(index) => {
                    if let Some(register) = row.registers.get_mut(index) {
                        *register = sum;
                    }
                }
            }
        }
        row.denoised = Some(denoised);
        row
    }
}
