//! The CPU's share of `benches/peers/run.py`: prints one JSON line a workload, as `peers.py` does.
//!
//! `AQUATINT_SD15` names the folder that `benches/peers/make_sd15_checkpoint.py` wrote; without it, the
//! workloads on that checkpoint are reported as skipped.

use std::path::Path;
use std::time::Instant;

use aquatint::{DeviceChoice, Guidance, LoadOptions, Pipeline, Precision, Request};
use serde_json::json;

/// Median, 10th and 90th percentile of `runs` after `warm` runs that are not counted.
fn measure(name: &str, warm: usize, runs: usize, mut work: impl FnMut()) {
    (0..warm).for_each(|_| work());
    let mut seconds: Vec<f64> = (0..runs)
        .map(|_| {
            let begun = Instant::now();
            work();
            begun.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| seconds[((runs - 1) as f64 * share).round() as usize];
    let line = json!({
        "name": name, "unit": "s", "median": at(0.5), "p10": at(0.1), "p90": at(0.9), "runs": runs, "peak_rss_mb": peak(),
    });
    println!("{line}");
}

/// Peak resident memory of this process (Linux), in MB.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kilobytes| kilobytes / 1000)
}

/// Numbers in -1..1 that repeat on every run.
fn values(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn sd15(folder: &str, options: LoadOptions) {
    let begun = Instant::now();
    let pipeline = Pipeline::load(folder, options).unwrap();
    let line = json!({
        "name": "sd15_load", "unit": "s", "median": begun.elapsed().as_secs_f64(), "runs": 1,
        "peak_rss_mb": peak(), "weights_mb": pipeline.weights_bytes() / 1_000_000,
    });
    println!("{line}");
    for batch in [1, 2] {
        let timesteps = vec![500.0; batch];
        measure(&format!("sd15_unet_256_batch_{batch}"), 2, 7, || {
            let latents = (values(batch * 4 * 32 * 32), [batch, 4, 32, 32]);
            let states = (values(batch * 77 * 768), [batch, 77, 768]);
            pipeline.predict(latents, &timesteps, states).unwrap();
        });
    }
}

fn main() {
    let options =
        LoadOptions { device: DeviceChoice::Cpu, precision: Precision::F32, ..LoadOptions::default() };
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights");
    let pipeline = Pipeline::load(weights, options.clone()).unwrap();
    let request = Request {
        steps: Some(20),
        guidance: Some(Guidance::classifier_free(4.0)),
        ..Request::new("a red apple on a blue background")
    };
    measure("embedded_20_steps", 5, 30, || drop(pipeline.generate(&request).unwrap()));
    drop(pipeline);
    match std::env::var("AQUATINT_SD15") {
        Ok(folder) => sd15(&folder, options),
        Err(_) => eprintln!("skipped: sd15_load, sd15_unet_256 (AQUATINT_SD15 names no checkpoint)"),
    }
}
