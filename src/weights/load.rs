//! Values from the files to the device, and from there to the networks.

use std::{
    collections::BTreeMap,
    fmt::Write,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use burn::tensor::{DType, Device, Tensor, TensorData};
use sha2::{Digest, Sha256};

use super::{
    convert::{Buffer, Conversion, Converted, Fault, Float},
    error::WeightsError,
    store::{Entry, WeightStore},
};

/// More threads than this do not load faster, and each holds one tensor.
const MAX_WORKERS: usize = 16;
/// How many unused keys an error names.
const NAMED: usize = 8;

/// The tensors of one part of a checkpoint on a device, handed out once each.
#[derive(Debug)]
pub struct Loaded {
    slots: BTreeMap<String, Slot>,
    files: String,
    bytes: usize,
    digest: String,
}

#[derive(Debug)]
struct Slot {
    /// The values in a row; `None` once taken.
    values: Option<Tensor<1>>,
    /// The shape in the file.
    shape: Vec<usize>,
    file: Arc<str>,
}

impl WeightStore {
    /// Converts every tensor to `dtype` and puts it on `device`.
    ///
    /// The files are read once, by several threads; the device is used by the calling thread
    /// alone. Where the device has its own memory, the host holds only the few tensors under way.
    pub fn load(&self, device: &Device, dtype: DType) -> Result<Loaded, WeightsError> {
        let target = match dtype {
            DType::F32 => Float::F32,
            DType::F16 => Float::F16,
            DType::BF16 => Float::Bf16,
            other => {
                return Err(WeightsError::TargetDtype { found: format!("{other:?}") });
            }
        };
        let jobs = self.jobs(target)?;
        let mut slots = BTreeMap::new();
        let mut hashes = BTreeMap::new();
        let mut bytes = 0;
        convert_all(&jobs, |job, converted| {
            let entry = job.entry;
            bytes += converted.buffer.bytes();
            hashes.insert(entry.key.as_str(), (entry, converted.hash));
            let slot = Slot {
                values: Some(upload(converted.buffer, device, dtype)),
                shape: entry.shape.clone(),
                file: self.sources.get(entry.file).map_or_else(|| "".into(), |s| s.name.clone()),
            };
            slots.insert(entry.key.clone(), slot);
        })?;
        let names: Vec<&str> = self.sources.iter().map(|source| &*source.name).collect();
        Ok(Loaded { slots, files: names.join(", "), bytes, digest: digest(&hashes) })
    }

    /// What there is to convert, with the faults that the headers show found before any reading.
    fn jobs(&self, target: Float) -> Result<Vec<Job<'_>>, WeightsError> {
        let mut jobs = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let file = || self.file_name(entry).to_string();
            let key = || entry.original.clone();
            let Some(source) = Float::from_source(entry.dtype) else {
                let found = entry.dtype.to_string();
                return Err(WeightsError::SourceDtype { file: file(), key: key(), found });
            };
            if entry.begin == entry.end {
                let shape = entry.shape.clone();
                return Err(WeightsError::Empty { file: file(), key: key(), shape });
            }
            jobs.push(Job { store: self, entry, source, target });
        }
        Ok(jobs)
    }
}

/// One tensor to convert.
struct Job<'s> {
    store: &'s WeightStore,
    entry: &'s Entry,
    source: Float,
    target: Float,
}

impl Job<'_> {
    fn run(&self) -> Result<Converted, WeightsError> {
        let (begin, end) = (self.entry.begin, self.entry.end);
        let source = self.store.sources.get(self.entry.file);
        let bytes = source.and_then(|source| source.map.bytes().get(begin..end));
        let (Some(source), Some(bytes)) = (source, bytes) else {
            return Err(WeightsError::Missing {
                key: self.entry.original.clone(),
                files: self.store.file_name(self.entry).to_string(),
            });
        };
        source.map.will_need(begin..end);
        let conversion =
            Conversion { bytes, source: self.source, target: self.target, shape: &self.entry.shape };
        let mut released = begin;
        let result = conversion.run(|read| {
            source.map.release(released..begin + read);
            released = begin + read;
        });
        result.map_err(|fault| self.fault(fault))
    }

    fn fault(&self, fault: Fault) -> WeightsError {
        let key = self.entry.original.clone();
        let file = self.store.file_name(self.entry).to_string();
        match fault {
            Fault::NonFinite { index, value } => WeightsError::NonFinite { file, key, index, value },
            Fault::Overflow { index, value } => {
                WeightsError::Overflow { file, key, index, value, dtype: self.target.name() }
            }
            Fault::Memory { bytes } => WeightsError::Memory { file, key, bytes },
        }
    }
}

