//! The scheduler: a pure state machine, `tick(now, events) -> actions`.
//!
//! It knows jobs by number, price and state, never by tensor. Time and randomness are handed in, and
//! nothing here waits, so that a week of traffic is simulated in seconds with the code that serves it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::caps::Caps;
use super::codel::CodelState;
use super::cost::{BatchKey, CostModel, Phase, Price};
use super::doubts::{Doubt, Doubts};
use super::ledger::{Counters, Ledger};
use super::lifecycle::{Ending, Fault, State, Trigger};
use super::limits::{Limits, LimitsError};
use super::queue::{FairQueue, JobId, Place};
use super::retry::RetryBook;
use crate::job::DegradeReason;

/// A submission as the scheduler sees it.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Who submits.
    pub tenant: Arc<str>,
    /// Name of the class.
    pub class: Arc<str>,
    /// When it must be finished, on the scheduler's clock.
    pub deadline: Option<Duration>,
    /// What it costs as asked for, then as its submitter would also take it, best first.
    pub prices: Vec<Price>,
    /// What a retry of this submission has in common with it.
    pub retry_key: Option<Arc<str>>,
    /// A random number in `0.0..1.0`, to spread retries.
    pub jitter: f64,
}

/// What the scheduler is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// A launch came back.
    Returned {
        /// The launch's number.
        launch: u64,
        /// What became of each of its jobs.
        reports: Vec<Report>,
        /// How long the device was busy with it.
        elapsed: Duration,
    },
    /// A job's submitter calls it back.
    Cancel(JobId),
    /// Nothing more is accepted; what is not finished at this time is suspended or ended.
    Drain(Duration),
}

/// What became of one job in a launch.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The job.
    pub id: JobId,
    /// Steps that are done.
    pub done: u32,
    /// Steps of the whole job; with a fault, 0 where that is not known.
    pub total: u32,
    /// What went wrong, if anything.
    pub fault: Option<Fault>,
}

/// What the scheduler wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Run this on the device, and report with [`Event::Returned`]. There is one launch at a time.
    Launch(Launch),
    /// The job's only outcome. For [`Ending::Suspended`] its checkpoint is to be made.
    End(JobId, Ending),
}

/// One launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Its number, from 1.
    pub number: u64,
    /// What it does.
    pub phase: Phase,
    /// The key that its jobs share.
    pub key: BatchKey,
    /// The jobs, in the order in which they were chosen.
    pub jobs: Vec<JobId>,
}

/// What accepts a submission.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// The job's number.
    pub id: JobId,
    /// Which of the offer's prices was taken; 0 is what was asked for.
    pub variant: usize,
    /// Why it is not 0.
    pub reason: Option<DegradeReason>,
    /// Jobs of its class that were queued before it.
    pub position: usize,
    /// When it is expected to be finished, on the scheduler's clock.
    pub finish: Duration,
}

/// Whether work is taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Submissions are accepted.
    Open,
    /// No longer; what is there goes on until this time on the scheduler's clock.
    Draining(Duration),
    /// The device is gone for this process.
    Lost,
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) place: Place,
    pub(super) price: Price,
    pub(super) state: State,
    pub(super) deadline: Option<Duration>,
    pub(super) arrived: Duration,
    pub(super) done: u32,
    pub(super) total: u32,
    /// Failures in a row.
    pub(super) attempts: u32,
    /// Not started yet: counts as queued. From its first launch on it holds memory instead.
    pub(super) waits: bool,
    /// Nanoseconds of device time to come, as predicted when it was accepted.
    pub(super) work: Work,
    /// From arrival to end, as predicted when it was accepted, before calibration.
    pub(super) predicted: Duration,
    /// Let in to find out whether what was learnt still holds.
    pub(super) probe: bool,
    /// How it ends once its launch is back.
    pub(super) recalled: Option<Ending>,
}

/// Nanoseconds of device time in full launches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) start: u64,
    pub(super) step: u64,
    pub(super) steps: u64,
    pub(super) finish: u64,
}

impl Work {
    /// At most 36 years, so that sums of these do not overflow.
    pub(super) fn total(&self) -> u64 {
        let steps = self.step.saturating_mul(self.steps);
        self.start.saturating_add(steps).saturating_add(self.finish).min(1 << 60)
    }
}

/// The launch that the device is busy with.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) launch: Launch,
    pub(super) rows: u32,
    /// Of one of its jobs, to learn by.
    pub(super) price: Price,
}

