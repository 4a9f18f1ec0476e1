//! The device: how long a launch takes, and how it fails.

use std::collections::HashMap;
use std::time::Duration;

use aquatint::engine::{BatchKey, Fault, JobId, Launch, Model, Phase, Price, Report};

use super::Rng;

/// Costs of one shape, relative to the smallest.
#[derive(Clone, Copy)]
pub struct Shape {
    pub key: u64,
    pub area: f64,
}

pub const SHAPES: [Shape; 3] =
    [Shape { key: 1, area: 1.0 }, Shape { key: 2, area: 2.25 }, Shape { key: 3, area: 4.0 }];

pub const MAX_ROWS: u32 = 64;
pub const START_ROWS: u32 = 64;
pub const FINISH_ROWS: u32 = 64;

/// Seconds of one launch: a fixed part, and one a row and area.
pub fn seconds(phase: Phase, shape: Shape, rows: u32) -> f64 {
    let rows = f64::from(rows);
    match phase {
        Phase::Start => 0.000_1 + 0.000_02 * rows,
        Phase::Step => 0.001 + 0.000_1 * rows * shape.area,
        Phase::Finish => 0.000_1 + 0.000_05 * rows * shape.area,
    }
}

/// Seconds that one job of one row takes of full launches.
pub fn ideal(shape: Shape, steps: u32) -> f64 {
    seconds(Phase::Start, shape, START_ROWS) / f64::from(START_ROWS)
        + seconds(Phase::Step, shape, MAX_ROWS) / f64::from(MAX_ROWS) * f64::from(steps)
        + seconds(Phase::Finish, shape, FINISH_ROWS) / f64::from(FINISH_ROWS)
}

/// What a request of one row costs; the hints are off by `error`, as hints are.
pub fn price(shape: Shape, steps: u32, error: f64) -> Price {
    let hint = |phase| Duration::from_secs_f64(seconds(phase, shape, 1) * error);
    Price {
        key: BatchKey { model: Model::Main, shape: shape.key },
        rows: 1,
        max_rows: MAX_ROWS,
        steps,
        memory: (shape.area * 1e6) as u64,
        bytes: 1_000,
        start: hint(Phase::Start),
        step: hint(Phase::Step),
        finish: hint(Phase::Finish),
    }
}

/// How often what goes wrong: a job's step, or a launch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    pub nan: f64,
    pub transient: f64,
    /// Share of jobs that make every launch panic in which they are.
    pub poison: f64,
    pub out_of_memory: f64,
    pub slow: f64,
    pub lost: f64,
}

#[derive(Clone, Copy)]
pub struct OnDevice {
    pub done: u32,
    pub total: u32,
    pub poison: bool,
}

pub struct Device {
    pub rng: Rng,
    pub rates: Rates,
    pub jobs: HashMap<JobId, OnDevice>,
}

impl Device {
    /// Runs a launch at once; the caller lets its time pass.
    pub fn run(&mut self, launch: &Launch) -> (Vec<Report>, Duration) {
        let shape = SHAPES.into_iter().find(|shape| shape.key == launch.key.shape).unwrap();
        let mut elapsed = seconds(launch.phase, shape, launch.jobs.len() as u32);
        elapsed *= 1.0 + 0.02 * (self.rng.unit() - 0.5);
        if self.rng.chance(self.rates.slow) {
            elapsed *= 10.0;
        }
        let poisoned = launch.jobs.iter().any(|id| self.jobs[id].poison);
        let whole = if self.rng.chance(self.rates.lost) {
            Some(Fault::DeviceLost)
        } else if launch.jobs.len() > 1 && self.rng.chance(self.rates.out_of_memory) {
            Some(Fault::OutOfMemory)
        } else {
            poisoned.then_some(Fault::Launch)
        };
        let mut reports = Vec::with_capacity(launch.jobs.len());
        for id in &launch.jobs {
            let fault = whole.or_else(|| self.rng.chance(self.rates.nan).then_some(Fault::Job));
            let fault = fault.or_else(|| self.rng.chance(self.rates.transient).then_some(Fault::Transient));
            let job = self.jobs.get_mut(id).unwrap();
            if launch.phase == Phase::Step && fault.is_none() {
                job.done += 1;
            }
            reports.push(Report { id: *id, done: job.done, total: job.total, fault });
        }
        (reports, Duration::from_secs_f64(elapsed))
    }
}
