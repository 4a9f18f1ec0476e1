//! The embedded model behind the engine with a second model beside it, on the CPU.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use aquatint::engine::{
    Applied, Backend, Degrade, DegradeReason, Distilled, EngineOptions, Finished, Limits, Model,
    PipelineBackend, PipelineEngine, Reason, Submission,
};
use aquatint::{
    DeviceChoice, Error, Generation, Guidance, LoadOptions, Pipeline, Request, Sampler, SavedJobError,
};

use crate::common::quiet;
use crate::real::{PATIENCE, bits, free, limits, output, pipeline, stepped};

const AGREED: Degrade = Degrade { min_steps: None, distilled: true, min_side: None };

fn load(folder: &Path) -> Pipeline {
    Pipeline::load(folder, LoadOptions { device: DeviceChoice::Cpu, ..LoadOptions::default() }).unwrap()
}

/// The embedded weights with the config of another scheduler.
fn second() -> Pipeline {
    static SECOND: OnceLock<Pipeline> = OnceLock::new();
    let second = || {
        let (from, to) =
            (Path::new(env!("CARGO_MANIFEST_DIR")).join("weights"), tempfile::tempdir().unwrap());
        for part in ["scheduler", "text_encoder", "tokenizer", "unet", "vae"] {
            fs::create_dir(to.path().join(part)).unwrap();
            for file in fs::read_dir(from.join(part)).unwrap() {
                let file = file.unwrap();
                fs::copy(file.path(), to.path().join(part).join(file.file_name())).unwrap();
            }
        }
        fs::copy(from.join("model_index.json"), to.path().join("model_index.json")).unwrap();
        let scheduler = to.path().join("scheduler/scheduler_config.json");
        let config = fs::read_to_string(&scheduler).unwrap();
        let other = config.replace("DDIMScheduler", "EulerDiscreteScheduler");
        assert_ne!(other, config);
        fs::write(scheduler, other).unwrap();
        load(to.path())
    };
    SECOND.get_or_init(second).clone()
}

fn backend(distilled: Distilled) -> PipelineBackend {
    PipelineBackend::new(pipeline()).unwrap().with_distilled(distilled).unwrap()
}

/// An engine that is loaded as soon as it has a job.
fn engine(backend: PipelineBackend) -> PipelineEngine {
    let limits = Limits { degrade_after: Duration::from_micros(1), ..limits(100) };
    PipelineEngine::new(backend, EngineOptions { limits, seed: 1, ..EngineOptions::default() }).unwrap()
}

/// Far more steps than the second model has, so that timing noise does not matter.
fn long(seed: u64) -> Request {
    let (side, steps) = (Some(32), Some(200));
    Request { width: side, height: side, steps, seed, keep_raw: true, ..Request::new("a yellow duck") }
}

/// What the main model is busy with.
fn busy(seed: u64) -> Request {
    Request { steps: Some(60), guidance: Some(Guidance::None), ..long(seed) }
}

/// `request` served beside a long job of the main model, with consent; the long job and one without consent
/// are checked.
fn served_under_load(engine: &PipelineEngine, request: &Request) -> Finished<Generation> {
    let agreed = |request: &Request| Submission { degrade: AGREED, ..free(request.clone()) };
    let first = engine.submit(agreed(&busy(1))).unwrap();
    let moved = engine.submit(agreed(request)).unwrap();
    let kept = engine.submit(free(busy(2))).unwrap();
    let done = moved.wait_timeout(PATIENCE).expect("the job hangs").unwrap();
    for (handle, seed, why) in [(first, 1, "without load"), (kept, 2, "without consent")] {
        let done = handle.wait_timeout(PATIENCE).expect("the job hangs").unwrap();
        assert_eq!(done.applied, None, "{why}");
        assert_eq!(bits(&done.output), bits(&pipeline().generate(&busy(seed)).unwrap()), "{why}");
    }
    assert_eq!(engine.status().reserved_memory, 0);
    done
}

