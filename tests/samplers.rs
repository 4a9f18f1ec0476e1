//! Samplers against what diffusers' schedulers did (`fixtures/make_samplers.py`), and what they
//! refuse.

#![allow(clippy::expect_used, clippy::panic)]

use aquatint::samplers::noise::Generator;
use aquatint::samplers::{Plan, Sampler, SamplerError, SchedulerConfig, SigmaSchedule};
use aquatint::samplers::{Step, Target, Term};
use serde::Deserialize;
use serde_json::{Value, json};

/// How far a sample may be from diffusers', as a share of its largest value.
const TOLERANCE: f32 = 2e-5;
const SIZE: usize = 8;

#[derive(Deserialize)]
struct Fixture {
    configs: Vec<Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize, Debug)]
struct Case {
    config: usize,
    sampler: Option<String>,
    sigmas: Option<String>,
    steps: usize,
    strength: Option<f32>,
    seed: u64,
    count: usize,
    timesteps: Vec<f32>,
    timestep_sum: f64,
    middle: Vec<f32>,
    last: Vec<f32>,
    next_draw: f32,
}

fn fixture() -> Fixture {
    let fixture: Fixture =
        serde_json::from_str(include_str!("fixtures/samplers.json")).expect("the fixture parses");
    assert!(fixture.cases.len() >= 790, "the sweep is not empty");
    fixture
}

fn plan(fixture: &Fixture, case: &Case) -> Result<Plan, SamplerError> {
    let config = SchedulerConfig::from_json(&fixture.configs[case.config])?;
    let sampler = case.sampler.as_deref().map(str::parse).transpose()?;
    let sigmas = case.sigmas.as_deref().map(str::parse).transpose()?;
    Plan::new(&config, sampler, sigmas, case.steps, case.strength)
}

/// The fixture's model.
fn model(x: &[f32], timestep: f32) -> Vec<f32> {
    let value =
        |(place, x): (usize, &f32)| 0.7 * x.sin() + 0.1 * (timestep / 200.0 + place as f32).cos() + 0.05 * x;
    x.iter().enumerate().map(value).collect()
}

/// What runs a plan: a sample, the registers and a source of noise.
struct Runner {
    sample: Vec<f32>,
    registers: Vec<Option<Vec<f32>>>,
    noise: Generator,
}

impl Runner {
    fn new(plan: &Plan, from_image: bool, seed: u64) -> Self {
        let mut noise = Generator::new(seed);
        let (a, b) = plan.image_mix();
        let mut sample = noise.randn(SIZE);
        for (place, value) in sample.iter_mut().enumerate() {
            *value = if from_image {
                a * (place as f32).sin() + b * *value
            } else {
                plan.initial_scale() * *value
            };
        }
        Self { sample, registers: vec![None; plan.registers()], noise }
    }

    fn step(&mut self, step: &Step) {
        let input: Vec<f32> = self.sample.iter().map(|x| x * step.input_scale).collect();
        let output = model(&input, step.timestep);
        let clean = |(x, o): (&f32, &f32)| {
            let clean = step.denoised.sample * x + step.denoised.output * o;
            step.denoised.clamp.map_or(clean, |most| clean.clamp(-most, most))
        };
        let denoised: Vec<f32> = self.sample.iter().zip(&output).map(clean).collect();
        let noise = step.draws_noise.then(|| self.noise.randn(SIZE));
        let value = |term: Term| match term {
            Term::Sample => &self.sample,
            Term::Output => &output,
            Term::Denoised => &denoised,
            Term::Register(index) => self.registers[index].as_ref().expect("written before it is read"),
            Term::Noise => noise.as_ref().expect("only a step that draws uses noise"),
        };
        let sum = |terms: &[(Term, f32)]| {
            let mut sum = vec![0.0_f32; SIZE];
            for (term, factor) in terms {
                sum.iter_mut().zip(value(*term)).for_each(|(sum, v)| *sum += factor * v);
            }
            sum
        };
        let written: Vec<_> = step.updates.iter().map(|u| (u.target, sum(&u.terms))).collect();
        for (target, value) in written {
            match target {
                Target::Sample => self.sample = value,
                Target::Register(index) => self.registers[index] = Some(value),
            }
        }
    }
}

