//! Wakers run on the engine's own thread, and may hold what they like: nothing there waits for that thread, and
//! no lock is held meanwhile.

use std::pin::pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use crate::common::mock::{Mock, ask, bits, engine, free, output, submit};
use aquatint::engine::{CheckpointError, Events, Failure, Handle, Mode, Progress, Submission};

/// Runs `work` on a thread of its own, so that what hangs fails.
fn within(work: impl FnOnce() + Send + 'static) {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        work();
        sender.send(())
    });
    receiver.recv_timeout(Duration::from_secs(60)).expect("it hangs, or failed");
}

/// Called once, on whatever thread wakes it.
struct Call(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        let call = self.0.lock().unwrap().take();
        call.into_iter().for_each(|call| call());
    }
}

fn waker(call: impl FnOnce() + Send + 'static) -> Waker {
    Waker::from(Arc::new(Call(Mutex::new(Some(Box::new(call))))))
}

/// The next news of a job calls `call`, on the engine's thread.
fn at_next_news(handle: &Handle<Mock>, call: impl FnOnce() + Send + 'static) -> Events<Mock> {
    let mut events = handle.events();
    while events.try_next().is_some() {}
    assert!(events.poll_next(&mut Context::from_waker(&waker(call))).is_pending());
    events
}

#[test]
fn what_would_wait_for_the_engine_on_its_own_thread_is_refused_or_does_not_wait() {
    within(|| {
        let (engine, control) = engine();
        control.hold();
        let (polled, asked, waited) =
            (submit(&engine, ask(1, 50)), submit(&engine, ask(2, 50)), submit(&engine, ask(3, 50)));
        control.wait_held();
        let (sender, receiver) = mpsc::channel();
        let _events = at_next_news(&polled, move || {
            let checkpoint = asked.checkpoint();
            let outcome = asked.wait_timeout(Duration::from_secs(1_000));
            let news: Vec<Progress<u64>> = asked.events().collect();
            sender.send((checkpoint, outcome, news, waited.wait())).unwrap();
        });
        control.release();
        let (checkpoint, outcome, news, waited) = receiver.recv().unwrap();
        assert!(matches!(checkpoint, Err(CheckpointError::OwnThread)), "{checkpoint:?}");
        assert!(outcome.is_none(), "{outcome:?}");
        assert!(!news.contains(&Progress::Ended), "{news:?}");
        assert!(matches!(waited, Err(Failure::OwnThread)), "{waited:?}");
        assert_eq!(output(polled), bits(1, 50));
    });
}

#[test]
fn a_drain_from_a_waker_begins_and_does_not_wait() {
    within(|| {
        let (engine, control) = engine();
        let engine = Arc::new(engine);
        control.hold();
        let (polled, other) = (submit(&engine, ask(1, 50)), submit(&engine, ask(2, 50)));
        control.wait_held();
        let (inner, (sender, receiver)) = (engine.clone(), mpsc::channel());
        let _events = at_next_news(&polled, move || sender.send(inner.drain(Duration::ZERO).mode).unwrap());
        control.release();
        assert!(matches!(receiver.recv().unwrap(), Mode::Draining(_)));
        for handle in [polled, other] {
            assert!(matches!(handle.wait(), Err(Failure::Suspended { .. } | Failure::ShutDown)));
        }
        engine.drain(Duration::ZERO);
        assert_eq!(control.on_device(), 0);
    });
}

#[test]
fn an_engine_that_its_own_waker_drops_ends_every_job() {
    within(|| {
        let (engine, control) = engine();
        control.hold();
        let (polled, other) = (submit(&engine, ask(1, 50)), submit(&engine, ask(2, 50)));
        control.wait_held();
        let (sender, receiver) = mpsc::channel();
        let _events = at_next_news(&polled, move || {
            drop(engine);
            sender.send(()).unwrap();
        });
        control.release();
        receiver.recv().expect("dropping it panicked");
        for handle in [polled, other] {
            assert!(matches!(handle.wait(), Err(Failure::Suspended { .. } | Failure::ShutDown)));
        }
    });
}

#[test]
fn a_waker_may_hold_a_handle_of_the_job_that_it_waits_for() {
    within(|| {
        let (engine, control) = engine();
        let keyed = || Submission { idempotency_key: Some("key".into()), ..free(ask(1, 4)) };
        control.hold();
        let mut polled = engine.submit(keyed()).unwrap();
        let poll = |polled: &mut Handle<Mock>, waker: &Waker| {
            assert!(pin!(polled).poll(&mut Context::from_waker(waker)).is_pending());
        };
        for _ in 0..3 {
            let held = engine.submit(keyed()).unwrap();
            // Each one goes when the next takes its place, and its handle with it.
            poll(&mut polled, &waker(move || drop(held)));
        }
        control.release();
        assert_eq!(output(polled), bits(1, 4));
    });
}
