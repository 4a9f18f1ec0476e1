//! The end of a denoising step on every backend: against its definition in f64, with the coefficients of every sampler,
//! and a row's bits in any batch.

use aquatint::Sampler;
use aquatint::ops::{self, DenoiseRow, Estimate, Guided, NonFinite, Slot, Source, Stepped};
use aquatint::samplers::{Plan, SchedulerConfig, Step, Target, Term};
use burn::tensor::{DType, Tensor};

use crate::definitions::{On, bits, read, values};
use crate::host::Exact;

/// `[channels, height, width]`, from two elements (one has no deviation) to several blocks of a kernel.
const SHAPES: [[usize; 3]; 4] = [[1, 1, 2], [4, 3, 5], [4, 8, 64], [3, 17, 33]];

/// Likewise, where a row of a buffer is read without a copy of it: each begins at a multiple of 512 bytes.
const ALIGNED: [[usize; 3]; 4] = [[1, 8, 16], [4, 4, 8], [4, 8, 64], [3, 16, 40]];

fn shapes(on: &On) -> [[usize; 3]; 4] {
    if on.generated { SHAPES } else { ALIGNED }
}

fn given(values: &[f64]) -> Vec<Exact> {
    values.iter().map(|value| Exact { value: *value, magnitude: value.abs() }).collect()
}

/// `sum + factor * term`
fn add(sum: &mut [Exact], term: &[Exact], factor: f32) {
    let factor = f64::from(factor);
    for (sum, term) in sum.iter_mut().zip(term) {
        sum.value += factor * term.value;
        sum.magnitude += (factor * term.magnitude).abs();
    }
}

fn deviation(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / count;
    (values.map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0)).sqrt()
}

/// Equations 15 and 16 of Lin et al. 2023.
fn guide(positive: &[f64], negative: &[f64], guided: Guided) -> Vec<Exact> {
    let scale = guided.scale;
    let mut out = given(negative);
    add(&mut out, &given(positive), scale);
    add(&mut out, &given(negative), -scale);
    if guided.rescale == 0.0 {
        return out;
    }
    let spread = deviation(out.iter().map(|exact| exact.value));
    let rescale = f64::from(guided.rescale);
    let factor = rescale * deviation(positive.iter().copied()) / spread + 1.0 - rescale;
    // A deviation carries the rounding of what it is a deviation of.
    let size = out.iter().map(|exact| exact.magnitude).sum::<f64>() / out.len() as f64;
    for exact in &mut out {
        exact.value *= factor;
        exact.magnitude = exact.magnitude * factor + exact.value.abs() * (1.0 + size / spread);
    }
    out
}

/// What a row is to write. A factor of zero leaves its term out.
fn expected(row: &DenoiseRow, predictions: &[f64]) -> Vec<Vec<Exact>> {
    let sample = read(row.sample.tensor());
    let prediction = |index: usize| &predictions[index * sample.len()..(index + 1) * sample.len()];
    let guided = match row.guided {
        Some(guided) => guide(prediction(row.positive), prediction(guided.negative), guided),
        None => given(prediction(row.positive)),
    };
    let zero = vec![Exact::default(); sample.len()];
    let mut denoised = zero.clone();
    add(&mut denoised, &given(&sample), row.estimate.sample);
    add(&mut denoised, &guided, row.estimate.output);
    if let Some(range) = row.estimate.clamp.map(f64::from) {
        denoised.iter_mut().for_each(|exact| exact.value = exact.value.clamp(-range, range));
    }
    let write = |terms: &Vec<(Source, f32)>| {
        let mut sum = zero.clone();
        for (source, factor) in terms.iter().filter(|(_, factor)| *factor != 0.0) {
            match source {
                Source::Output => add(&mut sum, &guided, *factor),
                Source::Denoised => add(&mut sum, &denoised, *factor),
                Source::Slot(slot) => add(&mut sum, &given(&read(slot.tensor())), *factor),
                Source::Noise => {
                    let noise: Vec<f64> = row.noise.iter().flatten().map(|value| f64::from(*value)).collect();
                    add(&mut sum, &given(&noise), *factor);
                }
            }
        }
        sum
    };
    row.writes.iter().map(write).collect()
}