fn deviation(found: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    let furthest = found.iter().zip(expected).fold(0.0_f32, |most, (a, b)| {
        // a NaN must not pass
        if (a - b).abs() <= most { most } else { (a - b).abs() }
    });
    furthest / largest
}

fn describe(fixture: &Fixture, case: &Case) -> String {
    format!("{} {case:?}", fixture.configs[case.config])
}

#[test]
fn the_model_is_called_at_diffusers_timesteps() {
    let fixture = fixture();
    for case in &fixture.cases {
        let plan =
            plan(&fixture, case).unwrap_or_else(|error| panic!("{error}: {}", describe(&fixture, case)));
        let about = describe(&fixture, case);
        let found: Vec<f32> = plan.steps().iter().map(|step| step.timestep).collect();
        assert_eq!(found.len(), case.count, "{about}");
        let sum: f64 = found.iter().map(|t| f64::from(*t)).sum();
        assert!((sum - case.timestep_sum).abs() <= 2e-4 * found.len() as f64, "{sum} {about}");
        let (first, last) = case.timesteps.split_at(case.timesteps.len().min(found.len()) / 2);
        let ends = found.iter().take(first.len()).chain(&found[found.len() - last.len()..]);
        for (found, expected) in ends.zip(first.iter().chain(last)) {
            assert!((found - expected).abs() <= 2e-4, "{found} for {expected}: {about}");
        }
    }
}

#[test]
fn every_sampler_goes_where_diffusers_goes() {
    let fixture = fixture();
    let mut worst = (0.0, String::new());
    let mut far = Vec::new();
    for case in &fixture.cases {
        let plan =
            plan(&fixture, case).unwrap_or_else(|error| panic!("{error}: {}", describe(&fixture, case)));
        let mut runner = Runner::new(&plan, case.strength.is_some(), case.seed);
        let mut furthest = 0.0_f32;
        for (i, step) in plan.steps().iter().enumerate() {
            runner.step(step);
            if i == (case.count - 1) / 2 {
                furthest = furthest.max(deviation(&runner.sample, &case.middle));
            }
        }
        furthest = furthest.max(deviation(&runner.sample, &case.last));
        if furthest.is_nan() || furthest > TOLERANCE {
            far.push(format!("{furthest:e} {}", describe(&fixture, case)));
        }
        if furthest > worst.0 {
            worst = (furthest, describe(&fixture, case));
        }
        // one draw too many or too few would show in the next
        let next = runner.noise.randn(1)[0];
        assert_eq!(next.to_bits(), case.next_draw.to_bits(), "{}", describe(&fixture, case));
    }
    println!("{} cases, furthest {:e}: {}", fixture.cases.len(), worst.0, worst.1);
    assert!(far.is_empty(), "{} too far:\n{}", far.len(), far.join("\n"));
}

fn config(json: Value) -> SchedulerConfig {
    SchedulerConfig::from_json(&json).expect("the configuration is supported")
}

fn euler() -> SchedulerConfig {
    config(json!({ "_class_name": "EulerDiscreteScheduler" }))
}

fn refused(json: Value) -> SamplerError {
    let config = match SchedulerConfig::from_json(&json) {
        Ok(config) => config,
        Err(error) => return error,
    };
    Plan::new(&config, None, None, 10, None).expect_err("refused")
}

fn value(key: &'static str, found: &str, expected: &'static str) -> SamplerError {
    SamplerError::Value { key, found: found.to_owned(), expected }
}

#[test]
fn a_name_is_what_it_parses_from() {
    for sampler in Sampler::ALL {
        assert_eq!(sampler.to_string().parse(), Ok(sampler));
    }
    for sigmas in SigmaSchedule::ALL {
        assert_eq!(sigmas.to_string().parse(), Ok(sigmas));
    }
    assert_eq!("ddim:0.5".parse(), Ok(Sampler::Ddim { eta: 0.5 }));
    assert_eq!(Sampler::Ddim { eta: 0.5 }.to_string(), "ddim:0.5");
    for found in ["", "Euler", "ddim:", "ddim:x"] {
        let error = SamplerError::UnknownSampler { found: found.to_owned() };
        assert_eq!(found.parse::<Sampler>(), Err(error));
    }
    let error = SamplerError::UnknownSigmaSchedule { found: "linear".to_owned() };
    assert_eq!("linear".parse::<SigmaSchedule>(), Err(error));
}

