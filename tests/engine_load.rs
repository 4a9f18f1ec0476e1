//! The embedded model under several times what it can serve, alone in its process, so that its memory is its
//! own. `ENGINE_LOAD_SECONDS=60 cargo test --test engine_load -- --nocapture` goes on for at least so long, with as
//! many more requests as that takes.
#![cfg(all(feature = "embedded", feature = "cpu"))]

#[path = "engine/common/mod.rs"]
mod common;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use aquatint::engine::{
    Bounds, ClassLimits, EngineOptions, Failure, Handle, JobId, Limits, PipelineBackend, PipelineEngine,
    Progress, Reason, Submission,
};
use aquatint::{DeviceChoice, LoadOptions, Pipeline, Request};
use common::Rng;
use common::requests::mixed;

/// Longer than any launch takes on a busy machine; what waits for longer without one hangs.
const PATIENCE: Duration = Duration::from_secs(100);
const ROUNDS: u32 = 10;
/// Requests of each, at least.
const ROUND: u64 = 50;
/// Requests that come for each one that ends.
const LOAD: u64 = 3;
/// Requests that come at once.
const BURST: u64 = 6;
/// Rounds after which every pool and cache has its size.
const WARM: usize = 3;
/// By how much the process may grow from then on: less than a saved job (about 40 kB) left over by every job.
const SLACK: u64 = 4 << 20;

fn engine() -> PipelineEngine {
    let options = LoadOptions { device: DeviceChoice::Cpu, ..LoadOptions::default() };
    let bounds = Bounds { count: 8, bytes: 1 << 30, time: Duration::from_secs(3_600) };
    let limits = Limits {
        classes: vec![ClassLimits::new("paid", 8, bounds), ClassLimits::new("free", 2, bounds)],
        queue: bounds,
        degrade_after: Duration::from_secs(3_600),
        ..Limits::default()
    };
    let engine = EngineOptions { limits: limits.clone(), seed: 1, ..EngineOptions::default() };
    let engine = PipelineEngine::over(Pipeline::embedded(options).unwrap(), engine).unwrap();
    let (side, count) = (Some(64), Some(2));
    let largest = Request { width: side, height: side, count, keep_raw: true, ..Request::new("a fox") };
    let memory = 3 * engine.plan(&largest).unwrap().peak_memory;
    engine.set_limits(Limits { memory, ..limits }).unwrap();
    engine
}

/// Bytes that the process holds, where the system says so.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
}

struct Accepted {
    handle: Handle<PipelineBackend>,
    request: Request,
    cancelled: bool,
    deadline: Option<Duration>,
}

/// What came of everything so far.
struct Load {
    engine: PipelineEngine,
    rng: Rng,
    sent: u64,
    refused: u64,
    /// Accepted and not ended, as far as was looked.
    live: Vec<Accepted>,
    ids: HashSet<JobId>,
    endings: HashMap<&'static str, u64>,
}

impl Load {
    fn ended(&self) -> u64 {
        self.engine.status().classes.iter().map(|class| class.counters.ended()).sum()
    }

    /// Submits at `LOAD` times the pace at which jobs end, for so long and at least `ROUND` requests; then waits
    /// for all of them.
    fn round(&mut self, length: Duration) {
        let idle = self.engine.status();
        assert!(idle.reserved_memory == 0 && idle.rows == 0, "{idle:?}");
        let (begun, before, first) = (Instant::now(), self.ended(), self.sent);
        while self.sent - first < ROUND || begun.elapsed() < length {
            let allowed = |load: &Self| BURST + LOAD * (load.ended() - before) > load.sent - first;
            let waits = Instant::now();
            while !allowed(self) && self.engine.status().classes.iter().any(|class| class.live > 0) {
                assert!(waits.elapsed() < PATIENCE, "nothing ends: {:?}", self.engine.status());
                std::thread::sleep(Duration::from_millis(1));
            }
            self.submit();
            // Some before their first launch, some while they run.
            let called_back = self.live.iter().rev().nth(1).filter(|job| job.cancelled);
            called_back.into_iter().for_each(|job| job.handle.cancel());
            let (done, live) =
                std::mem::take(&mut self.live).into_iter().partition(|job| job.handle.try_take().is_some());
            self.live = live;
            self.settle(done);
        }
        self.live.iter().filter(|job| job.cancelled).for_each(|job| job.handle.cancel());
        let rest = std::mem::take(&mut self.live);
        self.settle(rest);
    }

