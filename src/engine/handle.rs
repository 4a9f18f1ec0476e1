//! What a submitter holds: the way to the outcome of one job.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak, mpsc};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::backend::Backend;
use super::queue::JobId;
use super::scheduler::Event;
use super::shell::Shell;
use super::slot::{Progress, Slot};
use crate::job::Applied;

/// What a finished job gave.
#[derive(Clone, Debug)]
pub struct Finished<O> {
    /// The job.
    pub id: JobId,
    /// Its output.
    pub output: O,
    /// What was done where it is not what was asked for.
    pub applied: Option<Applied>,
    /// From submission to the first launch.
    pub queued: Duration,
    /// From submission to this outcome.
    pub latency: Duration,
    /// The submission's tags.
    pub tags: Arc<[(String, String)]>,
}

/// Why an accepted job gave nothing.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Failure<E> {
    /// It was called back.
    #[error("cancelled")]
    Cancelled,
    /// Its deadline passed, or could no longer be met.
    #[error("the deadline passed before the job was finished")]
    DeadlineExceeded,
    /// It was dropped from a queue that stood too long.
    #[error("dropped under load")]
    Shed,
    /// It failed, as often as is allowed where a new try could help.
    #[error("{0}")]
    Job(Arc<E>),
    /// The model panicked over it.
    #[error("panicked: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
    /// The model gave no result for it.
    #[error("the launch gave no result for this job")]
    NoResult,
    /// The device is gone for this process.
    #[error("the device is lost")]
    DeviceLost,
    /// A drain stopped it while it ran; the bytes go on elsewhere or later.
    #[error("suspended to a checkpoint of {} bytes", checkpoint.len())]
    Suspended {
        /// For [`Engine::resume`](super::Engine::resume).
        checkpoint: Arc<[u8]>,
    },
    /// The engine stopped before it ran.
    #[error("the engine was shut down")]
    ShutDown,
    /// It was waited for on the engine's own thread, which would have had to carry it out meanwhile.
    #[error("waited for by the engine's own thread, from a waker or a recorder")]
    OwnThread,
}

// Derived, it would ask that E be Clone.
impl<E> Clone for Failure<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Cancelled => Self::Cancelled,
            Self::DeadlineExceeded => Self::DeadlineExceeded,
            Self::Shed => Self::Shed,
            Self::Job(error) => Self::Job(error.clone()),
            Self::Panicked { message } => Self::Panicked { message: message.clone() },
            Self::NoResult => Self::NoResult,
            Self::DeviceLost => Self::DeviceLost,
            Self::Suspended { checkpoint } => Self::Suspended { checkpoint: checkpoint.clone() },
            Self::ShutDown => Self::ShutDown,
            Self::OwnThread => Self::OwnThread,
        }
    }
}

/// How a job ended.
pub type Outcome<B> = Result<Finished<<B as Backend>::Output>, Failure<<B as Backend>::Error>>;

pub(crate) type JobSlot<B> = Slot<Outcome<B>, <B as Backend>::Preview>;

/// Why there is no checkpoint.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError<E> {
    /// Nothing was computed yet.
    #[error("the job has not started: there is nothing to save")]
    NotStarted,
    /// It has its outcome.
    #[error("the job has ended: there is nothing to save")]
    Ended,
    /// It was asked for on the engine's own thread, which would have to save it meanwhile.
    #[error("asked for by the engine's own thread, from a waker or a recorder")]
    OwnThread,
    /// The backend could not save it.
    #[error("{0}")]
    Backend(Arc<E>),
    /// The backend panicked while saving it.
    #[error("panicked: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
}

/// A submitter's hold on one job. As a `Future` it gives the job's outcome under any executor. Dropping
/// the last handle of a job calls the job back, unless one was detached.
///
/// Wakers, and recorders of `metrics` and `tracing`, are called on the engine's own thread too. What would wait there
/// for that very thread does not: each function says what it does instead.
pub struct Handle<B: Backend> {
    pub(super) id: JobId,
    pub(super) slot: Arc<JobSlot<B>>,
    pub(super) shell: Weak<Shell<B>>,
    waiter: u64,
}

impl<B: Backend> Handle<B> {
    /// On a slot that it was attached to.
    pub(super) fn new(id: JobId, slot: Arc<JobSlot<B>>, shell: Weak<Shell<B>>) -> Self {
        let waiter = slot.waiter();
        Self { id, slot, shell, waiter }
    }

