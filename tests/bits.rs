//! A picture's bits depend on its own request alone: not on the batch, the order, a neighbour or a thread.
#![cfg(feature = "cpu")]

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread;

use aquatint::{Error, Generation, Guidance, Input, Job, Pipeline, Request, Sampler};
use common::load_cpu;
use image::RgbImage;
use proptest::collection::vec;
use proptest::prelude::*;

/// Latents and floats of every picture, as bits.
fn bits(generation: &Generation) -> Vec<u32> {
    let raw = generation.raw.as_ref().unwrap();
    raw.latents.iter().chain(&raw.images).map(|value| value.to_bits()).collect()
}

fn picture() -> RgbImage {
    RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * 4) as u8, (y * 4) as u8, 90]))
}

fn any_request() -> impl Strategy<Value = Request> {
    let guidance = prop_oneof![
        Just(Guidance::None),
        Just(Guidance::classifier_free(5.0).negative("blur")),
        Just(Guidance::classifier_free(7.5).rescaled(0.5)),
        Just(Guidance::classifier_free(3.0).within(0.2..=0.6)),
    ];
    let input = prop_oneof![3 => Just(None), 1 => Just(Some(0.6f32))];
    let prompts = prop_oneof![Just("a red apple"), Just(""), Just("a ship at sea, storm")];
    (prompts, 0..Sampler::ALL.len(), 2..6usize, guidance, input, 0..1000u64, 1..3u32, any::<bool>()).prop_map(
        |(prompt, sampler, steps, guidance, input, seed, count, wide)| Request {
            input: input.map_or(Input::Text, |strength| Input::Image { image: picture(), strength }),
            width: Some(if wide { 80 } else { 64 }),
            height: Some(64),
            steps: Some(steps),
            guidance: Some(guidance),
            sampler: Some(Sampler::ALL[sampler]),
            seed,
            count: Some(count),
            keep_raw: true,
            ..Request::new(prompt)
        },
    )
}

/// Steps jobs together that start and end at different times, in an order that changes.
fn run_mixed(pipeline: &Pipeline, requests: &[Request]) -> Vec<Generation> {
    let mut waiting: Vec<(usize, Job)> =
        requests.iter().enumerate().map(|(i, request)| (i, pipeline.start(request).unwrap())).collect();
    let (mut running, mut done): (Vec<(usize, Job)>, HashMap<usize, Generation>) = Default::default();
    while done.len() < requests.len() {
        running.extend(waiting.pop());
        running.reverse();
        let mut jobs: Vec<&mut Job> = running.iter_mut().map(|(_, job)| job).collect();
        for result in pipeline.step(&mut jobs) {
            result.unwrap();
        }
        for (index, job) in running.extract_if(.., |(_, job)| job.is_done()) {
            done.insert(index, pipeline.finish(job).unwrap());
        }
    }
    (0..requests.len()).map(|index| done.remove(&index).unwrap()).collect()
}

