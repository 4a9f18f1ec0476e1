//! The part of the engine that threads share: the scheduler behind one lock that is never held while
//! the device works, nor while others' code runs: wakers, recorders, what drops outputs and requests.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::{self, ThreadId};
use std::time::Duration;

use super::backend::Backend;
use super::clock::Clock;
use super::handle::{CheckpointError, Handle, JobSlot};
use super::metrics::{self, Labels};
use super::queue::JobId;
use super::rejected::Rejected;
use super::scheduler::{Accepted, Event, Mode, Offer, Scheduler};
use super::slot::{Progress, Slot};
use super::sync::{Condvar, Mutex, MutexGuard, lock};
use crate::job::Applied;

/// What a job starts from.
#[derive(Clone)]
pub(crate) enum Origin<R> {
    Request(R),
    Checkpoint { bytes: Arc<[u8]>, allow_inexact: bool },
}

/// What the shell knows of a job beside the scheduler.
pub(crate) struct Entry<B: Backend> {
    pub(crate) slot: Arc<JobSlot<B>>,
    /// Until it is started.
    pub(crate) origin: Option<Origin<B::Request>>,
    pub(crate) applied: Option<Applied>,
    pub(crate) labels: Labels,
    pub(crate) submitted: Duration,
    pub(crate) started: Option<Duration>,
    pub(crate) preview_every: Option<NonZeroU32>,
    pub(crate) checkpoint_every: Option<NonZeroU32>,
    pub(crate) key: Option<Key>,
}

/// By what a repeated submission is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) tenant: Arc<str>,
    pub(crate) key: Arc<str>,
}

pub(crate) type Reply<B> = mpsc::Sender<Result<Vec<u8>, CheckpointError<<B as Backend>::Error>>>;

/// Slots that nobody asks for any more.
pub(crate) type Forgotten<B> = Vec<Arc<JobSlot<B>>>;

/// What happens under the lock.
pub(crate) struct Desk<B: Backend> {
    pub(crate) scheduler: Scheduler,
    pub(crate) events: Vec<Event>,
    pub(crate) entries: HashMap<JobId, Entry<B>>,
    pub(crate) saves: Vec<(JobId, Reply<B>)>,
    known: HashMap<Key, (JobId, Arc<JobSlot<B>>)>,
    /// Keys of jobs that ended, oldest first.
    ended: VecDeque<(Key, JobId)>,
    /// Jobs whose entry is out and whose outcome is not set yet.
    closing: usize,
    remembered: usize,
    random: u64,
}

pub(crate) struct Shell<B: Backend> {
    pub(crate) backend: B,
    pub(crate) clock: Arc<dyn Clock>,
    desk: Mutex<Desk<B>>,
    /// There is something for the worker.
    work: Condvar,
    /// The last job ended.
    idle: Condvar,
    worker: OnceLock<ThreadId>,
}

impl<B: Backend> fmt::Debug for Shell<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shell").finish_non_exhaustive()
    }
}

/// One way to carry a submission out.
pub(crate) struct Variant<R> {
    pub(crate) origin: Origin<R>,
    /// What was asked for and what this does, where they differ.
    pub(crate) changed: Option<(String, String)>,
}

/// A submission, priced, with everything that needed no lock.
pub(crate) struct Priced<B: Backend> {
    pub(crate) offer: Offer,
    /// One for each of the offer's prices.
    pub(crate) variants: Vec<Variant<B::Request>>,
    pub(crate) labels: Labels,
    pub(crate) deadline: Option<Duration>,
    pub(crate) preview_every: Option<NonZeroU32>,
    pub(crate) checkpoint_every: Option<NonZeroU32>,
    pub(crate) key: Option<Key>,
}

impl<B: Backend> Shell<B> {
    pub(crate) fn new(
        backend: B,
        scheduler: Scheduler,
        clock: Arc<dyn Clock>,
        seed: u64,
        remembered: usize,
    ) -> Self {
        let desk = Desk {
            scheduler,
            events: Vec::new(),
            entries: HashMap::new(),
            saves: Vec::new(),
            known: HashMap::new(),
            ended: VecDeque::new(),
            closing: 0,
            remembered,
            random: seed,
        };
        let (work, idle, worker) = (Condvar::new(), Condvar::new(), OnceLock::new());
        Self { backend, clock, desk: Mutex::new(desk), work, idle, worker }
    }

    /// The worker says that this is its thread, before it calls anyone's code.
    pub(crate) fn adopt(&self) {
        self.worker.get_or_init(|| thread::current().id());
    }

    /// Whether this is the worker's thread: what waits for the worker here waits for ever.
    pub(crate) fn is_worker(&self) -> bool {
        self.worker.get().is_some_and(|worker| *worker == thread::current().id())
    }