#[test]
fn a_job_that_agreed_is_drawn_by_the_distilled_model_under_load_and_says_so() {
    let _quiet = quiet();
    let engine = engine(backend(Distilled::new(second())));
    let done = served_under_load(&engine, &long(3));
    let own = second().generate(&Request { steps: None, ..long(3) }).unwrap();
    assert_eq!(bits(&done.output), bits(&own));
    assert_ne!(bits(&own), bits(&pipeline().generate(&Request { steps: Some(30), ..long(3) }).unwrap()));
    let applied = done.applied.unwrap();
    assert_eq!(done.output.applied.as_ref(), Some(&applied));
    // What a folder's pipeline takes where a request says nothing.
    assert_eq!(applied.actual, "30 steps of the distilled model at 32×32");
    assert_eq!((&*applied.requested, applied.reason), ("200 steps at 32×32", DegradeReason::Load));
}

#[test]
fn the_distilled_model_goes_by_its_own_settings_and_keeps_what_to_steer_away_from() {
    let _quiet = quiet();
    let distilled = Distilled {
        steps: 6,
        guidance: Guidance::classifier_free(3.0),
        sampler: Some(Sampler::UniPc),
        ..Distilled::new(second())
    };
    let engine = engine(backend(distilled));
    let asked = Request {
        guidance: Some(Guidance::classifier_free(9.0).negative("a dog")),
        sampler: Some(Sampler::Heun),
        ..long(4)
    };
    let done = served_under_load(&engine, &asked);
    let expected = Request {
        steps: Some(6),
        guidance: Some(Guidance::classifier_free(3.0).negative("a dog")),
        sampler: Some(Sampler::UniPc),
        ..asked
    };
    assert_eq!(bits(&done.output), bits(&second().generate(&expected).unwrap()));
}

#[test]
fn one_model_in_fewer_steps_of_another_sampler_is_its_own_distilled_model() {
    let _quiet = quiet();
    let sampler = Some(Sampler::DpmPlusPlus2M);
    let engine = engine(backend(Distilled { steps: 4, sampler, ..Distilled::new(pipeline()) }));
    let done = served_under_load(&engine, &long(5));
    let own = pipeline().generate(&Request { steps: Some(4), sampler, ..long(5) }).unwrap();
    assert_eq!(bits(&done.output), bits(&own));
    assert_eq!(done.applied.unwrap().actual, "4 steps of the distilled model at 32×32");
}

#[test]
fn fewer_steps_come_before_the_distilled_model_and_a_smaller_size_after_it() {
    let _quiet = quiet();
    let backend = backend(Distilled::new(second()));
    let ways = |backend: &PipelineBackend, steps, distilled| {
        let request = Request { width: Some(64), height: Some(64), steps: Some(steps), ..long(6) };
        let consent = Degrade { min_steps: Some(90), distilled, min_side: Some(32) };
        let ways = backend.alternatives(&request, &consent);
        ways.into_iter().map(|way| (way.model, way.actual)).collect::<Vec<_>>()
    };
    let main = |text: &str| (Model::Main, text.to_owned());
    let second = |text: &str| (Model::Distilled, text.to_owned());
    let fewer = [main("100 steps at 64×64"), main("90 steps at 64×64")];
    let smaller = [main("90 steps at 32×32")];
    let moved = ["30 steps of the distilled model at 64×64", "30 steps of the distilled model at 32×32"];
    assert_eq!(ways(&backend, 200, true), [&fewer[..], &moved.map(second)].concat());
    assert_eq!(ways(&backend, 200, false), [&fewer[..], &smaller].concat());
    assert_eq!(ways(&backend, 3, true), [main("3 steps at 32×32")], "the distilled model is no quicker");
    let alone = PipelineBackend::new(pipeline()).unwrap();
    assert_eq!(ways(&alone, 200, true), [&fewer[..], &smaller].concat());
}

