//! A burst of more requests than the device can serve, in two tiers, and what becomes of them.
//!
//! ```text
//! cargo run --release --example many_requests -- --requests 300 --rate 100
//! ```

use std::error::Error;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use aquatint::engine::{
    Bounds, ClassLimits, Degrade, EngineOptions, Limits, PipelineEngine, Status, Submission,
};
use aquatint::{LoadOptions, Pipeline, Request};
use clap::Parser;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Submits requests faster than they can be served; every tenth pays.
#[derive(Parser)]
struct Arguments {
    /// Requests in all.
    #[arg(long, default_value_t = 300)]
    requests: u64,
    /// Requests a second, at least 1.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
}

const HEADER: &str = "class   queued  live  finished  refused  fewer steps  dropped  in time";

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
            "{:6} {:7} {:5} {:9} {:8} {:12} {:8} {:7.0}%",
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

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let pipeline = Pipeline::embedded(LoadOptions::default())?;
    let bounds = Bounds { count: 40, bytes: 1 << 30, time: Duration::from_secs(60) };
    let objective = Duration::from_secs(2);
    let limits = Limits {
        classes: vec![
            ClassLimits { objective, ..ClassLimits::new("paid", 8, bounds) },
            ClassLimits { objective: 5 * objective, ..ClassLimits::new("free", 2, bounds) },
        ],
        degrade_after: Duration::from_secs(1),
        ..Limits::default()
    };
    let engine = PipelineEngine::over(pipeline, EngineOptions { limits, ..EngineOptions::default() })?;

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
        let request = Request { seed: number, ..Request::new("a red apple on a blue background") };
        let submission = Submission::new(request, format!("tenant {}", number % 7), class);
        let degrade = Degrade { min_steps: Some(8), ..Degrade::default() };
        // The counters tell the rest: a service would keep the handle, and pass `retry_after` on.
        if let Ok(handle) = engine.submit(Submission { degrade, ..submission }) {
            handle.detach();
        }
        show();
        sleep(Duration::from_secs(1) / u32::try_from(arguments.rate)?);
    }
    while engine.status().classes.iter().any(|class| class.live > 0) {
        show();
        sleep(Duration::from_millis(50));
    }
    table.clear()?;
    println!("{HEADER}");
    lines(&engine.status()).for_each(|line| println!("{line}"));
    println!("{} requests in {:.1} s", arguments.requests, begun.elapsed().as_secs_f64());
    Ok(())
}
