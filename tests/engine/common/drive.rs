//! Drives a scheduler by hand: an exact device under a virtual clock.

use std::collections::HashMap;
use std::time::Duration;

use aquatint::engine::{
    Accepted, Action, BatchKey, Bounds, ClassLimits, Ending, Event, Fault, JobId, Launch, Limits, Model,
    Offer, Phase, Price, Rejected, Report, Scheduler,
};

pub const MS: Duration = Duration::from_millis(1);

/// Launches take this much a phase, whatever is in them, and this much more a row.
#[derive(Clone, Copy)]
pub struct Times {
    pub start: Duration,
    pub step: Duration,
    pub finish: Duration,
    pub step_row: Duration,
    /// A row of a launch that encodes or decodes.
    pub aside_row: Duration,
}

pub const PLAIN: Times = Times {
    start: Duration::from_micros(100),
    step: MS,
    finish: Duration::from_micros(100),
    step_row: MS,
    aside_row: Duration::ZERO,
};

pub struct Driven {
    pub class: &'static str,
    pub tenant: u64,
    pub done: u32,
    pub total: u32,
    pub fault: Option<Fault>,
}

pub struct Drive {
    pub scheduler: Scheduler,
    pub now: Duration,
    pub times: Times,
    pub jobs: HashMap<JobId, Driven>,
    /// Launches with the time from which and until when they ran.
    pub launches: Vec<(Duration, Duration, Launch)>,
    /// Outcomes in order.
    pub ended: Vec<(JobId, Ending, Duration)>,
    /// A job that makes every launch fail in which it is, for all of its jobs.
    pub poison: Option<(JobId, Fault)>,
    flight: Option<(Duration, Launch)>,
}

pub fn bounds(count: usize) -> Bounds {
    Bounds { count, bytes: u64::MAX / 4, time: Duration::from_secs(1_000_000) }
}

/// Classes with these weights, and room for everything.
pub fn limits(classes: &[(&'static str, u32)]) -> Limits {
    let class = |(name, weight): &(&'static str, u32)| ClassLimits::new(*name, *weight, bounds(100_000));
    Limits {
        classes: classes.iter().map(class).collect(),
        queue: bounds(1_000_000),
        start_rows: 64,
        finish_rows: 64,
        degrade_after: Duration::from_secs(1_000_000),
        ..Limits::default()
    }
}

pub fn price(key: u64, steps: u32) -> Price {
    Price {
        key: BatchKey { model: Model::Main, shape: key },
        rows: 1,
        max_rows: 8,
        steps,
        memory: 10,
        bytes: 10,
        start: PLAIN.start,
        step: PLAIN.step + PLAIN.step_row,
        finish: PLAIN.finish,
    }
}

pub fn offer(class: &str, tenant: u64, price: Price) -> Offer {
    Offer {
        tenant: tenant.to_string().into(),
        class: class.into(),
        deadline: None,
        prices: vec![price],
        retry_key: None,
        jitter: 0.5,
    }
}

impl Drive {
    pub fn new(limits: Limits) -> Self {
        Self {
            scheduler: Scheduler::new(limits).unwrap(),
            now: Duration::ZERO,
            times: PLAIN,
            jobs: HashMap::new(),
            launches: Vec::new(),
            ended: Vec::new(),
            poison: None,
            flight: None,
        }
    }

    pub fn submit(&mut self, class: &'static str, tenant: u64, price: Price) -> Result<Accepted, Rejected> {
        self.offer(class, tenant, &offer(class, tenant, price))
    }

    pub fn offer(&mut self, class: &'static str, tenant: u64, offer: &Offer) -> Result<Accepted, Rejected> {
        let accepted = self.scheduler.admit(self.now, offer)?;
        let total = offer.prices[accepted.variant].steps;
        self.jobs.insert(accepted.id, Driven { class, tenant, done: 0, total, fault: None });
        Ok(accepted)
    }

    pub fn tick(&mut self, events: impl IntoIterator<Item = Event>) {
        for action in self.scheduler.tick(self.now, events) {
            match action {
                Action::End(id, ending) => {
                    assert!(!self.ended.iter().any(|(other, ..)| *other == id), "{id} ended twice");
                    self.ended.push((id, ending, self.now));
                }
                Action::Launch(launch) => {
                    assert!(self.flight.is_none(), "two launches at once");
                    let rows = launch.jobs.len() as u32;
                    let time = match launch.phase {
                        Phase::Start => self.times.start + self.times.aside_row * rows,
                        Phase::Step => self.times.step + self.times.step_row * rows,
                        Phase::Finish => self.times.finish + self.times.aside_row * rows,
                    };
                    self.launches.push((self.now, self.now + time, launch.clone()));
                    self.flight = Some((self.now + time, launch));
                }
            }
        }
    }

    /// Lets the launch in flight come back; whether there was one.
    pub fn land(&mut self) -> bool {
        let Some((end, launch)) = self.flight.take() else {
            return false;
        };
        let began = self.launches.last().unwrap().0;
        self.now = self.now.max(end);
        let mut reports = Vec::new();
        let whole = self.poison.filter(|(id, _)| launch.jobs.contains(id)).map(|(_, fault)| fault);
        for id in &launch.jobs {
            let job = self.jobs.get_mut(id).unwrap();
            let fault = job.fault.or(whole);
            job.done += u32::from(launch.phase == Phase::Step && fault.is_none());
            reports.push(Report { id: *id, done: job.done, total: job.total, fault });
        }
        self.tick([Event::Returned { launch: launch.number, reports, elapsed: end - began }]);
        true
    }

    /// Runs until `until`, or until nothing is left to do.
    pub fn run_until(&mut self, until: Duration) {
        self.tick([]);
        loop {
            let wake = self.scheduler.next_wake().filter(|wake| *wake > self.now);
            match (self.flight.as_ref().map(|(end, _)| *end), wake) {
                (Some(end), _) if end <= until => drop(self.land()),
                (None, Some(wake)) if wake <= until => {
                    self.now = wake;
                    self.tick([]);
                }
                (None, None) => return,
                _ => {
                    self.now = self.now.max(until);
                    return;
                }
            }
        }
    }

    pub fn run(&mut self) {
        self.run_until(Duration::from_secs(1_000_000));
        assert_eq!(self.scheduler.live(), 0);
        assert_eq!(self.scheduler.reserved_memory(), 0);
    }

    pub fn ending(&self, id: JobId) -> Option<Ending> {
        self.ended.iter().find(|(other, ..)| *other == id).map(|(_, ending, _)| *ending)
    }

    /// In which order the jobs went to the device.
    pub fn starts(&self) -> Vec<JobId> {
        let starts = self.launches.iter().filter(|(.., launch)| launch.phase == Phase::Start);
        starts.flat_map(|(.., launch)| launch.jobs.iter().copied()).collect()
    }

    /// Device seconds that a class's jobs had of launches that began within a window.
    pub fn device_time(&self, class: &str, from: Duration, to: Duration) -> f64 {
        let within = self.launches.iter().filter(|(begin, ..)| (from..to).contains(begin));
        within
            .map(|(begin, end, launch)| {
                let own = launch.jobs.iter().filter(|id| self.jobs[*id].class == class).count();
                (*end - *begin).as_secs_f64() * own as f64 / launch.jobs.len() as f64
            })
            .sum()
    }
}
