//! One denoising step for each of a mixed set of jobs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Tensor;

use super::{Pipeline, download, no_output, together};
use crate::denoisers::Conditioning;
use crate::device::{DeviceError, DeviceKind, guard};
use crate::error::{Error, Result, Stage};
use crate::job::{Job, Placed, Predicted, Row};
use crate::ops::{self, Guided, NonFinite, Slot};
use crate::samplers::Step;

/// One row of a launch of the network: a picture of a job with the prompt that steers it.
struct Entry<'a> {
    latents: &'a Slot,
    input_scale: f32,
    timestep: f32,
    /// `[1, tokens, channels]`
    context: &'a Tensor<3>,
    placed: Option<&'a Placed>,
}

/// A row on its way through one step.
struct Moving<'a> {
    job: &'a Job,
    step: &'a Step,
    row: Row,
}

/// Counts that were read from the device, each once.
type Counts = Vec<(Arc<Tensor<2>>, Vec<f32>)>;

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

    /// [`step`](Self::step), and waits for the device: non-finite latents are found here wherever the step counts
    /// them. A failure that shows only there is every job's, and each stays where it was.
    pub(crate) fn step_and_wait(&self, jobs: &mut [&mut Job]) -> Vec<Result<()>> {
        let before: Vec<(usize, Vec<Row>)> = jobs.iter().map(|job| (job.index, job.rows.clone())).collect();
        let mut results = self.step(jobs);
        if let Err(error) = self.0.target.device.sync() {
            results =
                jobs.iter().map(|_| Err(DeviceError::execution(Stage::Denoise, &error).into())).collect();
        }
        let mut counts = Counts::new();
        for ((job, (index, rows)), result) in jobs.iter_mut().zip(before).zip(&mut results) {
            if result.is_ok() && job.index > index {
                *result = guard(Stage::Denoise, || {
                    job.rows.iter().try_for_each(|row| self.check_row(row, job.index, Some(&mut counts)))
                });
            }
            if result.is_err() {
                (job.index, job.rows) = (index, rows);
            }
        }
        results
    }

    fn step_all(&self, jobs: &mut [&mut Job]) -> Vec<Result<()>> {
        let begun = Instant::now();
        let mut results: Vec<Result<()>> = jobs.iter().map(|job| self.check_owner(job)).collect();
        let mut sizes = BTreeMap::<(u32, u32), Vec<usize>>::new();
        for (index, (job, result)) in jobs.iter().zip(&results).enumerate() {
            if result.is_ok() && !job.is_done() {
                sizes.entry((job.width, job.height)).or_default().push(index);
            }
        }
        for indices in sizes.into_values() {
            let group: Vec<&Job> =
                indices.iter().filter_map(|index| jobs.get(*index).map(|job| &**job)).collect();
            let moved = together(&group, Stage::Denoise, &|jobs| self.advance(jobs));
            for (index, rows) in indices.into_iter().zip(moved) {
                if let (Some(job), Some(result)) = (jobs.get_mut(index), results.get_mut(index)) {
                    *result = rows.and_then(|rows| self.settle_rows(job, rows));
                }
            }
        }
        let elapsed = begun.elapsed();
        for job in jobs.iter_mut() {
            job.denoising += elapsed;
        }
        results
    }

    /// All pictures of a job move, or none.
    fn settle_rows(&self, job: &mut Job, rows: Vec<Row>) -> Result<()> {
        rows.iter().try_for_each(|row| self.check_row(row, job.index + 1, None))?;
        job.rows = rows;
        job.index += 1;
        if job.is_done() {
            // No launch follows that would take them.
            job.rows.iter_mut().for_each(|row| row.placed.clear());
        }
        Ok(())
    }

    /// The rows of jobs of one size after their next steps.
    fn advance(&self, jobs: &[&Job]) -> Result<Vec<Vec<Row>>> {
        let mut moving = Vec::new();
        for job in jobs {
            let step = job.next().ok_or_else(|| no_output(Stage::Denoise))?;
            moving.extend(job.rows.iter().map(|row| Moving { job, step, row: row.clone() }));
        }
        let mut moved = Vec::with_capacity(moving.len());
        // One buffer for everything that all pictures of a large job write may be more than a device can bind.
        for rows in moving.chunks_mut(self.0.max_batch) {
            moved.extend(self.advance_rows(rows)?);
        }
        let mut moved = moved.into_iter();
        Ok(jobs.iter().map(|job| moved.by_ref().take(job.rows.len()).collect()).collect())
    }

    /// One row for each of these, in their order.
    fn advance_rows(&self, moving: &mut [Moving]) -> Result<Vec<Row>> {
        ops::side_by_side(moving.iter_mut().flat_map(|moving| moving.row.slots()).collect());
        let (predictions, predicted) = self.predict_rows(moving)?;
        let noise: Vec<_> = moving.iter_mut().map(|moving| moving.row.draw(moving.step)).collect();
        let rows = moving.iter().zip(predicted).zip(noise);
        let rows = rows.map(|((moving, predicted), noise)| moving.row.step(moving.step, predicted, noise));
        let stepped = ops::denoise_step(predictions, rows.collect());
        let mut stepped = stepped.into_iter();
        let moved = moving.iter().map(|moving| moving.row.moved(moving.step, stepped.next()?));
        moved.collect::<Option<_>>().ok_or_else(|| no_output(Stage::Denoise))
    }

    /// The network's predictions for all rows, `[predictions, channels, height, width]`, and which of them are whose.
    fn predict_rows(&self, moving: &mut [Moving]) -> Result<(Tensor<4>, Vec<Predicted>)> {
        let mut entries = Vec::new();
        let mut predicted = Vec::with_capacity(moving.len());
        for Moving { job, step, row } in moving.iter() {
            let mut placed = row.placed.iter();
            let mut push = |context| {
                let (latents, placed) = (&row.latents, placed.next());
                let (input_scale, timestep) = (step.input_scale, step.timestep);
                entries.push(Entry { latents, input_scale, timestep, context, placed });
                entries.len() - 1
            };
            let positive = push(&job.positive);
            let guided = job.negative().map(|(plan, context)| Guided {
                negative: push(context),
                scale: plan.scale,
                rescale: plan.rescale,
            });
            predicted.push(Predicted { positive, guided });
        }
        let [_, _, height, width] = moving.first().map_or([0; 4], |moving| moving.row.latents.dims());
        let most = self.denoiser_rows(width, height);
        let mut launches = Vec::new();
        let mut placed = Vec::with_capacity(entries.len());
        for launch in entries.chunks(most) {
            let context = context(launch);
            launches.push(self.launch(launch, Tensor::clone(&context)));
            placed.extend((0..launch.len()).map(|index| Placed { context: context.clone(), index }));
        }
        let mut placed = placed.into_iter();
        for (moving, predicted) in moving.iter_mut().zip(&predicted) {
            let entries = if predicted.guided.is_some() { 2 } else { 1 };
            moving.row.placed = placed.by_ref().take(entries).collect();
        }
        let predictions = match launches.len() {
            1 => launches.pop().ok_or_else(|| no_output(Stage::Denoise))?,
            _ => Tensor::cat(launches, 0),
        };
        Ok((predictions, predicted))
    }

    /// One call of the network, with `context` of `[entries, tokens, channels]`.
    fn launch(&self, entries: &[Entry], context: Tensor<3>) -> Tensor<4> {
        let latents: Vec<_> = entries.iter().map(|entry| (entry.latents, entry.input_scale)).collect();
        let latents = ops::denoise_input(&latents, self.0.target.dtype);
        let timesteps: Vec<f32> = entries.iter().map(|entry| entry.timestep).collect();
        self.0.model.denoiser.forward(latents, &timesteps, &Conditioning { context })
    }

    /// Refuses a row with non-finite latents after `step`: where they were counted on the device only with `counts`, since
    /// reading them waits for it.
    fn check_row(&self, row: &Row, step: usize, counts: Option<&mut Counts>) -> Result<()> {
        let count = match (row.counted.last(), counts) {
            (Some(NonFinite::Known(count)), _) => *count,
            (Some(counted), Some(counts)) => read_count(counted, counts)?.unwrap_or_default(),
            _ => 0,
        };
        if count == 0 {
            return Ok(());
        }
        let total = row.latents.dims().iter().product();
        let hint = if self.0.target.kind == DeviceKind::Cpu { "" } else { "; a higher precision may help" };
        // What a saved job held may have been so before.
        let step = (row.counted.len() > 1 || step == 1).then_some(step);
        Err(Error::NonFinite { stage: Stage::Denoise, count, total, step, hint })
    }
}

