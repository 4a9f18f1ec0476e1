//! A service rehearses a brownout, one kind a test.

use std::time::{Duration, Instant};

use crate::common::mock::{Control, Mock, ask, bits, free, roomy};
use aquatint::engine::{
    Drill, DrillError, DrillRates, DrillSwitch, Engine, EngineOptions, Failure, Mode, Outcome, Progress,
    Submission,
};

fn drilled(seed: u64) -> (Engine<Drill<Mock>>, DrillSwitch) {
    let mock = Mock { control: Control::default(), step_time: Duration::ZERO };
    let (drill, switch) = Drill::new(mock, seed);
    let options = EngineOptions { limits: roomy(), seed, ..EngineOptions::default() };
    (Engine::new(drill, options).unwrap(), switch)
}

fn outcomes(engine: &Engine<Drill<Mock>>, jobs: u32) -> Vec<Outcome<Drill<Mock>>> {
    let handles: Vec<_> = (0..jobs).map(|name| engine.submit(free(ask(name, 6))).unwrap()).collect();
    handles.into_iter().map(|handle| handle.wait()).collect()
}

/// How many finished; those have the bits of an undisturbed run.
fn finished(outcomes: &[Outcome<Drill<Mock>>]) -> usize {
    let finished =
        (0..).zip(outcomes).filter_map(|(name, outcome)| Some((name, outcome.as_ref().ok()?.output)));
    finished.inspect(|(name, output)| assert_eq!(*output, bits(*name, 6))).count()
}

#[test]
fn a_drill_that_is_off_changes_nothing() {
    let (engine, switch) = drilled(1);
    switch.set(DrillRates { not_finite: 1.0, ..DrillRates::default() });
    switch.off();
    assert_eq!(finished(&outcomes(&engine, 100)), 100);
    assert_eq!(engine.status().classes[1].counters.retried, 0);
}

#[test]
fn values_that_are_not_finite_end_their_own_jobs_alone() {
    let (engine, switch) = drilled(2);
    switch.set(DrillRates { not_finite: 0.02, ..DrillRates::default() });
    let outcomes = outcomes(&engine, 200);
    let failed = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    let failed = failed.inspect(|failure| assert!(matches!(failure, Failure::Job(_)), "{failure}")).count();
    assert_eq!(finished(&outcomes) + failed, 200);
    // One in fifty of eight launches a job.
    assert!((10..70).contains(&failed), "{failed}");
}

#[test]
fn memory_that_runs_out_and_panics_cost_time_and_few_jobs() {
    let (engine, switch) = drilled(3);
    switch.set(DrillRates { out_of_memory: 0.1, panic: 0.1, ..DrillRates::default() });
    let outcomes = outcomes(&engine, 200);
    // A job is given up after three failures for which it alone can be blamed.
    assert!(finished(&outcomes) > 150, "{}", finished(&outcomes));
    assert!(engine.status().classes[1].counters.retried > 0);
    switch.off();
    assert_eq!(finished(&self::outcomes(&engine, 50)), 50);
}

#[test]
fn latency_holds_launches_up() {
    let (engine, switch) = drilled(4);
    switch.set(DrillRates { latency: 1.0, delay: Duration::from_millis(3), ..DrillRates::default() });
    let begun = Instant::now();
    assert_eq!(finished(&outcomes(&engine, 1)), 1);
    assert!(begun.elapsed() >= Duration::from_millis(3 * 8), "{:?}", begun.elapsed());
}

#[test]
fn a_device_that_is_lost_ends_every_job() {
    let (engine, switch) = drilled(5);
    switch.set(DrillRates { device_lost: 0.2, ..DrillRates::default() });
    let handles: Vec<_> = (0..100).map_while(|name| engine.submit(free(ask(name, 6))).ok()).collect();
    let lost = handles.into_iter().filter(|handle| {
        matches!(handle.wait_timeout(Duration::from_secs(20)), Some(Err(Failure::DeviceLost)))
    });
    assert!(lost.count() > 0);
    assert_eq!(engine.status().mode, Mode::Lost);
}

#[test]
fn jobs_that_are_resumed_are_drilled_like_those_that_start() {
    let (engine, switch) = drilled(8);
    let first = Submission { checkpoint_every: 1.try_into().ok(), ..free(ask(1, 20_000)) };
    let first = engine.submit(first).unwrap();
    let saved = first.events().find_map(|news| match news {
        Progress::Checkpoint { bytes, .. } => Some(bytes),
        _ => None,
    });
    let saved = saved.unwrap();
    first.cancel();
    assert!(matches!(first.wait(), Err(Failure::Cancelled)));
    // The outcome under these rates, and whether the job ever came to the device.
    let resumed = |rates| {
        switch.set(rates);
        let job = engine.resume(saved.clone(), false, Submission::new((), "tenant", "free")).unwrap();
        let events = job.events();
        (job.wait(), events.into_iter().any(|news| news == Progress::Started))
    };
    let off = DrillRates::default();
    let (outcome, started) = resumed(DrillRates { not_finite: 1.0, ..off });
    assert!(matches!(outcome, Err(Failure::Job(e)) if matches!(*e, DrillError::NotFinite)) && !started);
    let (outcome, started) = resumed(DrillRates { out_of_memory: 1.0, ..off });
    assert!(matches!(outcome, Err(Failure::Job(e)) if matches!(*e, DrillError::OutOfMemory)) && !started);
    let (outcome, started) = resumed(DrillRates { panic: 1.0, ..off });
    assert!(matches!(outcome, Err(Failure::Panicked { message }) if message == "drill: a panic") && !started);
    // Each of the last two was tried again until it had its attempts.
    assert_eq!(engine.status().classes[1].counters.retried, 2 * u64::from(roomy().max_attempts - 1));
    assert_eq!(resumed(off).0.unwrap().output, bits(1, 20_000));
    let (outcome, started) = resumed(DrillRates { device_lost: 1.0, ..off });
    assert!(matches!(outcome, Err(Failure::DeviceLost)) && !started);
}

#[test]
fn the_same_seed_rehearses_the_same_failures() {
    let fates = |seed| {
        let (engine, switch) = drilled(seed);
        switch.set(DrillRates { not_finite: 0.05, ..DrillRates::default() });
        // One at a time, so that the launches are the same.
        let fates = (0..60).map(|name| engine.submit(free(ask(name, 6))).unwrap().wait().is_ok());
        fates.collect::<Vec<bool>>()
    };
    assert_eq!(fates(6), fates(6));
    assert_ne!(fates(6), fates(7));
}
