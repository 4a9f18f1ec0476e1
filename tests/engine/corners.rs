//! What happens at the corners: limits that fall, keys whose job is on its way out, faults of a whole launch
//! without a culprit, measurements that are not to be trusted.

use std::time::Duration;

use crate::common::drive::{Drive, MS, PLAIN, bounds, limits, offer, price};
use crate::common::mock::{Trouble, ask, bits, engine, engine_with, free, idle, output, roomy, troubled};
use aquatint::engine::{
    Bound, Ending, Failure, Fault, JobId, Limits, Offer, Phase, Price, Progress, Reason, Submission,
};

const TIERS: [(&str, u32); 2] = [("paid", 8), ("free", 2)];

#[test]
fn a_job_that_a_lowered_budget_cannot_hold_runs_alone_and_holds_nobody_up() {
    let mut drive = Drive::new(Limits { memory: 100, ..limits(&TIERS) });
    drive.submit("paid", 1, price(1, 20)).unwrap();
    drive.tick([]);
    let big = drive.submit("paid", 1, Price { memory: 90, ..price(1, 2) }).unwrap().id;
    let small = drive.submit("free", 2, price(2, 2)).unwrap().id;
    drive.scheduler.set_limits(Limits { memory: 50, ..limits(&TIERS) }).unwrap();
    drive.run();
    assert_eq!([big, small].map(|id| drive.ending(id)), [Some(Ending::Finished); 2]);
    let with_others =
        drive.launches.iter().any(|(.., launch)| launch.jobs.contains(&big) && launch.jobs.len() > 1);
    assert!(!with_others);
}

#[test]
fn a_key_whose_job_was_given_up_gets_another_job() {
    let (engine, control) = engine();
    let keyed = || Submission { idempotency_key: Some("key".into()), ..free(ask(1, 4)) };
    control.hold();
    let first = engine.submit(keyed()).unwrap();
    control.wait_held();
    let id = first.id();
    drop(first);
    let second = engine.submit(keyed()).unwrap();
    let third = engine.submit(keyed()).unwrap();
    control.release();
    assert_ne!(second.id(), id);
    assert_eq!(second.id(), third.id());
    assert_eq!(output(second), bits(1, 4));
    // The first one's end has not made the key unknown.
    assert_eq!(engine.submit(keyed()).unwrap().id(), third.id());
    third.wait().unwrap();
    idle(&engine, &control);
}

#[test]
fn a_whole_launch_that_fails_in_passing_is_blamed_on_nobody_until_one_job_is_alone() {
    let mut drive = Drive::new(limits(&TIERS));
    // Until a launch holds eight.
    for _ in 0..40 {
        drive.submit("paid", 1, price(1, 20)).unwrap();
    }
    drive.run();
    let ids: Vec<JobId> = (0..8).map(|_| drive.submit("paid", 1, price(1, 3)).unwrap().id).collect();
    // As a device reports a failure that shows only when the launch is waited for: it is every job's.
    drive.poison = Some((ids[5], Fault::Transient));
    drive.run();
    assert!(drive.launches.iter().any(|(.., launch)| launch.jobs == ids));
    for id in &ids {
        let expected = if *id == ids[5] { Ending::Failed } else { Ending::Finished };
        assert_eq!(drive.ending(*id), Some(expected), "{id}");
    }
}

#[test]
fn a_first_launch_that_compiles_its_kernels_does_not_lock_its_shape_out() {
    let mut drive = Drive::new(limits(&TIERS));
    let slow = drive.times;
    drive.times.step = Duration::from_secs(40);
    let deadline =
        |drive: &Drive| Offer { deadline: Some(drive.now + 2_000 * MS), ..offer("paid", 1, price(1, 20)) };
    let first = drive.offer("paid", 1, &deadline(&drive)).unwrap().id;
    drive.tick([]);
    while drive.ending(first).is_none() {
        assert!(drive.land());
    }
    assert_eq!(drive.ending(first), Some(Ending::Expired));
    drive.times = slow;
    let again = drive.offer("paid", 1, &deadline(&drive)).unwrap().id;
    drive.run();
    assert_eq!(drive.ending(again), Some(Ending::Finished));
}

