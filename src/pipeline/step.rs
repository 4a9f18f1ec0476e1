//! One denoising step for each of a mixed set of jobs.

use std::collections::BTreeMap;
use std::time::Instant;

use burn::tensor::{DType, Tensor};

use super::{Pipeline, check_finite, download, no_output};
use crate::denoisers::Conditioning;
use crate::device::{DeviceError, DeviceKind, guard};
use crate::error::{Error, Result, Stage};
use crate::job::{Job, Row};

/// One row of a launch: a picture of a job with the prompt that steers it.
struct Entry {
    job: usize,
    row: usize,
    half: Half,
    /// Scaled as the sampler asks, `[1, channels, height, width]`.
    latents: Tensor<4>,
    timestep: f32,
    /// `[1, tokens, channels]`
    context: Tensor<3>,
}

#[derive(Clone, Copy)]
enum Half {
    Positive,
    Negative,
}

/// What the network predicted for the rows of one job.
#[derive(Default)]
struct Outputs {
    positive: Vec<Option<Tensor<4>>>,
    negative: Vec<Option<Tensor<4>>>,
    failure: Option<Error>,
}

impl Outputs {
    fn slot(&mut self, entry: &Entry) -> Option<&mut Option<Tensor<4>>> {
        let slots = match entry.half {
            Half::Positive => &mut self.positive,
            Half::Negative => &mut self.negative,
        };
        slots.get_mut(entry.row)
    }
}

impl Pipeline {
    /// One denoising step for each job, in the order given. The jobs may differ in sampler, step count,
    /// position, guidance and seed; rows of equal size share launches. A job that is done is left as it
    /// is; a job that fails stays where it was, and its neighbours go on.
    ///
    /// On the CPU non-finite latents are found here; elsewhere by [`finish`](Self::finish), since reading
    /// them would stall the device.
    pub fn step(&self, jobs: &mut [&mut Job]) -> Vec<Result<()>> {
        self.0.target.run(|| self.step_all(jobs))
    }

    /// [`step`](Self::step), and waits for the device. A failure that shows only there is every job's, and
    /// each stays where it was.
    pub(crate) fn step_and_wait(&self, jobs: &mut [&mut Job]) -> Vec<Result<()>> {
        let before: Vec<(usize, Vec<Row>)> = jobs.iter().map(|job| (job.index, job.rows.clone())).collect();
        let results = self.step(jobs);
        let Err(error) = self.0.target.device.sync() else {
            return results;
        };
        for (job, (index, rows)) in jobs.iter_mut().zip(before) {
            (job.index, job.rows) = (index, rows);
        }
        jobs.iter().map(|_| Err(DeviceError::execution(Stage::Denoise, &error).into())).collect()
    }

    fn step_all(&self, jobs: &mut [&mut Job]) -> Vec<Result<()>> {
        let begun = Instant::now();
        let (groups, mut outputs) = self.entries(jobs);
        for entries in groups.into_values() {
            let mut entries = entries.into_iter().peekable();
            while entries.peek().is_some() {
                let launch: Vec<Entry> = entries.by_ref().take(self.0.max_batch).collect();
                self.launch(&launch, &mut outputs);
            }
        }
        let results: Vec<Result<()>> =
            jobs.iter_mut().zip(outputs).map(|(job, outputs)| self.advance(job, outputs)).collect();
        let elapsed = begun.elapsed();
        for job in jobs.iter_mut() {
            job.denoising += elapsed;
        }
        results
    }

