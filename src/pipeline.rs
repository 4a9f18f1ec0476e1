//! Loading a checkpoint and making pictures with it.

mod finish;
mod memory;
mod needs;
mod parts;
mod preview;
mod saving;
mod start;
mod step;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::image::RgbImage;
use burn::tensor::{DType, Device, Tensor, TensorData};

pub use self::finish::{Generation, Raw, Report};
pub(crate) use self::needs::Needs;
pub use self::saving::Resume;
use crate::device::{DeviceChoice, DeviceError, DeviceKind, Precision, Target, guard};
use crate::error::{Error, Result, Stage};
use crate::families::{self, Model};
use crate::job::Job;
use crate::ops;
use crate::request::{Guidance, Request};
use crate::weights::Files;

/// How to load a checkpoint.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where to compute.
    pub device: DeviceChoice,
    /// What the networks compute in.
    pub precision: Precision,
    /// The most rows that share one launch; a picture takes two with classifier-free guidance. Fewer do where the
    /// network's largest tensor would be more than the device holds in one.
    pub max_batch: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { device: DeviceChoice::Auto, precision: Precision::Auto, max_batch: 16 }
    }
}

/// A checkpoint on a device, ready to make pictures. Cheap to clone; every method takes `&self`, and
/// several threads may use one pipeline at once.
#[derive(Clone, Debug)]
pub struct Pipeline(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    family: &'static str,
    model: Model,
    /// Says which pipeline this is; its address is what jobs are checked by.
    identity: Arc<str>,
    target: Target,
    max_batch: usize,
    /// The most bytes that one tensor may have.
    largest_tensor: Option<u64>,
    preview: OnceLock<preview::LatentColours>,
}

/// What a progress callback sees after each step.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Steps (model evaluations) done, from 1.
    pub step: usize,
    /// Steps of the whole job.
    pub total: usize,
    /// Time since the job was started.
    pub elapsed: Duration,
    job: &'a Job,
    pipeline: &'a Pipeline,
}

impl Progress<'_> {
    /// Small pictures of the clean estimate, one pixel a latent, without running the decoder.
    ///
    /// # Errors
    /// [`Error::Device`] where the device fails.
    pub fn preview(&self) -> Result<Vec<RgbImage>> {
        self.pipeline.preview(self.job)
    }
}

impl Pipeline {
    /// Loads a checkpoint folder in diffusers' layout. Nothing is downloaded.
    ///
    /// # Errors
    /// [`Error::Weights`], [`Error::Config`], [`Error::Tokenizer`], [`Error::Sampler`] naming file and
    /// key for whatever is missing, damaged or not supported; [`Error::Device`] for the device.
    pub fn load(folder: impl AsRef<Path>, options: LoadOptions) -> Result<Self> {
        let files = Files::folder(folder.as_ref())?;
        Self::open(&files, options, |_| ())
    }

    /// Loads the small model that is compiled into this crate: one or two emoji on a plain background, such as
    /// "a red apple on a blue background" or "a panda above a rose, pink background", 64×64 pixels.
    ///
    /// # Errors
    /// [`Error::Device`] for the device.
    #[cfg(feature = "embedded")]
    pub fn embedded(options: LoadOptions) -> Result<Self> {
        Self::open(&Files::Embedded(EMBEDDED), options, |model| {
            model.defaults.steps = 20;
            model.defaults.guidance = Guidance::classifier_free(1.5);
        })
    }

    fn open(files: &Files, options: LoadOptions, adjust: impl FnOnce(&mut Model)) -> Result<Self> {
        let target = Target::open(&options.device, options.precision)?;
        let (family, mut model) = guard(Stage::Load, || families::load(files, &target))?;
        adjust(&mut model);
        model.notes.extend(target.passed_over.iter().cloned());
        Ok(Self(Arc::new(Inner {
            family: family.name,
            identity: format!("{} in {} on {}", model.digest, target.precision(), target.name).into(),
            model,
            largest_tensor: guard(Stage::Load, || Ok(ops::largest_tensor(&target.device)))?,
            target,
            max_batch: options.max_batch.max(1),
            preview: OnceLock::new(),
        })))
    }

