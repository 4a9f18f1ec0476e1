//! wgpu against diffusers, on whatever adapter there is. Without one, or with one that computes wrongly,
//! every test is reported as ignored, with the reason.

mod common;
#[path = "common/leave.rs"]
mod leave;

use std::ops::ControlFlow;

use aquatint::{
    DeviceChoice, Error, Generation, Guidance, LoadOptions, Pipeline, Precision, Request, Sampler, Stage,
};
use common::parity::{self, Limits};
use common::{Expected, checkpoint, options};
use leave::leave;
use libtest_mimic::{Arguments, Failed, Trial};

const LIMITS: Limits = Limits { single: 1e-3, whole: 5e-3 };

fn load(name: &str, precision: Precision) -> Pipeline {
    Pipeline::load(checkpoint(name), options(DeviceChoice::Wgpu, precision)).unwrap()
}

fn quick() -> Request {
    Request { steps: Some(2), keep_raw: true, ..Request::new("a fox") }
}

fn bits(generation: &Generation) -> Vec<u32> {
    generation.raw.as_ref().unwrap().latents.iter().map(|value| value.to_bits()).collect()
}

fn every_network_matches_diffusers() {
    for name in ["sd15", "sd21", "odd"] {
        let (pipeline, expected) = (load(name, Precision::F32), Expected::read(name));
        parity::text(&pipeline, &expected, LIMITS);
        parity::networks(&pipeline, &expected, LIMITS);
    }
}

fn every_sampler_matches_diffusers() {
    let (pipeline, expected) = (load("sd15", Precision::F32), Expected::read("sd15"));
    let five_steps = |case: &serde_json::Value| case["case"].as_str().unwrap().ends_with("_5");
    let ran = parity::pictures(&|_| pipeline.clone(), &expected, "text_to_image", LIMITS, &five_steps);
    assert_eq!(ran, 9);
    let some = |case: &serde_json::Value| ["ddim_75", "euler_a_30"].contains(&case["case"].as_str().unwrap());
    assert_eq!(parity::pictures(&|_| pipeline.clone(), &expected, "image_to_image", LIMITS, &some), 2);
}

fn half_precision_stays_near_diffusers() {
    let (pipeline, expected) = (load("sd15", Precision::F16), Expected::read("sd15"));
    assert_eq!(pipeline.precision(), Precision::F16);
    let limits = Limits { single: 2e-2, whole: 1e-1 };
    parity::text(&pipeline, &expected, limits);
    parity::networks(&pipeline, &expected, limits);
}

fn a_precision_that_the_adapter_lacks_is_refused() {
    match Pipeline::load(checkpoint("sd15"), options(DeviceChoice::Wgpu, Precision::Bf16)) {
        Ok(pipeline) => assert_eq!(pipeline.precision(), Precision::Bf16),
        Err(error) => {
            assert!(
                matches!(error, Error::Device(aquatint::device::DeviceError::Precision { .. })),
                "{error}"
            );
        }
    }
}

fn four_pictures_of_one_request_are_those_of_four_requests() {
    let pipeline = load("sd15", Precision::F32);
    let request = Request { sampler: Some(Sampler::EulerAncestral), seed: 8, ..quick() };
    let four = bits(&pipeline.generate(&Request { count: Some(4), ..request.clone() }).unwrap());
    let single: Vec<u32> = (8..12)
        .flat_map(|seed| bits(&pipeline.generate(&Request { seed, ..request.clone() }).unwrap()))
        .collect();
    assert!(four == single);
}

/// The step counts them, so that no more is computed of them.
fn latents_that_overflow_are_found_before_the_last_step() {
    let pipeline = load("sd15", Precision::F32);
    let guidance = Some(Guidance::classifier_free(3e38));
    let request = Request { steps: Some(4), guidance, ..Request::new("a fox") };
    let mut steps = 0;
    let generated = pipeline.generate_with(&request, |progress| {
        steps = progress.step;
        ControlFlow::Continue(())
    });
    assert!(matches!(generated, Err(Error::NonFinite { stage: Stage::Denoise, .. })));
    assert!(steps < 3, "{steps}");
}

/// Steps do not wait for the device: only `finish` sees them, and names the step that `generate` would have stopped at. The
/// neighbours' pictures are their own.
fn a_picture_that_overflows_names_its_step_and_leaves_its_neighbours_bits_alone() {
    let pipeline = load("sd15", Precision::F32);
    let good = |seed| Request { steps: Some(4), seed, keep_raw: true, ..Request::new("a moon") };
    let bad = Request { guidance: Some(Guidance::classifier_free(3e38)), ..good(6) };
    let requests = [good(5), bad, good(7)];
    let results = pipeline.generate_batch(&requests);
    let named = |result: &aquatint::Result<Generation>| match result {
        Err(Error::NonFinite { stage: Stage::Denoise, step: Some(step), .. }) => *step,
        other => panic!("{other:?}"),
    };
    let mut done = 0;
    let stopped = pipeline.generate_with(&requests[1], |progress| {
        done = progress.step;
        ControlFlow::Continue(())
    });
    assert_eq!(named(&stopped), done + 1);
    assert_eq!(named(&results[1]), done + 1);
    for index in [0, 2] {
        let alone = pipeline.generate(&requests[index]).unwrap();
        assert!(bits(results[index].as_ref().unwrap()) == bits(&alone));
    }
}