#[test]
fn a_configuration_that_is_no_object_is_refused() {
    assert_eq!(SchedulerConfig::from_json(&json!([1])), Err(SamplerError::NotAnObject));
    assert!(matches!(SchedulerConfig::parse("{"), Err(SamplerError::Json { .. })));
    let missing = SamplerError::Missing { key: "_class_name" };
    assert_eq!(SchedulerConfig::from_json(&json!({})), Err(missing));
}

#[test]
fn an_unknown_key_is_refused_by_name() {
    let error = refused(json!({ "_class_name": "DDIMScheduler", "beta_strat": 0.1 }));
    let expected = SamplerError::UnknownKey { key: "beta_strat".to_owned(), found: "0.1".to_owned() };
    assert_eq!(error, expected);
    // notes of the file's writer are not settings
    config(json!({ "_class_name": "DDIMScheduler", "_diffusers_version": "0.6.0" }));
}

#[test]
fn a_value_that_makes_no_sense_is_refused_with_what_was_expected() {
    let of = |key: &str, value: Value| refused(json!({ "_class_name": "DDIMScheduler", key: value }));
    let train = "a whole number from 1 to 100000";
    let beta = "a number from 0 to 1";
    for (key, found, expected) in [
        ("num_train_timesteps", json!(0), train),
        ("num_train_timesteps", json!(1_000_000_000_000_u64), train),
        ("num_train_timesteps", json!(10.5), train),
        ("num_train_timesteps", Value::Null, train),
        ("steps_offset", json!(-1), "a whole number from 0 to 100000"),
        ("beta_start", json!("0.1"), beta),
        ("beta_end", json!(-0.1), beta),
        ("beta_schedule", json!("exp"), "linear, scaled_linear or squaredcos_cap_v2"),
        ("trained_betas", json!([0.5, "x"]), "num_train_timesteps numbers from 0 to 1"),
        ("prediction_type", json!("flow_prediction"), "epsilon, v_prediction or sample"),
        ("timestep_spacing", json!("even"), "leading, trailing or linspace"),
        ("clip_sample", json!(1), "true or false"),
        ("solver_order", json!(4), "a whole number from 1 to 3"),
        ("solver_type", json!("rk4"), "midpoint, heun, bh1 or bh2"),
        ("final_sigmas_type", json!("one"), "zero or sigma_min"),
        ("disable_corrector", json!([-1]), "a list of whole numbers"),
        ("lambda_min_clipped", json!("low"), "a number"),
    ] {
        let found_text = if key == "trained_betas" { "2 values".to_owned() } else { found.to_string() };
        assert_eq!(of(key, found), value(key_of(key), &found_text, expected));
    }
}

/// The keys of errors are static.
fn key_of(key: &str) -> &'static str {
    Box::leak(key.to_owned().into_boxed_str())
}

#[test]
fn what_is_known_but_not_supported_is_refused_where_it_counts() {
    let dpm = "DPMSolverMultistepScheduler";
    for (class, key, found, expected) in [
        ("DDIMScheduler", "thresholding", json!(true), "false"),
        ("LCMScheduler", "thresholding", json!(true), "false"),
        (dpm, "use_flow_sigmas", json!(true), "false"),
        (dpm, "use_dynamic_shifting", json!(true), "false"),
        (dpm, "variance_type", json!("learned_range"), "a fixed variance, or null"),
        (dpm, "algorithm_type", json!("dpmsolver"), "dpmsolver++ or sde-dpmsolver++"),
        ("DDPMScheduler", "variance_type", json!("learned"), "a fixed variance, or null"),
        (
            "DDPMScheduler",
            "variance_type",
            json!("fixed_large_log"),
            "fixed_small, fixed_small_log or fixed_large",
        ),
        ("UniPCMultistepScheduler", "solver_p", json!({}), "null"),
        ("UniPCMultistepScheduler", "shift_terminal", json!(0.02), "null"),
        ("PNDMScheduler", "prediction_type", json!("sample"), "epsilon or v_prediction for the sampler pndm"),
        (
            "EulerAncestralDiscreteScheduler",
            "prediction_type",
            json!("sample"),
            "epsilon or v_prediction for the sampler euler_a",
        ),
    ] {
        let error = refused(json!({ "_class_name": class, key: found }));
        assert_eq!(error, value(key_of(key), &found.to_string(), expected), "{class}");
    }
    // Euler has no thresholding: the key says nothing there
    let config = config(json!({ "_class_name": "EulerDiscreteScheduler", "thresholding": true }));
    assert!(Plan::new(&config, None, None, 10, None).is_ok());
}

