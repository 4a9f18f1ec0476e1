//! The end of a denoising step for batches of pictures, on every device present in every precision of the network's
//! predictions: this crate's kernel (`kernel`) beside the same in burn's own operations, row by row (`burn`).
//!
//! `cargo bench --bench denoise_step` (CPU), `--features wgpu` and `cuda` for more; then `-- 'step 16x'` for what has
//! that in its name. Criterion's "elem/s" are elements of samples a second. What cannot run here is reported as skipped,
//! by name and with the reason.

#[path = "common/mod.rs"]
mod common;

use std::hint::black_box;
use std::time::Instant;

use aquatint::ops::{self, DenoiseRow, Estimate, Guided, Slot, Source};
use burn::tensor::{DType, Distribution, Tensor};
use common::{Place, asked_for, places};
use criterion::{Criterion, criterion_group, criterion_main};

/// A sampler's step: what it reads and writes beside the sample and the clean estimate.
#[derive(Clone, Copy)]
enum Step {
    /// Sample and clean estimate.
    Euler,
    /// The last clean estimate as well, and noise; this step's is kept.
    DpmPlusPlus2MSde,
}

/// With the share of the guidance that is rescaled.
const STEPS: [(&str, Step, f32); 3] = [
    ("euler", Step::Euler, 0.0),
    ("euler rescaled", Step::Euler, 0.7),
    ("dpmpp_2m_sde", Step::DpmPlusPlus2MSde, 0.0),
];

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

/// What the steps of one batch work on.
struct Batch {
    predictions: Tensor<4>,
    slots: Vec<[Slot; 2]>,
    noise: Vec<f32>,
}

impl Batch {
    fn new(place: &Place, side: usize, batch: usize) -> Self {
        let random = |rows, dtype| {
            let normal = Distribution::Normal(0.0, 1.0);
            Tensor::random([rows, 4, side, side], normal, (&place.device, dtype))
        };
        let one = || Slot::new(random(1, DType::F32));
        let mut slots: Vec<[Slot; 2]> = (0..batch).map(|_| [one(), one()]).collect();
        ops::side_by_side(slots.iter_mut().flatten().collect());
        Self { predictions: random(2 * batch, place.dtype), slots, noise: vec![0.5; 4 * side * side] }
    }

    fn rows(&self, step: Step, rescale: f32) -> Vec<DenoiseRow<'_>> {
        rows(step, rescale, &self.slots, &self.noise)
    }
}

fn measure(criterion: &mut Criterion, place: &Place, name: &str, elements: usize, compute: impl Fn() + Sync) {
    let rounds = |rounds: u64| {
        let begun = Instant::now();
        (0..rounds).for_each(|_| compute());
        place.device.sync().map_err(|error| error.to_string())?;
        Ok(begun.elapsed())
    };
    // On a thread of the pool, as `ops` asks of callers that run many small operations on the CPU.
    let run = |count| if place.kind == "cpu" { rayon::scope(|_| rounds(count)) } else { rounds(count) };
    place.measure(criterion, name, elements as u64, run);
}

fn denoise_step(criterion: &mut Criterion) {
    for place in places() {
        for (side, batch) in SIDES.into_iter().flat_map(|side| BATCHES.map(|batch| (side, batch))) {
            let name = |title: &str, which: &str| {
                format!("{} {which}", place.name(&format!("denoise_step {batch}x{side}² {title}")))
            };
            let asked = |title| ["kernel", "burn"].iter().any(|which| asked_for(&name(title, which)));
            if !STEPS.iter().any(|&(title, ..)| asked(title)) {
                continue;
            }
            let made = Batch::new(&place, side, batch);
            for (title, step, rescale) in STEPS {
                let elements = batch * 4 * side * side;
                measure(criterion, &place, &name(title, "kernel"), elements, || {
                    drop(black_box(ops::denoise_step(made.predictions.clone(), made.rows(step, rescale))));
                });
                measure(criterion, &place, &name(title, "burn"), elements, || {
                    let rows = made.rows(step, rescale);
                    drop(black_box(ops::reference::denoise_step(made.predictions.clone(), &rows)));
                });
            }
        }
    }
}

criterion_group!(benches, denoise_step);
criterion_main!(benches);