#[track_caller]
fn check(on: &On, predictions: &Tensor<4>, rows: Vec<DenoiseRow>, what: &str) -> Vec<Stepped> {
    let stored = read(predictions.clone());
    let expected: Vec<_> = rows.iter().map(|row| expected(row, &stored)).collect();
    let plain = on.generated.then(|| ops::reference::denoise_step(predictions.clone(), &rows));
    let stepped = ops::denoise_step(predictions.clone(), rows);
    // burn's own sums are in an order of their own.
    for (side, tolerance) in [(&stepped, 1e-6)].into_iter().chain(plain.iter().map(|plain| (plain, 4e-6))) {
        assert_eq!(side.len(), expected.len(), "{what}");
        for (row, expected) in expected.iter().enumerate() {
            assert_eq!(side[row].values.len(), expected.len(), "{what}");
            for (write, (slot, expected)) in side[row].values.iter().zip(expected).enumerate() {
                let what = format!("{what}, row {row}, write {write}");
                on.assert_close(slot.tensor(), expected, tolerance, &what);
            }
        }
    }
    for (row, stepped) in stepped.iter().enumerate() {
        if let Some(count) = count(&stepped.non_finite) {
            assert_eq!(count, 0, "{what}: row {row} is finite");
        }
    }
    stepped
}

fn count(non_finite: &NonFinite) -> Option<usize> {
    match non_finite {
        NonFinite::Unknown => None,
        NonFinite::Known(count) => Some(*count),
        NonFinite::Kept { counts, row } => {
            let [_, parts] = counts.dims();
            let counts = read(Tensor::clone(counts));
            Some(counts[row * parts..(row + 1) * parts].iter().sum::<f64>() as usize)
        }
    }
}

fn with_batch([channels, height, width]: [usize; 3], batch: usize) -> [usize; 4] {
    [batch, channels, height, width]
}

/// Slots in buffers of their own; where nothing could gather those, in one that a step has written.
fn slots_of(on: &On, shape: [usize; 3], values: &[Vec<f64>]) -> Vec<Slot> {
    let tensor = |values: &[f64]| on.tensor(values, with_batch(shape, 1), DType::F32);
    if on.generated {
        return values.iter().map(|values| Slot::new(tensor(values))).collect();
    }
    let zeros = tensor(&vec![0.0; shape.iter().product()]);
    let sample = Slot::new(zeros.clone());
    let kept = |values: &Vec<f64>| DenoiseRow {
        positive: 0,
        guided: None,
        sample: &sample,
        estimate: Estimate { sample: 0.0, output: 0.0, clamp: None },
        noise: Some(values.iter().map(|value| *value as f32).collect()),
        writes: vec![vec![(Source::Noise, 1.0)]],
    };
    let stepped = ops::denoise_step(zeros, values.iter().map(kept).collect());
    stepped.into_iter().flat_map(|row| row.values).collect()
}

fn slots(on: &On, shape: [usize; 3], count: u64, seed: u64, outlier: f64) -> Vec<Slot> {
    let elements = shape.iter().product();
    let values: Vec<_> = (0..count).map(|index| values(elements, seed + index, outlier)).collect();
    slots_of(on, shape, &values)
}

/// Other values for some of the slots.
fn replace(on: &On, shape: [usize; 3], slots: &mut Vec<Slot>, others: &[(usize, Vec<f64>)]) {
    let mut values: Vec<_> = slots.iter().map(|slot| read(slot.tensor())).collect();
    for (index, other) in others {
        values[*index] = other.clone();
    }
    *slots = slots_of(on, shape, &values);
}

const PREDICTIONS: usize = 7;
const SLOTS: u64 = 6;

