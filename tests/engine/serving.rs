//! The engine with its thread, before a device made of numbers.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::common::mock::{
    Ask, Trouble, ask, bits, engine, engine_with, free, idle, output, roomy, submit, troubled,
};
use crate::common::{Rng, quiet};
use aquatint::engine::{
    CheckpointError, Degrade, DegradeReason, Failure, Limits, LimitsError, Mode, Phase, Progress, Reason,
    Submission,
};

#[test]
fn a_job_gives_its_output_and_its_news_in_order() {
    let (engine, control) = engine();
    control.hold();
    let handle = submit(&engine, ask(7, 3));
    let events = handle.events();
    control.release();
    let news: Vec<Progress<u64>> = events.collect();
    assert!(matches!(news.first(), Some(Progress::Queued { position: 0, .. })), "{news:?}");
    let place = |wanted: &Progress<u64>| news.iter().position(|found| found == wanted);
    assert!(place(&Progress::Started) > Some(0), "{news:?}");
    assert!(place(&Progress::Step { done: 3, total: 3 }) > place(&Progress::Started), "{news:?}");
    assert_eq!(news.last(), Some(&Progress::Ended));
    assert_eq!(output(handle), bits(7, 3));
    idle(&engine, &control);
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park_timeout(Duration::from_secs(10)),
        }
    }
}

#[test]
fn a_handle_is_a_future_that_wakes_its_executor() {
    let (engine, _) = engine();
    let begun = Instant::now();
    assert_eq!(block_on(submit(&engine, ask(3, 5))).unwrap().output, bits(3, 5));
    assert!(begun.elapsed() < Duration::from_secs(5), "woken by the timeout of the park");
}

struct Explodes;

impl Wake for Explodes {
    fn wake(self: Arc<Self>) {
        std::panic::resume_unwind(Box::new("a waker"));
    }
}

#[test]
fn a_waker_that_panics_harms_nobody() {
    let (engine, control) = engine();
    control.hold();
    let (mut polled, other) = (submit(&engine, ask(1, 2)), submit(&engine, ask(2, 2)));
    let waker = Waker::from(Arc::new(Explodes));
    assert!(pin!(&mut polled).poll(&mut Context::from_waker(&waker)).is_pending());
    control.release();
    assert_eq!((output(other), output(polled)), (bits(2, 2), bits(1, 2)));
    assert_eq!(output(submit(&engine, ask(3, 2))), bits(3, 2));
}

#[test]
fn a_cancelled_job_is_in_no_launch_after_the_one_that_runs_and_its_memory_is_free_by_then() {
    let (engine, control) = engine();
    // Neither ends on its own while this thread waits for the processor.
    let (keeps, goes) = (submit(&engine, ask(1, 1_000_000)), submit(&engine, ask(2, 1_000_000)));
    let mut events = goes.events();
    while !matches!(events.next(), Some(Progress::Step { .. })) {}
    control.hold();
    control.wait_held();
    let before = control.launches().len();
    goes.cancel();
    control.release();
    assert!(matches!(goes.wait(), Err(Failure::Cancelled)));
    assert_eq!(control.on_device(), 1, "its memory is not free");
    let later = &control.launches()[before..];
    assert!(!later.iter().any(|(_, jobs)| jobs.contains(&2)), "{later:?}");
    keeps.cancel();
    assert!(matches!(keeps.wait(), Err(Failure::Cancelled)));
    idle(&engine, &control);
}

#[test]
fn dropping_the_last_handle_cancels_and_detaching_does_not() {
    let (engine, control) = engine();
    control.hold();
    let blocker = submit(&engine, ask(1, 1));
    control.wait_held();
    drop(submit(&engine, ask(2, 3)));
    let detached = submit(&engine, ask(3, 3));
    detached.detach();
    drop(detached);
    control.release();
    blocker.wait().unwrap();
    let status = engine.drain(Duration::from_secs(10));
    let counters = status.classes[1].counters;
    assert_eq!((counters.finished, counters.cancelled), (2, 1));
}

