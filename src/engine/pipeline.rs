//! A pipeline as what the engine drives.

use std::time::{Duration, Instant};

use ::image::RgbImage;

use super::backend::{Alternative, Backend, Degrade, Steps};
use super::cost::{BatchKey, Model, Price};
use super::lifecycle::Fault;
use super::{Engine, EngineError, EngineOptions};
use crate::device::DeviceError;
use crate::error::{Error, Result};
use crate::job::{Applied, Job};
use crate::pipeline::{Generation, Needs, Pipeline, Resume};
use crate::request::{Guidance, Input, Request};
use crate::samplers::Sampler;

/// An engine over a [`Pipeline`].
pub type PipelineEngine = Engine<PipelineBackend>;

/// A [`Pipeline`], and a distilled one where there is one, with the times that predictions begin from.
/// Checkpoints are the bytes of [`Pipeline::save`], so that [`Pipeline::resume`] takes them too; a job goes
/// on with the model whose weights and configs it was saved from.
#[derive(Clone, Debug)]
pub struct PipelineBackend {
    main: Served,
    distilled: Option<(Served, Distilled)>,
    memory: Option<u64>,
}

/// A model that draws the same things in less time, and how it is used. A checkpoint does not say how many
/// steps it was distilled to, nor whether it wants guidance.
///
/// The embedded model draws as well in four steps of another sampler as in its twenty:
///
/// ```
/// # #[cfg(all(feature = "embedded", feature = "cpu"))]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use aquatint::engine::{Degrade, Distilled, EngineOptions, PipelineBackend, PipelineEngine, Submission};
/// use aquatint::{LoadOptions, Pipeline, Request, Sampler};
///
/// let pipeline = Pipeline::embedded(LoadOptions::default())?;
/// let sampler = Some(Sampler::DpmPlusPlus2M);
/// let distilled = Distilled { steps: 4, sampler, ..Distilled::new(pipeline.clone()) };
/// let backend = PipelineBackend::new(pipeline)?.with_distilled(distilled)?;
/// let engine = PipelineEngine::new(backend, EngineOptions::default())?;
/// let degrade = Degrade { distilled: true, ..Degrade::default() };
/// let submission = Submission::new(Request::new("a red apple on a blue background"), "somebody", "free");
/// let handle = engine.submit(Submission { degrade, ..submission })?;
/// # handle.cancel();
/// # Ok(())
/// # }
/// # #[cfg(not(all(feature = "embedded", feature = "cpu")))]
/// # fn main() {}
/// ```
#[derive(Clone, Debug)]
pub struct Distilled {
    /// The model, on the device of the one that it stands in for; a clone of that one shares its weights.
    pub pipeline: Pipeline,
    /// Denoising steps.
    pub steps: usize,
    /// How the prompt steers. A request's negative prompt is kept where this has a use for it.
    pub guidance: Guidance,
    /// The sampler; `None` takes the one in the checkpoint's scheduler config.
    pub sampler: Option<Sampler>,
}

impl Distilled {
    /// `pipeline` with its own default steps, guidance and sampler.
    pub fn new(pipeline: Pipeline) -> Self {
        let (steps, guidance) = (pipeline.default_steps(), pipeline.default_guidance().clone());
        Self { pipeline, steps, guidance, sampler: None }
    }

    /// The request as this model carries it out.
    fn request(&self, asked: &Request) -> Request {
        let guidance = self.guidance.clone();
        let guidance = match &asked.guidance {
            Some(Guidance::ClassifierFree { negative_prompt, .. }) => {
                guidance.negative(negative_prompt.clone())
            }
            _ => guidance,
        };
        Request {
            steps: Some(self.steps),
            guidance: Some(guidance),
            sampler: self.sampler,
            sigmas: None,
            ..asked.clone()
        }
    }
}

/// A pipeline and its times.
#[derive(Clone, Debug)]
struct Served {
    pipeline: Pipeline,
    times: Times,
}

/// Seconds that the timed request took, and how large it was.
#[derive(Clone, Copy, Debug)]
struct Times {
    pixels: f64,
    start: f64,
    step: f64,
    finish: f64,
}

impl Served {
    /// Times the pipeline by a picture of its own size in two steps.
    fn new(pipeline: Pipeline) -> Result<Self> {
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
        Ok(Self { pipeline, times: Times { pixels, start, step, finish } })
    }