/// Rows that differ in everything, with two predictions where they are guided.
fn rows<'a>(slots: &'a [Slot], noise: &[f32]) -> Vec<DenoiseRow<'a>> {
    let slot = |index: usize| Source::Slot(&slots[index]);
    let estimate = |sample, output, clamp| Estimate { sample, output, clamp };
    let guided = |negative, scale, rescale| Some(Guided { negative, scale, rescale });
    let row = |positive, guided, sample: usize, estimate, noise: Option<&[f32]>, writes| DenoiseRow {
        positive,
        guided,
        sample: &slots[sample],
        estimate,
        noise: noise.map(<[f32]>::to_vec),
        writes,
    };
    let denoised = || vec![(Source::Denoised, 1.0)];
    vec![
        row(
            0,
            guided(1, 7.5, 0.0),
            0,
            estimate(1.0, -14.6, None),
            None,
            vec![vec![(slot(0), 0.93), (Source::Denoised, 0.07)], denoised()],
        ),
        row(
            2,
            None,
            1,
            estimate(0.4, 0.9, Some(1.0)),
            None,
            vec![
                vec![(slot(1), 0.5), (Source::Denoised, 0.7), (slot(2), -0.2)],
                denoised(),
                vec![(slot(2), 1.0)],
            ],
        ),
        row(
            4,
            guided(3, 5.0, 0.7),
            3,
            estimate(1.01, -0.2, None),
            Some(noise),
            vec![
                vec![(slot(3), 0.9), (Source::Output, -0.3), (Source::Noise, 0.4)],
                denoised(),
                vec![(Source::Output, 1.0)],
                vec![],
            ],
        ),
        row(5, guided(6, 3.0, 0.2), 4, estimate(0.0, 1.0, Some(2.5)), None, vec![denoised(), denoised()]),
        // Drawn, and used by nothing.
        row(6, None, 5, estimate(0.7, 0.1, None), Some(noise), vec![vec![(slot(5), -1.5)], denoised()]),
    ]
}

fn noise_of(shape: [usize; 3], seed: u64) -> Vec<f32> {
    values(shape.iter().product(), seed, 1.0).into_iter().map(|value| value as f32).collect()
}

pub(crate) fn a_step_matches_its_definition(on: &On) {
    for &dtype in on.dtypes {
        for shape in shapes(on) {
            for outlier in [1.0, 1e4] {
                let (predictions, _) = on.random(with_batch(shape, PREDICTIONS), dtype, 50, outlier);
                let slots = slots(on, shape, SLOTS, 60, outlier);
                let noise = noise_of(shape, 70);
                check(on, &predictions, rows(&slots, &noise), &format!("{shape:?}, outliers {outlier}"));
            }
        }
    }
}

/// A row that follows a compiled sampler.
struct Follower {
    plan: Plan,
    sample: Slot,
    registers: Vec<Option<Slot>>,
}

impl Follower {
    fn row(&self, step: &Step, positive: usize, guided: Option<Guided>, noise: &[f32]) -> DenoiseRow<'_> {
        let term = |(term, factor): &(Term, f32)| {
            let source = match term {
                Term::Sample => Source::Slot(&self.sample),
                Term::Output => Source::Output,
                Term::Denoised => Source::Denoised,
                Term::Noise => Source::Noise,
                Term::Register(index) => Source::Slot(self.registers[*index].as_ref().unwrap()),
            };
            (source, *factor)
        };
        // The sample's update is not always the first; a step has one.
        let sample = step.updates.iter().filter(|update| update.target == Target::Sample);
        let others = step.updates.iter().filter(|update| update.target != Target::Sample);
        DenoiseRow {
            positive,
            guided,
            sample: &self.sample,
            estimate: Estimate {
                sample: step.denoised.sample,
                output: step.denoised.output,
                clamp: step.denoised.clamp,
            },
            noise: step.draws_noise.then(|| noise.to_vec()),
            writes: sample.chain(others).map(|update| update.terms.iter().map(term).collect()).collect(),
        }
    }

    fn follow(&mut self, index: usize, stepped: Stepped) {
        let mut values = stepped.values.into_iter();
        self.sample = values.next().unwrap();
        let updates = &self.plan.steps()[index].updates;
        let others = updates.iter().filter(|update| update.target != Target::Sample);
        for (update, value) in others.zip(values) {
            if let Target::Register(index) = update.target {
                self.registers[index] = Some(value);
            }
        }
    }
}

