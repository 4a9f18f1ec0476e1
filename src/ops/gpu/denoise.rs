//! The end of a denoising step, and what the network sees of the next.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::Buffer;
use super::plan::{Language, Plan, Source as Text, THREADS, Target, source, word};
use crate::ops::{DenoiseRow, NonFinite, Slot, Source, Stepped};

const WGSL: Text = source!("wgsl/denoise_step.wgsl");
const CUDA: Text = source!("cuda/common.cuh", "cuda/denoise_step.cu");

/// What a term of a sum reads, as the kernels count; slots follow.
const OUTPUT: usize = 0;
const DENOISED: usize = 1;
const NOISE: usize = 2;
const SLOTS: usize = 3;

/// Says that nothing is cut off: a clamp is never negative.
const NO_CLAMP: f32 = -1.0;

/// A kernel's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    Deviations,
    Step,
    Input,
}

/// `rows` of a batch, of `elements` each.
pub(crate) fn plan(target: Target, entry: Entry, rows: usize, elements: usize) -> Option<Plan> {
    let (source, threads) = match target.language {
        Language::Wgsl => (WGSL, THREADS),
        Language::Cuda => (CUDA, 256),
    };
    let blocks = blocks(target, elements);
    let grid = match (entry, target.language) {
        (Entry::Deviations, _) => [rows, 1, 1],
        (_, Language::Wgsl) => [blocks, rows, 1],
        (_, Language::Cuda) => [rows * blocks, 1, 1],
    };
    Some(Plan {
        target,
        source,
        entry: match entry {
            Entry::Deviations => "denoise_deviations",
            Entry::Step => "denoise_step",
            Entry::Input => "denoise_input",
        },
        constants: Vec::new(),
        maps: Vec::new(),
        params: vec![word(elements)?, word(blocks)?],
        grid: target.grid(grid, threads)?,
    })
}

/// Blocks that a row is cut into.
fn blocks(target: Target, elements: usize) -> usize {
    // Elements that a thread computes.
    const ITEMS: usize = 4;
    let threads = match target.language {
        Language::Wgsl => THREADS,
        Language::Cuda => 256,
    };
    elements.div_ceil(threads * ITEMS)
}

/// Slots of one buffer, and where in it each of those that were asked for is.
struct Gathered {
    buffer: Arc<Tensor<4>>,
    indices: Vec<usize>,
}

impl Gathered {
    /// No copy where all are in one buffer already.
    fn new(slots: &[&Slot], target: Target) -> Option<Self> {
        let first = slots.first()?;
        if slots.iter().all(|slot| Arc::ptr_eq(&slot.buffer, &first.buffer)) {
            let indices = slots.iter().map(|slot| slot.index).collect();
            return Some(Self { buffer: first.buffer.clone(), indices });
        }
        // Before anything is copied for a device that takes no kernel.
        Buffer::of(Tensor::clone(&first.buffer), target)?;
        let mut taken: Vec<&Slot> = Vec::new();
        let same = |a: &Slot, b: &Slot| a.index == b.index && Arc::ptr_eq(&a.buffer, &b.buffer);
        let mut indices = Vec::with_capacity(slots.len());
        for slot in slots {
            let found = taken.iter().position(|other| same(other, slot));
            indices.push(found.unwrap_or(taken.len()));
            if found.is_none() {
                taken.push(slot);
            }
        }
        // Neighbours that stay neighbours are one copy.
        let follows = |a: &&Slot, b: &&Slot| a.index + 1 == b.index && Arc::ptr_eq(&a.buffer, &b.buffer);
        let runs = taken.chunk_by(follows).filter_map(|run| {
            let first = run.first()?;
            Some(Tensor::clone(&first.buffer).narrow(0, first.index, run.len()))
        });
        let buffer = Buffer::of(Tensor::cat(runs.collect(), 0), target)?.tensor()?;
        Some(Self { buffer: Arc::new(buffer), indices })
    }
}

pub(crate) fn side_by_side(slots: Vec<&mut Slot>) {
    let target = slots.first().and_then(|slot| Target::of(&slot.buffer));
    let gathered = target
        .and_then(|target| Gathered::new(&slots.iter().map(|slot| &**slot).collect::<Vec<_>>(), target));
    let Some(Gathered { buffer, indices }) = gathered else {
        return;
    };
    for (slot, index) in slots.into_iter().zip(indices) {
        *slot = Slot { buffer: buffer.clone(), index };
    }
}

/// Words on the device. They go there as the bits of floats, which nothing computes with on the way.
fn upload(words: &[u32], device: &Device, target: Target) -> Option<Buffer> {
    floats(words.iter().map(|word| f32::from_bits(*word)).collect(), device, target)
}

fn floats(values: Vec<f32>, device: &Device, target: Target) -> Option<Buffer> {
    let length = values.len();
    Buffer::of(Tensor::<1>::from_data(TensorData::new(values, [length]), (device, DType::F32)), target)
}