    /// The family of the checkpoint, such as "Stable Diffusion".
    pub fn family(&self) -> &'static str {
        self.0.family
    }

    /// The device's own name.
    pub fn device_name(&self) -> &str {
        &self.0.target.name
    }

    /// What kind of device was taken.
    pub fn device_kind(&self) -> DeviceKind {
        self.0.target.kind
    }

    /// What the denoiser computes in.
    pub fn precision(&self) -> Precision {
        self.0.target.precision()
    }

    /// A digest of all weights as stored, the same on every device.
    pub fn weights_digest(&self) -> &str {
        &self.0.model.digest
    }

    /// Bytes of weights on the device.
    pub fn weights_bytes(&self) -> u64 {
        self.0.model.bytes
    }

    /// The guidance that a request gets where it names none.
    pub fn default_guidance(&self) -> &Guidance {
        &self.0.model.defaults.guidance
    }

    /// What a user should know: parts of the checkpoint that are not run, devices that were passed over
    /// although they are there.
    pub fn notes(&self) -> &[String] {
        &self.0.model.notes
    }

    /// Makes the pictures that `request` asks for.
    ///
    /// # Errors
    /// [`Error::Request`] or [`Error::Sampler`] for what cannot be done, before anything is computed;
    /// [`Error::Memory`], [`Error::Device`] and [`Error::NonFinite`] for what goes wrong on the way.
    pub fn generate(&self, request: &Request) -> Result<Generation> {
        self.generate_with(request, |_| ControlFlow::Continue(()))
    }

    /// [`generate`](Self::generate), calling `progress` after each step. `ControlFlow::Break` ends the
    /// job there and frees its memory.
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and [`Error::Cancelled`].
    pub fn generate_with(
        &self,
        request: &Request,
        mut progress: impl FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let mut job = self.start(request)?;
        while !job.is_done() {
            // What is still queued on the device would otherwise run on after a break.
            self.step_and_wait(&mut [&mut job]).into_iter().collect::<Result<()>>()?;
            if progress(&self.progress(&job)).is_break() {
                return Err(Error::Cancelled { step: job.step(), total: job.total() });
            }
        }
        self.finish(job)
    }

    /// Makes pictures for several requests that may differ in everything; rows of equal size share
    /// launches. One request's failure leaves the others alone, and a picture's bits do not depend on
    /// its company.
    pub fn generate_batch(&self, requests: &[Request]) -> Vec<Result<Generation>> {
        let mut jobs = self.start_batch(&requests.iter().collect::<Vec<_>>());
        loop {
            let mut indices = Vec::new();
            let mut running = Vec::new();
            for (index, job) in jobs.iter_mut().enumerate() {
                if let Ok(job) = job
                    && !job.is_done()
                {
                    indices.push(index);
                    running.push(job);
                }
            }
            if running.is_empty() {
                break;
            }
            let stepped = self.step(&mut running);
            for (index, result) in indices.into_iter().zip(stepped) {
                if let (Err(error), Some(job)) = (result, jobs.get_mut(index)) {
                    *job = Err(error);
                }
            }
        }
        self.finish_batch(jobs)
    }

    /// What [`generate_with`](Self::generate_with) shows its callback, for callers that own the loop.
    pub fn progress<'a>(&'a self, job: &'a Job) -> Progress<'a> {
        Progress { step: job.step(), total: job.total(), elapsed: job.elapsed(), job, pipeline: self }
    }

    /// A job runs on the pipeline that started it, or a clone.
    pub(crate) fn owns(&self, job: &Job) -> bool {
        Arc::ptr_eq(&job.pipeline, &self.0.identity)
    }

    fn check_owner(&self, job: &Job) -> Result<()> {
        if self.owns(job) {
            return Ok(());
        }
        Err(Error::ForeignJob { expected: self.0.identity.to_string(), found: job.pipeline.to_string() })
    }

    fn device(&self) -> &Device {
        &self.0.target.device
    }
}

pub(crate) fn no_output(stage: Stage) -> Error {
    DeviceError::Failed { stage, reason: "the launch gave no output".to_owned() }.into()
}

/// One launch for all. Where it fails, one for each, so that what asks too much of the device fails alone.
pub(crate) fn together<T, U>(
    items: &[T],
    stage: Stage,
    launch: &impl Fn(&[T]) -> Result<Vec<U>>,
) -> Vec<Result<U>> {
    match guard(stage, || launch(items)) {
        Ok(values) => values.into_iter().map(Ok).collect(),
        Err(error) if items.len() <= 1 => vec![Err(error)],
        Err(_) => items.chunks(1).flat_map(|item| together(item, stage, launch)).collect(),
    }
}

/// Host values in f32 to a device.
pub(crate) fn upload<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// A tensor's values in f32; failed launches surface here.
pub(crate) fn download<const D: usize>(tensor: Tensor<D>, stage: Stage) -> Result<Vec<f32>> {
    let data =
        tensor.cast(DType::F32).try_into_data().map_err(|error| DeviceError::execution(stage, &error))?;
    data.try_into_vec::<f32>()
        .map_err(|error| DeviceError::Failed { stage, reason: format!("{error:?}") }.into())
}

/// Refuses NaN and infinite values by stage.
pub(crate) fn check_finite(values: &[f32], stage: Stage, hint: &'static str) -> Result<()> {
    match values.iter().filter(|value| !value.is_finite()).count() {
        0 => Ok(()),
        count => Err(Error::NonFinite { stage, count, total: values.len(), step: None, hint }),
    }
}

#[cfg(feature = "embedded")]
macro_rules! embedded {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../weights/", $path)))),*]
    };
}

#[cfg(feature = "embedded")]
const EMBEDDED: &[(&str, &[u8])] = embedded![
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];