/// All samplers in one batch, each with its own coefficients and registers, from the first step to the last.
pub(crate) fn every_samplers_coefficients_are_carried_out_in_one_batch(on: &On) {
    let shape = if on.generated { [4, 5, 7] } else { [4, 4, 8] };
    let config = SchedulerConfig::parse(
        r#"{"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085,
            "beta_end": 0.012, "clip_sample": true, "set_alpha_to_one": false, "steps_offset": 1}"#,
    );
    let config = config.unwrap();
    let mut followers: Vec<Follower> = Sampler::ALL
        .iter()
        .zip(0..)
        .map(|(sampler, seed)| {
            let plan = Plan::new(&config, Some(*sampler), None, 7, None).unwrap();
            let (sample, _) = on.random(with_batch(shape, 1), DType::F32, 80 + seed, 1.0);
            let scale = f64::from(plan.initial_scale());
            let registers = vec![None; plan.registers()];
            Follower { sample: Slot::new(on.map(&sample, |x| x * scale)), plan, registers }
        })
        .collect();
    assert!(followers.len() >= 10, "the sweep is not empty");
    let steps = followers.iter().map(|follower| follower.plan.steps().len()).max().unwrap();
    for index in 0..steps {
        let mut running: Vec<&mut Follower> =
            followers.iter_mut().filter(|follower| index < follower.plan.steps().len()).collect();
        if !on.generated {
            let mut held: Vec<&mut Slot> = running
                .iter_mut()
                .flat_map(|follower| {
                    std::iter::once(&mut follower.sample).chain(follower.registers.iter_mut().flatten())
                })
                .collect();
            let values: Vec<_> = held.iter().map(|slot| read(slot.tensor())).collect();
            for (slot, moved) in held.iter_mut().zip(slots_of(on, shape, &values)) {
                **slot = moved;
            }
        }
        let seed = 100 + index as u64;
        let predictions = with_batch(shape, 2 * running.len());
        let (predictions, _) = on.random(predictions, on.dtypes[index % on.dtypes.len()], seed, 1.0);
        let noise = noise_of(shape, seed);
        let rows = running.iter().enumerate().map(|(row, follower)| {
            let guided = Guided { negative: 2 * row + 1, scale: 2.0, rescale: 0.0 };
            let guided = (row % 2 == 0).then_some(guided);
            follower.row(&follower.plan.steps()[index], 2 * row, guided, &noise)
        });
        let stepped = check(on, &predictions, rows.collect(), &format!("step {index}"));
        for (follower, stepped) in running.iter_mut().zip(stepped) {
            follower.follow(index, stepped);
        }
    }
}

/// Bits of everything that a row wrote.
fn written(stepped: &Stepped) -> Vec<Vec<u8>> {
    stepped.values.iter().map(|slot| bits(slot.tensor())).collect()
}

