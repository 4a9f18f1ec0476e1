//! A burst of more requests than the device can serve, in two tiers, and what becomes of them.
//!
//! ```text
//! cargo run --release --example many_requests -- --requests 300 --load 3
//! ```

use std::error::Error;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use aquatint::engine::{
    Bounds, ClassLimits, Degrade, Distilled, EngineOptions, Limits, PipelineBackend, PipelineEngine, Status,
    Submission,
};
use aquatint::{LoadOptions, Pipeline, Request, Sampler};
use clap::Parser;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Submits requests faster than they can be served; every tenth pays.
#[derive(Parser)]
struct Arguments {
    /// Requests in all.
    #[arg(long, default_value_t = 300)]
    requests: u64,
    /// How many times more device time is asked for than there is, at least 1. A paying tenth is served in
    /// time up to 8, its share of the device.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    load: u32,
}

const HEADER: &str = "class   queued  live  finished  refused  distilled  dropped  in time";

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn lines(status: &Status) -> impl Iterator<Item = String> + '_ {
    status.classes.iter().map(|class| {
        let counters = &class.counters;
        format!(
            "{:6} {:7} {:5} {:9} {:8} {:10} {:8} {:7.0}%",
            class.name,
            class.queued.count,
            class.live,
            counters.finished,
            counters.rejected,
            counters.degraded,
            counters.shed,
            class.attainment * 100.0
        )
    })
}

/// Promises that fit a device which makes one picture in `alone`. A class takes no more than it can serve
/// within its promise: who would come too late is told so at once.
fn limits(alone: Duration) -> Limits {
    let class = |name, weight, objective| {
        let queue = Bounds { count: 1_000, bytes: 1 << 30, time: objective / 2 };
        ClassLimits { objective, ..ClassLimits::new(name, weight, queue) }
    };
    Limits {
        classes: vec![class("paid", 8, 15 * alone), class("free", 2, 60 * alone)],
        degrade_after: 10 * alone,
        ..Limits::default()
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let pipeline = Pipeline::embedded(LoadOptions::default())?;
    let options = EngineOptions { limits: limits(Duration::from_secs(1)), ..EngineOptions::default() };
    // This model draws as well in four steps of another sampler, and so stands in for itself under load.
    let sampler = Some(Sampler::DpmPlusPlus2M);
    let distilled = Distilled { steps: 4, sampler, ..Distilled::new(pipeline.clone()) };
    let backend = PipelineBackend::new(pipeline)?.with_distilled(distilled)?;
    let engine = PipelineEngine::new(backend, options)?;
    let wanted = Request::new("a red apple on a blue background");
    let alone = engine.plan(&wanted)?.time;
    engine.set_limits(limits(alone))?;

    let table = MultiProgress::new();
    let style = ProgressStyle::with_template("{msg}")?;
    let row =
        |text: String| table.add(ProgressBar::new_spinner().with_style(style.clone()).with_message(text));
    let _header = row(HEADER.to_owned());
    let rows: Vec<ProgressBar> = lines(&engine.status()).map(row).collect();
    let show = || rows.iter().zip(lines(&engine.status())).for_each(|(row, line)| row.set_message(line));

    let begun = Instant::now();
    for number in 0..arguments.requests {
        let class = if number % 10 == 0 { "paid" } else { "free" };
        let request = Request { seed: number, ..wanted.clone() };
        let submission = Submission::new(request, format!("tenant {}", number % 7), class);
        let degrade = Degrade { distilled: true, ..Degrade::default() };
        // The counters tell the rest: a service would keep the handle, and pass `retry_after` on.
        if let Ok(handle) = engine.submit(Submission { degrade, ..submission }) {
            handle.detach();
        }
        show();
        sleep(alone / arguments.load);
    }
    while engine.status().classes.iter().any(|class| class.live > 0) {
        show();
        sleep(Duration::from_millis(50));
    }
    table.clear()?;
    println!("{HEADER}");
    lines(&engine.status()).for_each(|line| println!("{line}"));
    let Arguments { requests, load } = arguments;
    let (alone, took) = (alone.as_secs_f64(), begun.elapsed().as_secs_f64());
    println!("{requests} requests at {load} times the pace of one every {alone:.2} s, in {took:.1} s");
    Ok(())
}
