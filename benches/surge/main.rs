//! A surge of requests on the production scheduler, in virtual time: what came of it, and how it looked.
//!
//! ```text
//! cargo bench --bench surge -- --load 3 --plot surge.svg --data surge.csv
//! cargo bench --bench surge -- --load 1.2 --requests 7000000     # a hundredth of a viral week
//! ```

mod plot;

#[path = "../../tests/engine/common/mod.rs"]
mod common;

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use common::outcome::{Outcome, Stretch};
use common::sim::{CLASSES, Config, Sim};

/// Plays a surge in virtual time.
#[derive(Parser)]
struct Arguments {
    /// Mean load over the device's capacity.
    #[arg(long, default_value_t = 3.0)]
    load: f64,
    /// First attempts.
    #[arg(long, default_value_t = 100_000)]
    requests: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Parts of the run that a point of the plot and a line of the data stand for.
    #[arg(long, default_value_t = 150)]
    stretches: usize,
    /// An SVG of load, goodput, queues and latencies.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// The same as comma-separated values.
    #[arg(long)]
    data: Option<PathBuf>,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let config = Config::surge(arguments.seed, arguments.load, arguments.requests);
    let begun = Instant::now();
    let mut out = Sim::new(Config { stretches: arguments.stretches, ..config }).run();
    let took = begun.elapsed().as_secs_f64();
    println!("{}", out.line(arguments.load));
    println!(
        "{} requests in {took:.1} s, {:.0} a second",
        arguments.requests,
        arguments.requests as f64 / took
    );
    let table = Table::of(&mut out);
    if let Some(path) = &arguments.data {
        fs::write(path, table.csv())?;
    }
    if let Some(path) = &arguments.plot {
        fs::write(path, plot::svg(&table))?;
    }
    Ok(())
}

/// One column a curve, one value a stretch.
struct Table {
    seconds: Vec<f64>,
    /// Over the device's capacity.
    asked: Vec<f64>,
    goodput: Vec<f64>,
    /// Jobs, by class.
    queued: [Vec<f64>; 2],
    /// Seconds, by class; NaN where none finished.
    median: [Vec<f64>; 2],
    p99: [Vec<f64>; 2],
}

impl Table {
    fn of(out: &mut Outcome) -> Self {
        let length = out.stretch_seconds;
        let column = |value: &dyn Fn(&Stretch) -> f64| out.stretches.iter().map(value).collect();
        let (asked, goodput) = (column(&|s| s.asked / length), column(&|s| s.useful / length));
        let queued = [0, 1].map(|class| column(&|s| s.queued[class] as f64));
        let seconds = (1..=out.stretches.len()).map(|index| index as f64 * length).collect();
        let mut latency = |share: f64| {
            [0, 1].map(|class: usize| {
                out.stretches.iter_mut().map(|s| s.tallies[class].percentile(share)).collect()
            })
        };
        let (median, p99) = (latency(0.5), latency(0.99));
        Self { seconds, asked, goodput, queued, median, p99 }
    }

    fn csv(&self) -> String {
        let mut text = "seconds,asked,goodput".to_owned();
        for name in ["queued", "p50", "p99"] {
            CLASSES.iter().for_each(|class| write!(text, ",{name}_{class}").unwrap());
        }
        let columns: Vec<&Vec<f64>> = [&self.seconds, &self.asked, &self.goodput]
            .into_iter()
            .chain(&self.queued)
            .chain(&self.median)
            .chain(&self.p99)
            .collect();
        for row in 0..self.seconds.len() {
            let values: Vec<String> = columns.iter().map(|column| format!("{:.4}", column[row])).collect();
            write!(text, "\n{}", values.join(",")).unwrap();
        }
        text + "\n"
    }
}