/// The text states of a launch: those of the last one, or a part of them, where all of its rows stood there side by side. A
/// part keeps the whole on the device, which is no more than one launch's.
fn context(entries: &[Entry]) -> Arc<Tensor<3>> {
    if let Some(first) = entries.first().and_then(|entry| entry.placed) {
        let stays = |(index, entry): (usize, &Entry)| {
            let beside = |placed: &Placed| {
                placed.index == first.index + index && Arc::ptr_eq(&placed.context, &first.context)
            };
            entry.placed.is_some_and(beside)
        };
        if entries.iter().enumerate().all(stays) {
            if first.context.dims()[0] == entries.len() {
                return first.context.clone();
            }
            return Arc::new(Tensor::clone(&first.context).narrow(0, first.index, entries.len()));
        }
    }
    Arc::new(Tensor::cat(entries.iter().map(|entry| entry.context.clone()).collect(), 0))
}

/// How many values of a row were not finite after a step, where that was counted.
fn read_count(counted: &NonFinite, counts: &mut Counts) -> Result<Option<usize>> {
    let (kept, row) = match counted {
        NonFinite::Unknown => return Ok(None),
        NonFinite::Known(count) => return Ok(Some(*count)),
        NonFinite::Kept { counts, row } => (counts, *row),
    };
    if !counts.iter().any(|(known, _)| Arc::ptr_eq(known, kept)) {
        counts.push((kept.clone(), download(Tensor::clone(kept), Stage::Denoise)?));
    }
    let parts = kept.dims()[1];
    let found = counts.iter().find(|(known, _)| Arc::ptr_eq(known, kept));
    let parts = found.map(|(_, values)| values.iter().skip(row * parts).take(parts));
    Ok(Some(parts.into_iter().flatten().sum::<f32>() as usize))
}

/// The first step after which the latents of a row, which has `done` steps behind it, were not finite; `None` where the
/// steps up to there were not all counted.
pub(super) fn first_non_finite_step(row: &Row, done: usize) -> Option<usize> {
    let mut counts = Counts::new();
    let first = (done + 1).checked_sub(row.counted.len())?;
    for (step, counted) in (first..).zip(&row.counted) {
        if read_count(counted, &mut counts).ok()?? > 0 {
            // What a saved job held may have been so before.
            return (step > first || first == 1).then_some(step);
        }
    }
    None
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