#[test]
fn a_drain_suspends_what_runs_and_resuming_gives_the_same_bits() {
    let _quiet = quiet();
    let (engine, control) = engine_with(roomy(), Duration::from_millis(5));
    let running: Vec<_> = (0..2).map(|name| submit(&engine, ask(name, 2_000))).collect();
    while engine.status().rows < 2 {
        thread::sleep(Duration::from_millis(1));
    }
    let short = submit(&engine, ask(9, 1));
    let begun = Instant::now();
    let status = engine.drain(Duration::from_millis(50));
    // Left alone they take 10 s.
    assert!(begun.elapsed() < Duration::from_millis(50 + 5 + 100), "{:?}", begun.elapsed());
    assert!(matches!(status.mode, Mode::Draining(_)));
    assert!(short.try_take().is_some());
    let (next, _) = engine_with(roomy(), Duration::ZERO);
    for (name, handle) in (0..).zip(running) {
        let Err(Failure::Suspended { checkpoint }) = handle.wait() else {
            panic!("job {name} was not suspended");
        };
        let resumed = next.resume(checkpoint, false, Submission::new((), "tenant", "free")).unwrap();
        assert_eq!(output(resumed), bits(name, 2_000));
    }
    assert_eq!(engine.submit(free(ask(1, 1))).unwrap_err().reason, Reason::Draining);
    idle(&engine, &control);
}

#[test]
fn a_checkpoint_of_any_step_goes_on_to_the_same_bits_while_the_job_itself_goes_on() {
    let (engine, control) = engine_with(roomy(), Duration::from_micros(500));
    let (other, _) = engine_with(roomy(), Duration::ZERO);
    let handle = submit(&engine, ask(5, 1_000));
    let events = handle.events();
    let mut saved = Vec::new();
    for news in events {
        if saved.len() < 20
            && matches!(news, Progress::Started | Progress::Step { .. })
            && let Ok(bytes) = handle.checkpoint()
        {
            saved.push(bytes);
        }
    }
    assert!(saved.len() > 3, "{} checkpoints", saved.len());
    for bytes in saved {
        let resumed = other.resume(bytes, false, Submission::new((), "tenant", "paid")).unwrap();
        assert_eq!(output(resumed), bits(5, 1_000));
    }
    assert!(matches!(handle.checkpoint(), Err(CheckpointError::Ended)));
    assert_eq!(output(handle), bits(5, 1_000));
    let refused = other.resume(vec![1, 2, 3], false, Submission::new((), "tenant", "paid"));
    assert!(matches!(refused.unwrap_err().reason, Reason::Invalid { .. }));
    drop(engine);
    assert_eq!(control.on_device(), 0);
}

#[test]
fn a_checkpoint_of_another_device_is_refused_unless_other_bits_are_allowed() {
    let (engine, _) = engine_with(roomy(), Duration::from_millis(2));
    let handle = submit(&engine, ask(5, 5_000));
    while engine.status().rows == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    engine.drain(Duration::ZERO);
    let Err(Failure::Suspended { checkpoint }) = handle.wait() else {
        panic!("not suspended");
    };
    let (other, control) = engine_with(roomy(), Duration::ZERO);
    control.call_it("another device");
    let who = || Submission::new((), "tenant", "free");
    let refused = other.resume(checkpoint.clone(), false, who()).unwrap_err();
    assert!(refused.to_string().contains("another device"), "{refused}");
    assert_eq!(output(other.resume(checkpoint.clone(), true, who()).unwrap()), bits(5, 5_000));
    let mut damaged = checkpoint.to_vec();
    damaged[20] ^= 1;
    assert!(other.resume(damaged, true, who()).is_err());
}

#[test]
fn dropping_the_engine_gives_every_handle_its_outcome() {
    let (engine, control) = engine_with(roomy(), Duration::from_millis(1));
    let handles: Vec<_> = (0..200).map(|name| submit(&engine, ask(name, 50))).collect();
    drop(engine);
    for handle in handles {
        assert!(handle.try_take().is_some(), "a handle without an outcome");
        assert!(matches!(handle.checkpoint(), Err(CheckpointError::Ended)));
    }
    assert_eq!(control.on_device(), 0);
}