#[test]
fn a_class_without_a_sampler_is_refused_unless_the_request_names_one() {
    let config = config(json!({ "_class_name": "KDPM2DiscreteScheduler" }));
    let expected = "the class of a supported sampler, or a sampler in the request";
    let error = value("_class_name", "\"KDPM2DiscreteScheduler\"", expected);
    assert_eq!(Plan::new(&config, None, None, 10, None), Err(error));
    let plan = Plan::new(&config, Some(Sampler::Euler), None, 10, None).expect("Euler reads it");
    assert_eq!(plan.sampler(), Sampler::Euler);
}

#[test]
fn a_scheduler_of_another_kind_of_model_is_refused() {
    let error = refused(json!({ "_class_name": "FlowMatchEulerDiscreteScheduler" }));
    let expected = "a scheduler of diffusion by denoising, such as DDIMScheduler";
    assert_eq!(error, value("_class_name", "\"FlowMatchEulerDiscreteScheduler\"", expected));
}

#[test]
fn two_sigma_schedules_in_one_configuration_exclude_each_other() {
    let error = refused(json!({
        "_class_name": "EulerDiscreteScheduler",
        "use_karras_sigmas": true,
        "use_beta_sigmas": true,
    }));
    let expected = SamplerError::Conflict { first: "use_karras_sigmas", second: "use_beta_sigmas" };
    assert_eq!(error, expected);
}

#[test]
fn a_sigma_schedule_is_refused_by_samplers_that_have_none() {
    let mut without = 0;
    for sampler in Sampler::ALL {
        let plan = Plan::new(&euler(), Some(sampler), Some(SigmaSchedule::Karras), 10, None);
        if sampler.takes_sigma_schedule() {
            assert!(plan.is_ok(), "{sampler}");
            continue;
        }
        without += 1;
        let sigmas = SigmaSchedule::Karras;
        assert_eq!(plan, Err(SamplerError::NoSigmaSchedule { sampler, sigmas }));
    }
    assert_eq!(without, 5);
}

#[test]
fn a_number_of_steps_out_of_range_is_refused() {
    for sampler in Sampler::ALL {
        for found in [0, 1001, 10_000, usize::MAX] {
            let error = SamplerError::Steps { sampler, found, least: 1, most: 1000 };
            assert_eq!(Plan::new(&euler(), Some(sampler), None, found, None), Err(error));
        }
    }
    let refuse = |sampler, found| Plan::new(&euler(), Some(sampler), None, found, None);
    let (lcm, pndm) = (Sampler::Lcm, Sampler::Pndm);
    let error = SamplerError::Steps { sampler: lcm, found: 51, least: 1, most: 50 };
    assert_eq!(refuse(lcm, 51), Err(error));
    let error = SamplerError::Steps { sampler: pndm, found: 3, least: 4, most: 1000 };
    assert_eq!(refuse(pndm, 3), Err(error));
}

#[test]
fn a_strength_out_of_range_is_refused() {
    for found in [-0.1, 1.1, f32::INFINITY, f32::NAN] {
        let error = Plan::new(&euler(), None, None, 10, Some(found)).expect_err("refused");
        let SamplerError::Strength { found: told } = error else { panic!("{error}") };
        assert_eq!(told.to_bits(), found.to_bits());
    }
}

#[test]
fn a_strength_that_leaves_no_step_is_refused_by_every_sampler() {
    let config = config(json!({ "_class_name": "PNDMScheduler", "skip_prk_steps": true }));
    for sampler in Sampler::ALL {
        for strength in [0.0, 0.09] {
            let error = SamplerError::NoStepLeft { steps: 10, strength };
            let plan = Plan::new(&config, Some(sampler), None, 10, Some(strength));
            assert_eq!(plan, Err(error), "{sampler}");
        }
    }
}

