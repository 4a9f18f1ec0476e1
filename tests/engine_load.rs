//! The embedded model under several times what it can serve, alone in its process, so that its memory is its
//! own.
#![cfg(all(feature = "embedded", feature = "cpu"))]

#[path = "engine/common/mod.rs"]
mod common;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use aquatint::engine::{
    Bounds, ClassLimits, EngineOptions, Failure, Handle, Limits, PipelineBackend, PipelineEngine, Progress,
    Reason, Submission,
};
use aquatint::{DeviceChoice, Guidance, Input, LoadOptions, Pipeline, Request, Sampler};
use common::Rng;
use image::RgbImage;

/// Longer than anything here takes on a busy machine; what is not there by then hangs.
const PATIENCE: Duration = Duration::from_secs(100);
const ROUNDS: usize = 10;
const ROUND: usize = 50;
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
    let largest = Request { width: Some(48), height: Some(48), ..Request::new("a fox") };
    let memory = 6 * engine.plan(&largest).unwrap().peak_memory;
    engine.set_limits(Limits { memory, ..limits }).unwrap();
    engine
}

fn any(rng: &mut Rng) -> Request {
    let side = [32, 32, 48][rng.below(3) as usize];
    let input = match rng.below(3) {
        0 => {
            let image = RgbImage::from_fn(50, 40, |x, y| image::Rgb([(x * 5) as u8, (y * 6) as u8, 90]));
            Input::Image { image, strength: 0.7 }
        }
        _ => Input::Text,
    };
    let guidance = match rng.below(3) {
        0 => Guidance::None,
        _ => Guidance::classifier_free(4.0).negative("a dog"),
    };
    Request {
        input,
        width: Some(side),
        height: Some(side),
        steps: Some(2 + rng.below(4) as usize),
        guidance: Some(guidance),
        sampler: Sampler::ALL.into_iter().nth(rng.below(Sampler::ALL.len() as u64) as usize),
        seed: rng.next(),
        ..Request::new("a red apple on a blue background")
    }
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

fn ended(engine: &PipelineEngine) -> u64 {
    engine.status().classes.iter().map(|class| class.counters.ended()).sum()
}

/// Submits one round at `LOAD` times the pace at which jobs end.
fn submit(engine: &PipelineEngine, rng: &mut Rng, refused: &mut u64) -> Vec<Accepted> {
    let idle = engine.status();
    let mut accepted = Vec::new();
    let before = ended(engine);
    for sent in 0..ROUND as u64 {
        let allowed = || BURST + LOAD * (ended(engine) - before) > sent;
        while !allowed() && engine.status().classes.iter().any(|class| class.live > 0) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let request =
            std::iter::repeat_with(|| any(rng)).find(|request| engine.plan(request).is_ok()).unwrap();
        let time = engine.plan(&request).unwrap().time;
        let cancelled = rng.chance(0.1);
        let deadline = rng.chance(0.2).then(|| time.mul_f64(1.0 + 20.0 * rng.unit()));
        let class = if rng.chance(0.3) { "paid" } else { "free" };
        let submission = Submission::new(request.clone(), rng.below(5).to_string(), class);
        match engine.submit(Submission { deadline, ..submission }) {
            Ok(handle) => accepted.push(Accepted { handle, request, cancelled, deadline }),
            Err(rejected) => {
                *refused += 1;
                let deadline_was_near = matches!(rejected.reason, Reason::DeadlineUnreachable { .. });
                let expected = deadline_was_near && deadline.is_some();
                assert!(expected || matches!(rejected.reason, Reason::QueueFull { .. }), "{rejected}");
            }
        }
        // Some before their first launch, some while they run.
        let called_back = accepted.iter().rev().nth(1).filter(|job| job.cancelled);
        called_back.into_iter().for_each(|job| job.handle.cancel());
    }
    accepted.iter().filter(|job| job.cancelled).for_each(|job| job.handle.cancel());
    assert!(idle.reserved_memory == 0 && idle.rows == 0, "{idle:?}");
    accepted
}

/// Every job of a round has one outcome, of a kind that it may have.
fn settle(accepted: Vec<Accepted>, endings: &mut HashMap<&'static str, u64>) {
    for Accepted { handle, request, cancelled, deadline } in accepted {
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
        *endings.entry(ending).or_default() += 1;
        assert_eq!(handle.events().filter(|news| matches!(news, Progress::Ended)).count(), 1);
    }
}

#[test]
fn ten_rounds_beyond_capacity_lose_nothing_and_the_process_does_not_grow() {
    let engine = engine();
    let mut rng = Rng(5);
    let begun = Instant::now();
    let (mut refused, mut ids, mut endings, mut sizes) = (0, HashSet::new(), HashMap::new(), Vec::new());
    for _ in 0..ROUNDS {
        let accepted = submit(&engine, &mut rng, &mut refused);
        assert!(accepted.iter().all(|job| ids.insert(job.handle.id())), "an id twice");
        settle(accepted, &mut endings);
        let status = engine.status();
        assert_eq!((status.reserved_memory, status.rows, status.predicted_drain), (0, 0, Duration::ZERO));
        assert!(status.classes.iter().all(|class| class.counters.balance(0)), "{status:?}");
        sizes.extend(resident());
    }
    let megabytes: Vec<u64> = sizes.iter().map(|size| size >> 20).collect();
    println!("{endings:?}, {refused} refused, {megabytes:?} MiB, {:.1} s", begun.elapsed().as_secs_f64());
    assert_eq!(ids.len() as u64 + refused, (ROUNDS * ROUND) as u64);
    assert_eq!(endings.values().sum::<u64>(), ids.len() as u64);
    assert_eq!(ended(&engine), ids.len() as u64);
    for ending in ["finished", "cancelled"] {
        assert!(endings.get(ending).is_some_and(|count| *count >= 10), "{endings:?}");
    }
    assert!(refused >= (ROUNDS * ROUND / 4) as u64, "{refused} refused: not beyond capacity");
    if let Some((first, later)) = sizes.get(WARM - 1..).and_then(<[u64]>::split_first) {
        assert!(later.iter().all(|size| *size <= first + SLACK), "the process grows: {sizes:?}");
    }
}
