//! What is held and what happened, in exact integers: every sum is 0 again when nothing is left.

use std::time::Duration;

use super::lifecycle::Ending;
use super::limits::Bounds;
use super::scheduler::Job;

/// What happened in one class since the engine was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Submissions, but for those that no price can be told of and those that repeat a key.
    pub submitted: u64,
    /// Submissions that were refused.
    pub rejected: u64,
    /// Jobs that gave their pictures.
    pub finished: u64,
    /// Jobs that gave their pictures within the class's objective.
    pub within_objective: u64,
    /// Jobs that their submitters called back.
    pub cancelled: u64,
    /// Jobs whose deadline passed.
    pub expired: u64,
    /// Jobs dropped from a queue that stood too long.
    pub shed: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Jobs that ended with the device.
    pub device_lost: u64,
    /// Jobs that a drain suspended to a checkpoint.
    pub suspended: u64,
    /// Jobs that a drain ended before they ran.
    pub shut_down: u64,
    /// Jobs that got less than they asked for.
    pub degraded: u64,
    /// Launches that failed for a job and were tried again.
    pub retried: u64,
}

impl Counters {
    /// Jobs that have their outcome.
    pub fn ended(&self) -> u64 {
        self.finished
            + self.cancelled
            + self.expired
            + self.shed
            + self.failed
            + self.device_lost
            + self.suspended
            + self.shut_down
    }

    /// Whether every submission is accounted for, given the jobs that are accepted and not ended.
    pub fn balance(&self, live: u64) -> bool {
        self.submitted == self.rejected + self.ended() + live
    }

    fn count(&mut self, ending: Ending) {
        *match ending {
            Ending::Finished => &mut self.finished,
            Ending::Cancelled => &mut self.cancelled,
            Ending::Expired => &mut self.expired,
            Ending::Shed => &mut self.shed,
            Ending::Failed => &mut self.failed,
            Ending::DeviceLost => &mut self.device_lost,
            Ending::Suspended => &mut self.suspended,
            Ending::ShutDown => &mut self.shut_down,
        } += 1;
    }
}

/// Jobs that wait.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Queued {
    pub(crate) count: usize,
    pub(crate) bytes: u64,
    /// Nanoseconds.
    pub(crate) work: u64,
}

impl Queued {
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds { count: self.count, bytes: self.bytes, time: Duration::from_nanos(self.work) }
    }

    fn add(&mut self, job: &Job) {
        self.count += 1;
        self.bytes += job.price.bytes;
        self.work += job.work.total();
    }

    fn subtract(&mut self, job: &Job) {
        self.count -= 1;
        self.bytes -= job.price.bytes;
        self.work -= job.work.total();
    }
}

/// One class's sums.
#[derive(Clone, Debug)]
pub(crate) struct ClassLedger {
    pub(crate) counters: Counters,
    pub(crate) queued: Queued,
    /// Nanoseconds of device time to come, of all live jobs.
    pub(crate) work: u64,
    /// Device time got of each busy second, forgotten exponentially, times `Ledger::rate_weight`.
    rate: f64,
    /// Nanoseconds of device time used since the last launch came back.
    used: u64,
    /// Actual over predicted latency, forgotten exponentially.
    pub(crate) bias: f64,
}

/// All sums.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    pub(crate) classes: Vec<ClassLedger>,
    pub(crate) queued: Queued,
    pub(crate) work: u64,
    /// Bytes reserved on the device.
    pub(crate) memory: u64,
    /// Rows of started jobs.
    pub(crate) rows: u64,
    rated: Duration,
    /// How much of the exponential window has passed; 1 in the long run.
    rate_weight: f64,
}

/// Over what time the measured rate forgets, in seconds.
const RATE_WINDOW: f64 = 2.0;
const BIAS_STEP: f64 = 0.05;

impl Ledger {
    pub(crate) fn new(classes: usize) -> Self {
        let class = ClassLedger {
            counters: Counters::default(),
            queued: Queued::default(),
            work: 0,
            rate: 0.0,
            used: 0,
            bias: 1.0,
        };
        Self {
            classes: vec![class; classes],
            queued: Queued::default(),
            work: 0,
            memory: 0,
            rows: 0,
            rated: Duration::ZERO,
            rate_weight: 0.0,
        }
    }

    fn class(&mut self, job: &Job) -> Option<&mut ClassLedger> {
        self.classes.get_mut(job.place.class)
    }

    pub(crate) fn accepted(&mut self, job: &Job) {
        if self.work == 0 {
            // Rates are of busy time: what nobody asked for before says nothing of what a class can get.
            self.rated = self.rated.max(job.arrived);
        }
        self.work += job.work.total();
        self.queued.add(job);
        if let Some(class) = self.class(job) {
            class.work += job.work.total();
            class.queued.add(job);
        }
    }

    /// A job goes into its first launch: from there on it holds memory, also between two attempts.
    pub(crate) fn started(&mut self, job: &mut Job) {
        if !std::mem::replace(&mut job.waits, false) {
            return;
        }
        self.queued.subtract(job);
        if let Some(class) = self.class(job) {
            class.queued.subtract(job);
        }
        self.memory += job.price.memory;
        self.rows += u64::from(job.price.rows);
    }

    /// A job used some of what it was expected to use.
    pub(crate) fn used(&mut self, job: &Job, nanos: u64) {
        self.work -= nanos;
        if let Some(class) = self.class(job) {
            class.work -= nanos;
            class.used += nanos;
        }
    }

    /// What a job was expected to use changed from one total to another.
    pub(crate) fn repriced(&mut self, job: &Job, before: u64, after: u64) {
        self.work = self.work - before + after;
        if let Some(class) = self.class(job) {
            class.work = class.work - before + after;
        }
    }

    /// A launch came back: brings the classes' rates up to `now`.
    pub(crate) fn rate(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.rated).as_secs_f64();
        if elapsed <= 0.0 {
            return;
        }
        self.rated = now;
        let step = 1.0 - (-elapsed / RATE_WINDOW).exp();
        for class in &mut self.classes {
            let used = std::mem::take(&mut class.used) as f64 * 1e-9 / elapsed;
            class.rate += (used - class.rate) * step;
        }
        self.rate_weight += (1.0 - self.rate_weight) * step;
    }

    /// Device time of each second that a class gets at present. Together they get no more than all of it:
    /// jobs that were priced before the device was known may seem to.
    pub(crate) fn rate_of(&self, class: &ClassLedger) -> Option<f64> {
        let all: f64 = self.classes.iter().map(|class| class.rate).sum();
        (self.rate_weight > 0.0).then(|| class.rate / all.max(self.rate_weight))
    }

    /// A job has its outcome and is gone.
    pub(crate) fn ended(&mut self, job: &Job, ending: Ending, latency: Duration, in_time: bool) {
        let left = job.work.total();
        self.work -= left;
        if job.waits {
            self.queued.subtract(job);
        } else {
            self.memory -= job.price.memory;
            self.rows -= u64::from(job.price.rows);
        }
        let Some(class) = self.class(job) else {
            return;
        };
        if job.waits {
            class.queued.subtract(job);
        }
        class.work -= left;
        class.counters.count(ending);
        if ending == Ending::Finished {
            class.counters.within_objective += u64::from(in_time);
            let ratio = latency.as_secs_f64() / job.predicted.as_secs_f64().max(1e-9);
            class.bias += (ratio.clamp(0.25, 4.0) - class.bias) * BIAS_STEP;
            if job.probe {
                // Its prediction was what it was to disprove.
                class.bias = 1.0;
            }
        }
    }
}
