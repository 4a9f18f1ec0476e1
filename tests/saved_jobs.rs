//! A job that was saved and resumed gives the bits of one that never stopped; bytes that are no such job, or
//! belong elsewhere, are refused by what is wrong with them.
#![cfg(feature = "cpu")]

mod common;

use aquatint::samplers::SamplerError;
use aquatint::{
    DeviceChoice, Error, Generation, Guidance, Input, Pipeline, Precision, Request, Resume, Sampler,
    SavedJobError,
};
use common::{checkpoint, load_cpu, options};
use image::RgbImage;
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::collections::HashMap;
use xxhash_rust::xxh3::xxh3_128;

const HEADER: usize = 36;

fn bits(generation: &Generation) -> Vec<u32> {
    let raw = generation.raw.as_ref().unwrap();
    raw.latents.iter().chain(&raw.images).map(|value| value.to_bits()).collect()
}

fn picture() -> RgbImage {
    RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * 4) as u8, (y * 4) as u8, 90]))
}

fn request(sampler: Sampler, input: Input) -> Request {
    Request {
        input,
        steps: Some(5),
        sampler: Some(sampler),
        guidance: Some(Guidance::classifier_free(5.0).negative("blur").rescaled(0.3)),
        seed: u64::MAX,
        count: Some(2),
        keep_raw: true,
        ..Request::new("a ship at sea, storm")
    }
}

/// The request's job after `steps` steps, as bytes.
fn saved(pipeline: &Pipeline, request: &Request, steps: usize) -> Vec<u8> {
    let mut job = pipeline.start(request).unwrap();
    for _ in 0..steps {
        pipeline.step(&mut [&mut job]).remove(0).unwrap();
    }
    pipeline.save(&job).unwrap()
}

fn finished(pipeline: &Pipeline, bytes: &[u8], resume: Resume) -> Result<Generation, Error> {
    let mut job = pipeline.resume(bytes, resume)?;
    while !job.is_done() {
        pipeline.step(&mut [&mut job]).remove(0)?;
    }
    pipeline.finish(job)
}

#[test]
fn a_job_resumed_at_any_step_has_the_bits_of_one_that_never_stopped() {
    let (before, after) = (load_cpu("sd15"), load_cpu("sd15"));
    let mut compared = 0;
    for sampler in Sampler::ALL.into_iter().chain([Sampler::Ddim { eta: 0.7 }]) {
        for input in [Input::Text, Input::Image { image: picture(), strength: 0.7 }] {
            let request = request(sampler, input);
            let whole = before.generate(&request).unwrap();
            let total = before.start(&request).unwrap().total();
            for step in 0..=total {
                let resumed = finished(&after, &saved(&before, &request, step), Resume::Exact).unwrap();
                assert_eq!(bits(&resumed), bits(&whole), "{sampler} resumed at {step} of {total}");
                assert_eq!(resumed.images[1].parameters, whole.images[1].parameters);
                compared += 1;
            }
        }
    }
    assert!(compared > 100, "{compared}");
}

#[test]
fn a_resumed_job_is_the_saved_one_in_all_that_can_be_asked_of_it() {
    let pipeline = load_cpu("sd15");
    let request = Request {
        width: Some(80),
        height: Some(48),
        clip_skip: Some(1),
        prompt: "word, ".repeat(200),
        ..request(Sampler::Ddim { eta: 0.3 }, Input::Text)
    };
    let bytes = saved(&pipeline, &request, 3);
    let job = pipeline.resume(&bytes, Resume::Exact).unwrap();
    assert_eq!((job.step(), job.total(), job.size()), (3, 5, (80, 48)));
    assert_eq!(job.seeds().collect::<Vec<_>>(), [u64::MAX, 0]);
    let preview = pipeline.progress(&job).preview().unwrap();
    assert_eq!((preview.len(), preview[0].dimensions()), (2, (10, 6)));
    let notes = finished(&pipeline, &bytes, Resume::Exact).unwrap().report.notes;
    assert!(notes.len() == 1 && notes[0].contains("were cut"), "{notes:?}");
}

