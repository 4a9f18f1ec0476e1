//! A denoising step, decoding and whole pictures, on every device present in every precision: the embedded model, and
//! a model of Stable Diffusion 1.5's size with random weights.
//!
//! `cargo bench --bench generate` (CPU), `--features wgpu` and `cuda` for more; then `-- embedded` or `-- 'step sd15'`
//! for what has that in its name. What cannot run here is reported as skipped, by name and with the reason.
//!
//! * `AQUATINT_SD15`: a folder for that model's checkpoint (2.1 GB); it is written where it is not there yet. Without
//!   the variable it goes to a temporary folder.
//! * `AQUATINT_BENCH_SLOW=1`: run that model on the CPU and on software adapters too, where a step takes seconds to
//!   minutes.

mod checkpoint;
#[path = "../common/mod.rs"]
mod common;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aquatint::{DeviceChoice, Guidance, Job, LoadOptions, Pipeline, Precision, Request, Sampler};
use burn::tensor::DType;
use common::{Place, asked_for, places, skip};
use criterion::{Criterion, criterion_group, criterion_main};
use tempfile::TempDir;

#[derive(Clone, Copy)]
enum Model {
    Embedded,
    Sd15,
}

/// What is measured.
#[derive(Clone, Copy)]
enum Work {
    /// One step of a batch of pictures with classifier-free guidance, sampler included.
    Step { side: u32, batch: u32 },
    /// Latents in the host's memory to pixels there.
    Decode { side: u32 },
    /// Prompt to picture.
    Generation { side: u32 },
}

/// Steps of a whole picture.
const STEPS: usize = 20;
/// Steps of the jobs whose steps are measured one by one.
const LONG: usize = 500;

impl Model {
    fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Sd15 => "sd15",
        }
    }

    fn works(self) -> Vec<Work> {
        let (side, decoded) = match self {
            Self::Embedded => (64, 64),
            Self::Sd15 => (512, 1024),
        };
        let steps = [1, 4, 16].map(|batch| Work::Step { side, batch });
        [&steps[..], &[Work::Decode { side: decoded }, Work::Generation { side }]].concat()
    }

    fn latent_channels(self) -> usize {
        match self {
            Self::Embedded => 16,
            Self::Sd15 => 4,
        }
    }

    fn load(self, place: &Place, folder: &mut Folder) -> Result<Pipeline, String> {
        let options = LoadOptions {
            device: DeviceChoice::Existing(place.device.clone()),
            precision: precision(place.dtype),
            max_batch: 32,
        };
        let loaded = match self {
            Self::Embedded => embedded(options),
            Self::Sd15 => {
                room(place)?;
                Pipeline::load(folder.path()?, options)
            }
        };
        loaded.map_err(|error| error.to_string())
    }
}

fn precision(dtype: DType) -> Precision {
    match dtype {
        DType::F16 => Precision::F16,
        DType::BF16 => Precision::Bf16,
        _ => Precision::F32,
    }
}

#[cfg(feature = "embedded")]
fn embedded(options: LoadOptions) -> aquatint::Result<Pipeline> {
    Pipeline::embedded(options)
}

#[cfg(not(feature = "embedded"))]
fn embedded(options: LoadOptions) -> aquatint::Result<Pipeline> {
    // A program that was built elsewhere is told where the checkout lies.
    let checkout = std::env::var("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").to_owned());
    Pipeline::load(PathBuf::from(checkout).join("weights"), options)
}

/// Whether the host has time and memory for the large model. A GPU says itself when its memory runs out.
fn room(place: &Place) -> Result<(), String> {
    if place.hardware {
        return Ok(());
    }
    if std::env::var("AQUATINT_BENCH_SLOW").is_err() {
        return Err("takes minutes without a GPU; AQUATINT_BENCH_SLOW=1 runs it all the same".to_owned());
    }
    // Weights (2.1 GB in f16) and, in the decoder at 1024², a handful of maps of 256 channels.
    let needed = if place.dtype == DType::F32 { 12_000_000 } else { 8_000_000 };
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    match line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()) {
        Some(kilobytes) if kilobytes < needed => {
            Err(format!("{} MB of memory are free, about {} are needed", kilobytes / 1000, needed / 1000))
        }
        _ => Ok(()),
    }
}

