//! Bytes that are said to be a saved job: an error says what is wrong with them, or the job goes on. No panic,
//! no endless loop, no memory beyond what the bytes themselves take.
//!
//! The first byte of an input picks the layer that the rest goes to, since a checksum would stop nearly all of
//! it at the outermost one:
//!
//! | first byte mod 3 | the rest |
//! |---|---|
//! | 0 | all of the bytes |
//! | 1 | the body, under a header whose length and checksum are right |
//! | 2 | number of a real job, the text of its head, a zero byte, [edits](edit) of its tensors: a whole file |
//!
//! `SEEDS=folder` writes one input for each layer of each real job there, before anything is read.

#![no_main]

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::OnceLock;

use aquatint::{
    DeviceChoice, Error, Guidance, Input, Job, LoadOptions, Pipeline, Precision, Request, Resume, Sampler,
    SavedJobError,
};
use libfuzzer_sys::fuzz_target;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

/// Of magic, version, length and checksum.
const HEADER: usize = 36;

/// Name, type, shape, bytes.
type Plain = (String, Dtype, Vec<usize>, Vec<u8>);

/// A real saved job, whole and taken apart.
struct Base {
    bytes: Vec<u8>,
    head: String,
    tensors: Vec<Plain>,
}

struct Fuzzed {
    pipeline: Pipeline,
    bases: Vec<Base>,
}

fn fuzzed() -> &'static Fuzzed {
    static FUZZED: OnceLock<Fuzzed> = OnceLock::new();
    FUZZED.get_or_init(|| {
        let options =
            LoadOptions { device: DeviceChoice::Cpu, precision: Precision::F32, ..LoadOptions::default() };
        let pipeline = Pipeline::embedded(options).unwrap();
        let bases = Sampler::ALL.into_iter().enumerate();
        let bases = bases.map(|(number, sampler)| base(&pipeline, number, sampler)).collect();
        Fuzzed { pipeline, bases }
    })
}

/// Jobs that differ in sampler, input, guidance, count and in how far they got.
fn base(pipeline: &Pipeline, number: usize, sampler: Sampler) -> Base {
    let picture = image::RgbImage::from_fn(16, 16, |x, y| image::Rgb([(x * 9) as u8, (y * 9) as u8, 90]));
    let request = Request {
        input: if number % 3 == 1 { Input::Image { image: picture, strength: 0.8 } } else { Input::Text },
        width: Some(16),
        height: Some(if number % 4 == 3 { 24 } else { 16 }),
        steps: Some(4),
        sampler: Some(sampler),
        guidance: Some(match number % 2 {
            0 => Guidance::None,
            _ => Guidance::classifier_free(2.0).negative("blur").rescaled(0.3),
        }),
        seed: u64::MAX,
        count: Some(1 + u32::from(number % 5 == 4)),
        keep_raw: number % 2 == 1,
        ..Request::new("a red apple")
    };
    let mut job = pipeline.start(&request).unwrap();
    // Most in their midst, where samplers hold values of earlier steps; one is done.
    for _ in 0..if number == 0 { job.total() } else { number % 4 } {
        pipeline.step(&mut [&mut job]).remove(0).unwrap();
    }
    let bytes = pipeline.save(&job).unwrap();
    let body = &bytes[HEADER..];
    let (_, metadata) = SafeTensors::read_metadata(body).unwrap();
    let head = metadata.metadata().as_ref().unwrap()["job"].clone();
    let tensors = SafeTensors::deserialize(body).unwrap();
    let tensors = tensors
        .iter()
        .map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    Base { bytes, head, tensors }
}

fn write_seeds(folder: &Path, bases: &[Base]) {
    std::fs::create_dir_all(folder).unwrap();
    for (number, base) in bases.iter().enumerate() {
        let whole = [&[2, number as u8], base.head.as_bytes(), &[0]].concat();
        let inputs = [[&[0], base.bytes.as_slice()].concat(), [&[1], &base.bytes[HEADER..]].concat(), whole];
        for (layer, input) in inputs.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}-{layer}")), input).unwrap();
        }
    }
}

/// A header that is right for the body.
fn headed(body: &[u8]) -> Vec<u8> {
    let (length, checksum) = ((body.len() as u64).to_le_bytes(), xxh3_128(body).to_le_bytes());
    [b"AQUAJOB\0".as_slice(), &2_u32.to_le_bytes(), &length, &checksum, body].concat()
}

