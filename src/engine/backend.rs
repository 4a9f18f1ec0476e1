//! What the engine drives: a device that starts, steps and finishes jobs.

use super::cost::{Model, Price};
use super::lifecycle::Fault;
use crate::job::Applied;

/// A model on a device. The engine calls `price`, `alternatives` and `inspect` on submitters' threads,
/// everything else on its one worker thread; panics in any of them are caught.
///
/// A job whose step fails or panics must stay where it was, or [`steps`](Self::steps) must say how far
/// it got: the engine tries it again from there.
pub trait Backend: Send + Sync + 'static {
    /// What is asked for.
    type Request: Clone + Send + 'static;
    /// A request in flight, on the device.
    type Job: Send + 'static;
    /// What a request gives. Cheap to clone where an idempotency key is used.
    type Output: Clone + Send + 'static;
    /// A look at a job on the way.
    type Preview: Clone + Send + 'static;
    /// What goes wrong.
    type Error: std::error::Error + Send + Sync + 'static;

    /// What the request needs on `model`, from that model's configuration; quick, and without the device.
    /// The price's key names the model.
    ///
    /// # Errors
    /// For requests that cannot be carried out at all.
    fn price(&self, request: &Self::Request, model: Model) -> Result<Price, Self::Error>;

    /// What could be done instead within `consent`, best first; empty where there is nothing. Only these
    /// name another model than [`Model::Main`].
    fn alternatives(&self, request: &Self::Request, consent: &Degrade) -> Vec<Alternative<Self::Request>>;

    /// Begins jobs of one batch key, whose model this is: encodes prompts and pictures, draws noise. One
    /// result a request, in their order.
    fn start(&self, requests: &[&Self::Request], model: Model) -> Vec<Result<Self::Job, Self::Error>>;

    /// Keeps with a job that was just started what it does instead of what was asked for, so that its
    /// checkpoints carry it.
    fn degraded(&self, job: &mut Self::Job, applied: &Applied);

    /// What [`degraded`](Self::degraded) kept with a job, for [`Finished::applied`](super::Finished::applied) of
    /// one that was resumed.
    fn applied(&self, job: &Self::Job) -> Option<Applied>;

    /// One step of each job, all of one batch key. One result a job, in their order.
    fn step(&self, jobs: &mut [&mut Self::Job]) -> Vec<Result<(), Self::Error>>;

    /// How far a job is.
    fn steps(&self, job: &Self::Job) -> Steps;

    /// A look at a job on the way.
    ///
    /// # Errors
    /// Where the device fails; the job goes on without the preview.
    fn preview(&self, job: &Self::Job) -> Result<Self::Preview, Self::Error>;

    /// Decodes jobs whose steps are done, all of one batch key. One result a job, in their order.
    fn finish(&self, jobs: &[&Self::Job]) -> Vec<Result<Self::Output, Self::Error>>;

    /// The job as bytes from which [`resume`](Self::resume) goes on, elsewhere or later: they say of which
    /// model and device they are, and hold a checksum.
    ///
    /// # Errors
    /// Where the device fails.
    fn checkpoint(&self, job: &Self::Job) -> Result<Vec<u8>, Self::Error>;

    /// What the rest of a job needs that was saved; quick, and without the device. Its `steps` are
    /// those that are left.
    ///
    /// # Errors
    /// For bytes that are damaged, of another model, or, unless `allow_inexact`, of another device,
    /// precision or kernel version.
    fn inspect(&self, checkpoint: &[u8], allow_inexact: bool) -> Result<Price, Self::Error>;

    /// A job from its bytes.
    ///
    /// # Errors
    /// As [`inspect`](Self::inspect), and where the device fails.
    fn resume(&self, checkpoint: &[u8], allow_inexact: bool) -> Result<Self::Job, Self::Error>;

    /// Bytes on the device that jobs may take together, where that is known; for engines whose
    /// [`Limits`](super::Limits) name no budget.
    fn memory(&self) -> Option<u64> {
        None
    }

    /// What the engine is to do about an error.
    fn fault(&self, error: &Self::Error) -> Fault;
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// Steps that are done.
    pub done: u32,
    /// Steps of the whole job.
    pub total: u32,
}

/// What a submitter agrees to get where the engine is loaded or its deadline near. Nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Degrade {
    /// Fewer steps, but not fewer than this.
    pub min_steps: Option<u32>,
    /// A distilled model, if one is loaded, with its own steps, guidance and sampler.
    pub distilled: bool,
    /// Smaller pictures, but no side shorter than this, in pixels.
    pub min_side: Option<u32>,
}

impl Degrade {
    /// Whether nothing is agreed to.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// A request that could be carried out instead.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative<R> {
    /// The other request.
    pub request: R,
    /// The model that carries it out.
    pub model: Model,
    /// What was asked for, where they differ: "30 steps".
    pub requested: String,
    /// What this one asks for: "15 steps".
    pub actual: String,
}
