//! Samplers: from a checkpoint's `scheduler_config.json` and a request to the numbers of every step.
//!
//! Given its noise schedule, each sampler here is linear in what it works on: the sample, the
//! model's output, the clean estimate, values of earlier steps, and fresh noise. So a sampler is
//! compiled, once a request, into a [`Plan`] of plain coefficients. Who runs the plan owns the loop,
//! the tensors and the registers, may stop between two steps, and never knows which sampler it runs:
//!
//! ```
//! # use aquatint::samplers::{Plan, SchedulerConfig};
//! let config = SchedulerConfig::parse(r#"{"_class_name": "EulerDiscreteScheduler"}"#)?;
//! let plan = Plan::new(&config, None, None, 20, None)?;
//! let mut noise = aquatint::samplers::noise::Generator::new(7);
//! let mut sample: Vec<f32> = noise.randn(64).iter().map(|z| z * plan.initial_scale()).collect();
//! for step in plan.steps() {
//!     // model(sample * step.input_scale, step.timestep), then step.denoised, then step.updates
//! }
//! # Ok::<(), aquatint::samplers::SamplerError>(())
//! ```
//!
//! Numbers follow the schedulers of diffusers 0.42 (`tests/fixtures/make_samplers.py`): what a
//! checkpoint says there, it says here. What would change numbers and is not supported is refused
//! by a [`SamplerError`] that names it.

pub mod noise;

mod beta_quantile;
mod config;
mod ddim;
mod ddpm;
mod dpm_plus_plus;
mod error;
mod euler;
mod heun;
mod lcm;
mod linear;
mod names;
mod noise_schedule;
mod plan;
mod pndm;
mod sigmas;
mod spacing;
mod uni_pc;

pub use config::SchedulerConfig;
pub use error::SamplerError;
pub use names::{Sampler, SigmaSchedule};
pub use plan::{Denoised, Plan, Step, Target, Term, Update};