/// Runs the rest of the job with companions of other samplers, sizes and step counts.
#[test]
fn a_resumed_job_steps_in_company() {
    let pipeline = load_cpu("sd15");
    let request = request(Sampler::DpmPlusPlus2MSde, Input::Text);
    let mut resumed = pipeline.resume(&saved(&pipeline, &request, 2), Resume::Exact).unwrap();
    let mut other = pipeline.start(&Request { steps: Some(9), ..Request::new("a fox") }).unwrap();
    while !resumed.is_done() {
        for result in pipeline.step(&mut [&mut other, &mut resumed]) {
            result.unwrap();
        }
    }
    let whole = pipeline.generate(&request).unwrap();
    assert_eq!(bits(&pipeline.finish(resumed).unwrap()), bits(&whole));
}

fn refused(pipeline: &Pipeline, bytes: &[u8]) -> SavedJobError {
    match pipeline.resume(bytes, Resume::Inexact).map(|_| ()) {
        Err(Error::SavedJob(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_job_of_other_weights_or_another_config_is_refused_even_inexactly() {
    let pipeline = load_cpu("sd15");
    let bytes = saved(&pipeline, &request(Sampler::Euler, Input::Text), 2);
    let other = load_cpu("old_names");
    assert!(matches!(refused(&other, &bytes), SavedJobError::OtherModel { what: "weights", .. }));
    let changed = common::parity::with_scheduler("sd15", &json!({"beta_end": 0.013}));
    let other = Pipeline::load(changed.path(), options(DeviceChoice::Cpu, Precision::F32)).unwrap();
    assert!(matches!(refused(&other, &bytes), SavedJobError::OtherModel { what: "configs", .. }));
}

#[test]
fn a_job_of_another_precision_goes_on_only_where_that_is_allowed_and_says_so() {
    let pipeline = load_cpu("sd15");
    let bytes = saved(&pipeline, &request(Sampler::Euler, Input::Text), 2);
    let half = Pipeline::load(checkpoint("sd15"), options(DeviceChoice::Cpu, Precision::F16)).unwrap();
    match half.resume(&bytes, Resume::Exact).unwrap_err() {
        Error::SavedJob(SavedJobError::OtherMachine { expected, found }) => {
            assert!(expected.contains("in f16") && found.contains("in f32"), "{expected} {found}");
        }
        other => panic!("{other}"),
    }
    let generation = finished(&half, &bytes, Resume::Inexact).unwrap();
    let notes = &generation.report.notes;
    assert!(notes.iter().any(|note| note.contains("resumed after step 2")), "{notes:?}");
}

#[test]
fn bytes_that_end_early_or_go_on_are_refused() {
    let pipeline = load_cpu("sd15");
    let bytes = saved(&pipeline, &request(Sampler::Euler, Input::Text), 1);
    for length in (0..HEADER).chain((HEADER..bytes.len()).step_by(997)) {
        match refused(&pipeline, &bytes[..length]) {
            SavedJobError::TooShort { expected: HEADER, found } => {
                assert!(found == length && length < HEADER)
            }
            SavedJobError::Length { expected, found } => {
                assert_eq!((expected, found), ((bytes.len() - HEADER) as u64, (length - HEADER) as u64));
            }
            other => panic!("{length}: {other}"),
        }
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(matches!(refused(&pipeline, &longer), SavedJobError::Length { .. }));
    let other = [b"PNG".as_slice(), &bytes].concat();
    assert!(matches!(refused(&pipeline, &other), SavedJobError::NotASavedJob { .. }));
    for found in [1, 3] {
        let mut other = bytes.clone();
        other[8] = found;
        let found = u32::from(found);
        assert_eq!(refused(&pipeline, &other), SavedJobError::Version { expected: 2, found });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_flipped_bit_goes_unseen(at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let pipeline = load_cpu("sd15");
        let mut bytes = saved(&pipeline, &Request { steps: Some(2), ..Request::new("a fox") }, 1);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(matches!(pipeline.resume(&bytes, Resume::Exact), Err(Error::SavedJob(_))));
    }
}

type Plain = (String, Dtype, Vec<usize>, Vec<u8>);

/// The bytes with another head and other tensors, under a checksum that holds.
fn edited(bytes: &[u8], change: impl FnOnce(&mut Value, &mut Vec<Plain>)) -> Vec<u8> {
    let body = &bytes[HEADER..];
    let (_, metadata) = SafeTensors::read_metadata(body).unwrap();
    let mut head = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["job"]).unwrap();
    let mut tensors: Vec<Plain> = SafeTensors::deserialize(body)
        .unwrap()
        .iter()
        .map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    change(&mut head, &mut tensors);
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let metadata = HashMap::from([("job".to_owned(), head.to_string())]);
    let body = safetensors::serialize(views, Some(metadata)).unwrap();
    let mut bytes = bytes[..12].to_vec();
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(xxh3_128(&body).to_le_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn a_whole_file_that_no_job_can_be_is_refused_by_the_part_that_is_wrong() {
    let pipeline = load_cpu("sd15");
    let bytes = saved(&pipeline, &request(Sampler::DpmPlusPlus2M, Input::Text), 2);
    let same = edited(&bytes, |_, _| ());
    pipeline.resume(&same, Resume::Exact).unwrap();
    let head = |path: &str, value: Value| edited(&bytes, |head, _| *head.pointer_mut(path).unwrap() = value);
    let tensor = |name: &str, change: &dyn Fn(&mut Plain)| {
        edited(&bytes, |_, tensors| change(tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap()))
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (head("/step", json!(6)), "the step"),
        (head("/rows/1/seed", json!(5)), "the seed of row 1"),
        (head("/rows/0/position", json!(625)), "row.0.generator"),
        (head("/request/count", json!(3)), "the rows"),
        (head("/request/prompt", json!(5)), "metadata `job`"),
        (head("/applied", json!({"requested": "20 steps", "actual": "4 steps"})), "metadata `job`"),
        (tensor("row.1.latents", &|t| t.3[..4].copy_from_slice(&f32::NAN.to_le_bytes())), "row.1.latents"),
        (tensor("row.0.latents", &|t| t.2 = vec![t.3.len() / 4]), "row.0.latents"),
        (tensor("text.positive", &|t| t.0 = "text.other".to_owned()), "text.positive"),
        (tensor("row.0.generator", &|t| t.3.fill(0)), "row.0.generator"),
        (edited(&bytes, |_, t| t.retain(|t| t.0 != "row.1.register.0")), "row.1.register.0"),
        (edited(&bytes, |_, t| t.retain(|t| t.0 != "row.0.denoised")), "row.0.denoised"),
        (head("/step", json!(0)), "row.0.denoised"),
        (edited(&bytes, |_, t| t.push(("more".into(), Dtype::U8, vec![1], vec![0]))), "more"),
        (edited(&bytes, |_, t| t.push(("more".into(), Dtype::F64, vec![1], vec![0; 8]))), "more"),
    ];
    for (bytes, part) in cases {
        match refused(&pipeline, &bytes) {
            SavedJobError::Content { what, .. } => assert_eq!(what, part),
            other => panic!("{part}: {other}"),
        }
    }
    let schedule = head("/request/steps", json!(7));
    assert!(matches!(refused(&pipeline, &schedule), SavedJobError::OtherModel { what: "schedule", .. }));
    let sampler = pipeline.resume(&head("/request/sampler", json!("dpmpp")), Resume::Exact);
    assert!(matches!(sampler, Err(Error::Sampler(SamplerError::UnknownSampler { .. }))));
    let size = pipeline.resume(&head("/request/width", json!(7)), Resume::Exact);
    assert!(matches!(size, Err(Error::Request(_))));
}

#[test]
fn a_job_of_another_pipeline_is_not_saved() {
    let (one, other) = (load_cpu("sd15"), load_cpu("sd15"));
    let job = one.start(&Request::new("a fox")).unwrap();
    assert!(matches!(other.save(&job), Err(Error::ForeignJob { .. })));
}
