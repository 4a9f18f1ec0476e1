//! Requests that cannot be carried out get a typed error, and the pipeline goes on working.
#![cfg(feature = "cpu")]

mod common;

use std::ops::ControlFlow;

#[cfg(feature = "embedded")]
use aquatint::LoadOptions;
use aquatint::device::DeviceError;
use aquatint::request::RequestError;
use aquatint::samplers::SamplerError;
use aquatint::{DeviceChoice, Error, Guidance, Input, Pipeline, Precision, Request};
use common::{checkpoint, load_cpu, options};
use image::RgbImage;

fn quick() -> Request {
    Request { steps: Some(2), keep_raw: true, ..Request::new("a fox") }
}

fn refused(request: &Request) -> Error {
    let pipeline = load_cpu("sd15");
    let error = pipeline.generate(request).unwrap_err();
    assert!(pipeline.generate(&quick()).is_ok(), "the pipeline works after an error");
    error
}

fn image_request(strength: f32) -> Request {
    Request { input: Input::Image { image: RgbImage::new(64, 64), strength }, ..quick() }
}

#[test]
fn sizes_that_the_autoencoder_cannot_halve_are_refused_by_name() {
    for (side, expected) in [(0, "1..=16384"), (7, "a multiple of 8 up to 16384"), (100_000, "1..=16384")] {
        let wide = refused(&Request { width: Some(side), ..quick() });
        assert!(
            matches!(&wide, Error::Request(RequestError::Size { field: "width", expected: e, found }) if e == expected && *found == side),
            "{wide}"
        );
        let high = refused(&Request { height: Some(side), ..quick() });
        assert!(
            matches!(&high, Error::Request(RequestError::Size { field: "height", found, .. }) if *found == side)
        );
    }
}

/// Only Linux says how much memory is free.
#[cfg(target_os = "linux")]
#[test]
fn pictures_that_no_machine_could_hold_are_refused_before_they_are_begun() {
    let request = Request { width: Some(16_384), height: Some(16_384), count: Some(1_024), ..quick() };
    match refused(&request) {
        Error::Memory { needed, available, .. } => assert!(needed > available),
        other => panic!("{other}"),
    }
}

#[test]
fn step_counts_outside_the_schedule_are_refused() {
    for steps in [0, 10_000] {
        let error = refused(&Request { steps: Some(steps), ..quick() });
        assert!(
            matches!(&error, Error::Sampler(SamplerError::Steps { found, .. }) if *found == steps),
            "{error:?}"
        );
    }
}

#[test]
fn strengths_outside_zero_to_one_are_refused() {
    for strength in [f32::NAN, -0.1, 1.1, f32::INFINITY, f32::NEG_INFINITY] {
        let error = refused(&image_request(strength));
        assert!(matches!(error, Error::Request(RequestError::Strength { .. })), "{error}");
    }
    let nothing_left = refused(&image_request(0.0));
    assert!(matches!(nothing_left, Error::Sampler(SamplerError::NoStepLeft { .. })), "{nothing_left:?}");
}

#[test]
fn guidance_outside_its_ranges_is_refused() {
    let guided = |guidance| refused(&Request { guidance: Some(guidance), ..quick() });
    for scale in [f32::NAN, -1.0, f32::INFINITY, f32::NEG_INFINITY] {
        let error = guided(Guidance::classifier_free(scale));
        assert!(matches!(error, Error::Request(RequestError::GuidanceScale { .. })), "{error}");
    }
    for rescale in [f32::NAN, -0.1, 1.5] {
        let error = guided(Guidance::classifier_free(5.0).rescaled(rescale));
        assert!(matches!(error, Error::Request(RequestError::GuidanceRescale { .. })), "{error}");
    }
    for (start, end) in [(0.8, 0.2), (f32::NAN, 1.0), (0.0, 2.0)] {
        let error = guided(Guidance::classifier_free(5.0).within(start..=end));
        assert!(matches!(error, Error::Request(RequestError::GuidanceInterval { .. })), "{error}");
    }
}

#[test]
fn counts_and_layers_outside_their_ranges_are_refused() {
    for count in [0, 5_000] {
        let error = refused(&Request { count: Some(count), ..quick() });
        assert!(matches!(error, Error::Request(RequestError::Count { found, .. }) if found == count));
    }
    let error = refused(&Request { clip_skip: Some(99), ..quick() });
    assert!(matches!(error, Error::Request(RequestError::ClipSkip { found: 99, max: 3 })), "{error}");
    let error = refused(&Request { prompt: "x".repeat(2 << 20), ..quick() });
    assert!(matches!(error, Error::Request(RequestError::PromptTooLong { field: "prompt", .. })), "{error}");
}

#[test]
fn an_input_picture_without_pixels_is_refused() {
    let request = Request { input: Input::Image { image: RgbImage::new(0, 9), strength: 0.5 }, ..quick() };
    assert!(matches!(refused(&request), Error::Request(RequestError::EmptyImage { width: 0, height: 9 })));
}