pub(crate) fn input(entries: &[(&Slot, f32)], dtype: DType) -> Option<Tensor<4>> {
    let (first, _) = entries.first()?;
    let target = Target::of(&first.buffer)?.storing(dtype)?;
    let slots: Vec<_> = entries.iter().map(|(slot, _)| *slot).collect();
    let Gathered { buffer, indices } = Gathered::new(&slots, target)?;
    let [held, channels, height, width] = buffer.dims();
    let elements = channels * height * width;
    word(held.max(entries.len()) * elements)?;
    let plan = plan(target, Entry::Input, entries.len(), elements)?;
    let mut words = Vec::with_capacity(2 * entries.len());
    for (index, (_, scale)) in indices.into_iter().zip(entries) {
        words.extend([word(index)?, scale.to_bits()]);
    }
    let table = upload(&words, &buffer.device(), target)?;
    let state = Buffer::of(Tensor::clone(&buffer), target)?;
    let y = state.empty([entries.len(), channels, height, width], dtype);
    plan.launch(&[&state, &table], &[&y])?;
    y.tensor()
}

/// What one launch is told.
#[derive(Default)]
struct Table {
    /// A head a row.
    heads: Vec<u32>,
    /// The writes of all rows.
    writes: Vec<u32>,
    noise: Vec<f32>,
    /// Values written by all rows.
    written: usize,
}

impl Table {
    /// * `indices`: where the sample and the slots among the terms are, in their order
    fn push(
        &mut self,
        row: &DenoiseRow,
        rows: usize,
        elements: usize,
        mut indices: impl Iterator<Item = usize>,
    ) -> Option<()> {
        const HEAD: usize = 12;
        let (negative, scale, rescale) = match row.guided {
            Some(guided) => (guided.negative, guided.scale, guided.rescale),
            // A row that is its own negative has no guidance.
            None => (row.positive, 0.0, 0.0),
        };
        let noise = self.noise.len().checked_div(elements)?;
        self.heads.extend([
            word(row.positive)?,
            word(negative)?,
            scale.to_bits(),
            rescale.to_bits(),
            word(indices.next()?)?,
            word(noise)?,
            row.estimate.sample.to_bits(),
            row.estimate.output.to_bits(),
            row.estimate.clamp.unwrap_or(NO_CLAMP).to_bits(),
            word(self.written)?,
            word(row.writes.len())?,
            word(rows * HEAD + self.writes.len())?,
        ]);
        for terms in &row.writes {
            self.writes.push(word(terms.len())?);
            for (source, factor) in terms {
                let source = match source {
                    Source::Output => OUTPUT,
                    Source::Denoised => DENOISED,
                    Source::Noise => NOISE,
                    Source::Slot(_) => SLOTS + indices.next()?,
                };
                self.writes.extend([word(source)?, factor.to_bits()]);
            }
        }
        self.noise.extend(row.noise.iter().flatten());
        self.written += row.writes.len();
        Some(())
    }
}

/// The sample, then the slots among the terms.
fn slots<'a>(row: &'a DenoiseRow<'a>) -> impl Iterator<Item = &'a Slot> {
    let of_term = |(source, _): &(Source<'a>, f32)| match source {
        Source::Slot(slot) => Some(*slot),
        _ => None,
    };
    std::iter::once(row.sample).chain(row.writes.iter().flatten().filter_map(of_term))
}

pub(crate) fn step(predictions: Tensor<4>, rows: &[DenoiseRow]) -> Option<Vec<Stepped>> {
    let target = Target::of(&predictions)?;
    let [given, channels, height, width] = predictions.dims();
    let elements = channels * height * width;
    let device = predictions.device();
    let Gathered { buffer, indices } =
        Gathered::new(&rows.iter().flat_map(slots).collect::<Vec<_>>(), target)?;
    let mut indices = indices.into_iter();
    let mut table = Table::default();
    for row in rows {
        table.push(row, rows.len(), elements, &mut indices)?;
    }
    let Table { heads, writes, noise, written } = table;
    word(given.max(buffer.dims()[0]).max(written) * elements)?;
    let plan = |entry| plan(target, entry, rows.len(), elements);
    // Before the first launch.
    let (deviations, denoise_step) = (plan(Entry::Deviations)?, plan(Entry::Step)?);

    let predictions = Buffer::of(predictions, target)?;
    let state = Buffer::of(Tensor::clone(&buffer), target)?;
    let table = upload(&[heads, writes].concat(), &device, target)?;
    // What no row reads is bound all the same.
    let unread = || state.empty([1], DType::F32);
    let noise = if noise.is_empty() { unread() } else { floats(noise, &device, target)? };
    let ratios = if rows.iter().any(|row| row.guided.is_some_and(|guided| guided.rescale != 0.0)) {
        let ratios = state.empty([rows.len()], DType::F32);
        deviations.launch(&[&predictions, &table], &[&ratios])?;
        ratios
    } else {
        unread()
    };
    let after = state.empty([written, channels, height, width], DType::F32);
    let counts = state.empty([rows.len(), blocks(target, elements)], DType::F32);
    denoise_step.launch(&[&predictions, &table, &state, &noise, &ratios], &[&after, &counts])?;

    let (after, counts) = (Arc::new(after.tensor()?), Arc::new(counts.tensor()?));
    let mut next = 0..written;
    let stepped = rows.iter().enumerate().map(|(row, given)| {
        let slot = |index| Slot { buffer: after.clone(), index };
        let values = next.by_ref().take(given.writes.len()).map(slot).collect();
        Stepped { values, non_finite: NonFinite::Kept { counts: counts.clone(), row } }
    });
    Some(stepped.collect())
}
