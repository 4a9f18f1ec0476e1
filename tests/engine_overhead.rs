//! What the engine itself costs: alone in its process, so that its clock is its own.

#[path = "engine/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::mock::{ask, bits, engine_with, output, roomy, submit};

#[test]
fn the_engine_costs_less_than_fifty_microseconds_a_step() {
    const STEPS: u32 = 2_000;
    let (engine, _) = engine_with(roomy(), Duration::ZERO);
    let best = (0..5).map(|name| {
        let begun = Instant::now();
        assert_eq!(output(submit(&engine, ask(name, STEPS))), bits(name, STEPS));
        begun.elapsed() / STEPS
    });
    let best = best.min().unwrap();
    println!("{best:?} a step of one job");
    assert!(best < Duration::from_micros(50), "{best:?}");
    let begun = Instant::now();
    let before = engine.status().launches;
    let handles: Vec<_> = (0..16).map(|name| submit(&engine, ask(name, STEPS))).collect();
    handles.into_iter().for_each(|handle| drop(handle.wait().unwrap()));
    let launches = engine.status().launches - before;
    println!("{:?} a launch of up to 16 jobs", begun.elapsed() / launches as u32);
}