/// One change of one tensor. A tensor whose bytes do not fill its shape, or whose name is another's, is taken out.
///
/// * `record`: number of the tensor, kind of the change, two values for it
fn edit(tensors: &mut Vec<Plain>, record: [u8; 4]) {
    let [which, kind, a, b] = record;
    if tensors.is_empty() {
        return;
    }
    let index = usize::from(which) % tensors.len();
    let special = [f32::NAN, f32::INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 0.0, -0.0, 1e30];
    let special = special[usize::from(b) % special.len()].to_le_bytes();
    let part = ["latents", "denoised", "generator", "register.0", "register.1", "register.2", "more"];
    let name = format!("row.{a}.{}", part[usize::from(b) % part.len()]);
    let (found, dtype, shape, data) = &mut tensors[index];
    match kind % 8 {
        0 => data.clear(),
        1 => *found = name,
        2 => {
            let copy = (name, *dtype, shape.clone(), data.clone());
            tensors.push(copy);
        }
        3 => {
            let words = data.as_chunks_mut::<4>().0;
            let at = usize::from(a) * words.len() / 256;
            if let Some(word) = words.get_mut(at) {
                *word = special;
            }
        }
        4 => data.as_chunks_mut::<4>().0.fill(special),
        5 => match a % 4 {
            0 => shape.push(1),
            1 => shape.reverse(),
            2 => *shape = vec![shape.iter().product()],
            _ => shape.push(0),
        },
        6 => {
            let size = dtype.bitsize() / 8;
            data.truncate(usize::from(a) * size);
            *shape = vec![data.len() / size.max(1)];
        }
        _ => {
            let types = [Dtype::F32, Dtype::U32, Dtype::I32, Dtype::U8, Dtype::F16, Dtype::F64, Dtype::BOOL];
            *dtype = types[usize::from(b) % types.len()];
            *shape = vec![data.len() * 8 / dtype.bitsize()];
        }
    }
    let mut names = HashSet::new();
    tensors.retain(|(name, dtype, shape, data)| {
        TensorView::new(*dtype, shape.clone(), data).is_ok() && names.insert(name.clone())
    });
}

fn file(head: &str, tensors: &[Plain]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let metadata = HashMap::from([("job".to_owned(), head.to_owned())]);
    headed(&safetensors::serialize(views, Some(metadata)).unwrap())
}

/// A whole file of a head and a real job's tensors, edited. Digests that are not this pipeline's are put
/// right, since no mutation would find them.
fn edited(fuzzed: &Fuzzed, data: &[u8]) -> Option<Vec<u8>> {
    let (&number, rest) = data.split_first()?;
    let mut parts = rest.splitn(2, |byte| *byte == 0);
    let mut head = String::from_utf8_lossy(parts.next()?).into_owned();
    let mut tensors = fuzzed.bases[usize::from(number) % fuzzed.bases.len()].tensors.clone();
    for record in parts.next().unwrap_or_default().as_chunks::<4>().0.iter().take(8) {
        edit(&mut tensors, *record);
    }
    let mut bytes = file(&head, &tensors);
    for _ in ["weights", "configs", "schedule"] {
        let resumed = fuzzed.pipeline.resume(&bytes, Resume::Inexact);
        let Err(Error::SavedJob(SavedJobError::OtherModel { what, expected, .. })) = resumed else {
            break;
        };
        let Ok(Value::Object(mut fields)) = serde_json::from_str(&head) else {
            break;
        };
        fields.insert(what.to_owned(), Value::String(expected));
        head = Value::Object(fields).to_string();
        bytes = file(&head, &tensors);
    }
    Some(bytes)
}

/// What was taken goes on, and can be saved and taken again.
fn go_on(pipeline: &Pipeline, mut job: Job) {
    let (step, total, size) = (job.step(), job.total(), job.size());
    assert!(step <= total, "{step} of {total}");
    pipeline.progress(&job).preview().unwrap();
    let saved = pipeline.save(&job).unwrap();
    let again = pipeline.resume(&saved, Resume::Exact).unwrap();
    assert_eq!((again.step(), again.total(), again.size()), (step, total, size));
    if job.is_done() {
        let _ = pipeline.finish(job);
    } else if pipeline.step(&mut [&mut job]).remove(0).is_ok() {
        assert_eq!(job.step(), step + 1);
    }
}

fn resume(pipeline: &Pipeline, bytes: &[u8]) {
    let exact = pipeline.resume(bytes, Resume::Exact);
    let inexact = pipeline.resume(bytes, Resume::Inexact);
    match (exact, inexact) {
        (Ok(job), Ok(_)) => go_on(pipeline, job),
        (Err(Error::SavedJob(SavedJobError::OtherMachine { .. })), Ok(job)) => go_on(pipeline, job),
        (Err(exact), Err(inexact)) => {
            // Every error can be told.
            let _ = (exact.to_string(), inexact.to_string());
        }
        (exact, inexact) => panic!("exactly {exact:?}, inexactly {inexact:?}"),
    }
}

fuzz_target!(
    init: {
        if let Some(folder) = std::env::var_os("SEEDS") {
            write_seeds(Path::new(&folder), &fuzzed().bases);
        }
    },
    |data: &[u8]| {
        let fuzzed = fuzzed();
        let Some((layer, rest)) = data.split_first() else {
            return;
        };
        let bytes = match layer % 3 {
            0 => Some(rest.to_vec()),
            1 => Some(headed(rest)),
            _ => edited(fuzzed, rest),
        };
        if let Some(bytes) = bytes {
            resume(&fuzzed.pipeline, &bytes);
        }
    }
);