    pub(crate) fn desk(&self) -> MutexGuard<'_, Desk<B>> {
        lock(&self.desk)
    }

    /// Leaves an event for the worker.
    pub(crate) fn tell(&self, event: Event) {
        self.desk().events.push(event);
        self.work.notify_one();
    }

    /// Wakes the worker after a change to the scheduler itself.
    pub(crate) fn wake(&self) {
        self.work.notify_one();
    }

    /// Leaves a wish for a checkpoint, or lets go of `reply` where the job has ended.
    pub(crate) fn save(&self, id: JobId, reply: Reply<B>) {
        let mut desk = self.desk();
        if desk.entries.contains_key(&id) {
            desk.saves.push((id, reply));
            self.work.notify_one();
        }
    }

    /// Refuses submissions; what is not finished at `until` is suspended or ended.
    pub(crate) fn drain(&self, until: Duration) {
        let mut desk = self.desk();
        desk.scheduler.close();
        desk.events.push(Event::Drain(until));
        self.work.notify_one();
    }

    /// Lets the worker sleep until it is woken, or `until` on the engine's clock.
    pub(crate) fn rest<'a>(
        &self,
        desk: MutexGuard<'a, Desk<B>>,
        until: Option<Duration>,
    ) -> MutexGuard<'a, Desk<B>> {
        let left = until.map(|until| until.saturating_sub(self.clock.now()));
        match left {
            Some(left) => {
                self.work.wait_timeout(desk, left).unwrap_or_else(std::sync::PoisonError::into_inner).0
            }
            None => self.work.wait(desk).unwrap_or_else(std::sync::PoisonError::into_inner),
        }
    }

    /// Says that no job is left.
    pub(crate) fn report_idle(&self) {
        self.idle.notify_all();
    }

    /// Blocks until no job is left.
    pub(crate) fn wait_idle(&self) {
        let mut desk = self.desk();
        while !desk.is_empty() {
            desk = self.idle.wait(desk).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    pub(crate) fn submit(
        self: &Arc<Self>,
        labels: &Labels,
        priced: Result<Priced<B>, Rejected>,
    ) -> Result<Handle<B>, Rejected> {
        let mut desk = self.desk();
        let has_class = desk.scheduler.class_index(&labels.class).is_some();
        let mut priced = match priced {
            Ok(priced) => priced,
            Err(rejected) => {
                drop(desk);
                metrics::rejected(labels, &rejected, has_class);
                return Err(rejected);
            }
        };
        let known = priced.key.as_ref().and_then(|key| desk.known.get(key));
        if let Some((id, slot)) = known.filter(|(_, slot)| slot.attach()).cloned() {
            drop(desk);
            return Ok(Handle::new(id, slot, Arc::downgrade(self)));
        }
        let now = self.clock.now();
        let result = desk.accept(now, &mut priced);
        drop(desk);
        match result {
            Ok((accepted, slot)) => {
                self.work.notify_one();
                // Before the recorder, whose panic then calls the job back.
                let handle = Handle::new(accepted.id, slot, Arc::downgrade(self));
                metrics::accepted(labels, &accepted);
                Ok(handle)
            }
            Err(rejected) => {
                metrics::rejected(labels, &rejected, has_class);
                Err(rejected)
            }
        }
    }
}

impl<B: Backend> Desk<B> {
    fn accept(
        &mut self,
        now: Duration,
        priced: &mut Priced<B>,
    ) -> Result<(Accepted, Arc<JobSlot<B>>), Rejected> {
        priced.offer.jitter = self.draw();
        priced.offer.deadline = priced.deadline.map(|deadline| now.saturating_add(deadline));
        let accepted = self.scheduler.admit(now, &priced.offer)?;
        let slot = Arc::new(Slot::new());
        slot.attach();
        let finish = accepted.finish.saturating_sub(now);
        slot.tell(Progress::Queued { position: accepted.position, finish });
        let variant =
            (accepted.variant < priced.variants.len()).then(|| priced.variants.swap_remove(accepted.variant));
        let (origin, changed) = variant.map_or((None, None), |v| (Some(v.origin), v.changed));
        let applied = accepted.reason.zip(changed).map(|(reason, (requested, actual))| Applied {
            requested,
            actual,
            reason,
        });
        if let Some(key) = &priced.key {
            self.known.insert(key.clone(), (accepted.id, slot.clone()));
        }
        let entry = Entry {
            slot: slot.clone(),
            origin,
            applied,
            labels: priced.labels.clone(),
            submitted: now,
            started: None,
            preview_every: priced.preview_every,
            checkpoint_every: priced.checkpoint_every,
            key: priced.key.clone(),
        };
        self.entries.insert(accepted.id, entry);
        Ok((accepted, slot))
    }

    /// Takes out the entry of a job that ended. Its output stays known by its key for a while; a job that
    /// gave none may be tried again under the same key. With it come the slots that are forgotten, for the
    /// caller to drop once the lock is free.
    pub(crate) fn close(&mut self, id: JobId, finished: bool) -> Option<(Entry<B>, Forgotten<B>)> {
        let entry = self.entries.remove(&id)?;
        self.closing += 1;
        let mut forgotten = Vec::new();
        if let Some(key) = &entry.key {
            if finished {
                self.ended.push_back((key.clone(), id));
                while self.ended.len() > self.remembered {
                    let oldest = self.ended.pop_front();
                    forgotten.extend(oldest.and_then(|(key, id)| self.forget(&key, id)));
                }
            } else {
                forgotten.extend(self.forget(key, id));
            }
        }
        Some((entry, forgotten))
    }

    /// Forgets a key, unless another job has it after this one was called back.
    fn forget(&mut self, key: &Key, id: JobId) -> Option<Arc<JobSlot<B>>> {
        self.known.get(key).filter(|(known, _)| *known == id)?;
        self.known.remove(key).map(|(_, slot)| slot)
    }

    /// The outcomes of so many jobs that were closed are set; whether no job is left without one.
    pub(crate) fn settled(&mut self, jobs: usize) -> bool {
        self.closing = self.closing.saturating_sub(jobs);
        self.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.closing == 0
    }

    /// Whether nothing is left and nothing will come.
    pub(crate) fn is_over(&self) -> bool {
        self.scheduler.mode() != Mode::Open && self.entries.is_empty() && self.events.is_empty()
    }

    /// SplitMix64 (Steele, Lea & Flood 2014), in `0.0..1.0`.
    fn draw(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