    fn price(&self, model: Model, needs: &Needs, encodes_picture: bool) -> Price {
        let Needs { size: (width, height), tokens, pictures, rows, .. } = *needs;
        let area = f64::from(width) * f64::from(height) / self.times.pixels;
        let picture = self.times.finish * area;
        let start = self.times.start + if encodes_picture { picture } else { 0.0 };
        let steps = u32::try_from(needs.steps).unwrap_or(u32::MAX);
        Price {
            // Sides have 15 bits at most.
            key: BatchKey {
                model,
                shape: (u64::from(width) << 48) | (u64::from(height) << 32) | tokens as u64,
            },
            rows,
            max_rows: u32::try_from(self.pipeline.rows_a_launch(width, height)).unwrap_or(u32::MAX),
            steps,
            memory: needs.memory,
            bytes: needs.bytes,
            start: Duration::from_secs_f64(start),
            step: Duration::from_secs_f64(self.times.step * area * f64::from(rows)),
            finish: Duration::from_secs_f64(picture * f64::from(pictures)),
        }
    }
}

impl PipelineBackend {
    /// Times the pipeline by a picture of its own size in two steps.
    ///
    /// # Errors
    /// Where that picture fails.
    pub fn new(pipeline: Pipeline) -> Result<Self> {
        let main = Served::new(pipeline)?;
        let memory = budget(&main.pipeline);
        Ok(Self { main, distilled: None, memory })
    }

    /// A model that jobs may be moved to under load, by `Degrade::distilled`; timed as the first one was.
    ///
    /// # Errors
    /// [`Error::Request`] and [`Error::Sampler`] for settings that the model cannot take, and where that
    /// picture fails.
    pub fn with_distilled(self, distilled: Distilled) -> Result<Self> {
        distilled.pipeline.needs(&distilled.request(&Request::default()))?;
        let served = Served::new(distilled.pipeline.clone())?;
        let memory = budget(&self.main.pipeline);
        Ok(Self { distilled: Some((served, distilled)), memory, ..self })
    }

    fn served(&self, model: Model) -> &Served {
        match (model, &self.distilled) {
            (Model::Distilled, Some((served, _))) => served,
            _ => &self.main,
        }
    }

    /// The pipeline that a job belongs to.
    fn owner(&self, job: &Job) -> &Pipeline {
        match &self.distilled {
            Some((served, _)) if served.pipeline.owns(job) => &served.pipeline,
            _ => &self.main.pipeline,
        }
    }

    /// The model that goes on with a saved job: the first that gives its bits or, for a job of another
    /// machine, has its weights and configs. A job of neither is left for the main one to refuse.
    fn model_of(&self, checkpoint: &[u8]) -> Model {
        if self.distilled.is_none() {
            return Model::Main;
        }
        let takes = |resume| {
            let models = [Model::Main, Model::Distilled];
            models
                .into_iter()
                .find(|model| self.served(*model).pipeline.needs_of_saved(checkpoint, resume).is_ok())
        };
        takes(Resume::Exact).or_else(|| takes(Resume::Inexact)).unwrap_or_default()
    }

    /// What else may be done, best first: fewer steps, the distilled model, a smaller size of the last of
    /// these.
    fn ways(&self, asked: &Request, size: (u32, u32), consent: &Degrade) -> Vec<(Model, Request)> {
        let steps = asked.steps.unwrap_or(self.main.pipeline.default_steps());
        let mut ways = vec![(Model::Main, asked.clone())];
        if let Some(least) = consent.min_steps {
            let least = usize::try_from(least).unwrap_or(usize::MAX).max(1);
            let mut fewest = steps;
            for fewer in [steps.div_ceil(2).max(least), least] {
                if fewer < fewest {
                    fewest = fewer;
                    ways.push((Model::Main, Request { steps: Some(fewer), ..asked.clone() }));
                }
            }
        }
        if let Some((_, distilled)) = self.distilled.as_ref().filter(|_| consent.distilled) {
            let request = distilled.request(asked);
            // Who asks for few steps is served as soon by the model that was asked for.
            let quicker = self.price(&request, Model::Distilled).is_ok_and(|price| {
                self.price(asked, Model::Main).is_ok_and(|asked| price.alone() < asked.alone())
            });
            if quicker {
                ways.push((Model::Distilled, request));
            }
        }
        if let (Some(least), Some((model, last))) = (consent.min_side, ways.last())
            && let Some((width, height)) = smaller(size, least, self.served(*model).pipeline.side_factor())
        {
            ways.push((*model, Request { width: Some(width), height: Some(height), ..last.clone() }));
        }
        ways.split_off(1)
    }
}