    /// The job's number.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// Blocks until the job has ended.
    ///
    /// # Errors
    /// [`Failure`], if it did not give its pictures; [`Failure::OwnThread`] on the engine's own thread, if it has
    /// not ended by then: this handle is gone then, and the job with it as in a drop.
    pub fn wait(self) -> Outcome<B> {
        if is_worker(&self.shell) {
            return self.slot.outcome().unwrap_or(Err(Failure::OwnThread));
        }
        self.slot.wait()
    }

    /// Blocks until the job has ended, for at most `timeout`; `None` if it has not. On the engine's own thread
    /// it does not block.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Outcome<B>> {
        if is_worker(&self.shell) {
            return self.slot.outcome();
        }
        match Instant::now().checked_add(timeout) {
            Some(until) => self.slot.wait_until(until),
            None => Some(self.slot.wait()),
        }
    }

    /// The outcome, if the job has ended.
    pub fn try_take(&self) -> Option<Outcome<B>> {
        self.slot.outcome()
    }

    /// The job's news from here on. Whoever fetches slowly misses steps and previews, never the end.
    /// News goes to one listener: several share it.
    pub fn events(&self) -> Events<B> {
        self.slot.listen(true);
        Events { slot: self.slot.clone(), shell: self.shell.clone(), waiter: self.slot.waiter() }
    }

    /// Calls the job back. It is in no launch after the one that runs, and holds no memory then; its
    /// outcome is [`Failure::Cancelled`] unless it had another before.
    pub fn cancel(&self) {
        self.slot.recall();
        if let Some(shell) = self.shell.upgrade() {
            shell.tell(Event::Cancel(self.id));
        }
    }

    /// Lets the job go on when its handles are dropped.
    pub fn detach(&self) {
        self.slot.detach();
    }

    /// Saves the job as it is after the launch that runs, as portable bytes, while it goes on. Blocks
    /// for at most that launch.
    ///
    /// # Errors
    /// [`CheckpointError`] before the job's start, after its end, on the engine's own thread, or where the
    /// backend cannot save it.
    pub fn checkpoint(&self) -> Result<Vec<u8>, CheckpointError<B::Error>> {
        let shell = self.shell.upgrade().ok_or(CheckpointError::Ended)?;
        if shell.is_worker() {
            return Err(CheckpointError::OwnThread);
        }
        let (sender, receiver) = mpsc::channel();
        shell.save(self.id, sender);
        drop(shell);
        receiver.recv().unwrap_or(Err(CheckpointError::Ended))
    }
}

impl<B: Backend> fmt::Debug for Handle<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("id", &self.id).finish_non_exhaustive()
    }
}

impl<B: Backend> Future for Handle<B> {
    type Output = Outcome<B>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.slot.poll(self.waiter, context)
    }
}

impl<B: Backend> Drop for Handle<B> {
    fn drop(&mut self) {
        if self.slot.let_go() {
            self.cancel();
        }
    }
}

/// Whether this is the thread on which the engine works.
fn is_worker<B: Backend>(shell: &Weak<Shell<B>>) -> bool {
    shell.upgrade().is_some_and(|shell| shell.is_worker())
}

/// A job's news: a blocking iterator that ends after [`Progress::Ended`]; on the engine's own thread it ends
/// where it would block.
pub struct Events<B: Backend> {
    slot: Arc<JobSlot<B>>,
    shell: Weak<Shell<B>>,
    waiter: u64,
}

impl<B: Backend> Events<B> {
    /// The next news if there is any.
    pub fn try_next(&mut self) -> Option<Progress<B::Preview>> {
        self.slot.try_news()
    }

    /// The next news for an executor, as `Stream::poll_next` has it; `Ready(None)` after the end.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Progress<B::Preview>>> {
        self.slot.poll_news(self.waiter, context)
    }
}

impl<B: Backend> fmt::Debug for Events<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl<B: Backend> Iterator for Events<B> {
    type Item = Progress<B::Preview>;

    fn next(&mut self) -> Option<Self::Item> {
        if is_worker(&self.shell) {
            return self.slot.try_news();
        }
        self.slot.wait_news()
    }
}

impl<B: Backend> Drop for Events<B> {
    fn drop(&mut self) {
        self.slot.listen(false);
    }
}
