//! Encoding and decoding beside the steps: in batches, and without holding the steps up.

use std::time::Duration;

use crate::common::drive::{Drive, MS, limits, price};
use aquatint::engine::{BatchKey, Ending, Fault, Limits, Model, Phase, Price};

const STALL: Duration = Duration::from_millis(30);
const ASIDE: Duration = Duration::from_millis(5);

/// A long job in its steps, and beside it a hundred short ones that are encoded and decoded at 5 ms a row.
fn burst() -> Drive {
    let mut drive = Drive::new(Limits { stall: STALL, ..limits(&[("only", 1)]) });
    drive.times.aside_row = ASIDE;
    let slow = |key, steps| Price { start: ASIDE, finish: ASIDE, ..price(key, steps) };
    drive.submit("only", 0, slow(1, 2_000)).unwrap();
    drive.run_until(50 * MS);
    for tenant in 1..=100 {
        drive.submit("only", tenant, slow(2, 1)).unwrap();
    }
    drive
}

/// Launches of a phase that are not steps, and the time of all steps, within a window.
fn shares(drive: &Drive, from: Duration, to: Duration) -> (Duration, Duration) {
    let overlap = |begin: Duration, end: Duration| end.min(to).saturating_sub(begin.max(from));
    let of = |steps: bool| {
        let launches = drive.launches.iter().filter(move |(.., l)| (l.phase == Phase::Step) == steps);
        launches.map(|(begin, end, _)| overlap(*begin, *end)).sum()
    };
    (of(true), of(false))
}

#[test]
fn a_burst_of_encoding_and_decoding_holds_no_step_up_for_longer_than_one_launch_of_each() {
    let mut drive = burst();
    drive.run_until(Duration::from_secs(3));
    let mut last = None;
    let mut longest = Duration::ZERO;
    for (begin, end, launch) in &drive.launches {
        if launch.phase == Phase::Step {
            longest = longest.max(begin.saturating_sub(last.unwrap_or(*begin)));
            last = Some(*end);
        } else {
            assert!(
                *end - *begin <= STALL,
                "{:?} of {} took {:?}",
                launch.phase,
                launch.jobs.len(),
                *end - *begin
            );
        }
    }
    assert!(longest > ASIDE && longest <= 2 * STALL, "a step waited for {longest:?}");
    let served = drive.ended.iter().filter(|(_, ending, _)| *ending == Ending::Finished).count();
    assert_eq!(served, 100, "the burst is not over");
}

#[test]
fn steps_have_half_of_the_device_less_one_launch_of_each_over_any_window_of_a_burst() {
    let mut drive = burst();
    let from = drive.now;
    drive.run_until(Duration::from_secs(3));
    let to = drive.ended.iter().map(|(.., at)| *at).max().unwrap();
    let mut tightest = Duration::MAX;
    for window in [20, 50, 200, 700].map(|millis| MS * millis) {
        let mut begin = from;
        while begin + window < to {
            let (steps, aside) = shares(&drive, begin, begin + window);
            assert!(
                steps + 2 * STALL >= aside,
                "{steps:?} of steps beside {aside:?} in {window:?} from {begin:?}"
            );
            tightest = tightest.min((steps + 2 * STALL).saturating_sub(aside));
            begin += MS;
        }
    }
    assert!(tightest < 2 * STALL, "encoding and decoding were never held back: {tightest:?}");
}

#[test]
fn jobs_are_encoded_and_decoded_in_batches_as_large_as_the_stall_allows() {
    let mut drive = burst();
    drive.run_until(Duration::from_secs(3));
    for phase in [Phase::Start, Phase::Finish] {
        let of_phase = drive
            .launches
            .iter()
            .filter(|(.., l)| l.phase == phase && l.key == BatchKey { model: Model::Main, shape: 2 });
        let sizes: Vec<usize> = of_phase.map(|(.., launch)| launch.jobs.len()).collect();
        // Five rows of 5 ms and a tenth of one.
        assert!(sizes.iter().max() == Some(&5) && sizes.len() <= 30, "{phase:?}: {sizes:?}");
    }
}

#[test]
fn without_steps_to_do_encoding_and_decoding_have_the_whole_device() {
    let mut drive = Drive::new(Limits { stall: STALL, ..limits(&[("only", 1)]) });
    drive.times.aside_row = ASIDE;
    for tenant in 0..50 {
        drive.submit("only", tenant, Price { start: ASIDE, finish: ASIDE, ..price(1, 1) }).unwrap();
    }
    drive.run();
    for pair in drive.launches.windows(2) {
        assert_eq!(pair[0].1, pair[1].0, "the device stood still");
    }
    assert!(drive.ended.iter().all(|(_, ending, _)| *ending == Ending::Finished));
}

#[test]
fn a_decoding_that_fails_is_bisected_between_the_steps_and_holds_none_up() {
    let mut drive = burst();
    let slow = Price { start: ASIDE, finish: ASIDE, ..price(2, 1) };
    let poison: Vec<_> =
        (101..107).map(|tenant| drive.submit("only", tenant, slow.clone()).unwrap().id).collect();
    let from = drive.now;
    let (mut waited, mut last) = (Duration::ZERO, None);
    drive.tick([]);
    loop {
        let (begin, end, launch) = drive.launches.last().unwrap().clone();
        if launch.phase == Phase::Step {
            waited = waited.max(begin.saturating_sub(last.unwrap_or(begin)));
            last = Some(end);
        }
        let poisoned = launch.phase == Phase::Finish && launch.jobs.iter().any(|id| poison.contains(id));
        for id in &launch.jobs {
            drive.jobs.get_mut(id).unwrap().fault = poisoned.then_some(Fault::Launch);
        }
        if !drive.land() || drive.ended.len() == 106 {
            break;
        }
    }
    assert!(poison.iter().all(|id| drive.ending(*id) == Some(Ending::Failed)));
    let finished = drive.ended.iter().filter(|(_, ending, _)| *ending == Ending::Finished).count();
    assert_eq!(finished, 100);
    assert!(waited <= 2 * STALL, "a step waited for {waited:?}");
    let mut begin = from;
    while begin + 100 * MS < drive.now {
        let (steps, aside) = shares(&drive, begin, begin + 100 * MS);
        assert!(steps + 2 * STALL >= aside, "{steps:?} of steps beside {aside:?} from {begin:?}");
        begin += MS;
    }
}