#[test]
fn settings_that_the_distilled_model_cannot_take_are_refused_before_it_serves() {
    let _quiet = quiet();
    let main = PipelineBackend::new(pipeline()).unwrap();
    let none = Distilled { steps: 0, ..Distilled::new(second()) };
    assert!(matches!(main.clone().with_distilled(none), Err(Error::Sampler(_))));
    let infinite =
        Distilled { guidance: Guidance::classifier_free(f32::INFINITY), ..Distilled::new(second()) };
    assert!(matches!(main.with_distilled(infinite), Err(Error::Request(_))));
}

#[test]
fn each_model_has_its_own_plan_of_memory_and_its_own_launches() {
    let _quiet = quiet();
    let fixture = load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pipelines/sd15"));
    let alone = PipelineBackend::new(fixture.clone()).unwrap();
    let both = backend(Distilled::new(fixture));
    let request = Request { width: Some(64), height: Some(64), ..Request::new("a fox") };
    let main = both.price(&request, Model::Main).unwrap();
    let second = both.price(&request, Model::Distilled).unwrap();
    assert_eq!(second.memory, alone.price(&request, Model::Main).unwrap().memory);
    assert_ne!(second.memory, main.memory);
    assert_eq!((main.key.model, second.key.model), (Model::Main, Model::Distilled));
}

#[test]
fn a_checkpoint_goes_on_with_the_model_that_it_belongs_to_and_is_refused_by_type_where_there_is_none() {
    let _quiet = quiet();
    let distilled = || Distilled { steps: 40, ..Distilled::new(second()) };
    let (first, other) = (engine(backend(distilled())), engine(backend(distilled())));
    let load = first.submit(free(busy(1))).unwrap();
    let handle = first.submit(Submission { degrade: AGREED, ..free(long(7)) }).unwrap();
    stepped(&handle);
    let (moved, kept) = (handle.checkpoint().unwrap(), load.checkpoint().unwrap());

    let own = bits(&second().generate(&Request { steps: Some(40), ..long(7) }).unwrap());
    let applied = Applied {
        requested: "200 steps at 32×32".to_owned(),
        actual: "40 steps of the distilled model at 32×32".to_owned(),
        reason: DegradeReason::Load,
    };
    let go_on = |saved: &[u8]| {
        let resumed = other.resume(saved, false, Submission::new((), "tenant", "paid")).unwrap();
        let done = resumed.wait_timeout(PATIENCE).expect("the job hangs").unwrap();
        let expected = (saved == moved).then(|| applied.clone());
        assert_eq!(done.applied, expected, "what was done is told after the interruption too");
        assert_eq!(done.output.applied, expected);
        let noted = done.output.report.notes.iter().any(|note| note.contains("in place of"));
        assert_eq!(noted, saved == moved);
        bits(&done.output)
    };
    assert_eq!(go_on(&moved), own, "of the distilled model");
    assert_eq!(go_on(&kept), bits(&pipeline().generate(&busy(1)).unwrap()), "of the main model");
    assert_eq!(bits(&output(&handle)), own, "saved on its way");

    let alone = PipelineBackend::new(pipeline()).unwrap();
    let refused = |backend: &PipelineBackend, saved: &[u8], expected| {
        let inspected = backend.inspect(saved, true).unwrap_err();
        let resumed = backend.resume(saved, true).unwrap_err();
        for error in [inspected, resumed] {
            let Error::SavedJob(SavedJobError::OtherModel { what, .. }) = error else {
                panic!("{error}");
            };
            assert_eq!(what, expected);
        }
    };
    refused(&alone, &moved, "configs");
    let fixture = self::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pipelines/sd15"));
    let foreign = fixture.save(&fixture.start(&Request::new("a fox")).unwrap()).unwrap();
    refused(&backend(distilled()), &foreign, "weights");
    let rejected = other.resume(foreign, true, Submission::new((), "tenant", "paid")).unwrap_err();
    assert!(matches!(rejected.reason, Reason::Invalid { .. }), "{rejected}");
}
