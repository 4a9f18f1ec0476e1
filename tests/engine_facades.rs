//! What the engine reports through `metrics` and `tracing`. One test: both recorders are the process's.

#[path = "engine/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use aquatint::engine::Submission;
use common::mock::{Trouble, ask, engine_with, free, roomy, troubled};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, SharedString, Unit,
};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};

/// What a recorder does besides, whatever is recorded.
static ASIDE: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

fn aside() {
    ASIDE.get().into_iter().for_each(|aside| aside());
}

#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<BTreeMap<String, f64>>>);

struct Cell(Ledger, String);

impl Cell {
    fn change(&self, by: impl FnOnce(f64) -> f64) {
        let mut all = self.0.0.lock().unwrap();
        let value = all.entry(self.1.clone()).or_default();
        *value = by(*value);
        drop(all);
        aside();
    }
}

impl CounterFn for Cell {
    fn increment(&self, value: u64) {
        self.change(|old| old + value as f64);
    }

    fn absolute(&self, value: u64) {
        self.change(|_| value as f64);
    }
}

impl GaugeFn for Cell {
    fn increment(&self, value: f64) {
        self.change(|old| old + value);
    }

    fn decrement(&self, value: f64) {
        self.change(|old| old - value);
    }

    fn set(&self, value: f64) {
        self.change(|_| value);
    }
}

impl HistogramFn for Cell {
    fn record(&self, _: f64) {
        self.change(|old| old + 1.0);
        if self.1.starts_with("aquatint_engine_launch_jobs") {
            // A recorder's panic is not the engine's.
            std::panic::resume_unwind(Box::new("a recorder"));
        }
    }
}

impl Ledger {
    fn cell(&self, key: &Key) -> Arc<Cell> {
        let labels: Vec<String> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Arc::new(Cell(self.clone(), format!("{} {}", key.name(), labels.join(" "))))
    }
}

impl metrics::Recorder for Ledger {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.cell(key))
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{}={value:?} ", field.name()).unwrap();
    }
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        if line.0.contains("ended") {
            // Whoever looks at the engine meanwhile finds a job that is over and has no outcome yet.
            thread::sleep(Duration::from_millis(50));
        }
        self.0.lock().unwrap().push(line.0);
        aside();
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn counters_histograms_and_lines_carry_class_tenant_tags_and_outcome() {
    // A recorder that asks the engine hangs if it is called under a lock of the engine's.
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        everything_is_recorded();
        sender.send(())
    });
    receiver.recv_timeout(Duration::from_secs(60)).expect("it hangs, or failed");
}

fn everything_is_recorded() {
    let (ledger, lines) = (Ledger::default(), Lines::default());
    metrics::set_global_recorder(ledger.clone()).map_err(|_| "a recorder is there").unwrap();
    tracing::subscriber::set_global_default(lines.clone()).unwrap();

    let engine = Arc::new(engine_with(roomy(), Duration::ZERO).0);
    let asked = engine.clone();
    let aside = move || assert!(asked.status().classes.len() == 2);
    ASIDE.set(Box::new(aside)).map_err(|_| "twice").unwrap();
    let tagged = Submission { tags: vec![("order".to_owned(), "4711".to_owned())], ..free(ask(1, 3)) };
    let finished = engine.submit(tagged).unwrap().wait().unwrap();
    assert_eq!(finished.tags[0].1, "4711");
    assert!(engine.submit(free(troubled(2, 3, Trouble::NanAt(1)))).unwrap().wait().is_err());
    assert!(engine.submit(free(troubled(3, 3, Trouble::Invalid))).is_err());
    assert!(engine.submit(Submission::new(ask(5, 1), "tenant", "no such class")).is_err());
    assert!(engine.submit(Submission::new(troubled(6, 3, Trouble::Invalid), "tenant", "nor this")).is_err());
    let last = engine.submit(free(ask(7, 1))).unwrap();
    while engine.status().classes[1].live > 0 {
        thread::yield_now();
    }
    thread::sleep(Duration::from_millis(10));
    engine.drain(Duration::from_secs(5));
    assert!(last.try_take().is_some(), "drained, and a job is without its outcome");
    assert!(engine.submit(free(ask(4, 1))).is_err());

    for (name, value) in [
        ("aquatint_engine_accepted_total class=free", 3.0),
        ("aquatint_engine_rejected_total class=free reason=draining", 1.0),
        ("aquatint_engine_rejected_total class=free reason=invalid", 1.0),
        ("aquatint_engine_rejected_total class=unknown reason=invalid", 2.0),
        ("aquatint_engine_ended_total class=free outcome=finished", 2.0),
        ("aquatint_engine_ended_total class=free outcome=failed", 1.0),
        ("aquatint_engine_within_objective_total class=free", 2.0),
        ("aquatint_engine_latency_seconds class=free outcome=finished", 2.0),
        ("aquatint_engine_launch_seconds phase=finish", 2.0),
        ("aquatint_engine_faults_total phase=step fault=job", 1.0),
        ("aquatint_engine_launch_jobs phase=finish", 2.0),
        ("aquatint_engine_queued class=free", 0.0),
        ("aquatint_engine_batch_occupancy ", 0.0),
    ] {
        let all = ledger.0.lock().unwrap();
        assert_eq!(all.get(name), Some(&value), "{name} of {all:?}");
    }
    let lines = lines.0.lock().unwrap();
    let about = |word: &str| lines.iter().filter(|line| line.contains(word) && line.contains("4711")).count();
    assert_eq!((about("accepted"), about("ended")), (1, 1), "{lines:?}");
    assert!(
        lines.iter().any(|line| line.contains("not finite at step 1") && line.contains("tenant")),
        "{lines:?}"
    );
}
