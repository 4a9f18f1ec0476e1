//! A brownout on purpose, so that a service can rehearse one.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::backend::{Alternative, Backend, Degrade, Steps};
use super::cost::{Model, Price};
use super::lifecycle::Fault;
use super::sync::{Mutex, lock};
use crate::job::Applied;

/// How often what goes wrong. All 0 is off: every call goes through untouched.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DrillRates {
    /// Share of launches that are held up.
    pub latency: f64,
    /// By how long.
    pub delay: Duration,
    /// Share of launches that run out of memory.
    pub out_of_memory: f64,
    /// Share of a job's steps that give values that are not finite.
    pub not_finite: f64,
    /// Share of launches that lose the device for good.
    pub device_lost: f64,
    /// Share of launches that panic.
    pub panic: f64,
}

/// Turns a drill on and off from any thread, while the engine runs.
#[derive(Clone, Debug)]
pub struct DrillSwitch(Arc<Mutex<Switch>>);

#[derive(Debug)]
struct Switch {
    rates: DrillRates,
    random: u64,
    lost: bool,
}

impl DrillSwitch {
    /// Sets the rates.
    pub fn set(&self, rates: DrillRates) {
        lock(&self.0).rates = rates;
    }

    /// Turns the drill off; a device that it lost stays lost.
    pub fn off(&self) {
        self.set(DrillRates::default());
    }
}

/// What a drill made of a call.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DrillError<E> {
    /// The backend's own error; not of the drill.
    #[error(transparent)]
    Backend(E),
    /// As if memory had run out.
    #[error("drill: out of memory")]
    OutOfMemory,
    /// As if the latents had become NaN.
    #[error("drill: the latents are not finite")]
    NotFinite,
    /// As if the device were gone.
    #[error("drill: the device is lost")]
    DeviceLost,
}

/// A backend whose launches fail as often as its [`DrillSwitch`] says.
#[derive(Debug)]
pub struct Drill<B> {
    backend: B,
    switch: DrillSwitch,
}

enum Launch {
    Untouched,
    OutOfMemory,
    DeviceLost,
    /// Which of its jobs give values that are not finite.
    NotFinite(Vec<bool>),
}

impl Switch {
    /// SplitMix64 (Steele, Lea & Flood 2014).
    fn strikes(&mut self, rate: f64) -> bool {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / ((1u64 << 53) as f64) < rate
    }
}

impl<B> Drill<B> {
    /// Wraps a backend; the drill is off. The same seed and calls give the same failures.
    pub fn new(backend: B, seed: u64) -> (Self, DrillSwitch) {
        let switch = Switch { rates: DrillRates::default(), random: seed, lost: false };
        let switch = DrillSwitch(Arc::new(Mutex::new(switch)));
        (Self { backend, switch: switch.clone() }, switch)
    }

    /// Decides what becomes of a launch of `jobs` jobs; sleeps or panics here where that is it.
    fn launch(&self, jobs: usize) -> Launch {
        let mut switch = lock(&self.switch.0);
        if switch.lost {
            return Launch::DeviceLost;
        }
        let rates = switch.rates;
        if rates == DrillRates::default() {
            return Launch::Untouched;
        }
        let delayed = switch.strikes(rates.latency);
        let lost = switch.strikes(rates.device_lost);
        switch.lost = lost;
        let out_of_memory = switch.strikes(rates.out_of_memory);
        let panics = switch.strikes(rates.panic);
        let not_finite = (0..jobs).map(|_| switch.strikes(rates.not_finite)).collect();
        drop(switch);
        if delayed {
            std::thread::sleep(rates.delay);
        }
        if panics && !lost {
            // A panic for the engine to catch, without a report to the terminal.
            std::panic::resume_unwind(Box::new("drill: a panic"));
        }
        match (lost, out_of_memory) {
            (true, _) => Launch::DeviceLost,
            (false, true) => Launch::OutOfMemory,
            (false, false) => Launch::NotFinite(not_finite),
        }
    }

