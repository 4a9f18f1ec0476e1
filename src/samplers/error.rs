//! What can be wrong with a scheduler configuration or a request.

use super::{Sampler, SigmaSchedule};

/// Why no [`Plan`](super::Plan) could be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplerError {
    /// The text of a scheduler configuration is not JSON.
    #[error("the scheduler configuration is not JSON: {message}")]
    Json {
        /// What the JSON reader said, with line and column.
        message: String,
    },
    /// The JSON of a scheduler configuration is not an object.
    #[error("the scheduler configuration is not a JSON object")]
    NotAnObject,
    /// A key that every scheduler configuration has is absent.
    #[error("the scheduler configuration has no key `{key}`")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// No scheduler has such a key: it may mean anything, so it is not passed over.
    #[error("the scheduler configuration has an unknown key `{key}`, value {found}")]
    UnknownKey {
        /// The key.
        key: String,
        /// Its value, as JSON.
        found: String,
    },
    /// A value that makes no sense, or that asks for what is not supported.
    #[error("scheduler configuration key `{key}`: expected {expected}, found {found}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value, as JSON.
        found: String,
        /// What is supported.
        expected: &'static str,
    },
    /// Two settings exclude each other.
    #[error("scheduler configuration keys `{first}` and `{second}` exclude each other")]
    Conflict {
        /// One key.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// No sampler has that name.
    #[error("unknown sampler {found:?}")]
    UnknownSampler {
        /// The name.
        found: String,
    },
    /// No sigma schedule has that name.
    #[error("unknown sigma schedule {found:?}: expected karras, exponential or beta")]
    UnknownSigmaSchedule {
        /// The name.
        found: String,
    },
    /// The sampler's noise levels are given by its timesteps.
    #[error("the sampler {sampler} has no {sigmas} sigmas: its timesteps give its noise levels")]
    NoSigmaSchedule {
        /// The sampler.
        sampler: Sampler,
        /// The schedule that was asked for.
        sigmas: SigmaSchedule,
    },
    /// DDIM's share of noise must be a number that is not negative.
    #[error("eta is a finite number from 0 up, found {found}")]
    Eta {
        /// The share.
        found: f32,
    },
    /// The sampler cannot take that many, or that few, steps.
    #[error("the sampler {sampler} takes {least} to {most} steps here, found {found}")]
    Steps {
        /// The sampler.
        sampler: Sampler,
        /// The number of steps asked for.
        found: usize,
        /// The fewest it takes.
        least: usize,
        /// The most it takes.
        most: usize,
    },
    /// The strength of an image-to-image request is out of range.
    #[error("strength is a number from 0 to 1, found {found}")]
    Strength {
        /// The strength.
        found: f32,
    },
    /// Strength times steps is less than one whole step.
    #[error("strength {strength} leaves no step of {steps}")]
    NoStepLeft {
        /// The steps asked for.
        steps: usize,
        /// The strength.
        strength: f32,
    },
    /// The spacing and its offset lead to a timestep that the noise schedule does not have.
    #[error("step {step} needs the noise level of timestep {timestep}, the last one is {last}")]
    Timestep {
        /// The step, from 0.
        step: usize,
        /// The timestep.
        timestep: i64,
        /// The last timestep of the schedule.
        last: i64,
    },
    /// The schedule divides by zero, or takes the root of a negative number.
    #[error("the sampler {sampler} has no finite coefficients at step {step} of this schedule")]
    NotFinite {
        /// The sampler.
        sampler: Sampler,
        /// The step, from 0; the number of steps if it is the starting noise.
        step: usize,
    },
}