/// Converts all jobs on several threads and hands each result to `receive` on this one.
///
/// Threads of its own rather than rayon's: called from a rayon worker, a pool of one thread
/// would wait for itself. Of several faults the first in the files' order is returned.
fn convert_all<'j>(
    jobs: &'j [Job<'j>],
    mut receive: impl FnMut(&'j Job<'j>, Converted),
) -> Result<(), WeightsError> {
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_WORKERS).min(jobs.len());
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    // one result waiting at most: each is a whole tensor
    let (sender, results) = mpsc::sync_channel(1);
    let mut fault: Option<(usize, WeightsError)> = None;
    thread::scope(|scope| {
        for _ in 0..workers {
            let sender = sender.clone();
            scope.spawn(|| {
                let sender = sender;
                while !stop.load(Ordering::Relaxed) {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(place) else { break };
                    let result = job.run();
                    stop.fetch_or(result.is_err(), Ordering::Relaxed);
                    if sender.send((place, job, result)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (place, job, result) in results {
            match result {
                Ok(converted) if fault.is_none() => receive(job, converted),
                Ok(_) => {}
                Err(error) => {
                    if fault.as_ref().is_none_or(|(first, _)| place < *first) {
                        fault = Some((place, error));
                    }
                }
            }
        }
    });
    fault.map_or(Ok(()), |(_, error)| Err(error))
}

/// Makes a tensor of the buffer itself: burn converts and copies nothing where the types agree.
fn upload(buffer: Buffer, device: &Device, dtype: DType) -> Tensor<1> {
    let data = match buffer {
        Buffer::F32(values) => row(values),
        Buffer::F16(values) => row(values),
        Buffer::Bf16(values) => row(values),
    };
    Tensor::from_data(data, (device, dtype))
}

fn row<E: burn::tensor::Element>(values: Vec<E>) -> TensorData {
    let count = values.len();
    TensorData::new(values, [count])
}

/// SHA-256 over every tensor's name, data type, shape and hash, by name.
fn digest(tensors: &BTreeMap<&str, (&Entry, u128)>) -> String {
    let mut sha = Sha256::new();
    for (key, (entry, hash)) in tensors {
        sha.update((key.len() as u64).to_le_bytes());
        sha.update(key.as_bytes());
        sha.update(entry.dtype.to_string().as_bytes());
        sha.update((entry.shape.len() as u64).to_le_bytes());
        for side in &entry.shape {
            sha.update((*side as u64).to_le_bytes());
        }
        sha.update(hash.to_le_bytes());
    }
    sha.finalize().iter().fold(String::new(), |mut text, byte| {
        // writing to a String cannot fail
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Loaded {
    /// Takes a tensor of the given shape, as the file has it.
    pub fn take<const D: usize>(&mut self, key: &str, shape: [usize; D]) -> Result<Tensor<D>, WeightsError> {
        let values = self.take_row(key, &[&shape])?;
        if let [out, input, height, width] = shape[..] {
            let channels_last = values.reshape([out, height, width, input]);
            // loading has put the input channels last: a view brings them back
            return Ok(channels_last.permute([0, 3, 1, 2]).reshape(shape));
        }
        Ok(values.reshape(shape))
    }

    /// Takes a convolution's kernel. `shape` is `[out, in, height, width]`, as the file has it;
    /// the tensor is `[out, height, width, in]`, contiguous: loading has changed the layout.
    pub fn take_conv(&mut self, key: &str, shape: [usize; 4]) -> Result<Tensor<4>, WeightsError> {
        let [out, input, height, width] = shape;
        let values = self.take_row(key, &[&shape])?;
        Ok(values.reshape([out, height, width, input]))
    }

    /// Takes a linear layer's weight `[out, in]`. The file may have it as `[out, in]` or as
    /// the 1×1 convolution `[out, in, 1, 1]` that older networks used in its place.
    pub fn take_linear(&mut self, key: &str, shape: [usize; 2]) -> Result<Tensor<2>, WeightsError> {
        let [out, input] = shape;
        let values = self.take_row(key, &[&shape, &[out, input, 1, 1]])?;
        Ok(values.reshape(shape))
    }

    /// Whether there is a tensor of this name that has not been taken.
    pub fn contains(&self, key: &str) -> bool {
        self.slots.get(key).is_some_and(|slot| slot.values.is_some())
    }

    /// The shape of a tensor as the file has it.
    pub fn shape(&self, key: &str) -> Option<&[usize]> {
        self.slots.get(key).map(|slot| slot.shape.as_slice())
    }

    /// The bytes of all tensors in the data type that they were loaded to.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Identifies the weights: 64 hexadecimal digits over every tensor's name, data type, shape
    /// and values as the files have them. Neither the data type loaded to nor the number of
    /// shards changes it. It tells checkpoints apart and is no proof against forgery: the
    /// values enter by a fast hash (XXH3).
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Checks that every tensor has been taken.
    pub fn finish(self) -> Result<(), WeightsError> {
        let unused: Vec<&String> =
            self.slots.iter().filter_map(|(key, slot)| slot.values.is_some().then_some(key)).collect();
        if unused.is_empty() {
            return Ok(());
        }
        Err(WeightsError::Unused {
            count: unused.len(),
            keys: unused.into_iter().take(NAMED).cloned().collect(),
            files: self.files,
        })
    }

    /// Takes a tensor whose shape is one of `shapes`, of which the first is the one that an
    /// error names.
    fn take_row(&mut self, key: &str, shapes: &[&[usize]]) -> Result<Tensor<1>, WeightsError> {
        let Some(slot) = self.slots.get_mut(key) else {
            return Err(WeightsError::Missing { key: key.into(), files: self.files.clone() });
        };
        if !shapes.contains(&slot.shape.as_slice()) {
            return Err(WeightsError::Shape {
                key: key.into(),
                file: slot.file.to_string(),
                expected: shapes.first().map(|shape| shape.to_vec()).unwrap_or_default(),
                found: slot.shape.clone(),
            });
        }
        let taken = || WeightsError::Taken { file: slot.file.to_string(), key: key.into() };
        slot.values.take().ok_or_else(taken)
    }
}
