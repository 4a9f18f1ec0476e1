//! The one thread that carries jobs' news to the client.
//!
//! It is woken as any executor is. While the client does not read, it waits in a write, and the engine
//! replaces what it did not fetch: memory stays bounded, and no outcome is lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::{Context, Poll, Wake, Waker};

use aquatint::engine::{Events, Handle, PipelineBackend, Progress};

use crate::frames::Output;
use crate::messages;

pub(crate) type JobHandle = Arc<Handle<PipelineBackend>>;

/// The jobs without an outcome, by the client's ids.
#[derive(Default)]
pub(crate) struct Jobs(Mutex<HashMap<Arc<str>, JobHandle>>);

impl Jobs {
    pub(crate) fn get(&self, id: &str) -> Option<JobHandle> {
        self.with(|jobs| jobs.get(id).cloned())
    }

    pub(crate) fn insert(&self, id: Arc<str>, handle: JobHandle) {
        self.with(|jobs| jobs.insert(id, handle));
    }

    fn remove(&self, id: &str) {
        self.with(|jobs| jobs.remove(id));
    }

    fn with<T>(&self, change: impl FnOnce(&mut HashMap<Arc<str>, JobHandle>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the thread is told.
pub(crate) enum Note {
    Accepted(Arc<str>, JobHandle),
    Woken(Arc<str>),
    /// No job comes any more: end after the last.
    Last,
}

struct JobWaker {
    id: Arc<str>,
    notes: mpsc::Sender<Note>,
}

impl Wake for JobWaker {
    fn wake(self: Arc<Self>) {
        // Without a receiver the process is ending.
        let _ = self.notes.send(Note::Woken(self.id.clone()));
    }
}

struct Followed {
    handle: JobHandle,
    events: Events<PipelineBackend>,
    waker: Waker,
}

pub(crate) struct Pump {
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) output: Arc<Output>,
    pub(crate) notes: mpsc::Sender<Note>,
    pub(crate) inbox: mpsc::Receiver<Note>,
}

impl Pump {
    pub(crate) fn run(self) {
        let mut followed: HashMap<Arc<str>, Followed> = HashMap::new();
        let mut last = false;
        while !(last && followed.is_empty()) {
            let Ok(note) = self.inbox.recv() else {
                return;
            };
            let id = match note {
                Note::Last => {
                    last = true;
                    continue;
                }
                Note::Accepted(id, handle) => {
                    let waker = JobWaker { id: id.clone(), notes: self.notes.clone() };
                    let events = handle.events();
                    let job = Followed { handle, events, waker: Arc::new(waker).into() };
                    followed.insert(id.clone(), job);
                    id
                }
                Note::Woken(id) => id,
            };
            // A wake may come late, after the job's end.
            if followed.get_mut(&id).is_some_and(|job| self.follow(&id, job)) {
                followed.remove(&id);
            }
        }
    }

    /// Sends what there is of a job's news; whether it has ended.
    fn follow(&self, id: &str, job: &mut Followed) -> bool {
        loop {
            let progress = match job.events.poll_next(&mut Context::from_waker(&job.waker)) {
                Poll::Pending => return false,
                Poll::Ready(progress) => progress,
            };
            match progress {
                Some(Progress::Ended) | None => break,
                Some(progress) => {
                    if let Some((header, payload)) = messages::news(id, progress) {
                        self.output.send(&header, &payload);
                    }
                }
            }
        }
        // The id is free before the client knows that the job has ended.
        self.jobs.remove(id);
        if let Some(outcome) = job.handle.try_take() {
            let (header, payload) = match outcome {
                Ok(done) => messages::finished(id, &done),
                Err(failure) => messages::failed(id, &failure),
            };
            self.output.send(&header, &payload);
        }
        true
    }
}
