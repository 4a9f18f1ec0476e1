//! The performance-critical core of diffusion image generation.
//!
//! ```
//! # #[cfg(all(feature = "embedded", feature = "cpu"))]
//! # fn main() -> aquatint::Result<()> {
//! use aquatint::{LoadOptions, Pipeline, Request};
//!
//! let pipeline = Pipeline::embedded(LoadOptions::default())?; // or Pipeline::load("path/to/checkpoint", ..)
//! let picture = pipeline.generate(&Request { steps: Some(4), ..Request::new("a red apple on a blue background") })?;
//! assert_eq!(picture.images[0].pixels.dimensions(), (64, 64));
//! # Ok(())
//! # }
//! # #[cfg(not(all(feature = "embedded", feature = "cpu")))]
//! # fn main() {}
//! ```
//!
//! [`Pipeline::generate`] is made of three public calls, so that other schedulers can own the loop:
//! [`start`](Pipeline::start) encodes and draws noise, [`step`](Pipeline::step) moves a mixed set of jobs
//! by one denoising step each, [`finish`](Pipeline::finish) decodes. [`save`](Pipeline::save) and
//! [`resume`](Pipeline::resume) carry a job over an interruption, to the same bits.
//!
//! **The same seed gives the same picture.** Noise is drawn as PyTorch's CPU generator draws it, one
//! generator a picture, so a seed gives diffusers' picture up to rounding. On the CPU a picture's bits do
//! not depend on what else is in the batch, on its order, or on a neighbour's failure.
//!
//! [`engine`] serves many submitters over one pipeline: a bounded queue, fair classes, batches that jobs join
//! and leave between steps, deadlines, cancellation, checkpoints.
//!
//! Nothing here opens a socket: checkpoints are folders that are already on this machine.

// A library must not panic; tests may.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

#[cfg(not(any(feature = "cpu", feature = "wgpu", feature = "cuda")))]
compile_error!("aquatint needs at least one of the features `cpu`, `wgpu` and `cuda` to compute on");

mod autoencoder;
mod denoisers;
pub mod device;
pub mod engine;
pub mod error;
mod families;
mod guidance;
pub mod image;
mod job;
mod nn;
#[doc(hidden)]
pub mod ops;
mod pipeline;
pub mod request;
pub mod samplers;
#[doc(hidden)]
pub mod text;
pub mod weights;

pub use device::{DeviceChoice, DeviceKind, Precision};
pub use error::{Error, Result, Stage};
pub use image::Picture;
pub use job::{Applied, DegradeReason, Job, SavedJobError};
pub use pipeline::{Generation, LoadOptions, Pipeline, Progress, Raw, Report, Resume};
pub use request::{Guidance, Input, Request};
pub use samplers::{Sampler, SigmaSchedule};
