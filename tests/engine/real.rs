//! The embedded model behind the engine, on the CPU: real launches, bits and checkpoints.

use std::collections::HashSet;
use std::sync::OnceLock;
use std::time::Duration;

use aquatint::engine::{
    Bounds, ClassLimits, Degrade, DegradeReason, EngineOptions, Failure, Handle, Limits, PipelineBackend,
    PipelineEngine, Progress, Reason, Submission,
};
use aquatint::{DeviceChoice, Generation, Input, LoadOptions, Pipeline, Request, Resume, Sampler};

use crate::common::requests::{mixed, picture};
use crate::common::{Rng, quiet};

/// Longer than anything here takes on a busy machine; what is not there by then hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(100);

pub(crate) fn load() -> Pipeline {
    Pipeline::embedded(LoadOptions { device: DeviceChoice::Cpu, ..LoadOptions::default() }).unwrap()
}

pub(crate) fn pipeline() -> Pipeline {
    static PIPELINE: OnceLock<Pipeline> = OnceLock::new();
    PIPELINE.get_or_init(load).clone()
}

pub(crate) fn limits(count: usize) -> Limits {
    let bounds = Bounds { count, bytes: 1 << 30, time: Duration::from_secs(3_600) };
    Limits {
        classes: vec![ClassLimits::new("paid", 8, bounds), ClassLimits::new("free", 2, bounds)],
        queue: bounds,
        degrade_after: Duration::from_secs(3_600),
        ..Limits::default()
    }
}

fn engine_over(pipeline: Pipeline, limits: Limits) -> PipelineEngine {
    let options = EngineOptions { limits, seed: 1, ..EngineOptions::default() };
    PipelineEngine::over(pipeline, options).unwrap()
}

fn engine(limits: Limits) -> PipelineEngine {
    engine_over(pipeline(), limits)
}

pub(crate) fn free(request: Request) -> Submission<Request> {
    Submission::new(request, "tenant", "free")
}

pub(crate) fn output(handle: &Handle<PipelineBackend>) -> Generation {
    handle.wait_timeout(PATIENCE).expect("the job hangs").unwrap().output
}

pub(crate) fn bits(generation: &Generation) -> Vec<u32> {
    let raw = generation.raw.as_ref().unwrap();
    raw.latents.iter().chain(&raw.images).map(|value| value.to_bits()).collect()
}

/// Waits until the job has taken a step.
pub(crate) fn stepped(handle: &Handle<PipelineBackend>) {
    let mut events = handle.events();
    assert!(events.any(|news| matches!(news, Progress::Step { .. })), "no step before the end");
}

#[test]
fn pictures_from_the_engine_have_the_bits_of_generate() {
    let _quiet = quiet();
    let mut rng = Rng(3);
    let engine = engine(limits(100));
    let requests: Vec<Request> =
        std::iter::repeat_with(|| mixed(&mut rng)).filter(|r| engine.plan(r).is_ok()).take(12).collect();
    let jobs: Vec<_> = requests
        .iter()
        .map(|request| {
            let submission = free(request.clone());
            let handle =
                engine.submit(Submission { preview_every: 1.try_into().ok(), ..submission }).unwrap();
            let events = handle.events();
            (handle, events)
        })
        .collect();
    for (request, (handle, events)) in requests.iter().zip(jobs) {
        let alone = pipeline().generate(request).unwrap();
        let served = output(&handle);
        assert_eq!(bits(&served), bits(&alone), "{request:?}");
        assert_eq!(served.images[0].parameters, alone.images[0].parameters);
        let previews = events.filter_map(|news| match news {
            Progress::Preview(previews) => Some(previews),
            _ => None,
        });
        let count = request.count.unwrap() as usize;
        assert!(previews.map(|previews| assert_eq!(previews.len(), count)).count() > 0, "no preview");
    }
}

