//! Counters, histograms and log lines, through the `metrics` and `tracing` facades.
//!
//! | name | kind | labels |
//! |---|---|---|
//! | `aquatint_engine_accepted_total` | counter | class |
//! | `aquatint_engine_rejected_total` | counter | class (`unknown` for one that there is not), reason |
//! | `aquatint_engine_ended_total` | counter | class, outcome |
//! | `aquatint_engine_within_objective_total` | counter | class |
//! | `aquatint_engine_degraded_total` | counter | class |
//! | `aquatint_engine_latency_seconds` | histogram | class, outcome |
//! | `aquatint_engine_launch_seconds` | histogram | phase |
//! | `aquatint_engine_launch_jobs` | histogram | phase |
//! | `aquatint_engine_faults_total` | counter | phase, fault |
//! | `aquatint_engine_queued` | gauge | class |
//! | `aquatint_engine_reserved_bytes` | gauge | |
//! | `aquatint_engine_batch_occupancy` | gauge | |
//!
//! The occupancy is that of the launch that runs: its rows over the most that it may have at present, 0 while none
//! runs. Recorders and subscribers are called outside of the engine's locks, most often on its own thread.

use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tracing::{debug, info, warn};

use super::cost::Phase;
use super::lifecycle::{Ending, Fault};
use super::queue::JobId;
use super::rejected::{Reason, Rejected};
use super::scheduler::{Accepted, Scheduler};

/// What every line about a job says.
#[derive(Clone, Debug)]
pub(crate) struct Labels {
    pub(crate) class: Arc<str>,
    pub(crate) tenant: Arc<str>,
    pub(crate) tags: Arc<[(String, String)]>,
}

pub(crate) fn accepted(labels: &Labels, accepted: &Accepted) {
    counter!("aquatint_engine_accepted_total", "class" => labels.class.clone()).increment(1);
    if accepted.variant > 0 {
        counter!("aquatint_engine_degraded_total", "class" => labels.class.clone()).increment(1);
    }
    let Labels { class, tenant, tags } = labels;
    let (id, position) = (accepted.id.number(), accepted.position);
    debug!(id, %class, %tenant, ?tags, position, degraded = ?accepted.reason, "accepted");
}

/// A class that the engine does not have gets no counter of its own: callers could name any number.
pub(crate) fn rejected(labels: &Labels, rejected: &Rejected, known: bool) {
    let reason = match rejected.reason {
        Reason::QueueFull { .. } => "queue full",
        Reason::Quota { .. } => "quota",
        Reason::DeadlineUnreachable { .. } => "deadline",
        Reason::MemoryBudget { .. } => "memory",
        Reason::ClassPaused { .. } => "paused",
        Reason::Draining => "draining",
        Reason::DeviceLost => "device lost",
        Reason::Invalid { .. } => "invalid",
    };
    let counted = if known { labels.class.clone() } else { Arc::from("unknown") };
    counter!("aquatint_engine_rejected_total", "class" => counted, "reason" => reason).increment(1);
    let Labels { class, tenant, tags } = labels;
    debug!(%class, %tenant, ?tags, %rejected, retry_after = ?rejected.retry_after, "rejected");
}

pub(crate) fn ended(labels: &Labels, id: JobId, ending: Ending, latency: Duration, in_time: bool) {
    let outcome = match ending {
        Ending::Finished => "finished",
        Ending::Cancelled => "cancelled",
        Ending::Expired => "expired",
        Ending::Shed => "shed",
        Ending::Failed => "failed",
        Ending::DeviceLost => "device lost",
        Ending::Suspended => "suspended",
        Ending::ShutDown => "shut down",
    };
    let Labels { class, tenant, tags } = labels;
    counter!("aquatint_engine_ended_total", "class" => class.clone(), "outcome" => outcome).increment(1);
    histogram!("aquatint_engine_latency_seconds", "class" => class.clone(), "outcome" => outcome)
        .record(latency.as_secs_f64());
    if in_time && ending == Ending::Finished {
        counter!("aquatint_engine_within_objective_total", "class" => class.clone()).increment(1);
    }
    let id = id.number();
    info!(id, %class, %tenant, ?tags, outcome, seconds = latency.as_secs_f64(), "ended");
}

pub(crate) fn launched(phase: Phase, jobs: usize, elapsed: Duration) {
    let phase = phase_name(phase);
    histogram!("aquatint_engine_launch_seconds", "phase" => phase).record(elapsed.as_secs_f64());
    histogram!("aquatint_engine_launch_jobs", "phase" => phase).record(jobs as f64);
}

pub(crate) fn faulted(labels: Option<&Labels>, id: JobId, phase: Phase, fault: Fault, error: &str) {
    let kind = match fault {
        Fault::Job => "job",
        Fault::Transient => "transient",
        Fault::Launch => "launch",
        Fault::OutOfMemory => "out of memory",
        Fault::DeviceLost => "device lost",
    };
    let phase = phase_name(phase);
    counter!("aquatint_engine_faults_total", "phase" => phase, "fault" => kind).increment(1);
    let id = id.number();
    warn!(id, tenant = labels.map(|labels| &*labels.tenant), tags = ?labels.map(|labels| &labels.tags), phase, fault = kind, error, "a job's launch failed");
}

/// What the gauges show, taken under the lock and recorded outside of it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Gauges {
    /// Queued jobs by class.
    queued: Vec<(Arc<str>, usize)>,
    reserved: u64,
    occupancy: f64,
}

impl Gauges {
    pub(crate) fn of(scheduler: &Scheduler) -> Self {
        let classes = scheduler.limits().classes.iter();
        let queued = classes
            .filter_map(|class| Some((class.name.clone(), scheduler.queued(&class.name)?.count)))
            .collect();
        Self { queued, reserved: scheduler.reserved_memory(), occupancy: scheduler.occupancy() }
    }

    pub(crate) fn record(&self) {
        for (class, count) in &self.queued {
            gauge!("aquatint_engine_queued", "class" => class.clone()).set(*count as f64);
        }
        gauge!("aquatint_engine_reserved_bytes").set(self.reserved as f64);
        gauge!("aquatint_engine_batch_occupancy").set(self.occupancy);
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Start => "start",
        Phase::Step => "step",
        Phase::Finish => "finish",
    }
}