    /// The rows to compute, grouped by shape.
    fn entries(&self, jobs: &[&mut Job]) -> (BTreeMap<[usize; 3], Vec<Entry>>, Vec<Outputs>) {
        let mut groups = BTreeMap::<_, Vec<Entry>>::new();
        let mut outputs: Vec<Outputs> = jobs.iter().map(|_| Outputs::default()).collect();
        for (index, (job, outputs)) in jobs.iter().zip(&mut outputs).enumerate() {
            let Some(step) = job.next().filter(|_| self.check_owner(job).is_ok()) else {
                continue;
            };
            outputs.positive = vec![None; job.rows.len()];
            outputs.negative = vec![None; job.rows.len()];
            for (row, state) in job.rows.iter().enumerate() {
                let scaled = if step.input_scale == 1.0 {
                    state.latents.clone()
                } else {
                    state.latents.clone() * step.input_scale
                };
                let [_, _, height, width] = scaled.dims();
                let positive = (Half::Positive, &job.positive);
                let negative = job.negative().map(|(_, states)| (Half::Negative, states));
                for (half, context) in std::iter::once(positive).chain(negative) {
                    groups.entry([height, width, context.dims()[1]]).or_default().push(Entry {
                        job: index,
                        row,
                        half,
                        latents: scaled.clone(),
                        timestep: step.timestep,
                        context: context.clone(),
                    });
                }
            }
        }
        (groups, outputs)
    }

    /// One call of the network. Where it fails, each job's rows are tried alone, so that one that asks too
    /// much of the device fails alone.
    fn launch(&self, entries: &[Entry], outputs: &mut [Outputs]) {
        let failure = match self.predict_entries(entries) {
            Ok(predicted) => {
                for (index, entry) in entries.iter().enumerate() {
                    let slot = outputs.get_mut(entry.job).and_then(|outputs| outputs.slot(entry));
                    if let Some(slot) = slot {
                        *slot = Some(predicted.clone().narrow(0, index, 1));
                    }
                }
                return;
            }
            Err(error) => error,
        };
        let mut jobs = entries.chunk_by(|a, b| a.job == b.job).peekable();
        match (jobs.next(), jobs.peek()) {
            (Some(job), None) => {
                let failed = job.first().and_then(|entry| outputs.get_mut(entry.job));
                if let Some(outputs) = failed {
                    outputs.failure = Some(failure);
                }
            }
            (first, _) => first.into_iter().chain(jobs).for_each(|job| self.launch(job, outputs)),
        }
    }

    fn predict_entries(&self, entries: &[Entry]) -> Result<Tensor<4>> {
        guard(Stage::Denoise, || {
            let latents = Tensor::cat(entries.iter().map(|entry| entry.latents.clone()).collect(), 0);
            let context = Tensor::cat(entries.iter().map(|entry| entry.context.clone()).collect(), 0);
            let timesteps: Vec<f32> = entries.iter().map(|entry| entry.timestep).collect();
            let predicted = self.0.model.denoiser.forward(latents, &timesteps, &Conditioning { context });
            Ok(predicted.cast(DType::F32))
        })
    }

    /// Guidance and the sampler, for every picture of one job; all of them move, or none.
    fn advance(&self, job: &mut Job, outputs: Outputs) -> Result<()> {
        self.check_owner(job)?;
        let Some(step) = job.next() else {
            return Ok(());
        };
        if let Some(failure) = outputs.failure {
            return Err(failure);
        }
        let guidance = job.negative().map(|(plan, _)| plan);
        let rows = guard(Stage::Denoise, || {
            let halves = outputs.positive.into_iter().zip(outputs.negative);
            let moved = job.rows.iter().zip(halves).map(|(row, (positive, negative))| {
                let positive = positive.ok_or_else(|| no_output(Stage::Denoise))?;
                let output = match (guidance, negative) {
                    (Some(plan), Some(negative)) => plan.combine(positive, negative),
                    _ => positive,
                };
                let row = row.advance(step, output);
                self.check_latents(&row)?;
                Ok(row)
            });
            moved.collect::<Result<Vec<Row>>>()
        })?;
        job.rows = rows;
        job.index += 1;
        Ok(())
    }

    fn check_latents(&self, row: &Row) -> Result<()> {
        if self.0.target.kind != DeviceKind::Cpu {
            return Ok(());
        }
        check_finite(&download(row.latents.clone(), Stage::Denoise)?, Stage::Denoise, "")
    }
}