/// More rows than the device holds in one tensor, where a launch fails that nobody waits for: software Vulkan has 128 MiB.
#[cfg(feature = "embedded")]
fn rows_that_no_tensor_holds_are_launched_in_parts_of_whole_pictures() {
    let previews = |max_batch, count| {
        let options = LoadOptions { device: DeviceChoice::Wgpu, precision: Precision::F32, max_batch };
        let pipeline = Pipeline::embedded(options).unwrap();
        let mut job = pipeline.start(&Request { count: Some(count), ..quick() }).unwrap();
        pipeline.step(&mut [&mut job]).remove(0).unwrap();
        pipeline.progress(&job).preview().unwrap()
    };
    // 768 channels of 64 tokens are 192 KiB a row, and a picture has two of them.
    let (all, few) = (previews(usize::MAX, 345), previews(16, 3));
    assert_eq!((all.len(), few.len()), (345, 3));
    assert!(all[..3] == few && all[3..].iter().all(|preview| !few.contains(preview)));
}

fn memory_that_runs_out_is_an_error_and_the_pipeline_works_after_it() {
    let pipeline = load("sd15", Precision::F32);
    let before = bits(&pipeline.generate(&quick()).unwrap());
    let huge = Request { width: Some(8192), height: Some(8192), ..quick() };
    let error = pipeline.generate(&huge).unwrap_err();
    assert!(matches!(error, Error::Device(_) | Error::Memory { .. }), "{error:?}");
    assert!(bits(&pipeline.generate(&quick()).unwrap()) == before);
}

/// Only a build with the feature has the types of the handles.
#[cfg(feature = "wgpu")]
fn an_application_can_hand_over_its_wgpu_device() {
    use burn::tensor::wgpu::WgpuBackend;
    use burn::tensor::{Device, DeviceKind};

    // Stands for the application: a device of its own, whose handles burn then shares.
    let kinds = [
        DeviceKind::DiscreteGpu(0),
        DeviceKind::IntegratedGpu(0),
        DeviceKind::VirtualGpu(0),
        DeviceKind::Cpu,
    ];
    let setup = kinds
        .into_iter()
        .find_map(|kind| {
            Device::wgpu_options().device_kind(kind).graphics_api(WgpuBackend::Vulkan).init_with_setup().ok()
        })
        .map(|(_, setup)| setup)
        .unwrap();
    let device = Device::wgpu_options().setup(setup).init().unwrap();
    let pipeline =
        Pipeline::load(checkpoint("sd15"), options(DeviceChoice::Existing(device), Precision::F32)).unwrap();
    let expected = Expected::read("sd15");
    parity::networks(&pipeline, &expected, LIMITS);
}

/// Why wgpu cannot be tested here, or nothing.
fn reason() -> Option<String> {
    Pipeline::load(checkpoint("sd15"), options(DeviceChoice::Wgpu, Precision::F32))
        .err()
        .map(|error| error.to_string())
}

fn main() {
    let arguments = Arguments::from_args();
    let tests: &[(&str, fn())] = &[
        ("every_network_matches_diffusers", every_network_matches_diffusers),
        ("every_sampler_matches_diffusers", every_sampler_matches_diffusers),
        ("half_precision_stays_near_diffusers", half_precision_stays_near_diffusers),
        ("a_precision_that_the_adapter_lacks_is_refused", a_precision_that_the_adapter_lacks_is_refused),
        (
            "four_pictures_of_one_request_are_those_of_four_requests",
            four_pictures_of_one_request_are_those_of_four_requests,
        ),
        (
            "latents_that_overflow_are_found_before_the_last_step",
            latents_that_overflow_are_found_before_the_last_step,
        ),
        (
            "a_picture_that_overflows_names_its_step_and_leaves_its_neighbours_bits_alone",
            a_picture_that_overflows_names_its_step_and_leaves_its_neighbours_bits_alone,
        ),
        #[cfg(feature = "embedded")]
        (
            "rows_that_no_tensor_holds_are_launched_in_parts_of_whole_pictures",
            rows_that_no_tensor_holds_are_launched_in_parts_of_whole_pictures,
        ),
        (
            "memory_that_runs_out_is_an_error_and_the_pipeline_works_after_it",
            memory_that_runs_out_is_an_error_and_the_pipeline_works_after_it,
        ),
        #[cfg(feature = "wgpu")]
        ("an_application_can_hand_over_its_wgpu_device", an_application_can_hand_over_its_wgpu_device),
    ];
    // The application's device is made first, before anything else has opened that adapter.
    let reason = if arguments.list { None } else { reason() };
    // Where an adapter must be there, its absence is a failure.
    if let (Some(reason), Ok(_)) = (&reason, std::env::var("AQUATINT_REQUIRE_WGPU")) {
        eprintln!("wgpu is required here: {reason}");
        std::process::exit(1);
    }
    let trials = tests
        .iter()
        .map(|(name, test)| {
            let trial = Trial::test(*name, move || {
                test();
                Ok::<(), Failed>(())
            });
            match &reason {
                Some(reason) => trial.with_kind(reason.clone()).with_ignored_flag(true),
                None => trial,
            }
        })
        .collect();
    leave(&libtest_mimic::run(&arguments, trials));
}
