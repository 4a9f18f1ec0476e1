//! Any sequence of submissions, cancellations, faults, pauses and limits leaves every promise standing.

use std::time::Duration;

use crate::common::drive::{Drive, MS, bounds, limits, offer, price};
use crate::common::quiet;
use aquatint::engine::{Codel, Ending, Event, Fault, Limits, Offer, Price, State};
use proptest::prelude::*;

const CLASSES: [&str; 2] = ["paid", "free"];

#[derive(Clone, Debug)]
enum Step {
    Submit { class: usize, tenant: u64, key: u64, steps: u32, rows: u32, memory: u64, deadline: Option<u32> },
    Cancel { pick: usize },
    Fault { pick: usize, fault: Fault },
    Pass { micros: u64 },
    Pause { class: usize, paused: bool },
    Limit { count: usize, memory: u64 },
    Drain { micros: u64 },
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        20 => Just(Fault::Job),
        20 => Just(Fault::Transient),
        20 => Just(Fault::Launch),
        20 => Just(Fault::OutOfMemory),
        1 => Just(Fault::DeviceLost),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let submit =
        (0..2usize, 0..6u64, 0..3u64, 0..6u32, 1..5u32, 0..40u64, prop::option::weighted(0.2, 1..60u32));
    prop_oneof![
        60 => submit.prop_map(|(class, tenant, key, steps, rows, memory, deadline)| {
            Step::Submit { class, tenant, key, steps, rows, memory, deadline }
        }),
        10 => any::<usize>().prop_map(|pick| Step::Cancel { pick }),
        10 => (any::<usize>(), fault()).prop_map(|(pick, fault)| Step::Fault { pick, fault }),
        40 => (1..6_000u64).prop_map(|micros| Step::Pass { micros }),
        4 => (0..2usize, any::<bool>()).prop_map(|(class, paused)| Step::Pause { class, paused }),
        4 => (0..30usize, 20..120u64).prop_map(|(count, memory)| Step::Limit { count, memory }),
        1 => (0..20_000u64).prop_map(|micros| Step::Drain { micros }),
    ]
}

fn tight(count: usize, memory: u64) -> Limits {
    let mut limits = Limits { memory, start_rows: 6, finish_rows: 5, ..limits(&[("paid", 8), ("free", 2)]) };
    limits.classes[1].queue = bounds(count);
    limits.classes[1].codel = Some(Codel { target: 20 * MS, interval: 20 * MS });
    limits
}

fn check(drive: &Drive, most: (usize, u64)) -> Result<(), TestCaseError> {
    for class in CLASSES {
        let live =
            drive.jobs.iter().filter(|(id, job)| job.class == class && drive.scheduler.state(**id).is_some());
        let counters = drive.scheduler.counters(class).unwrap();
        prop_assert!(counters.balance(live.count() as u64), "{class}: {counters:?}");
    }
    prop_assert!(drive.scheduler.queued("free").unwrap().count <= most.0);
    prop_assert!(drive.scheduler.reserved_memory() <= most.1);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_promise_stands_whatever_happens(steps in prop::collection::vec(step(), 1..200)) {
        let _quiet = quiet();
        let mut drive = Drive::new(tight(20, 100));
        // The largest limits so far: what was accepted under them stays.
        let mut most = (20, 100);
        let mut ids = Vec::new();
        for step in steps {
            match step {
                Step::Submit { class, tenant, key, steps, rows, memory, deadline } => {
                    let price = Price { rows, memory, ..price(key, steps) };
                    let deadline = deadline.map(|millis| drive.now + MS * millis);
                    let offer = Offer { deadline, ..offer(CLASSES[class], tenant, price) };
                    if let Ok(accepted) = drive.offer(CLASSES[class], tenant, &offer) {
                        ids.push(accepted.id);
                    }
                    drive.tick([]);
                }
                Step::Cancel { pick } if !ids.is_empty() => drive.tick([Event::Cancel(ids[pick % ids.len()])]),
                Step::Fault { pick, fault } if !ids.is_empty() => {
                    drive.jobs.get_mut(&ids[pick % ids.len()]).unwrap().fault = Some(fault);
                }
                Step::Pass { micros } => drive.run_until(drive.now + Duration::from_micros(micros)),
                Step::Pause { class, paused } => prop_assert!(drive.scheduler.pause(CLASSES[class], paused)),
                Step::Limit { count, memory } => {
                    most = (most.0.max(count), most.1.max(memory));
                    drive.scheduler.set_limits(tight(count, memory)).unwrap();
                }
                Step::Drain { micros } => {
                    let until = drive.now + Duration::from_micros(micros);
                    drive.tick([Event::Drain(until)]);
                }
                Step::Cancel { .. } | Step::Fault { .. } => {}
            }
            check(&drive, most)?;
        }
        for class in CLASSES {
            drive.scheduler.pause(class, false);
        }
        drive.run();
        for id in ids {
            prop_assert!(drive.ending(id).is_some(), "{} has no outcome", id);
            prop_assert!(drive.scheduler.state(id).is_none_or(|state| state == State::Ended));
        }
        let finished = drive.ended.iter().filter(|(_, ending, _)| *ending == Ending::Finished);
        for (id, ..) in finished {
            prop_assert_eq!(drive.jobs[id].done, drive.jobs[id].total);
        }
    }
}