/// Every 50 ms for so long a submission of ten steps that wants its end so soon; those that were accepted, and when.
fn tight_deadlines(drive: &mut Drive, wanted: Duration, length: Duration) -> Vec<(Duration, JobId)> {
    let (begun, mut accepted) = (drive.now, Vec::new());
    while drive.now < begun + length {
        let deadline = Some(drive.now + wanted);
        match drive.offer("paid", 1, &Offer { deadline, ..offer("paid", 1, price(1, 10)) }) {
            Ok(job) => accepted.push((drive.now - begun, job.id)),
            Err(rejected) => assert!(matches!(rejected.reason, Reason::DeadlineUnreachable { .. })),
        }
        let next = drive.now + 50 * MS;
        drive.run_until(next);
        drive.now = drive.now.max(next);
    }
    drive.run();
    accepted
}

/// A device that was quick, and then so slow that this is what is known of it.
fn stalled() -> Drive {
    let mut drive = Drive::new(limits(&TIERS));
    for steps in [20, 20] {
        drive.submit("paid", 1, price(1, steps)).unwrap();
        drive.run();
        let times = &mut drive.times;
        (times.start, times.step, times.finish) = (200 * MS, Duration::from_secs(1), 300 * MS);
    }
    drive
}

#[test]
fn a_shape_that_a_stall_made_look_slow_comes_back_although_every_deadline_is_tight() {
    let mut drive = stalled();
    drive.times = PLAIN;
    let accepted = tight_deadlines(&mut drive, 100 * MS, Duration::from_secs(10));
    let ended = |index: usize| drive.ending(accepted[index].1);
    // One is let in after ten times as long as it has time, and from there on all.
    let (first, second) = (accepted[0].0, accepted[1].0);
    assert!(first >= 1_000 * MS && second <= 1_200 * MS, "{first:?} {second:?}");
    assert!((0..accepted.len()).all(|index| ended(index) == Some(Ending::Finished)));
    let rest = (Duration::from_secs(10) - second).as_millis() / 50;
    assert_eq!(accepted.len() as u128, 1 + rest);
}

#[test]
fn a_shape_that_stays_slow_costs_ever_fewer_jobs_their_deadline() {
    let mut drive = stalled();
    let accepted = tight_deadlines(&mut drive, 100 * MS, Duration::from_secs(100));
    // After 1, 2, 4, 8, 16 and 32 seconds of refusals, of 2,000 submissions.
    assert_eq!(accepted.len(), 6, "{accepted:?}");
    assert!(accepted.iter().all(|(_, id)| drive.ending(*id) == Some(Ending::Expired)));
}

#[test]
fn a_shape_that_a_stall_made_look_dearer_than_all_that_may_wait_comes_back() {
    let mut drive = stalled();
    let mut limits = limits(&TIERS);
    limits.classes[0].queue.time = 500 * MS;
    drive.scheduler.set_limits(limits).unwrap();
    drive.times = PLAIN;
    let (begun, mut accepted) = (drive.now, Vec::new());
    while drive.now < begun + Duration::from_secs(5) {
        match drive.submit("paid", 1, price(1, 10)) {
            Ok(job) => accepted.push((drive.now - begun, job.id)),
            Err(rejected) => assert_eq!(rejected.reason, Reason::QueueFull { bound: Bound::Time }),
        }
        assert!(drive.scheduler.queued("paid").unwrap().time <= 500 * MS);
        let next = drive.now + 50 * MS;
        drive.run_until(next);
        drive.now = drive.now.max(next);
    }
    drive.run();
    // By its hints it takes 20.2 ms: one is let in after ten times that, and from there on all.
    let first = accepted.first().expect("it is locked out").0;
    assert!(first >= 202 * MS && first <= 300 * MS, "{first:?}");
    assert!(accepted.len() >= 90, "{}", accepted.len());
    assert!(accepted.iter().all(|(_, id)| drive.ending(*id) == Some(Ending::Finished)));
}

#[test]
fn a_way_out_of_a_stall_that_was_agreed_to_is_not_taken_for_ever() {
    let mut drive = stalled();
    drive.times = PLAIN;
    drive.submit("paid", 1, price(2, 20)).unwrap();
    drive.run();
    let (mut variants, mut ids) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let deadline = Some(drive.now + 100 * MS);
        let prices = vec![price(1, 10), price(2, 10)];
        let accepted =
            drive.offer("paid", 1, &Offer { deadline, prices, ..offer("paid", 1, price(1, 10)) }).unwrap();
        variants.push(accepted.variant);
        ids.push(accepted.id);
        let next = drive.now + 50 * MS;
        drive.run_until(next);
        drive.now = drive.now.max(next);
    }
    drive.run();
    // One gets what it asked for after ten times as long as it has time, and from there on all do.
    let first = variants.iter().position(|variant| *variant == 0).expect("it stays locked out");
    assert!((20..=24).contains(&first), "{first}");
    assert!(variants[first..].iter().all(|variant| *variant == 0), "{variants:?}");
    assert!(ids.iter().all(|id| drive.ending(*id) == Some(Ending::Finished)));
}

