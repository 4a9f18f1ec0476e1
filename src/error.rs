//! One error type for the crate; each area nests its own kind.

use thiserror::Error;

use crate::device::DeviceError;
use crate::image::ImageError;
use crate::job::SavedJobError;
use crate::request::RequestError;
use crate::samplers::SamplerError;
use crate::text::tokenizer::TokenizerError;
use crate::weights::{ConfigError, FilesError, KeyMapError, WeightsError};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by area. Each kind says what, where, what was expected and what was found.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A request that cannot be carried out as it stands; nothing was computed.
    #[error("request: {0}")]
    Request(#[from] RequestError),
    /// A sampler or its schedule.
    #[error("sampler: {0}")]
    Sampler(#[from] SamplerError),
    /// A `config.json` or `model_index.json` that this crate does not understand or support.
    #[error("config: {0}")]
    Config(#[from] ConfigError),
    /// A checkpoint's files: absent, unreadable, not JSON.
    #[error("files: {0}")]
    Files(#[from] FilesError),
    /// The checkpoint's `scheduler_config.json`.
    #[error("{file}: {source}")]
    Scheduler {
        /// The file.
        file: String,
        /// What is wrong with it.
        source: SamplerError,
    },
    /// Weight files: missing, damaged, misshapen, unused or non-finite tensors.
    #[error("weights: {0}")]
    Weights(#[from] WeightsError),
    /// A table of weight names.
    #[error("key map: {0}")]
    KeyMap(#[from] KeyMapError),
    /// Tokenizer files.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// The device: absent, refused, failed or lost.
    #[error("device: {0}")]
    Device(#[from] DeviceError),
    /// Pictures: reading, writing, metadata.
    #[error("image: {0}")]
    Image(#[from] ImageError),
    /// The request needs more memory than the device has free; nothing was computed.
    #[error("memory: {what} needs about {needed} bytes, {available} bytes are available")]
    Memory {
        /// What the memory was for.
        what: &'static str,
        /// Predicted need in bytes.
        needed: u64,
        /// Bytes that were free when the request was checked.
        available: u64,
    },
    /// A stage produced NaN or infinite values; no picture is made from them.
    #[error("{stage} produced {count} non-finite values of {total}{}{hint}", from_step(*step))]
    NonFinite {
        /// The stage whose output was not finite.
        stage: Stage,
        /// How many values were NaN or infinite.
        count: usize,
        /// How many values there were.
        total: usize,
        /// The first denoising step, from 1, whose latents had such values, where steps count them.
        step: Option<usize>,
        /// What may help, or nothing.
        hint: &'static str,
    },
    /// The caller's callback answered `ControlFlow::Break`.
    #[error("cancelled after step {step} of {total}")]
    Cancelled {
        /// Steps that were finished.
        step: usize,
        /// Steps that the request asked for.
        total: usize,
    },
    /// A job was handed to a pipeline that did not start it.
    #[error("a job belongs to the pipeline that started it: expected {expected}, found {found}")]
    ForeignJob {
        /// This pipeline's weights, precision and device.
        expected: String,
        /// Those of the pipeline that started the job.
        found: String,
    },
    /// Bytes that are no saved job, or none that can go on here.
    #[error("saved job: {0}")]
    SavedJob(#[from] SavedJobError),
    /// `finish` was called before the last step.
    #[error("a job is finished after its last step: {done} of {total} steps are done")]
    Unfinished {
        /// Steps that were finished.
        done: usize,
        /// Steps of the job.
        total: usize,
    },
}

fn from_step(step: Option<usize>) -> String {
    step.map(|step| format!(", from step {step} on")).unwrap_or_default()
}

/// A stage of generation, for errors and reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Weights from files to the device.
    Load,
    /// The prompt through the text encoder.
    EncodeText,
    /// The input picture through the autoencoder's encoder.
    EncodeImage,
    /// The denoising loop.
    Denoise,
    /// Latents through the autoencoder's decoder.
    Decode,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stage::Load => "loading",
            Stage::EncodeText => "encoding the text",
            Stage::EncodeImage => "encoding the image",
            Stage::Denoise => "denoising",
            Stage::Decode => "decoding",
        })
    }
}