impl Backend for PipelineBackend {
    type Request = Request;
    type Job = Job;
    type Output = Generation;
    type Preview = Vec<RgbImage>;
    type Error = Error;

    fn price(&self, request: &Request, model: Model) -> Result<Price> {
        let served = self.served(model);
        let encodes_picture = matches!(request.input, Input::Image { .. });
        Ok(served.price(model, &served.pipeline.needs(request)?, encodes_picture))
    }

    fn alternatives(&self, request: &Request, consent: &Degrade) -> Vec<Alternative<Request>> {
        let Ok(Needs { size: (width, height), .. }) = self.main.pipeline.needs(request) else {
            return Vec::new();
        };
        let steps = request.steps.unwrap_or(self.main.pipeline.default_steps());
        let asked =
            Request { width: Some(width), height: Some(height), steps: Some(steps), ..request.clone() };
        let requested = text(&asked, Model::Main);
        let alternatives = self.ways(&asked, (width, height), consent).into_iter().map(|(model, request)| {
            Alternative { requested: requested.clone(), actual: text(&request, model), request, model }
        });
        // A weak image to image has no steps to spare.
        alternatives.filter(|way| self.price(&way.request, way.model).is_ok()).collect()
    }

    fn start(&self, requests: &[&Request], model: Model) -> Vec<Result<Job>> {
        self.served(model).pipeline.start_batch(requests)
    }

    /// Kept with the job, for its [`Generation`], and said in a note of its report.
    fn degraded(&self, job: &mut Job, applied: &Applied) {
        let Applied { requested, actual, reason } = applied;
        job.notes.push(format!("{actual} in place of {requested}: {reason}"));
        job.applied = Some(applied.clone());
    }

    fn applied(&self, job: &Job) -> Option<Applied> {
        job.applied.clone()
    }

    fn step(&self, jobs: &mut [&mut Job]) -> Vec<Result<()>> {
        // One batch key, one model.
        let Some(job) = jobs.first() else {
            return Vec::new();
        };
        self.owner(job).step_and_wait(jobs)
    }

    fn steps(&self, job: &Job) -> Steps {
        let count = |steps: usize| u32::try_from(steps).unwrap_or(u32::MAX);
        Steps { done: count(job.step()), total: count(job.total()) }
    }

    fn preview(&self, job: &Job) -> Result<Vec<RgbImage>> {
        self.owner(job).progress(job).preview()
    }

    fn finish(&self, jobs: &[&Job]) -> Vec<Result<Generation>> {
        jobs.first().map_or_else(Vec::new, |job| self.owner(job).decode_jobs(jobs))
    }

    fn checkpoint(&self, job: &Job) -> Result<Vec<u8>> {
        self.owner(job).save(job)
    }

    fn inspect(&self, checkpoint: &[u8], allow_inexact: bool) -> Result<Price> {
        let model = self.model_of(checkpoint);
        let served = self.served(model);
        let needs = served.pipeline.needs_of_saved(checkpoint, resume(allow_inexact))?;
        Ok(served.price(model, &needs, false))
    }

    fn resume(&self, checkpoint: &[u8], allow_inexact: bool) -> Result<Job> {
        self.served(self.model_of(checkpoint)).pipeline.resume(checkpoint, resume(allow_inexact))
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
    /// An engine that drives `pipeline`, which is timed by one small picture before. For a distilled model
    /// beside it, see [`PipelineBackend::with_distilled`]. Every engine counts on the memory that it finds free:
    /// where several share a device, give each a [`Limits::memory`](super::Limits::memory) of its own.
    ///
    /// # Errors
    /// As [`Engine::new`], and [`EngineError::Timing`] where that picture fails.
    pub fn over(pipeline: Pipeline, options: EngineOptions) -> Result<Self, EngineError> {
        Self::new(PipelineBackend::new(pipeline)?, options)
    }
}

/// Bytes that jobs may take together: nine tenths of what is free beside the weights.
fn budget(pipeline: &Pipeline) -> Option<u64> {
    pipeline.available_memory().map(|bytes| bytes / 10 * 9)
}

/// What a request whose steps and sides are settled asks for, in words.
fn text(request: &Request, model: Model) -> String {
    let steps = request.steps.unwrap_or_default();
    let (width, height) = (request.width.unwrap_or_default(), request.height.unwrap_or_default());
    let of = if model == Model::Distilled { " of the distilled model" } else { "" };
    format!("{steps} steps{of} at {width}×{height}")
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