#[test]
fn a_repeated_idempotency_key_gets_the_same_job() {
    let (engine, control) = engine();
    let keyed = |tenant: &str| Submission {
        idempotency_key: Some("key".into()),
        ..Submission::new(ask(1, 4), tenant, "free")
    };
    control.hold();
    let first = engine.submit(keyed("a")).unwrap();
    let again = engine.submit(keyed("a")).unwrap();
    let other = engine.submit(keyed("b")).unwrap();
    control.release();
    assert_eq!(first.id(), again.id());
    assert_ne!(first.id(), other.id());
    drop(first);
    assert_eq!(output(again), bits(1, 4), "the job went with the first of its two handles");
    assert_eq!(output(engine.submit(keyed("a")).unwrap()), bits(1, 4));
    other.wait().unwrap();
    assert_eq!(engine.status().classes[1].counters.submitted, 2);
}

#[test]
fn a_submission_is_answered_in_microseconds_while_the_device_is_busy() {
    let _quiet = quiet();
    let (engine, control) = engine();
    control.hold();
    let first = submit(&engine, ask(0, 1));
    control.wait_held();
    let mut times = Vec::new();
    for name in 1..=2_000 {
        let begun = Instant::now();
        let handle = submit(&engine, ask(name, 1));
        times.push(begun.elapsed());
        handle.detach();
    }
    times.sort();
    assert!(times[1_000] < Duration::from_micros(100), "median {:?}", times[1_000]);
    control.release();
    first.wait().unwrap();
    engine.drain(Duration::from_secs(20));
    idle(&engine, &control);
}

#[test]
fn a_slow_listener_misses_steps_previews_and_checkpoints_but_never_the_end() {
    let (engine, _) = engine_with(roomy(), Duration::ZERO);
    let every = 1.try_into().ok();
    let watched = Submission { preview_every: every, checkpoint_every: every, ..free(ask(1, 300)) };
    let handle = engine.submit(watched).unwrap();
    let events = handle.events();
    handle.wait_timeout(Duration::from_secs(20)).unwrap().unwrap();
    let news: Vec<_> = events.collect();
    assert!(news.len() <= 6, "{news:?}");
    assert!(news.contains(&Progress::Step { done: 300, total: 300 }), "{news:?}");
    assert_eq!(news.last(), Some(&Progress::Ended));
}

#[test]
fn previews_come_to_those_who_listen_and_a_panic_in_one_costs_the_preview_alone() {
    let (engine, control) = engine();
    control.hold();
    let previewed = |ask| Submission { preview_every: 1.try_into().ok(), ..free(ask) };
    let good = engine.submit(previewed(ask(1, 3))).unwrap();
    let bad = engine.submit(previewed(troubled(2, 3, Trouble::PreviewPanics))).unwrap();
    let (good_news, bad_news) = (good.events(), bad.events());
    control.release();
    assert!(good_news.into_iter().any(|news| matches!(news, Progress::Preview(_))));
    assert!(!bad_news.into_iter().any(|news| matches!(news, Progress::Preview(_))));
    assert_eq!((output(good), output(bad)), (bits(1, 3), bits(2, 3)));
}

#[test]
fn checkpoints_come_with_the_news_and_go_on_from_the_step_that_they_name() {
    let (engine, control) = engine();
    control.hold();
    let saved = Submission { checkpoint_every: 2.try_into().ok(), ..free(ask(1, 5)) };
    let news = engine.submit(saved).map(|handle| (handle.events(), handle)).unwrap();
    control.release();
    let checkpoints: Vec<_> = news
        .0
        .filter_map(|news| match news {
            Progress::Checkpoint { done, bytes } => Some((done, bytes)),
            _ => None,
        })
        .collect();
    assert!(checkpoints.iter().all(|(done, _)| [2, 4].contains(done)), "{checkpoints:?}");
    let (done, bytes) = checkpoints.last().unwrap();
    let saved = engine.resume(bytes.clone(), false, Submission::new((), "tenant", "free")).unwrap();
    let steps = saved.events().find_map(|news| match news {
        Progress::Step { done, total } => Some((done, total)),
        _ => None,
    });
    assert_eq!((*done, steps), (4, Some((5, 5))));
    assert_eq!(output(saved), bits(1, 5));
}

