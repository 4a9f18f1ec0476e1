//! What the engine itself costs: a decision with a long queue, and a step on a device that takes no time.
//!
//! `cargo bench --bench engine`

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};

#[path = "../tests/engine/common/mod.rs"]
mod common;

use aquatint::engine::Limits;
use common::drive::{Drive, limits, price};
use common::mock::{ask, engine_with, output, roomy, submit};

const QUEUED: u64 = 10_000;

/// Eight jobs run, and all others wait: a launch comes back, and the next is chosen.
fn decision(criterion: &mut Criterion) {
    for shapes in [5, QUEUED] {
        let mut drive = Drive::new(Limits { memory: 80, ..limits(&[("paid", 8), ("free", 2)]) });
        for number in 0..QUEUED {
            let class = if number % 10 == 0 { "paid" } else { "free" };
            drive.submit(class, number % 500, price(1 + number % shapes, 20_000)).unwrap();
        }
        drive.tick([]);
        let name = format!("engine/decision with 10,000 queued of {shapes} shapes");
        criterion.bench_function(&name, |bencher| {
            bencher.iter(|| {
                let last = drive.launches.len() - 1;
                drive.launches.drain(..last);
                drive.land()
            });
        });
    }
}

fn step(criterion: &mut Criterion) {
    let (engine, _) = engine_with(roomy(), Duration::ZERO);
    criterion.bench_function("engine/step of one job", |bencher| {
        bencher.iter_custom(|steps| {
            let begun = Instant::now();
            output(submit(&engine, ask(1, u32::try_from(steps).unwrap())));
            begun.elapsed()
        });
    });
}

criterion_group!(benches, decision, step);
criterion_main!(benches);
