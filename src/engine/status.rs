//! The engine at one moment.

use std::sync::Arc;
use std::time::Duration;

use super::cost::{BatchKey, Phase};
use super::ledger::Counters;
use super::limits::Bounds;
use super::scheduler::{Mode, Scheduler};

/// The engine at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Whether work is taken on.
    pub mode: Mode,
    /// The classes, most important first.
    pub classes: Vec<ClassStatus>,
    /// What the device is busy with: phase, jobs, rows.
    pub launch: Option<(Phase, usize, u32)>,
    /// Rows of that launch over the most that it may have at present; 0 where there is none.
    pub occupancy: f64,
    /// Rows of the jobs that are on the device.
    pub rows: u64,
    /// Bytes that they have reserved.
    pub reserved_memory: u64,
    /// The most bytes that they may reserve.
    pub memory_budget: u64,
    /// The most rows that a step of each key takes at present.
    pub caps: Vec<(BatchKey, u32)>,
    /// How long the device needs for everything that was accepted.
    pub predicted_drain: Duration,
    /// Launches so far.
    pub launches: u64,
}

/// One class at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassStatus {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it is held back.
    pub paused: bool,
    /// What is queued.
    pub queued: Bounds,
    /// Jobs that are accepted and not ended.
    pub live: usize,
    /// What happened so far.
    pub counters: Counters,
    /// Finished jobs that kept the class's objective, of all that finished; 1 where none has.
    pub attainment: f64,
    /// Tenants with live jobs, by name.
    pub tenants: Vec<TenantStatus>,
}

/// One tenant of a class at one moment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TenantStatus {
    /// Its name.
    pub name: Arc<str>,
    /// Its jobs that wait.
    pub queued: usize,
    /// Its jobs that are accepted and not ended.
    pub live: usize,
}

impl Scheduler {
    /// Everything at this moment.
    pub fn status(&self) -> Status {
        let classes = self.limits.classes.iter().zip(&self.ledger.classes).enumerate();
        let classes = classes.map(|(index, (limits, ledger))| {
            let Counters { finished, within_objective, .. } = ledger.counters;
            let tenants = self.queue.tenants(index);
            let mut tenants: Vec<TenantStatus> =
                tenants.map(|(name, queued, live)| TenantStatus { name, queued, live }).collect();
            tenants.sort();
            ClassStatus {
                name: limits.name.clone(),
                paused: self.queue.is_paused(index),
                queued: ledger.queued.bounds(),
                live: self.queue.live(index),
                counters: ledger.counters,
                attainment: if finished == 0 { 1.0 } else { within_objective as f64 / finished as f64 },
                tenants,
            }
        });
        let mut caps: Vec<(BatchKey, u32)> = self.caps.steps().collect();
        caps.sort_unstable();
        let launch = self.flight.as_ref();
        Status {
            mode: self.mode,
            classes: classes.collect(),
            launch: launch.map(|flight| (flight.launch.phase, flight.launch.jobs.len(), flight.rows)),
            occupancy: self.occupancy(),
            rows: self.ledger.rows,
            reserved_memory: self.ledger.memory,
            memory_budget: self.limits.memory,
            caps,
            predicted_drain: Duration::from_nanos(self.ledger.work),
            launches: self.launches,
        }
    }
}