/// The engine's decisions. See the module's docs.
#[derive(Debug)]
pub struct Scheduler {
    pub(super) limits: Limits,
    pub(super) now: Duration,
    pub(super) mode: Mode,
    pub(super) jobs: HashMap<JobId, Job>,
    pub(super) queue: FairQueue,
    pub(super) decodable: BTreeMap<BatchKey, BTreeSet<JobId>>,
    pub(super) deadlines: BTreeSet<(Duration, JobId)>,
    /// Jobs of failed launches, in the groups in which they are tried again.
    pub(super) suspects: VecDeque<(Phase, BatchKey, Vec<JobId>)>,
    pub(super) flight: Option<Flight>,
    pub(super) last: Last,
    /// Device time that decoding and encoding had since the last step and the steps have not had since.
    pub(super) owed: Duration,
    /// Keys that others go before, until the launch of this number: their last one was far from full.
    pub(super) resting: HashMap<BatchKey, u64>,
    pub(super) costs: CostModel,
    pub(super) doubts: Doubts,
    pub(super) caps: Caps,
    pub(super) ledger: Ledger,
    pub(super) codel: Vec<CodelState>,
    pub(super) books: Vec<RetryBook>,
    next_id: u64,
    pub(super) launches: u64,
}

/// What the last launch was, so that phases take turns.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Last {
    pub(super) phase: Option<Phase>,
    /// The key whose jobs were started; their step is next, or they would be filled up and left.
    pub(super) started: Option<BatchKey>,
    pub(super) suspects: bool,
}

impl Scheduler {
    /// A scheduler without jobs.
    ///
    /// # Errors
    /// [`LimitsError`] for limits that cannot be run under.
    pub fn new(limits: Limits) -> Result<Self, LimitsError> {
        limits.validate()?;
        let classes = limits.classes.len();
        Ok(Self {
            queue: FairQueue::new(limits.classes.iter().map(|class| class.weight)),
            ledger: Ledger::new(classes),
            codel: vec![CodelState::default(); classes],
            books: (0..classes).map(|_| RetryBook::default()).collect(),
            limits,
            now: Duration::ZERO,
            mode: Mode::Open,
            jobs: HashMap::new(),
            decodable: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            suspects: VecDeque::new(),
            flight: None,
            last: Last::default(),
            owed: Duration::ZERO,
            resting: HashMap::new(),
            costs: CostModel::default(),
            doubts: Doubts::default(),
            caps: Caps::default(),
            next_id: 1,
            launches: 0,
        })
    }

    /// Takes note of what happened and decides what is done next. `now` never goes back.
    pub fn tick(&mut self, now: Duration, events: impl IntoIterator<Item = Event>) -> Vec<Action> {
        self.now = self.now.max(now);
        let mut actions = Vec::new();
        for event in events {
            match event {
                Event::Returned { launch, reports, elapsed } => {
                    self.returned(launch, &reports, elapsed, &mut actions);
                }
                Event::Cancel(id) => self.recall(id, Ending::Cancelled, &mut actions),
                Event::Drain(until) => self.drain(until),
            }
        }
        self.expire(&mut actions);
        self.cut(&mut actions);
        if self.flight.is_none() && self.mode != Mode::Lost {
            self.decide(&mut actions);
        }
        actions
    }

    /// When the next tick is due although nothing happens, on the scheduler's clock.
    pub fn next_wake(&self) -> Option<Duration> {
        let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
        match self.mode {
            Mode::Draining(until) if !self.jobs.is_empty() => Some(deadline.map_or(until, |d| d.min(until))),
            _ => deadline,
        }
    }

    /// Holds back a class's queued jobs and refuses new ones, or goes on; its running jobs are finished.
    /// Whether there is a class of that name.
    pub fn pause(&mut self, class: &str, paused: bool) -> bool {
        let index = self.class_index(class);
        if let Some(index) = index {
            self.queue.set_paused(index, paused);
        }
        index.is_some()
    }

    /// Runs under other limits from here on. What was accepted under the old ones stays accepted: a job that
    /// needs more memory than there may be has the device to itself when its turn comes.
    ///
    /// # Errors
    /// [`LimitsError`], and nothing changes.
    pub fn set_limits(&mut self, limits: Limits) -> Result<(), LimitsError> {
        limits.validate_after(&self.limits)?;
        for (index, class) in limits.classes.iter().enumerate() {
            self.queue.set_weight(index, class.weight);
        }
        self.limits = limits;
        Ok(())
    }

    /// Refuses submissions from here on; an [`Event::Drain`] says until when the rest goes on.
    pub fn close(&mut self) {
        self.drain(Duration::MAX);
    }

    /// The limits that it runs under.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether work is taken on.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Jobs that are accepted and not ended.
    pub fn live(&self) -> usize {
        self.jobs.len()
    }

    /// Where a job stands; `None` once it has ended.
    pub fn state(&self, id: JobId) -> Option<State> {
        self.jobs.get(&id).map(|job| job.state)
    }

