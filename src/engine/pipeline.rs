//! A pipeline as what the engine drives.

use std::time::{Duration, Instant};

use ::image::RgbImage;

use super::backend::{Alternative, Backend, Degrade, Steps};
use super::cost::{BatchKey, Price};
use super::lifecycle::Fault;
use super::{Engine, EngineError, EngineOptions};
use crate::device::DeviceError;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::pipeline::{Generation, Needs, Pipeline, Resume};
use crate::request::{Guidance, Input, Request};
use crate::samplers::Sampler;

/// An engine over a [`Pipeline`].
pub type PipelineEngine = Engine<PipelineBackend>;

/// A [`Pipeline`] with the times that predictions begin from. Checkpoints are the bytes of
/// [`Pipeline::save`], so that [`Pipeline::resume`] takes them too. There is no distilled model to fall
/// back to: `Degrade::distilled` agrees to nothing here.
#[derive(Clone, Debug)]
pub struct PipelineBackend {
    pipeline: Pipeline,
    times: Times,
    memory: Option<u64>,
}

/// Seconds that the timed request took, and how large it was.
#[derive(Clone, Copy, Debug)]
struct Times {
    pixels: f64,
    start: f64,
    step: f64,
    finish: f64,
}

impl PipelineBackend {
    /// Times the pipeline by a picture of its own size in two steps.
    ///
    /// # Errors
    /// Where that picture fails.
    pub fn new(pipeline: Pipeline) -> Result<Self> {
        let request = Request {
            steps: Some(2),
            sampler: Some(Sampler::Euler),
            guidance: Some(Guidance::None),
            ..Request::default()
        };
        // A device prepares its kernels in the first of everything.
        let begun = Instant::now();
        let mut job = pipeline.start(&request)?;
        let start = begun.elapsed().as_secs_f64();
        let mut step = f64::INFINITY;
        while !job.is_done() {
            let begun = Instant::now();
            pipeline.step_and_wait(&mut [&mut job]).into_iter().collect::<Result<()>>()?;
            step = step.min(begun.elapsed().as_secs_f64());
        }
        let begun = Instant::now();
        let (width, height) = job.size();
        pipeline.finish(job)?;
        let finish = begun.elapsed().as_secs_f64();
        let pixels = f64::from(width) * f64::from(height);
        let memory = pipeline.available_memory().map(|bytes| bytes / 10 * 9);
        Ok(Self { pipeline, times: Times { pixels, start, step, finish }, memory })
    }

    fn price_of(&self, needs: &Needs, encodes_picture: bool) -> Price {
        let Needs { size: (width, height), tokens, pictures, rows, .. } = *needs;
        let area = f64::from(width) * f64::from(height) / self.times.pixels;
        let picture = self.times.finish * area;
        let start = self.times.start + if encodes_picture { picture } else { 0.0 };
        let steps = u32::try_from(needs.steps).unwrap_or(u32::MAX);
        Price {
            // Sides have 15 bits at most.
            key: BatchKey((u64::from(width) << 48) | (u64::from(height) << 32) | tokens as u64),
            rows,
            max_rows: u32::try_from(self.pipeline.max_batch()).unwrap_or(u32::MAX),
            steps,
            memory: needs.memory,
            bytes: needs.bytes,
            start: Duration::from_secs_f64(start),
            step: Duration::from_secs_f64(self.times.step * area * f64::from(rows)),
            finish: Duration::from_secs_f64(picture * f64::from(pictures)),
        }
    }
}

impl Backend for PipelineBackend {
    type Request = Request;
    type Job = Job;
    type Output = Generation;
    type Preview = Vec<RgbImage>;
    type Error = Error;

    fn price(&self, request: &Request) -> Result<Price> {
        let encodes_picture = matches!(request.input, Input::Image { .. });
        Ok(self.price_of(&self.pipeline.needs(request)?, encodes_picture))
    }

    fn alternatives(&self, request: &Request, consent: &Degrade) -> Vec<Alternative<Request>> {
        let Ok(Needs { size, .. }) = self.pipeline.needs(request) else {
            return Vec::new();
        };
        let steps = request.steps.unwrap_or(self.pipeline.default_steps());
        let mut ways = Vec::new();
        let mut fewest = steps;
        if let Some(least) = consent.min_steps {
            let least = usize::try_from(least).unwrap_or(usize::MAX).max(1);
            for fewer in [steps.div_ceil(2).max(least), least] {
                if fewer < fewest {
                    fewest = fewer;
                    ways.push((fewer, size));
                }
            }
        }
        if let Some(least) = consent.min_side
            && let Some(smaller) = smaller(size, least, self.pipeline.side_factor())
        {
            ways.push((fewest, smaller));
        }
        let text = |steps: usize, (width, height): (u32, u32)| format!("{steps} steps at {width}×{height}");
        let alternatives = ways.into_iter().map(|(fewer, (width, height))| Alternative {
            request: Request {
                steps: Some(fewer),
                width: Some(width),
                height: Some(height),
                ..request.clone()
            },
            requested: text(steps, size),
            actual: text(fewer, (width, height)),
        });
        // A weak image to image has no steps to spare.
        alternatives.filter(|way| self.pipeline.needs(&way.request).is_ok()).collect()
    }

