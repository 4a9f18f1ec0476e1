//! The in-process serving engine: a bounded, fair queue before one device, with step-level batching.
//!
//! [`Engine::submit`] answers within microseconds: a [`Handle`] on an accepted job, or [`Rejected`] with
//! the reason and when to come back. One worker thread does what the [`Scheduler`] says, a pure state
//! machine under an injected clock. Every accepted job has exactly one outcome.
//!
//! ```
//! # #[cfg(all(feature = "embedded", feature = "cpu"))]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use aquatint::engine::{EngineOptions, PipelineEngine, Submission};
//! use aquatint::{LoadOptions, Pipeline, Request};
//!
//! let pipeline = Pipeline::embedded(LoadOptions::default())?;
//! let engine = PipelineEngine::over(pipeline, EngineOptions::default())?;
//! let request = Request { steps: Some(4), ..Request::new("a red apple on a blue background") };
//! let handle = engine.submit(Submission::new(request, "somebody", "paid"))?;
//! let finished = handle.wait()?; // or `.await`, or `handle.events()`
//! assert_eq!(finished.output.images.len(), 1);
//! # Ok(())
//! # }
//! # #[cfg(not(all(feature = "embedded", feature = "cpu")))]
//! # fn main() {}
//! ```

mod admission;
mod backend;
mod batcher;
mod caps;
pub mod clock;
mod codel;
mod cost;
mod doubts;
mod drill;
mod handle;
mod launches;
mod ledger;
mod lifecycle;
mod limits;
mod metrics;
mod pipeline;
mod queue;
mod rejected;
mod retry;
mod scheduler;
mod shell;
mod slot;
mod status;
mod submission;
mod sync;
mod worker;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;

pub use admission::Plan;
pub use backend::{Alternative, Backend, Degrade, Steps};
pub use clock::Clock;
pub use cost::{BatchKey, Model, Phase, Price};
pub use drill::{Drill, DrillError, DrillRates, DrillSwitch};
pub use handle::{CheckpointError, Events, Failure, Finished, Handle, Outcome};
pub use ledger::Counters;
pub use lifecycle::{Ending, Fault, State, TRANSITIONS, Trigger};
pub use limits::{Bounds, ClassLimits, Codel, Limits, LimitsError, Quota};
pub use pipeline::{Distilled, PipelineBackend, PipelineEngine};
pub use queue::JobId;
pub use rejected::{Bound, Reason, Rejected};
pub use scheduler::{Accepted, Action, Event, Launch, Mode, Offer, Report, Scheduler};
pub use slot::Progress;
pub use status::{ClassStatus, Status, TenantStatus};
pub use submission::Submission;

pub use crate::job::{Applied, DegradeReason};

use self::clock::Monotonic;
use self::shell::Shell;
use self::worker::Worker;

/// How to make an engine.
pub struct EngineOptions {
    /// What it may hold and whom it prefers.
    pub limits: Limits,
    /// Where it takes the time from.
    pub clock: Arc<dyn Clock>,
    /// What spreads retries; any number.
    pub seed: u64,
    /// Outcomes of jobs with an idempotency key that are kept after their end, for a submission that
    /// is repeated then.
    pub remembered: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        let clock = Arc::new(Monotonic::default());
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        Self { limits: Limits::default(), clock, seed, remembered: 256 }
    }
}

/// Why there is no engine.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The limits.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// The system gave no thread.
    #[error("worker thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The pipeline failed at the request that it is timed by.
    #[error("timing the pipeline: {0}")]
    Timing(#[from] crate::error::Error),
}

/// A serving engine over one device. Shared by reference between threads. Dropping it ends every job:
/// what runs is suspended to a checkpoint after its launch, what waits is shut down.
pub struct Engine<B: Backend> {
    shell: Arc<Shell<B>>,
    worker: Option<JoinHandle<()>>,
}

