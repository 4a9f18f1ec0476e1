//! The end of a denoising step for batches of pictures, on every device present: this crate's kernel (`kernel`) beside the
//! same in burn's own operations, row by row (`burn`).
//!
//! `cargo bench --bench denoise_step` (CPU), `--features wgpu` and `cuda` for more; criterion's "elem/s" are elements of
//! samples a second. A device that is absent is named and passed over.

use std::hint::black_box;
use std::time::{Duration, Instant};

use aquatint::ops::{self, DenoiseRow, Estimate, Guided, Slot, Source};
use burn::tensor::{DType, Device, Distribution, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// A device, and the precision of the network's predictions.
#[derive(Clone)]
struct Place {
    device: Device,
    dtype: DType,
    name: String,
}

impl Place {
    /// Normally distributed.
    fn random(&self, shape: [usize; 4], dtype: DType) -> Tensor<4> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), (&self.device, dtype))
    }

    fn measure(
        &self,
        criterion: &mut Criterion,
        name: &str,
        elements: usize,
        compute: impl Fn() + Send + Sync,
    ) {
        let mut group = criterion.benchmark_group("denoise_step");
        group
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_secs(1))
            .sample_size(10);
        group.throughput(Throughput::Elements(elements as u64));
        let run = |rounds: u64| {
            let begun = Instant::now();
            (0..rounds).for_each(|_| compute());
            self.device.sync().expect("the device works");
            begun.elapsed()
        };
        // On a thread of the pool, as `ops` asks of callers that run many small operations.
        group.bench_function(name, |bencher| rayon::scope(|_| bencher.iter_custom(run)));
        group.finish();
    }
}

/// What is here to measure on.
fn places() -> Vec<Place> {
    [
        #[cfg(feature = "cpu")]
        vec![Place { device: Device::flex(), dtype: DType::F32, name: "cpu".to_owned() }],
        #[cfg(feature = "wgpu")]
        gpu(burn::tensor::DeviceType::Wgpu, "wgpu"),
        #[cfg(feature = "cuda")]
        gpu(burn::tensor::DeviceType::Cuda, "cuda"),
    ]
    .concat()
}

/// The first device of a kind, in every precision that it has.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn gpu(kind: burn::tensor::DeviceType, name: &str) -> Vec<Place> {
    let found = std::panic::catch_unwind(|| Device::enumerate(kind).into_vec()).unwrap_or_default();
    let Some(device) = found.into_iter().next() else {
        eprintln!("{name}: no such device here, passed over");
        return Vec::new();
    };
    let (here, absent): (Vec<_>, Vec<_>) =
        [DType::F32, DType::F16, DType::BF16].into_iter().partition(|dtype| device.supports_dtype(*dtype));
    absent.iter().for_each(|dtype| eprintln!("{name}: no {dtype:?} here, passed over"));
    here.into_iter().map(|dtype| Place { device: device.clone(), dtype, name: name.to_owned() }).collect()
}

/// A sampler's step: what it reads and writes beside the sample and the clean estimate.
#[derive(Clone, Copy)]
enum Step {
    /// Sample and clean estimate.
    Euler,
    /// The last clean estimate as well, and noise; this step's is kept.
    DpmPlusPlus2MSde,
}

/// A row of this kind for every slot, two predictions each.
fn rows<'a>(step: Step, rescale: f32, slots: &'a [[Slot; 2]], noise: &[f32]) -> Vec<DenoiseRow<'a>> {
    let row = |(index, [sample, older]): (usize, &'a [Slot; 2])| {
        let (of_sample, of_denoised) = ((Source::Slot(sample), 0.93), (Source::Denoised, 0.07));
        let kept = vec![(Source::Denoised, 1.0)];
        let (noise, writes) = match step {
            Step::Euler => (None, vec![vec![of_sample, of_denoised], kept]),
            Step::DpmPlusPlus2MSde => {
                let others = [(Source::Slot(older), -0.02), (Source::Noise, 0.3)];
                let sum = [of_sample, of_denoised].into_iter().chain(others).collect();
                (Some(noise.to_vec()), vec![sum, kept.clone(), kept])
            }
        };
        DenoiseRow {
            positive: 2 * index,
            guided: Some(Guided { negative: 2 * index + 1, scale: 7.5, rescale }),
            sample,
            estimate: Estimate { sample: 1.0, output: -1.3, clamp: None },
            noise,
            writes,
        }
    };
    slots.iter().enumerate().map(row).collect()
}

/// Latents of 512² and 1024² pictures, and of the embedded model's.
const SIDES: [usize; 3] = [64, 128, 8];
const BATCHES: [usize; 3] = [1, 4, 16];

fn denoise_step(criterion: &mut Criterion) {
    for place in places() {
        for (side, batch) in SIDES.into_iter().flat_map(|side| BATCHES.map(|batch| (side, batch))) {
            let shape = |rows| [rows, 4, side, side];
            let elements = 4 * side * side;
            let predictions = place.random(shape(2 * batch), place.dtype);
            let one = || Slot::new(place.random(shape(1), DType::F32));
            let mut slots: Vec<[Slot; 2]> = (0..batch).map(|_| [one(), one()]).collect();
            ops::side_by_side(slots.iter_mut().flatten().collect());
            let noise = vec![0.5; elements];
            for (name, step, rescale) in [
                ("euler", Step::Euler, 0.0),
                ("euler rescaled", Step::Euler, 0.7),
                ("dpm++2m-sde", Step::DpmPlusPlus2MSde, 0.0),
            ] {
                let rows = || rows(step, rescale, &slots, &noise);
                let name = |which| format!("{batch}x{side}² {name} {} {:?} {which}", place.name, place.dtype);
                place.measure(criterion, &name("kernel"), batch * elements, || {
                    drop(black_box(ops::denoise_step(predictions.clone(), rows())));
                });
                place.measure(criterion, &name("burn"), batch * elements, || {
                    drop(black_box(ops::reference::denoise_step(predictions.clone(), &rows())));
                });
            }
        }
    }
}

criterion_group!(benches, denoise_step);
criterion_main!(benches);