    fn start(&self, requests: &[&Request]) -> Vec<Result<Job>> {
        self.pipeline.start_batch(requests)
    }

    fn step(&self, jobs: &mut [&mut Job]) -> Vec<Result<()>> {
        self.pipeline.step_and_wait(jobs)
    }

    fn steps(&self, job: &Job) -> Steps {
        let count = |steps: usize| u32::try_from(steps).unwrap_or(u32::MAX);
        Steps { done: count(job.step()), total: count(job.total()) }
    }

    fn preview(&self, job: &Job) -> Result<Vec<RgbImage>> {
        self.pipeline.progress(job).preview()
    }

    fn finish(&self, jobs: &[&Job]) -> Vec<Result<Generation>> {
        self.pipeline.decode_jobs(jobs)
    }

    fn checkpoint(&self, job: &Job) -> Result<Vec<u8>> {
        self.pipeline.save(job)
    }

    fn inspect(&self, checkpoint: &[u8], allow_inexact: bool) -> Result<Price> {
        let needs = self.pipeline.needs_of_saved(checkpoint, resume(allow_inexact))?;
        Ok(self.price_of(&needs, false))
    }

    fn resume(&self, checkpoint: &[u8], allow_inexact: bool) -> Result<Job> {
        self.pipeline.resume(checkpoint, resume(allow_inexact))
    }

    fn memory(&self) -> Option<u64> {
        self.memory
    }

    fn fault(&self, error: &Error) -> Fault {
        match error {
            Error::Memory { .. } => Fault::OutOfMemory,
            Error::Device(DeviceError::Lost { .. }) => Fault::DeviceLost,
            Error::Device(DeviceError::Failed { reason, .. }) if names_memory(reason) => Fault::OutOfMemory,
            Error::Device(DeviceError::Failed { .. }) => Fault::Transient,
            _ => Fault::Job,
        }
    }
}

impl PipelineEngine {
    /// An engine that drives `pipeline`, which is timed by one small picture before.
    ///
    /// # Errors
    /// As [`Engine::new`], and [`EngineError::Timing`] where that picture fails.
    pub fn over(pipeline: Pipeline, options: EngineOptions) -> Result<Self, EngineError> {
        Self::new(PipelineBackend::new(pipeline)?, options)
    }
}

fn resume(allow_inexact: bool) -> Resume {
    if allow_inexact { Resume::Inexact } else { Resume::Exact }
}

/// Half the size, or what `least` leaves of that; both sides stay multiples of `factor`.
fn smaller((width, height): (u32, u32), least: u32, factor: u32) -> Option<(u32, u32)> {
    let shorter = width.min(height);
    let side = least.max(shorter / 2).max(1).checked_next_multiple_of(factor)?;
    let scaled = |length: u32| {
        let length = u64::from(length) * u64::from(side) / u64::from(shorter);
        u32::try_from(length).ok().map(|length| length / factor * factor)
    };
    let size = (scaled(width)?, scaled(height)?);
    (side < shorter).then_some(size)
}

/// Drivers say it in their own words: a device's error has no kind.
fn names_memory(reason: &str) -> bool {
    let reason = reason.to_lowercase();
    const WORDS: [&str; 6] = [
        "out of memory",
        "out of device memory",
        "out_of_memory",
        "outofmemory",
        "not enough memory",
        "can't allocate",
    ];
    WORDS.iter().any(|words| reason.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_size_keeps_its_shape_and_respects_the_shortest_side() {
        assert_eq!(smaller((64, 64), 0, 8), Some((32, 32)));
        assert_eq!(smaller((1024, 512), 300, 8), Some((608, 304)));
        assert_eq!(smaller((48, 96), 32, 16), Some((32, 64)));
        assert_eq!(smaller((64, 64), 64, 8), None);
        assert_eq!(smaller((64, 64), 60, 8), None);
        assert_eq!(smaller((64, 64), u32::MAX, 8), None);
    }

    #[test]
    fn memory_that_ran_out_is_told_from_other_failures() {
        assert!(names_memory("CUDA_ERROR_OUT_OF_MEMORY: 2"));
        assert!(names_memory("out of device memory allocating 4096 bytes"));
        assert!(!names_memory("illegal memory access"));
    }
}