    /// Runs `call` on the jobs that the drill leaves alone, and puts its failures between the results.
    fn drilled<J, T, E>(
        &self,
        jobs: Vec<J>,
        call: impl FnOnce(Vec<J>) -> Vec<Result<T, E>>,
    ) -> Vec<Result<T, DrillError<E>>> {
        let count = jobs.len();
        let struck = match self.launch(count) {
            Launch::Untouched => vec![false; count],
            Launch::NotFinite(struck) => struck,
            Launch::OutOfMemory => return (0..count).map(|_| Err(DrillError::OutOfMemory)).collect(),
            Launch::DeviceLost => return (0..count).map(|_| Err(DrillError::DeviceLost)).collect(),
        };
        let left: Vec<J> = jobs.into_iter().zip(&struck).filter(|(_, s)| !**s).map(|(job, _)| job).collect();
        let mut results = if left.is_empty() { Vec::new() } else { call(left) }.into_iter();
        let pick = |struck: &bool| {
            if *struck {
                Some(Err(DrillError::NotFinite))
            } else {
                results.next().map(|result| result.map_err(DrillError::Backend))
            }
        };
        struck.iter().map_while(pick).collect()
    }
}

impl<B: Backend> Backend for Drill<B> {
    type Request = B::Request;
    type Job = B::Job;
    type Output = B::Output;
    type Preview = B::Preview;
    type Error = DrillError<B::Error>;

    fn price(&self, request: &Self::Request, model: Model) -> Result<Price, Self::Error> {
        self.backend.price(request, model).map_err(DrillError::Backend)
    }

    fn alternatives(&self, request: &Self::Request, consent: &Degrade) -> Vec<Alternative<Self::Request>> {
        self.backend.alternatives(request, consent)
    }

    fn start(&self, requests: &[&Self::Request], model: Model) -> Vec<Result<Self::Job, Self::Error>> {
        self.drilled(requests.to_vec(), |requests| self.backend.start(&requests, model))
    }

    fn degraded(&self, job: &mut Self::Job, applied: &Applied) {
        self.backend.degraded(job, applied);
    }

    fn applied(&self, job: &Self::Job) -> Option<Applied> {
        self.backend.applied(job)
    }

    fn step(&self, jobs: &mut [&mut Self::Job]) -> Vec<Result<(), Self::Error>> {
        let jobs = jobs.iter_mut().map(|job| &mut **job).collect();
        self.drilled(jobs, |mut jobs: Vec<&mut Self::Job>| self.backend.step(&mut jobs))
    }

    fn steps(&self, job: &Self::Job) -> Steps {
        self.backend.steps(job)
    }

    fn preview(&self, job: &Self::Job) -> Result<Self::Preview, Self::Error> {
        self.backend.preview(job).map_err(DrillError::Backend)
    }

    fn finish(&self, jobs: &[&Self::Job]) -> Vec<Result<Self::Output, Self::Error>> {
        self.drilled(jobs.to_vec(), |jobs| self.backend.finish(&jobs))
    }

    fn checkpoint(&self, job: &Self::Job) -> Result<Vec<u8>, Self::Error> {
        self.backend.checkpoint(job).map_err(DrillError::Backend)
    }

    fn inspect(&self, checkpoint: &[u8], allow_inexact: bool) -> Result<Price, Self::Error> {
        self.backend.inspect(checkpoint, allow_inexact).map_err(DrillError::Backend)
    }

    fn resume(&self, checkpoint: &[u8], allow_inexact: bool) -> Result<Self::Job, Self::Error> {
        let resume = |_: Vec<()>| vec![self.backend.resume(checkpoint, allow_inexact)];
        self.drilled(vec![()], resume).pop().unwrap_or(Err(DrillError::NotFinite))
    }

    fn memory(&self) -> Option<u64> {
        self.backend.memory()
    }

    fn fault(&self, error: &Self::Error) -> Fault {
        match error {
            DrillError::Backend(error) => self.backend.fault(error),
            DrillError::OutOfMemory => Fault::OutOfMemory,
            DrillError::NotFinite => Fault::Job,
            DrillError::DeviceLost => Fault::DeviceLost,
        }
    }
}