/// NaN and infinite values are counted in their row; clamping hides no NaN; the neighbours do not notice, and what a row
/// multiplies by zero is nothing.
pub(crate) fn values_that_are_not_finite_are_counted_and_stay_in_their_row(on: &On) {
    let [.., shape] = shapes(on);
    let elements: usize = shape.iter().product();
    for &dtype in on.dtypes {
        let (predictions, mut values) = on.random(with_batch(shape, PREDICTIONS), dtype, 110, 1.0);
        let mut slots = slots(on, shape, SLOTS, 111, 1.0);
        let noise = noise_of(shape, 120);
        let clean = ops::denoise_step(predictions, rows(&slots, &noise));
        // The second row's sample, in several blocks of a kernel; the third's prediction, which is rescaled, whole.
        let mut poisoned = read(slots[1].tensor());
        for (place, value) in
            [(0, f64::NAN), (511, f64::INFINITY), (512, f64::NEG_INFINITY), (elements - 1, f64::NAN)]
        {
            poisoned[place] = value;
        }
        values[4 * elements + 7] = f64::NAN;
        // Nothing of the fourth row's sample counts.
        let others = [(1, poisoned), (4, vec![f64::NAN; elements])];
        replace(on, shape, &mut slots, &others);
        let predictions = on.tensor(&values, with_batch(shape, PREDICTIONS), dtype);
        let mut rows = rows(&slots, &noise);
        for row in &mut rows {
            row.writes[1].insert(0, (Source::Slot(&slots[4]), 0.0));
        }
        let stepped = ops::denoise_step(predictions, rows);
        let counts: Vec<_> = stepped.iter().map(|row| count(&row.non_finite)).collect();
        let counted = counts.iter().any(Option::is_some);
        assert!(!counted || counts == [0, 4, elements, 0, 0].map(Some), "{dtype:?}: {counts:?}");
        for row in [0, 3, 4] {
            assert!(
                written(&stepped[row]) == written(&clean[row]),
                "{dtype:?}: row {row} noticed its neighbours"
            );
        }
        let estimate = read(stepped[1].values[1].tensor());
        assert!(estimate[0].is_nan() && estimate[511] == 1.0 && estimate[512] == -1.0, "{dtype:?}");
    }
}

/// Each of 16 rows alone, then in batches of 2, 5 and 16, by buffers of their own and side by side.
pub(crate) fn a_row_of_a_step_has_the_same_bits_in_any_batch(on: &On) {
    for &dtype in on.dtypes {
        let [_, small, _, large] = shapes(on);
        for shape in [small, large] {
            let (predictions, _) = on.random(with_batch(shape, PREDICTIONS), dtype, 130, 100.0);
            let slots = slots(on, shape, SLOTS, 131, 100.0);
            let noise = noise_of(shape, 140);
            let all: Vec<DenoiseRow> = rows(&slots, &noise).into_iter().cycle().take(16).collect();
            let step = |rows: Vec<DenoiseRow>| -> Vec<_> {
                ops::denoise_step(predictions.clone(), rows).iter().map(written).collect()
            };
            let alone: Vec<_> = all.iter().flat_map(|row| step(vec![row.clone()])).collect();
            for size in [2, 5, 16] {
                for start in (0..=16 - size).step_by(size) {
                    let together = step(all[start..start + size].to_vec());
                    assert!(together == alone[start..start + size], "{dtype:?} {shape:?}: {size} rows");
                }
            }
            let mut moved = slots.clone();
            ops::side_by_side(moved.iter_mut().rev().collect());
            for (slot, moved) in slots.iter().zip(&moved) {
                assert!(bits(slot.tensor()) == bits(moved.tensor()), "a slot that was moved");
            }
            let together = step(rows(&moved, &noise).into_iter().cycle().take(16).collect());
            assert!(together == alone, "{dtype:?} {shape:?}: side by side");
        }
    }
}

pub(crate) fn the_networks_input_is_each_slot_times_its_factor(on: &On) {
    for &dtype in on.dtypes {
        for shape in shapes(on) {
            let slots = slots(on, shape, 3, 150, 1e3);
            let entries = [(&slots[2], 1.0), (&slots[0], 0.25), (&slots[2], 0.068), (&slots[1], 1.0)];
            let expected: Vec<Exact> = entries
                .iter()
                .flat_map(|(slot, factor)| {
                    let mut scaled = vec![Exact::default(); shape.iter().product()];
                    add(&mut scaled, &given(&read(slot.tensor())), *factor);
                    scaled
                })
                .collect();
            let y = ops::denoise_input(&entries, dtype);
            assert_eq!((y.dims(), y.dtype()), (with_batch(shape, 4), dtype));
            on.assert_close(y, &expected, 1e-7, "input");
            let reference = || ops::reference::denoise_input(&entries, dtype);
            on.assert_reference(reference, &expected, 1e-7, "reference");
        }
    }
}