#[test]
fn a_strength_counts_as_the_decimal_number_it_was_written_as() {
    // as f32, 0.7 is less than seven tenths
    let plan = Plan::new(&euler(), None, None, 10, Some(0.7)).expect("a plan");
    assert_eq!(plan.steps().len(), 7);
}

#[test]
fn an_eta_that_is_no_share_is_refused() {
    for eta in [-0.5, f32::NAN, f32::INFINITY] {
        let plan = Plan::new(&euler(), Some(Sampler::Ddim { eta }), None, 10, None);
        assert!(matches!(plan, Err(SamplerError::Eta { .. })), "{eta}");
    }
}

#[test]
fn a_timestep_beyond_the_schedule_is_refused() {
    let config = config(json!({ "_class_name": "DDIMScheduler", "steps_offset": 1 }));
    let error = SamplerError::Timestep { step: 0, timestep: 1000, last: 999 };
    assert_eq!(Plan::new(&config, None, None, 1000, None), Err(error));
}

#[test]
fn a_schedule_that_divides_by_zero_is_refused() {
    // no signal is left at the last timestep, and noise alone says nothing of the image
    let config = config(json!({
        "_class_name": "DDIMScheduler",
        "rescale_betas_zero_snr": true,
        "timestep_spacing": "trailing",
    }));
    let sampler = Sampler::Ddim { eta: 0.0 };
    let error = SamplerError::NotFinite { sampler, step: 0 };
    assert_eq!(Plan::new(&config, None, None, 10, None), Err(error));
}

#[test]
fn trailing_spacing_has_as_many_steps_as_were_asked_for() {
    // NumPy's arange counts 62 here, the last of them timestep -1
    let config = config(json!({ "_class_name": "DDIMScheduler", "timestep_spacing": "trailing" }));
    for steps in 1..=1000 {
        let plan = Plan::new(&config, None, None, steps, None).expect("a plan");
        assert_eq!(plan.steps().len(), steps);
        assert!(plan.steps().iter().all(|step| step.timestep >= 0.0), "{steps}");
    }
}

#[test]
fn an_infinity_as_python_writes_it_is_read() {
    let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity,
        "_note": "not \" -Infinity here, nor -1 é", "beta_start": 1e-4, "sigma_min": null}"#;
    let bare = SchedulerConfig::parse(text).expect("read");
    let quoted = config(json!({
        "_class_name": "DPMSolverMultistepScheduler",
        "lambda_min_clipped": "-Infinity",
        "beta_start": 1e-4,
    }));
    assert_eq!(bare, quoted);
    assert!(matches!(SchedulerConfig::parse("{\"a\": -"), Err(SamplerError::Json { .. })));
    assert!(matches!(SchedulerConfig::parse("{\"a\\"), Err(SamplerError::Json { .. })));
}

#[test]
fn every_request_gives_a_plan_or_an_error() {
    let settings = [
        json!({}),
        json!({ "num_train_timesteps": 1 }),
        json!({ "num_train_timesteps": 2, "timestep_spacing": "trailing" }),
        json!({ "num_train_timesteps": 7, "original_inference_steps": 3, "steps_offset": 9 }),
        json!({ "beta_start": 0.0, "beta_end": 0.0 }),
        json!({ "beta_start": 1.0, "beta_end": 1.0 }),
        json!({ "sigma_min": 0.0, "final_sigmas_type": "sigma_min", "solver_order": 3 }),
        json!({ "lambda_min_clipped": 100.0 }),
        json!({ "solver_type": "bh1", "lower_order_final": false, "predict_x0": false }),
        json!({ "interpolation_type": "log_linear", "timestep_type": "continuous",
            "prediction_type": "v_prediction" }),
    ];
    let mut plans = 0;
    for mut settings in settings {
        settings["_class_name"] = json!("EulerDiscreteScheduler");
        let config = config(settings);
        for sampler in Sampler::ALL {
            for sigmas in [None, Some(SigmaSchedule::Karras), Some(SigmaSchedule::Beta)] {
                for steps in [1, 2, 3, 4, 7, 1000] {
                    for strength in [None, Some(0.4), Some(1.0)] {
                        let plan = Plan::new(&config, Some(sampler), sigmas, steps, strength);
                        plans += usize::from(plan.is_ok_and(|plan| !plan.steps().is_empty()));
                    }
                }
            }
        }
    }
    assert!(plans > 500, "{plans}");
}