    /// Bytes that running jobs have reserved on the device.
    pub fn reserved_memory(&self) -> u64 {
        self.ledger.memory
    }

    /// A class's counters; `None` where there is no such class.
    pub fn counters(&self, class: &str) -> Option<&Counters> {
        self.ledger.classes.get(self.class_index(class)?).map(|class| &class.counters)
    }

    /// Queued jobs of a class: how many, their bytes on the host, and their predicted device time.
    pub fn queued(&self, class: &str) -> Option<super::limits::Bounds> {
        self.ledger.classes.get(self.class_index(class)?).map(|class| class.queued.bounds())
    }

    pub(super) fn class_index(&self, name: &str) -> Option<usize> {
        self.limits.classes.iter().position(|class| &*class.name == name)
    }

    pub(super) fn next_id(&mut self) -> JobId {
        let id = JobId(self.next_id);
        self.next_id += 1;
        id
    }

    /// Moves a job along the lifecycle's table; whether the table has the move.
    pub(super) fn move_on(&mut self, id: JobId, trigger: Trigger) -> Option<State> {
        let job = self.jobs.get_mut(&id)?;
        let next = job.state.after(trigger);
        debug_assert!(next.is_some(), "{id}: {:?} has no {trigger:?}", job.state);
        job.state = next?;
        next
    }

    /// Calls a job back: it ends here, or when its launch is back.
    pub(super) fn recall(&mut self, id: JobId, ending: Ending, actions: &mut Vec<Action>) {
        match self.jobs.get_mut(&id) {
            Some(job) if job.state.in_launch() => {
                job.recalled.get_or_insert(ending);
                self.move_on(id, Trigger::Recalled);
            }
            Some(_) => self.end(id, ending, actions),
            None => {}
        }
    }

    /// Gives a job its outcome and everything back that it held.
    pub(super) fn end(&mut self, id: JobId, ending: Ending, actions: &mut Vec<Action>) {
        self.move_on(id, Trigger::Settled);
        let Some(job) = self.jobs.remove(&id) else {
            return;
        };
        self.queue.work_changed(&job.place, job.work.total(), 0);
        if !job.waits {
            self.queue.charge_start(&job.place, job.work.total(), 0);
        }
        self.queue.release(id, &job.place);
        if let Some(waiting) = self.decodable.get_mut(&job.price.key) {
            waiting.remove(&id);
            if waiting.is_empty() {
                self.decodable.remove(&job.price.key);
            }
        }
        if let Some(deadline) = job.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        let latency = self.now.saturating_sub(job.arrived);
        if ending == Ending::Finished {
            self.doubts.finished(Doubt::Cost(job.price.key));
            self.doubts.finished(Doubt::Bias(job.place.class));
        }
        let objective = self.limits.classes.get(job.place.class).map(|class| class.objective);
        self.ledger.ended(&job, ending, latency, objective.is_some_and(|objective| latency <= objective));
        actions.push(Action::End(id, ending));
    }

    fn expire(&mut self, actions: &mut Vec<Action>) {
        while let Some((deadline, id)) = self.deadlines.first().copied().filter(|(at, _)| *at <= self.now) {
            // A job in a launch is looked at again when the launch is back.
            self.deadlines.remove(&(deadline, id));
            if self.jobs.get(&id).is_some_and(|job| job.state.in_launch()) {
                continue;
            }
            self.recall(id, Ending::Expired, actions);
        }
    }

    fn drain(&mut self, until: Duration) {
        self.mode = match self.mode {
            Mode::Lost => Mode::Lost,
            Mode::Draining(earlier) => Mode::Draining(earlier.min(until)),
            Mode::Open => Mode::Draining(until),
        };
    }

    /// Ends what a drain leaves over.
    fn cut(&mut self, actions: &mut Vec<Action>) {
        let Mode::Draining(until) = self.mode else {
            return;
        };
        if self.now < until {
            return;
        }
        let mut left: Vec<(JobId, State)> = self.jobs.iter().map(|(id, job)| (*id, job.state)).collect();
        left.sort_unstable_by_key(|(id, _)| *id);
        for (id, state) in left {
            match state {
                State::Queued => self.end(id, Ending::ShutDown, actions),
                State::Ready | State::Decodable => self.end(id, Ending::Suspended, actions),
                _ => {}
            }
        }
    }

    /// Every job ends: the device will not compute again.
    pub(super) fn lose(&mut self, actions: &mut Vec<Action>) {
        self.mode = Mode::Lost;
        let mut left: Vec<JobId> = self.jobs.keys().copied().collect();
        left.sort_unstable();
        left.into_iter().for_each(|id| self.end(id, Ending::DeviceLost, actions));
        self.suspects.clear();
    }
}