#[test]
fn waiting_with_a_timeout_gives_nothing_before_the_end() {
    let (engine, control) = engine();
    control.hold();
    let handle = submit(&engine, ask(1, 1));
    assert!(handle.wait_timeout(Duration::from_millis(5)).is_none());
    assert!(handle.try_take().is_none());
    control.release();
    assert_eq!(handle.wait_timeout(Duration::from_secs(20)).unwrap().unwrap().output, bits(1, 1));
    assert!(handle.try_take().is_some());
}

#[test]
fn a_request_that_cannot_be_priced_is_refused_as_invalid() {
    let (engine, _) = engine();
    for trouble in [Trouble::Invalid, Trouble::PricePanics] {
        let rejected = engine.submit(free(troubled(1, 1, trouble))).unwrap_err();
        assert!(matches!(&rejected.reason, Reason::Invalid { .. }), "{rejected}");
        assert!(!rejected.retry_makes_sense());
    }
    let rejected = engine.submit(Submission::new(ask(1, 1), "tenant", "nobody")).unwrap_err();
    assert!(rejected.to_string().contains("nobody"), "{rejected}");
}

#[test]
fn a_paused_class_starts_nothing_and_goes_on_afterwards() {
    let (engine, control) = engine();
    control.hold();
    let first = submit(&engine, ask(1, 2));
    control.wait_held();
    let waits = submit(&engine, ask(2, 2));
    assert!(engine.pause("free") && !engine.pause("nobody"));
    control.release();
    assert_eq!(output(first), bits(1, 2));
    assert!(waits.wait_timeout(Duration::from_millis(30)).is_none());
    let rejected = engine.submit(free(ask(3, 1))).unwrap_err();
    assert_eq!(rejected.reason, Reason::ClassPaused { class: "free".into() });
    assert_eq!(output(engine.submit(Submission::new(ask(4, 2), "tenant", "paid")).unwrap()), bits(4, 2));
    assert!(engine.unpause("free"));
    assert_eq!(output(waits), bits(2, 2));
}

#[test]
fn limits_change_while_the_engine_runs_but_its_classes_stay() {
    let (engine, control) = engine();
    control.hold();
    let mut limits = roomy();
    limits.classes[1].queue.count = 1;
    engine.set_limits(limits).unwrap();
    let _first = submit(&engine, ask(1, 1));
    control.wait_held();
    let _second = submit(&engine, ask(2, 1));
    assert!(matches!(engine.submit(free(ask(3, 1))).unwrap_err().reason, Reason::QueueFull { .. }));
    let other = Limits { classes: roomy().classes[..1].to_vec(), ..roomy() };
    assert!(matches!(engine.set_limits(other), Err(LimitsError::Classes { .. })));
    engine.set_limits(roomy()).unwrap();
    let _third = submit(&engine, ask(3, 1));
    control.release();
}

#[test]
fn under_load_a_submitter_that_agreed_gets_fewer_steps_and_is_told() {
    let limits = Limits { degrade_after: Duration::from_millis(50), ..roomy() };
    let (engine, control) = engine_with(limits, Duration::from_millis(1));
    control.hold();
    let first = submit(&engine, ask(0, 1));
    control.wait_held();
    let agreed = |name, class| Submission {
        degrade: Degrade { min_steps: Some(2), ..Degrade::default() },
        ..Submission::new(ask(name, 10), "tenant", class)
    };
    let early = engine.submit(agreed(1, "free")).unwrap();
    let backlog: Vec<_> = (10..17).map(|name| submit(&engine, ask(name, 10))).collect();
    let (paid, late) = (engine.submit(agreed(2, "paid")).unwrap(), engine.submit(agreed(3, "free")).unwrap());
    control.release();
    let early = early.wait().unwrap();
    assert_eq!((early.output, early.applied), (bits(1, 10), None));
    let paid = paid.wait().unwrap();
    assert_eq!((paid.output, paid.applied), (bits(2, 10), None), "a higher class before a lower");
    let late = late.wait().unwrap();
    let applied = late.applied.unwrap();
    assert_eq!(late.output, bits(3, 2));
    assert_eq!((&*applied.requested, &*applied.actual), ("10 steps", "2 steps"));
    assert_eq!(applied.reason, DegradeReason::Load);
    backlog.into_iter().chain([first]).for_each(|handle| drop(handle.wait().unwrap()));
}