    fn submit(&mut self) {
        let Self { engine, rng, .. } = self;
        let request =
            std::iter::repeat_with(|| mixed(rng)).find(|request| engine.plan(request).is_ok()).unwrap();
        let time = engine.plan(&request).unwrap().time;
        let cancelled = rng.chance(0.1);
        let deadline = rng.chance(0.2).then(|| time.mul_f64(1.0 + 20.0 * rng.unit()));
        let class = if rng.chance(0.3) { "paid" } else { "free" };
        let submission = Submission::new(request.clone(), rng.below(5).to_string(), class);
        self.sent += 1;
        match engine.submit(Submission { deadline, ..submission }) {
            Ok(handle) => {
                assert!(self.ids.insert(handle.id()), "an id twice");
                self.live.push(Accepted { handle, request, cancelled, deadline });
            }
            Err(rejected) => {
                self.refused += 1;
                let deadline_was_near = matches!(rejected.reason, Reason::DeadlineUnreachable { .. });
                let expected = deadline_was_near && deadline.is_some();
                assert!(expected || matches!(rejected.reason, Reason::QueueFull { .. }), "{rejected}");
            }
        }
    }

    /// Every job has one outcome, of a kind that it may have.
    fn settle(&mut self, jobs: Vec<Accepted>) {
        for Accepted { handle, request, cancelled, deadline } in jobs {
            let ending = match handle.wait_timeout(PATIENCE).expect("a job hangs") {
                Ok(done) => {
                    let sides = done.output.images[0].pixels.dimensions();
                    assert_eq!(sides, (request.width.unwrap(), request.height.unwrap()));
                    "finished"
                }
                Err(Failure::Cancelled) if cancelled => "cancelled",
                Err(Failure::DeadlineExceeded) if deadline.is_some() => "expired",
                Err(failure) => panic!("{failure} for {request:?}"),
            };
            *self.endings.entry(ending).or_default() += 1;
            assert_eq!(handle.events().filter(|news| matches!(news, Progress::Ended)).count(), 1);
        }
    }
}

#[test]
fn ten_rounds_beyond_capacity_lose_nothing_and_the_process_does_not_grow() {
    let seconds = std::env::var("ENGINE_LOAD_SECONDS").map_or(0.0, |seconds| seconds.parse().unwrap());
    let mut load = Load {
        engine: engine(),
        rng: Rng(5),
        sent: 0,
        refused: 0,
        live: Vec::new(),
        ids: HashSet::new(),
        endings: HashMap::new(),
    };
    let (begun, mut sizes) = (Instant::now(), Vec::new());
    for _ in 0..ROUNDS {
        load.round(Duration::from_secs_f64(seconds / f64::from(ROUNDS)));
        let status = load.engine.status();
        assert_eq!((status.reserved_memory, status.rows, status.predicted_drain), (0, 0, Duration::ZERO));
        assert!(status.classes.iter().all(|class| class.counters.balance(0)), "{status:?}");
        sizes.extend(resident());
    }
    let ended = load.ended();
    let Load { sent, refused, ids, endings, .. } = load;
    let megabytes: Vec<u64> = sizes.iter().map(|size| size >> 20).collect();
    let took = begun.elapsed().as_secs_f64();
    println!("{sent} requests: {endings:?}, {refused} refused, {megabytes:?} MiB, {took:.1} s");
    let accepted = ids.len() as u64;
    assert_eq!((accepted + refused, endings.values().sum(), ended), (sent, accepted, accepted));
    for ending in ["finished", "cancelled"] {
        assert!(endings.get(ending).is_some_and(|count| *count >= 10), "{endings:?}");
    }
    assert!(refused >= sent / 4, "{refused} refused of {sent}: not beyond capacity");
    if let Some((first, later)) = sizes.get(WARM - 1..).and_then(<[u64]>::split_first) {
        assert!(later.iter().all(|size| *size <= first + SLACK), "the process grows: {sizes:?}");
    }
}