#[test]
fn strange_prompts_draw_something() {
    let pipeline = load_cpu("sd15");
    for prompt in
        ["", "🦊🦊 🌈", "تفاحة حمراء", "\u{0}\u{1b}[31m\n\t", "<|endoftext|> fox", "e\u{301}\u{202e}"]
    {
        assert!(pipeline.generate(&Request { prompt: prompt.into(), ..quick() }).is_ok(), "{prompt:?}");
    }
}

#[test]
fn a_prompt_that_is_too_long_is_cut_and_the_report_says_so() {
    let request = Request { prompt: "fox and ".repeat(1250), ..quick() };
    assert_eq!(request.prompt.len(), 10_000);
    let generation = load_cpu("sd15").generate(&request).unwrap();
    assert!(
        generation.report.notes.iter().any(|note| note.contains("tokens were cut")),
        "{:?}",
        generation.report.notes
    );
}

#[test]
fn devices_that_are_not_there_are_named() {
    let load =
        |device, precision| Pipeline::load(checkpoint("sd15"), options(device, precision)).unwrap_err();
    let error = load(DeviceChoice::Cuda(17), Precision::Auto);
    assert!(
        matches!(
            error,
            Error::Device(DeviceError::NotBuilt { feature: "cuda", .. } | DeviceError::NotFound { .. })
        ),
        "{error}"
    );
    if !cfg!(feature = "wgpu") {
        let error = load(DeviceChoice::Wgpu, Precision::Auto);
        assert!(matches!(error, Error::Device(DeviceError::NotBuilt { feature: "wgpu", .. })), "{error}");
    }
}

#[test]
fn breaking_in_the_callback_cancels_within_one_step() {
    let pipeline = load_cpu("sd15");
    let mut seen = Vec::new();
    let request = Request { steps: Some(9), ..quick() };
    let result = pipeline.generate_with(&request, |progress| {
        seen.push((progress.step, progress.total));
        if progress.step == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(result, Err(Error::Cancelled { step: 3, .. })), "{result:?}");
    assert_eq!(seen.len(), 3);
}

#[test]
fn progress_counts_every_model_evaluation_and_shows_a_preview() {
    let pipeline = load_cpu("sd15");
    let mut steps = Vec::new();
    let request =
        Request { steps: Some(4), sampler: Some(aquatint::Sampler::Euler), count: Some(2), ..quick() };
    pipeline
        .generate_with(&request, |progress| {
            let previews = progress.preview().unwrap();
            assert!(previews.len() == 2 && previews.iter().all(|preview| preview.dimensions() == (8, 8)));
            assert_eq!(progress.total, 4);
            steps.push(progress.step);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(steps, [1, 2, 3, 4]);
}

#[test]
fn jobs_are_finished_after_their_last_step_by_their_own_pipeline() {
    let (one, other) = (load_cpu("sd15"), load_cpu("sd21"));
    let mut job = one.start(&quick()).unwrap();
    let results = other.step(&mut [&mut job]);
    assert!(matches!(results[0], Err(Error::ForeignJob { .. })));
    assert_eq!(job.step(), 0);
    assert!(matches!(one.finish(job), Err(Error::Unfinished { done: 0, .. })));
    // The same weights in another precision are another pipeline, and a foreign job disturbs no neighbour.
    let half = Pipeline::load(checkpoint("sd15"), options(DeviceChoice::Cpu, Precision::F16)).unwrap();
    let (mut own, mut foreign) = (half.start(&quick()).unwrap(), one.start(&quick()).unwrap());
    let results = half.step(&mut [&mut own, &mut foreign]);
    assert!(results[0].is_ok() && matches!(results[1], Err(Error::ForeignJob { .. })), "{results:?}");
}

#[cfg(feature = "embedded")]
#[test]
fn previews_show_the_colours_that_the_decoder_shows() {
    let pipeline =
        Pipeline::embedded(LoadOptions { device: DeviceChoice::Cpu, ..LoadOptions::default() }).unwrap();
    for (prompt, channel) in [("a red apple on a blue background", 2), ("a banana on a red background", 0)] {
        let mut preview = None;
        let generation = pipeline
            .generate_with(&Request { steps: Some(10), seed: 3, ..Request::new(prompt) }, |progress| {
                preview = progress.preview().unwrap().pop();
                ControlFlow::Continue(())
            })
            .unwrap();
        let (small, full) = (mean_colour(&preview.unwrap()), mean_colour(&generation.images[0].pixels));
        for (small, full) in small.into_iter().zip(full) {
            assert!((small - full).abs() < 40.0, "{prompt}: preview {small:?}, picture {full:?}");
        }
        assert!((0..3).all(|other| small[channel] >= small[other]), "{prompt}: {small:?}");
    }
}

#[cfg(feature = "embedded")]
fn mean_colour(image: &RgbImage) -> [f64; 3] {
    let count = f64::from(image.width() * image.height());
    [0, 1, 2].map(|channel| image.pixels().map(|pixel| f64::from(pixel.0[channel])).sum::<f64>() / count)
}