/// Where the large model's checkpoint lies, once it was needed.
#[derive(Default)]
struct Folder {
    written: Option<PathBuf>,
    temporary: Option<TempDir>,
}

impl Folder {
    fn path(&mut self) -> Result<PathBuf, String> {
        if let Some(path) = &self.written {
            return Ok(path.clone());
        }
        let path = match std::env::var("AQUATINT_SD15") {
            Ok(named) => PathBuf::from(named),
            Err(_) => {
                let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
                self.temporary.insert(folder).path().to_owned()
            }
        };
        if !path.join("model_index.json").is_file() {
            checkpoint::write(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        self.written = Some(path.clone());
        Ok(path)
    }
}

impl Work {
    fn name(self, model: Model) -> String {
        let model = model.name();
        match self {
            Self::Step { side, batch } => format!("step {model} {side}² CFG batch {batch}"),
            Self::Decode { side } => format!("decode {model} {side}²"),
            Self::Generation { side } => format!("generation {model} {side}² CFG {STEPS} steps"),
        }
    }

    fn measure(self, criterion: &mut Criterion, place: &Place, model: Model, pipeline: &Pipeline) {
        let name = place.name(&self.name(model));
        let request = |side, steps| Request {
            width: Some(side),
            height: Some(side),
            steps: Some(steps),
            guidance: Some(Guidance::classifier_free(4.0)),
            sampler: Some(Sampler::Ddim { eta: 0.0 }),
            ..Request::new("a red apple on a blue background")
        };
        match self {
            Self::Step { side, batch } => {
                let request = Request { count: Some(batch), ..request(side, LONG) };
                let mut job = None;
                place.measure(criterion, &name, batch.into(), |rounds| {
                    steps(pipeline, place, &request, &mut job, rounds)
                });
            }
            Self::Decode { side } => {
                let side = side as usize / 8;
                let shape = [1, model.latent_channels(), side, side];
                let latents = checkpoint::normal(1, 1.0, shape.iter().product());
                place.measure(criterion, &name, 1, |rounds| {
                    timed(rounds, || pipeline.decode_latents((latents.clone(), shape)).map(drop))
                });
            }
            Self::Generation { side } => {
                let request = request(side, STEPS);
                place.measure(criterion, &name, 1, |rounds| {
                    timed(rounds, || pipeline.generate(&request).map(drop))
                });
            }
        }
    }
}

/// Work that waits for the device by itself.
fn timed(rounds: u64, mut work: impl FnMut() -> aquatint::Result<()>) -> Result<Duration, String> {
    let begun = Instant::now();
    for _ in 0..rounds {
        work().map_err(|error| error.to_string())?;
    }
    Ok(begun.elapsed())
}

/// Steps in a row, then one wait for the device; the start of a job is not in the time.
fn steps(
    pipeline: &Pipeline,
    place: &Place,
    request: &Request,
    running: &mut Option<Job>,
    rounds: u64,
) -> Result<Duration, String> {
    let (mut left, mut spent) = (rounds, Duration::ZERO);
    while left > 0 {
        let mut job = match running.take().filter(|job| !job.is_done()) {
            Some(job) => job,
            None => pipeline.start(request).map_err(|error| error.to_string())?,
        };
        place.device.sync().map_err(|error| error.to_string())?;
        let now = left.min((job.total() - job.step()) as u64);
        let begun = Instant::now();
        for _ in 0..now {
            for result in pipeline.step(&mut [&mut job]) {
                result.map_err(|error| error.to_string())?;
            }
        }
        place.device.sync().map_err(|error| error.to_string())?;
        spent += begun.elapsed();
        left -= now;
        *running = Some(job);
    }
    Ok(spent)
}

fn generate(criterion: &mut Criterion) {
    let mut folder = Folder::default();
    for place in places() {
        for model in [Model::Embedded, Model::Sd15] {
            let name = |work: &Work| place.name(&work.name(model));
            let works: Vec<Work> = model.works().into_iter().filter(|work| asked_for(&name(work))).collect();
            if works.is_empty() {
                continue;
            }
            match model.load(&place, &mut folder) {
                Ok(pipeline) => {
                    works.iter().for_each(|work| work.measure(criterion, &place, model, &pipeline));
                }
                Err(reason) => works.iter().for_each(|work| skip(&name(work), &reason)),
            }
        }
    }
}

criterion_group!(benches, generate);
criterion_main!(benches);
