//! What requests take of memory, counted at the allocator, beside what the engine plans for them. A process
//! of its own: the counts are the process's.
#![cfg(all(feature = "embedded", feature = "cpu"))]
#![allow(unsafe_code)] // an allocator cannot be counted without

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use aquatint::engine::{EngineOptions, Limits, PipelineEngine, Submission};
use aquatint::{DeviceChoice, Guidance, Input, LoadOptions, Pipeline, Request};
use image::RgbImage;

mod common;

struct Counting;

static HELD: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size() as u64, Ordering::SeqCst) + layout.size() as u64;
        PEAK.fetch_max(held, Ordering::SeqCst);
        // SAFETY: the caller's promises are the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size() as u64, Ordering::SeqCst);
        // SAFETY: the caller's promises are the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One test at a time counts.
static ALONE: Mutex<()> = Mutex::new(());

/// The most bytes that were held at once while `work` ran, beside those that were held before.
fn peak_of(work: impl FnOnce()) -> u64 {
    let before = HELD.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    work();
    PEAK.load(Ordering::SeqCst) - before
}

fn requests() -> Vec<(String, Request)> {
    let mut all = Vec::new();
    for side in [32, 64, 128] {
        for count in [1, 3] {
            for guidance in [Guidance::None, Guidance::classifier_free(4.0)] {
                for picture in [false, true] {
                    let name = format!("{side}², {count} pictures, {guidance:?}, from a picture: {picture}");
                    let input = if picture {
                        Input::Image { image: RgbImage::new(side, side), strength: 0.9 }
                    } else {
                        Input::Text
                    };
                    let request = Request {
                        input,
                        width: Some(side),
                        height: Some(side),
                        steps: Some(2),
                        count: Some(count),
                        guidance: Some(guidance.clone()),
                        keep_raw: count == 3,
                        ..Request::new("a red apple on a blue background")
                    };
                    all.push((name, request));
                }
            }
        }
    }
    all
}

fn engine_over(pipeline: Pipeline) -> PipelineEngine {
    let options = EngineOptions { seed: 1, ..EngineOptions::default() };
    PipelineEngine::over(pipeline, options).unwrap()
}

#[test]
fn running_requests_take_at_most_the_memory_that_is_planned_for_them() {
    let _alone = ALONE.lock();
    let device = DeviceChoice::Cpu;
    let embedded = Pipeline::embedded(LoadOptions { device, ..LoadOptions::default() }).unwrap();
    let mut over = Vec::new();
    let mut check = |name: String, planned: u64, peak: u64| {
        println!("{:.3} of {planned} planned bytes: {name}", peak as f64 / planned as f64);
        if peak > planned {
            over.push(format!("{peak} bytes of {planned} planned: {name}"));
        }
    };
    for pipeline in [embedded.clone(), common::load_cpu("sd15"), common::load_cpu("sd21")] {
        let family = pipeline.family();
        let engine = engine_over(pipeline);
        let serve = |request: &Request| {
            let submission = Submission::new(request.clone(), "tenant", "paid");
            drop(engine.submit(submission).unwrap().wait().unwrap());
        };
        // What engine and threads set up for their first request stays and is nobody's.
        requests().iter().take(4).for_each(|(_, request)| serve(request));
        for (name, request) in requests() {
            let planned = engine.plan(&request).unwrap().peak_memory;
            let run = || serve(&request);
            check(format!("{family}, {name}"), planned, peak_of(run));
        }
    }
    // Several at once, in shared launches.
    let engine = engine_over(embedded);
    let all: Vec<Request> = requests().into_iter().map(|(_, request)| request).collect();
    for group in [&all[8..16], &all[16..20]] {
        let planned = group.iter().map(|request| engine.plan(request).unwrap().peak_memory).sum();
        let peak = peak_of(|| {
            let submit = |request: &Request| Submission::new(request.clone(), "tenant", "paid");
            let handles: Vec<_> =
                group.iter().map(|request| engine.submit(submit(request)).unwrap()).collect();
            handles.into_iter().for_each(|handle| drop(handle.wait().unwrap()));
        });
        check(format!("{} requests together", group.len()), planned, peak);
    }
    assert!(over.is_empty(), "{over:#?}");
}

#[test]
fn the_budget_is_what_the_machine_has_unless_another_is_given() {
    let _alone = ALONE.lock();
    let device = DeviceChoice::Cpu;
    let pipeline = Pipeline::embedded(LoadOptions { device, ..LoadOptions::default() }).unwrap();
    let engine = engine_over(pipeline);
    let huge = Request { width: Some(16_384), height: Some(16_384), count: Some(4), ..Request::new("a fox") };
    let planned = engine.plan(&huge).unwrap().peak_memory;
    let budget = engine.status().memory_budget;
    let set = |memory| {
        engine.set_limits(Limits { memory, ..Limits::default() }).unwrap();
        engine.status().memory_budget
    };
    assert_eq!(set(1 << 20), 1 << 20);
    assert_eq!(set(u64::MAX), budget);
    if cfg!(target_os = "linux") {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap();
        let kilobytes = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
        let total = kilobytes.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024;
        assert!((1..total).contains(&budget), "{budget} of {total}");
        let refused = engine.submit(Submission::new(huge, "tenant", "paid"));
        assert_eq!(refused.is_err(), planned > budget, "{planned} of {budget}");
    }
}