#[test]
fn a_plan_is_corrected_by_what_was_measured() {
    let _quiet = quiet();
    let (engine, _) = engine_with(roomy(), Duration::from_millis(4));
    // The mock's hint says a twentieth of a start and a finish, and a step as it is.
    let before = engine.plan(&ask(1, 10)).unwrap();
    (0..5).for_each(|name| assert_eq!(output(submit(&engine, ask(name, 10))), bits(name, 10)));
    let after = engine.plan(&ask(1, 10)).unwrap();
    assert_eq!(after.peak_memory, 1_000);
    assert_ne!(before.time, after.time);
    assert!((40..90).contains(&after.time.as_millis()), "{after:?}");
}

#[test]
fn the_status_shows_the_queue_by_class_and_tenant() {
    let (engine, control) = engine();
    control.hold();
    let mut handles = vec![submit(&engine, ask(0, 1))];
    control.wait_held();
    for (tenant, class) in [("a", "paid"), ("a", "free"), ("b", "free"), ("b", "free")] {
        handles.push(engine.submit(Submission::new(ask(1, 1), tenant, class)).unwrap());
    }
    let status = engine.status();
    let names = |class: usize| -> Vec<(String, usize, usize)> {
        let tenants = status.classes[class].tenants.iter();
        tenants.map(|tenant| (tenant.name.to_string(), tenant.queued, tenant.live)).collect()
    };
    assert_eq!(names(0), [("a".to_owned(), 1, 1)]);
    assert_eq!(names(1), [("a".to_owned(), 1, 1), ("b".to_owned(), 2, 2), ("tenant".to_owned(), 0, 1)]);
    assert_eq!(status.launch, Some((Phase::Start, 1, 1)));
    assert_eq!(status.occupancy, 1.0 / f64::from(roomy().start_rows));
    assert!(status.predicted_drain > Duration::ZERO);
    control.release();
    handles.into_iter().for_each(|handle| drop(handle.wait().unwrap()));
    assert_eq!(engine.status().predicted_drain, Duration::ZERO);
}

#[test]
fn four_threads_that_submit_cancel_and_drop_leave_nothing_behind() {
    let (engine, control) = engine_with(roomy(), Duration::ZERO);
    thread::scope(|scope| {
        for thread in 0..4u64 {
            let engine = &engine;
            scope.spawn(move || {
                let mut rng = Rng(thread);
                let mut kept = Vec::new();
                for name in 0..300 {
                    let steps = 1 + rng.below(5) as u32;
                    let class = if rng.chance(0.5) { "paid" } else { "free" };
                    let ask = Ask { key: 1 + rng.below(3), ..ask(name, steps) };
                    let handle = engine.submit(Submission::new(ask, thread.to_string(), class)).unwrap();
                    match rng.below(4) {
                        0 => handle.cancel(),
                        1 => continue,
                        _ => {}
                    }
                    kept.push((handle, name, steps));
                }
                for (handle, name, steps) in kept {
                    match handle.wait() {
                        Ok(finished) => assert_eq!(finished.output, bits(name, steps)),
                        Err(failure) => assert!(matches!(failure, Failure::Cancelled), "{failure}"),
                    }
                }
            });
        }
    });
    engine.drain(Duration::from_secs(20));
    idle(&engine, &control);
}
