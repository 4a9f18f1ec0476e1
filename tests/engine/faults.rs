//! A fault stays with the job whose fault it is.

use crate::common::mock::{
    Ask, Control, Mock, MockError, Trouble, ask, bits, engine, free, idle, output, roomy, submit, troubled,
};
use aquatint::engine::{Engine, Failure, Handle, Mode, Phase, Reason};

/// Blocks the next launch, submits, and lets all of it meet in one batch.
fn together(engine: &Engine<Mock>, control: &Control, asks: &[Ask]) -> Vec<Handle<Mock>> {
    control.hold();
    let first = submit(engine, ask(1_000_000, 2));
    control.wait_held();
    let handles = asks.iter().map(|ask| submit(engine, ask.clone())).collect();
    control.release();
    first.wait().unwrap();
    handles
}

#[test]
fn a_jobs_bits_do_not_depend_on_its_neighbours_or_on_what_becomes_of_them() {
    let (engine, control) = engine();
    let mut asks: Vec<Ask> = (0..40).map(|name| ask(name, 3 + name % 5)).collect();
    asks[5].trouble = Trouble::NanAt(1);
    asks[11].trouble = Trouble::Panics(Phase::Step, 2);
    asks[17].trouble = Trouble::TransientAt(1, 2);
    let handles = together(&engine, &control, &asks);
    handles[23].cancel();
    for (name, handle) in (0..).zip(handles) {
        let outcome = handle.wait();
        match name {
            5 => assert!(matches!(outcome, Err(Failure::Job(e)) if *e == MockError::Nan(1))),
            11 => {
                assert!(matches!(outcome, Err(Failure::Panicked { message }) if message == "job 11 panics"))
            }
            23 => assert!(matches!(outcome, Err(Failure::Cancelled))),
            _ => assert_eq!(outcome.unwrap().output, bits(name, 3 + name % 5), "job {name}"),
        }
    }
    assert!(control.launches().iter().any(|(phase, jobs)| *phase == Phase::Step && jobs.len() > 2));
    idle(&engine, &control);
}

#[test]
fn a_panic_in_any_phase_ends_its_own_job_alone() {
    for phase in [Phase::Start, Phase::Step, Phase::Finish] {
        let (engine, control) = engine();
        let mut asks: Vec<Ask> = (0..8).map(|name| ask(name, 3)).collect();
        asks[3].trouble = Trouble::Panics(phase, 0);
        for (name, handle) in (0..).zip(together(&engine, &control, &asks)) {
            match handle.wait() {
                Err(Failure::Panicked { message }) => {
                    assert_eq!((name, &*message), (3, "job 3 panics"), "{phase:?}")
                }
                other => assert_eq!(other.unwrap().output, bits(name, 3), "{phase:?}"),
            }
        }
        idle(&engine, &control);
    }
}

#[test]
fn a_job_that_keeps_failing_is_given_up_and_one_that_recovers_is_not() {
    let (engine, control) = engine();
    let attempts = roomy().max_attempts;
    let recovers = submit(&engine, troubled(1, 3, Trouble::TransientAt(1, attempts - 1)));
    // Where both fail in one launch, that may be the doing of either, and counts for none.
    let fails = submit(&engine, troubled(2, 3, Trouble::TransientAt(1, attempts + 1)));
    assert_eq!(output(recovers), bits(1, 3));
    assert!(matches!(fails.wait(), Err(Failure::Job(error)) if *error == MockError::Transient));
    idle(&engine, &control);
}

#[test]
fn memory_that_runs_out_makes_batches_smaller_and_fails_nobody() {
    let (engine, control) = engine();
    let asks: Vec<Ask> = (0..32).map(|name| troubled(name, 6, Trouble::MemoryFor(3))).collect();
    for (name, handle) in (0..).zip(together(&engine, &control, &asks)) {
        assert_eq!(output(handle), bits(name, 6));
    }
    assert!(engine.status().caps.iter().all(|(_, rows)| *rows <= 3), "{:?}", engine.status().caps);
    idle(&engine, &control);
}

#[test]
fn a_job_that_never_fits_fails_after_its_attempts() {
    let (engine, control) = engine();
    let handle = submit(&engine, troubled(1, 2, Trouble::MemoryFor(0)));
    assert!(matches!(handle.wait(), Err(Failure::Job(error)) if *error == MockError::Memory));
    let steps = control.launches().iter().filter(|(phase, _)| *phase == Phase::Step).count();
    assert_eq!(steps as u32, roomy().max_attempts);
}

#[test]
fn a_lost_device_ends_every_job_and_refuses_the_next() {
    let (engine, control) = engine();
    let mut asks: Vec<Ask> = (0..20).map(|name| ask(name, 50)).collect();
    asks[0].trouble = Trouble::LostAt(2);
    for handle in together(&engine, &control, &asks) {
        let outcome = handle.wait();
        assert!(matches!(outcome, Err(Failure::DeviceLost)), "{outcome:?}");
    }
    assert_eq!(engine.submit(free(ask(1, 1))).unwrap_err().reason, Reason::DeviceLost);
    assert_eq!(engine.status().mode, Mode::Lost);
    idle(&engine, &control);
}