#[test]
fn a_burst_beyond_capacity_loses_nothing_and_leaves_no_memory_reserved() {
    let _quiet = quiet();
    const REQUESTS: usize = 60;
    let engine = engine(limits(14));
    let largest = Request { width: Some(64), height: Some(64), count: Some(2), ..Request::new("a fox") };
    let memory = 3 * engine.plan(&Request { keep_raw: true, ..largest }).unwrap().peak_memory;
    engine.set_limits(Limits { memory, ..limits(14) }).unwrap();
    let mut rng = Rng(11);
    let (mut accepted, mut full, mut late, mut invalid) = (Vec::new(), 0, 0, 0);
    for index in 0..REQUESTS {
        let mut request = mixed(&mut rng);
        if index % 10 == 4 {
            request.width = Some(7);
        }
        let deadline = match index % 10 {
            7 => Some(Duration::from_micros(1)),
            8 => Some(4 * engine.plan(&request).map_or(Duration::ZERO, |plan| plan.time)),
            _ => None,
        };
        let class = if rng.chance(0.5) { "paid" } else { "free" };
        let tenant = rng.below(4).to_string();
        match engine.submit(Submission { deadline, ..Submission::new(request.clone(), tenant, class) }) {
            Ok(handle) => {
                let cancelled = index % 6 == 5;
                if cancelled {
                    handle.cancel();
                }
                let events = handle.events();
                accepted.push((handle, events, request, cancelled, deadline));
            }
            Err(rejected) => match rejected.reason {
                Reason::QueueFull { .. } => full += 1,
                Reason::DeadlineUnreachable { .. } => late += 1,
                Reason::Invalid { .. } => {
                    assert!(engine.plan(&request).is_err(), "{rejected} for {request:?}");
                    invalid += 1;
                }
                _ => panic!("{rejected}"),
            },
        }
        assert!(engine.status().reserved_memory <= memory);
        // The first comers all at once, the others while the device works.
        if index > 40 {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    assert!(accepted.len() >= 14 && full > 0 && late > 0 && invalid > 0, "{full} {late} {invalid}");
    assert_eq!(accepted.len() + full + late + invalid, REQUESTS);
    let ids: HashSet<_> = accepted.iter().map(|(handle, ..)| handle.id()).collect();
    assert_eq!(ids.len(), accepted.len());
    let mut finished = 0;
    for (handle, events, request, cancelled, deadline) in &mut accepted {
        let outcome = handle.wait_timeout(PATIENCE).expect("a job hangs");
        match outcome {
            Ok(done) => {
                finished += 1;
                assert_eq!(done.output.images.len(), request.count.unwrap() as usize);
                let sides = (request.width.unwrap(), request.height.unwrap());
                assert_eq!(done.output.images[0].pixels.dimensions(), sides);
            }
            Err(Failure::Cancelled) => assert!(*cancelled),
            Err(Failure::DeadlineExceeded) => assert!(deadline.is_some()),
            Err(failure) => panic!("{failure} for {request:?}"),
        }
        assert_eq!(events.filter(|news| matches!(news, Progress::Ended)).count(), 1);
    }
    assert!(finished > 5, "{finished} finished");
    let status = engine.drain(PATIENCE);
    assert_eq!((status.reserved_memory, status.rows, status.predicted_drain), (0, 0, Duration::ZERO));
    let ended: u64 = status.classes.iter().map(|class| class.counters.ended()).sum();
    assert_eq!(ended, accepted.len() as u64);
    assert!(status.classes.iter().all(|class| class.counters.balance(0)), "{status:?}");
}

#[test]
fn a_checkpoint_of_a_running_job_goes_on_in_another_engine_to_the_same_bits() {
    let _quiet = quiet();
    let (engine, other) = (engine(limits(100)), engine_over(load(), limits(100)));
    let image = Input::Image { image: picture(64), strength: 0.8 };
    for (sampler, input) in [(Sampler::DpmPlusPlus2MSde, Input::Text), (Sampler::Ddim { eta: 0.7 }, image)] {
        let request = Request {
            input,
            steps: Some(40),
            sampler: Some(sampler),
            seed: 9,
            keep_raw: true,
            ..Request::new("a green frog on a white background")
        };
        let handle = engine.submit(free(request.clone())).unwrap();
        stepped(&handle);
        let saved = handle.checkpoint().unwrap();
        let direct = pipeline().resume(&saved, Resume::Exact).unwrap();
        assert!((1..direct.total()).contains(&direct.step()), "{} of {}", direct.step(), direct.total());
        let resumed = other.resume(saved, false, Submission::new((), "tenant", "paid")).unwrap();
        let whole = bits(&pipeline().generate(&request).unwrap());
        assert_eq!(bits(&output(&resumed)), whole, "{sampler} resumed");
        assert_eq!(bits(&output(&handle)), whole, "{sampler} saved on its way");
    }
}

#[test]
fn a_drain_suspends_running_jobs_to_checkpoints_that_go_on() {
    let _quiet = quiet();
    let first = engine(limits(100));
    let requests: Vec<Request> = (0..3)
        .map(|seed| Request {
            steps: Some(60),
            width: Some(32),
            height: Some(32),
            seed,
            keep_raw: true,
            ..Request::new("a yellow duck")
        })
        .collect();
    let handles: Vec<_> =
        requests.iter().map(|request| first.submit(free(request.clone())).unwrap()).collect();
    handles.iter().for_each(stepped);
    let status = first.drain(Duration::ZERO);
    assert_eq!(status.reserved_memory, 0);
    let next = engine(limits(100));
    for (request, handle) in requests.iter().zip(handles) {
        let Err(Failure::Suspended { checkpoint }) = handle.wait() else {
            panic!("not suspended");
        };
        let resumed = next.resume(checkpoint, false, Submission::new((), "tenant", "free")).unwrap();
        assert_eq!(bits(&output(&resumed)), bits(&pipeline().generate(request).unwrap()));
    }
}

#[test]
fn bytes_that_are_no_checkpoint_are_refused_before_they_are_queued() {
    let _quiet = quiet();
    let engine = engine(limits(100));
    let rejected = engine.resume(vec![1, 2, 3], true, Submission::new((), "tenant", "free")).unwrap_err();
    assert!(matches!(rejected.reason, Reason::Invalid { .. }), "{rejected}");
    assert!(!rejected.retry_makes_sense());
}

#[test]
fn a_picture_over_the_budget_is_made_smaller_where_that_was_agreed_to_and_refused_where_not() {
    let _quiet = quiet();
    let engine = engine(limits(100));
    let request =
        Request { width: Some(64), height: Some(64), steps: Some(4), ..Request::new("a blue fish") };
    let memory = engine.plan(&request).unwrap().peak_memory - 1;
    engine.set_limits(Limits { memory, ..limits(100) }).unwrap();
    let rejected = engine.submit(free(request.clone())).unwrap_err();
    assert!(matches!(rejected.reason, Reason::MemoryBudget { .. }), "{rejected}");
    let degrade = Degrade { min_steps: Some(3), min_side: Some(32), ..Degrade::default() };
    let handle = engine.submit(Submission { degrade, ..free(request) }).unwrap();
    let done = handle.wait_timeout(PATIENCE).expect("the job hangs").unwrap();
    assert_eq!(done.output.images[0].pixels.dimensions(), (32, 32));
    let applied = done.applied.unwrap();
    assert_eq!((&*applied.requested, &*applied.actual), ("4 steps at 64×64", "3 steps at 32×32"));
    assert_eq!(applied.reason, DegradeReason::Memory);
    let note = "3 steps at 32×32 in place of 4 steps at 64×64: ";
    assert!(
        done.output.report.notes.iter().any(|found| found.starts_with(note)),
        "{:?}",
        done.output.report.notes
    );
}