#[test]
fn a_class_that_a_stall_made_look_late_comes_back_although_every_deadline_is_tight() {
    let mut drive = Drive::new(limits(&TIERS));
    for _ in 0..200 {
        drive.submit("paid", 1, price(1, 10)).unwrap();
        drive.run();
    }
    let alone = drive.scheduler.plan(&price(1, 10)).time;
    for _ in 0..200 {
        let id = drive.submit("paid", 1, price(1, 10)).unwrap().id;
        drive.tick([]);
        while drive.ending(id).is_none() {
            // Time passes between two launches, and none is measured as slow.
            drive.now += alone / 2;
            drive.tick([]);
            drive.land();
        }
    }
    let after = drive.scheduler.plan(&price(1, 10)).time;
    assert!((after.as_secs_f64() / alone.as_secs_f64() - 1.0).abs() < 0.01, "{after:?} for {alone:?}");
    let accepted = tight_deadlines(&mut drive, 3 * alone, Duration::from_secs(10));
    assert!(accepted[0].0 >= 30 * alone, "{:?}", accepted[0]);
    assert!(accepted.len() > 150, "{}", accepted.len());
    assert!(accepted.iter().all(|(_, id)| drive.ending(*id) == Some(Ending::Finished)));
}

#[test]
fn a_burst_after_an_idle_night_is_told_to_come_back_as_soon_as_one_after_another() {
    let mut limits = limits(&TIERS);
    limits.classes[0].queue = bounds(10);
    let mut drive = Drive::new(limits);
    // What is told to the first one for whom there is no room, once a launch of the burst is back.
    let mut told = |night: Duration| {
        drive.now += night;
        drive.submit("paid", 1, price(1, 100)).unwrap();
        drive.tick([]);
        drive.land();
        let rejected = loop {
            if let Err(rejected) = drive.submit("paid", 1, price(1, 100)) {
                break rejected;
            }
        };
        drive.run();
        assert!(matches!(rejected.reason, Reason::QueueFull { .. }), "{rejected}");
        rejected.retry_after.unwrap()
    };
    for night in [0, 0, 36_000].map(Duration::from_secs) {
        // One by one, all that waits takes 2 s.
        let told = told(night);
        assert!(told < Duration::from_secs(4), "{told:?} after {night:?} without work");
    }
}

#[test]
fn a_place_that_one_class_keeps_is_not_another_classs() {
    // The bound over all classes is the one that is met.
    let mut limits = limits(&TIERS);
    limits.queue = bounds(20);
    for class in &mut limits.classes {
        class.queue = bounds(20);
    }
    let mut drive = Drive::new(limits);
    let guest = Offer { retry_key: Some("guest".into()), ..offer("free", 9, price(1, 100)) };
    let (mut came, mut found) = (0, 0);
    let mut due = None;
    // Those who pay push in before every launch, and take whatever is free.
    while came < 20 {
        if due.is_none_or(|due| due <= drive.now) {
            let told = drive.offer("free", 9, &guest);
            if due.take().is_some() {
                came += 1;
                found += usize::from(told.is_ok());
            }
            due = told.err().and_then(|rejected| rejected.retry_after).map(|after| drive.now + after);
        }
        while drive.submit("paid", 1, price(1, 100)).is_ok() {}
        drive.tick([]);
        assert!(drive.land());
    }
    assert!(found >= 18, "{found} of {came}");
}

#[test]
fn no_step_begins_after_a_deadline_that_passed_while_a_checkpoint_was_made() {
    let (engine, control) = engine_with(roomy(), MS);
    let handle = engine
        .submit(Submission {
            deadline: Some(2_000 * MS),
            ..free(troubled(1, 1_000, Trouble::SavesFor(2_500)))
        })
        .unwrap();
    assert!(handle.events().any(|news| matches!(news, Progress::Step { done: 5.., .. })));
    let saved = handle.checkpoint().unwrap();
    let done = u64::from_le_bytes(saved[24..32].try_into().unwrap());
    assert!(matches!(handle.wait(), Err(Failure::DeadlineExceeded)));
    let steps = control.launches().iter().filter(|(phase, _)| *phase == Phase::Step).count();
    assert_eq!(steps as u64, done);
}