/// Many jobs start together and end together, in shared launches of the text encoder and the decoder.
#[test]
fn jobs_that_are_encoded_and_decoded_together_have_the_bits_of_jobs_alone() {
    let pipeline = load_cpu("sd15");
    let prompts = ["a red apple", "a ship at sea, storm", "", "a red apple"];
    let requests: Vec<Request> = (0..8)
        .map(|index| Request {
            width: Some(if index == 5 { 80 } else { 64 }),
            height: Some(64),
            steps: Some(2),
            clip_skip: (index == 3).then_some(1),
            guidance: Some(Guidance::classifier_free(5.0).negative(prompts[(index + 1) % 4])),
            input: match index % 3 {
                0 => Input::Image { image: picture(), strength: 0.6 },
                _ => Input::Text,
            },
            seed: index as u64,
            count: Some(1 + index as u32 % 2),
            keep_raw: true,
            ..Request::new(prompts[index % 4])
        })
        .collect();
    let bad = Request { width: Some(7), ..requests[0].clone() };
    let mut all: Vec<&Request> = requests.iter().collect();
    all.insert(4, &bad);
    let mut jobs = pipeline.start_batch(&all);
    assert!(matches!(jobs[4], Err(Error::Request(_))));
    let encoding: Vec<_> = jobs.iter_mut().flatten().collect();
    assert_eq!(encoding.len(), requests.len());
    let mut running = encoding;
    while running.iter().any(|job| !job.is_done()) {
        pipeline.step(&mut running).into_iter().for_each(|result| result.unwrap());
    }
    // One that has steps left is refused, and its neighbours are decoded.
    jobs.push(pipeline.start(&requests[1]));
    let mut finished = pipeline.finish_batch(jobs);
    assert!(matches!(finished.pop(), Some(Err(Error::Unfinished { done: 0, .. }))));
    assert!(matches!(finished.remove(4), Err(Error::Request(_))));
    for (request, together) in requests.iter().zip(finished) {
        let (alone, together) = (pipeline.generate(request).unwrap(), together.unwrap());
        assert!(bits(&together) == bits(&alone), "{request:?}");
        assert_eq!(together.report.notes, alone.report.notes);
        for (one, other) in together.images.iter().zip(&alone.images) {
            assert_eq!(
                (one.seed, &one.parameters, &one.pixels),
                (other.seed, &other.parameters, &other.pixels)
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_picture_has_the_same_bits_alone_and_in_any_company(requests in vec(any_request(), 2..5)) {
        let pipeline = load_cpu("sd15");
        let alone: Vec<_> = requests.iter().map(|request| bits(&pipeline.generate(request).unwrap())).collect();
        let batched: Vec<_> =
            pipeline.generate_batch(&requests).iter().map(|result| bits(result.as_ref().unwrap())).collect();
        let mixed: Vec<_> = run_mixed(&pipeline, &requests).iter().map(bits).collect();
        prop_assert!(alone == batched, "batched differs from alone");
        prop_assert!(alone == mixed, "mixed differs from alone");
    }
}

#[test]
fn four_pictures_of_one_request_are_those_of_four_requests() {
    let pipeline = load_cpu("sd15");
    for sampler in [Sampler::EulerAncestral, Sampler::DpmPlusPlus2MSde, Sampler::Lcm, Sampler::Pndm] {
        let request = Request {
            sampler: Some(sampler),
            steps: Some(4),
            seed: u64::MAX - 1,
            keep_raw: true,
            ..Request::new("a fox")
        };
        let four = pipeline.generate(&Request { count: Some(4), ..request.clone() }).unwrap();
        let single = |seed| pipeline.generate(&Request { seed, ..request.clone() }).unwrap();
        // Seeds count up and wrap.
        let seeds = [u64::MAX - 1, u64::MAX, 0, 1];
        assert_eq!(four.images.iter().map(|picture| picture.seed).collect::<Vec<_>>(), seeds);
        let latents: Vec<f32> =
            seeds.into_iter().flat_map(|seed| single(seed).raw.unwrap().latents).collect();
        assert!(
            four.raw.as_ref().unwrap().latents.iter().zip(&latents).all(|(a, b)| a.to_bits() == b.to_bits())
        );
        for (picture, seed) in four.images.iter().zip(seeds) {
            assert_eq!(picture.pixels, single(seed).images[0].pixels, "{sampler} {seed}");
        }
    }
}

#[test]
fn threads_that_share_a_pipeline_get_the_bits_of_one_after_the_other() {
    let pipeline = load_cpu("sd15");
    let request = |seed| Request { steps: Some(3), seed, keep_raw: true, ..Request::new("an owl in a tree") };
    let serial: Vec<_> = (0..6).map(|seed| bits(&pipeline.generate(&request(seed)).unwrap())).collect();
    let parallel = Arc::new(Mutex::new(vec![Vec::new(); serial.len()]));
    thread::scope(|scope| {
        for seed in 0..serial.len() {
            let (pipeline, parallel) = (pipeline.clone(), parallel.clone());
            scope.spawn(move || {
                let found = bits(&pipeline.generate(&request(seed as u64)).unwrap());
                parallel.lock().unwrap()[seed] = found;
            });
        }
    });
    assert!(*parallel.lock().unwrap() == serial);
}

/// Latents that overflow are found after steps that the neighbours shared.
#[test]
fn a_picture_that_overflows_leaves_its_neighbours_bits_alone() {
    let pipeline = load_cpu("sd15");
    let good = |seed| Request { steps: Some(4), seed, keep_raw: true, ..Request::new("a moon") };
    let bad = Request { guidance: Some(Guidance::classifier_free(3e38)), ..good(6) };
    let requests = [good(5), bad, good(7)];
    let results = pipeline.generate_batch(&requests);
    assert!(matches!(results[1], Err(Error::NonFinite { step: Some(1..), .. })), "{:?}", results[1]);
    for index in [0, 2] {
        let alone = pipeline.generate(&requests[index]).unwrap();
        assert!(bits(results[index].as_ref().unwrap()) == bits(&alone));
    }
}

#[test]
fn a_request_that_fails_leaves_its_neighbours_bits_alone() {
    let pipeline = load_cpu("sd15");
    let good = Request { steps: Some(3), seed: 5, keep_raw: true, ..Request::new("a moon") };
    let bad = Request { width: Some(7), ..good.clone() };
    let results = pipeline.generate_batch(&[good.clone(), bad, good.clone()]);
    let alone = bits(&pipeline.generate(&good).unwrap());
    assert!(matches!(results[1], Err(Error::Request(_))));
    assert!([0, 2].into_iter().all(|index| bits(results[index].as_ref().unwrap()) == alone));
}
