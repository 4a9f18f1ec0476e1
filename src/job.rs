//! One request in flight.

mod applied;
pub(crate) mod saved;

use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;

pub use self::applied::{Applied, DegradeReason};
pub use self::saved::SavedJobError;
use crate::guidance::GuidancePlan;
use crate::ops::{DenoiseRow, Estimate, Guided, NonFinite, Slot, Source, Stepped};
use crate::request::Request;
use crate::samplers::noise::Generator;
use crate::samplers::{Denoised, Plan, Step, Target, Term};

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
    /// What it does instead of what was asked for, if an engine made it do so.
    pub(crate) applied: Option<Applied>,
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
    pub(crate) latents: Slot,
    /// Earlier values that the sampler reads again.
    pub(crate) registers: Vec<Option<Slot>>,
    /// The clean estimate of the last step, for previews.
    pub(crate) denoised: Option<Slot>,
    /// Where the prompt's text states, and the negative prompt's where it steered, stood in the row's last launch.
    pub(crate) placed: Vec<Placed>,
    /// Of the latents after each step that was made since the job was started or resumed.
    pub(crate) counted: Vec<NonFinite>,
}

/// Text states among those of a launch, which the next one takes as they are where the same rows make it.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    /// `[rows, tokens, channels]`
    pub(crate) context: Arc<Tensor<3>>,
    pub(crate) index: usize,
}

/// Where a row's predictions are, and how they are combined.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Predicted {
    pub(crate) positive: usize,
    pub(crate) guided: Option<Guided>,
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
    /// Every value that a step may read.
    pub(crate) fn slots(&mut self) -> impl Iterator<Item = &mut Slot> {
        std::iter::once(&mut self.latents).chain(self.registers.iter_mut().flatten())
    }

    /// The step's draw, for a step that draws.
    pub(crate) fn draw(&mut self, step: &Step) -> Option<Vec<f32>> {
        let elements = self.latents.dims().iter().product();
        step.draws_noise.then(|| self.generator.randn(elements))
    }

    /// One sampler step as sums: the sample's, the clean estimate, then those of the registers that hold a value
    /// afterwards, in their order.
    pub(crate) fn step(&self, step: &Step, predicted: Predicted, noise: Option<Vec<f32>>) -> DenoiseRow<'_> {
        let Denoised { sample, output, clamp } = step.denoised;
        let terms = self.after(step, Target::Sample).unwrap_or_default();
        let estimate = vec![(Source::Denoised, 1.0)];
        let registers = (0..self.registers.len()).filter_map(|r| self.after(step, Target::Register(r)));
        DenoiseRow {
            positive: predicted.positive,
            guided: predicted.guided,
            sample: &self.latents,
            estimate: Estimate { sample, output, clamp },
            noise,
            writes: [terms, estimate].into_iter().chain(registers).collect(),
        }
    }

    /// What `target` is after the step, of the values that are there; what no update names stays. `None` where that is
    /// nothing.
    fn after(&self, step: &Step, target: Target) -> Option<Vec<(Source<'_>, f32)>> {
        let register = |index: usize| self.registers.get(index).and_then(Option::as_ref).map(Source::Slot);
        let Some(update) = step.updates.iter().rfind(|update| update.target == target) else {
            let kept = match target {
                Target::Sample => Some(Source::Slot(&self.latents)),
                Target::Register(index) => register(index),
            };
            return kept.map(|kept| vec![(kept, 1.0)]);
        };
        let terms = update.terms.iter().filter_map(|(term, factor)| {
            let source = match term {
                Term::Sample => Some(Source::Slot(&self.latents)),
                Term::Output => Some(Source::Output),
                Term::Denoised => Some(Source::Denoised),
                Term::Register(index) => register(*index),
                Term::Noise => step.draws_noise.then_some(Source::Noise),
            };
            Some((source?, *factor))
        });
        let terms: Vec<_> = terms.collect();
        (!terms.is_empty()).then_some(terms)
    }

    /// The row after what [`step`](Self::step) asked for; `None` where values are missing.
    pub(crate) fn moved(&self, step: &Step, stepped: Stepped) -> Option<Row> {
        let mut values = stepped.values.into_iter();
        let latents = values.next()?;
        let denoised = Some(values.next()?);
        let registers = (0..self.registers.len())
            .map(|register| match self.after(step, Target::Register(register)) {
                Some(_) => values.next().map(Some),
                None => Some(None),
            })
            .collect::<Option<_>>()?;
        let (seed, generator) = (self.seed, self.generator.clone());
        let counted = self.counted.iter().cloned().chain([stepped.non_finite]).collect();
        let placed = self.placed.clone();
        Some(Row { seed, generator, latents, registers, denoised, placed, counted })
    }
}
