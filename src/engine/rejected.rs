//! A typed no: what a service needs for its 429 and 503.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

/// Why a submission was not accepted, and when to come back.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("rejected: {reason}")]
pub struct Rejected {
    /// Why.
    pub reason: Reason,
    /// When the same submission is likely to be accepted; a place is kept for it then. `None` where
    /// no time can be promised.
    pub retry_after: Option<Duration>,
}

impl Rejected {
    pub(crate) fn never(reason: Reason) -> Self {
        Self { reason, retry_after: None }
    }

    /// Whether the same submission may be accepted by this engine later.
    pub fn retry_makes_sense(&self) -> bool {
        match self.reason {
            Reason::QueueFull { .. } | Reason::Quota { .. } | Reason::ClassPaused { .. } => true,
            Reason::DeadlineUnreachable { alone, wanted, .. } => alone <= wanted,
            Reason::MemoryBudget { .. } | Reason::Draining | Reason::DeviceLost | Reason::Invalid { .. } => {
                false
            }
        }
    }
}

/// A bound that a submission met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bound {
    /// Queued requests.
    Count,
    /// Bytes on the host.
    Bytes,
    /// Predicted device time.
    Time,
}

/// Why a submission was not accepted.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// A bound of the queue is reached.
    #[error("the queue is full ({bound:?})")]
    QueueFull {
        /// The bound.
        bound: Bound,
    },
    /// The tenant has used up its quota of the window.
    #[error("the tenant's quota is used up ({bound:?})")]
    Quota {
        /// What is used up.
        bound: Bound,
    },
    /// It would not be finished in time, as far as is known. Where that was learnt and has not been measured again
    /// for a while, one submission is let in to find out.
    #[error("the deadline is in {wanted:?}, the pictures would be there in {earliest:?}")]
    DeadlineUnreachable {
        /// When it would be finished, from now.
        earliest: Duration,
        /// How long it would take on an idle device.
        alone: Duration,
        /// The deadline, from now.
        wanted: Duration,
    },
    /// It needs more device memory than the engine may ever use.
    #[error("it needs {needed} bytes on the device, the budget is {budget}")]
    MemoryBudget {
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that running jobs may reserve together.
        budget: u64,
    },
    /// The class is paused.
    #[error("class {class} is paused")]
    ClassPaused {
        /// The class.
        class: Arc<str>,
    },
    /// The engine is shutting down.
    #[error("the engine is draining")]
    Draining,
    /// The device is gone for this process.
    #[error("the device is lost")]
    DeviceLost,
    /// The submission itself is wrong.
    #[error("{message}")]
    Invalid {
        /// What is wrong with it.
        message: String,
    },
}