impl<B: Backend> Engine<B> {
    /// An engine that drives `backend` on a thread of its own.
    ///
    /// # Errors
    /// [`EngineError`] for limits that cannot be run under, or a thread that cannot be had.
    pub fn new(backend: B, options: EngineOptions) -> Result<Self, EngineError> {
        let scheduler = Scheduler::new(options.limits.within(backend.memory()))?;
        let shell = Arc::new(Shell::new(backend, scheduler, options.clock, options.seed, options.remembered));
        let worker = Worker::new(shell.clone());
        let builder = std::thread::Builder::new().name("aquatint-engine".to_owned());
        let worker = builder.spawn(move || worker.run())?;
        Ok(Self { shell, worker: Some(worker) })
    }

    /// Accepts a request or says why not, within microseconds and without waiting for the device. A
    /// submission whose idempotency key its tenant used before gets a handle on that job, unless it was called
    /// back.
    ///
    /// # Errors
    /// [`Rejected`] with the reason, and when to come back.
    pub fn submit(&self, submission: Submission<B::Request>) -> Result<Handle<B>, Rejected> {
        let labels = submission.labels();
        self.shell.submit(&labels, submission.price(&self.shell.backend))
    }

    /// Goes on with a job that was saved by [`Handle::checkpoint`] or suspended by a drain, as
    /// `submission` says in place of a request. On the same weights, device, precision and kernels the
    /// bits are those of a job that never stopped; elsewhere it is refused unless `allow_inexact`.
    ///
    /// # Errors
    /// [`Rejected`]; bytes that this engine cannot go on with are [`Reason::Invalid`].
    pub fn resume(
        &self,
        checkpoint: impl Into<Arc<[u8]>>,
        allow_inexact: bool,
        submission: Submission<()>,
    ) -> Result<Handle<B>, Rejected> {
        let labels = submission.labels();
        let priced = submission.price_checkpoint(&self.shell.backend, checkpoint.into(), allow_inexact);
        self.shell.submit(&labels, priced)
    }

    /// What a request is expected to need on its own, from what was measured so far.
    ///
    /// # Errors
    /// [`Backend::Error`] for requests that cannot be carried out.
    pub fn plan(&self, request: &B::Request) -> Result<Plan, B::Error> {
        let price = self.shell.backend.price(request, Model::Main)?;
        Ok(self.shell.desk().scheduler.plan(&price))
    }

    /// Holds back a class's queued jobs and refuses new ones; its running jobs are finished. Whether
    /// there is a class of that name.
    pub fn pause(&self, class: &str) -> bool {
        self.shell.desk().scheduler.pause(class, true)
    }

    /// Ends a [`pause`](Self::pause). Whether there is a class of that name.
    pub fn unpause(&self, class: &str) -> bool {
        let found = self.shell.desk().scheduler.pause(class, false);
        self.shell.wake();
        found
    }

    /// Runs under other limits from here on. What was accepted under the old ones stays accepted: a job that
    /// needs more memory than there may be has the device to itself when its turn comes.
    ///
    /// # Errors
    /// [`LimitsError`], and nothing changes.
    pub fn set_limits(&self, limits: Limits) -> Result<(), LimitsError> {
        let limits = limits.within(self.shell.backend.memory());
        self.shell.desk().scheduler.set_limits(limits)?;
        self.shell.wake();
        Ok(())
    }

    /// The engine at this moment.
    pub fn status(&self) -> Status {
        self.shell.desk().scheduler.status()
    }

    /// Accepts nothing more and blocks until every job has ended: what is not finished within `timeout`
    /// and the launch that runs then is suspended to a checkpoint, or shut down if it has not started. On the
    /// engine's own thread (from a waker or a recorder) it begins the drain and does not block.
    pub fn drain(&self, timeout: Duration) -> Status {
        let until = self.shell.clock.now().saturating_add(timeout);
        self.shell.drain(until);
        if !self.shell.is_worker() {
            self.shell.wait_idle();
        }
        self.status()
    }
}

impl<B: Backend> std::fmt::Debug for Engine<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl<B: Backend> Drop for Engine<B> {
    fn drop(&mut self) {
        self.shell.drain(Duration::ZERO);
        // Dropped by a waker, the worker ends when it comes back from it.
        if let Some(worker) = self.worker.take().filter(|_| !self.shell.is_worker()) {
            // A worker that panicked has ended its jobs in its own drop.
            let _ = worker.join();
        }
    }
}
