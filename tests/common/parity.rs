//! Runs one checkpoint's recorded cases on a device; the limits are the caller's.

use aquatint::image::open;
use aquatint::{Guidance, Input, Pipeline, Request};
use serde_json::Value;

use super::{Expected, assert_close, checkpoint, fixtures};

/// Relative errors that are allowed.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) single: f64,
    pub(crate) whole: f64,
}

pub(crate) fn text(pipeline: &Pipeline, expected: &Expected, limits: Limits) {
    for case in expected.of("text") {
        let name = case["case"].as_str().unwrap();
        let skip = case["clip_skip"].as_u64().unwrap() as usize;
        let (ids, states) = pipeline.text_states(case["prompt"].as_str().unwrap(), skip).unwrap();
        let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
        assert_eq!(ids, expected.i64(&format!("text.{name}.ids")), "ids of {name}");
        assert_close(name, &states, &expected.f32::<2>(&format!("text.{name}.states")).0, limits.single);
    }
}

pub(crate) fn networks(pipeline: &Pipeline, expected: &Expected, limits: Limits) {
    for case in expected.of("unet") {
        let name = format!("unet.{}", case["case"].as_str().unwrap());
        let timesteps = expected.timesteps(&format!("{name}.timesteps"));
        let (latents, states) =
            (expected.f32(&format!("{name}.latents")), expected.f32(&format!("{name}.states")));
        let output = pipeline.predict(latents, &timesteps, states).unwrap();
        assert_close(&name, &output, &expected.f32::<4>(&format!("{name}.output")).0, limits.single);
    }
    for case in expected.of("decode") {
        let name = format!("decode.{}", case["case"].as_str().unwrap());
        let image = pipeline.decode_latents(expected.f32(&format!("{name}.latents"))).unwrap();
        let (wanted, [n, channels, height, width]) = expected.f32::<4>(&format!("{name}.image"));
        let at = |i: usize| {
            let (picture, pixel, channel) =
                (i / (height * width * channels), i / channels % (height * width), i % channels);
            wanted[(picture * channels + channel) * height * width + pixel]
        };
        let interleaved: Vec<f32> = (0..n * channels * height * width).map(at).collect();
        assert_close(&name, &image, &interleaved, limits.single);
    }
    for case in expected.of("encode") {
        let name = format!("encode.{}", case["case"].as_str().unwrap());
        let (mean, std) = pipeline.encode_pixels(expected.f32(&format!("{name}.image"))).unwrap();
        assert_close(&name, &mean, &expected.f32::<4>(&format!("{name}.mean")).0, limits.single);
        let logvar = expected.f32::<4>(&format!("{name}.logvar")).0;
        let wanted: Vec<f32> = logvar.iter().map(|value| (value.clamp(-30.0, 20.0) * 0.5).exp()).collect();
        assert_close(&name, &std, &wanted, limits.single);
    }
}

/// Whole runs, for the cases that `take` keeps. Returns how many ran.
pub(crate) fn pictures(
    pipeline: &dyn Fn(&Value) -> Pipeline,
    expected: &Expected,
    kind: &str,
    limits: Limits,
    take: &dyn Fn(&Value) -> bool,
) -> usize {
    let cases: Vec<&Value> = expected.of(kind).iter().filter(|case| take(case)).collect();
    assert!(!cases.is_empty(), "no {kind} case is kept");
    for case in &cases {
        let name = format!("{kind}.{}", case["case"].as_str().unwrap());
        let pipeline = pipeline(&case["scheduler"]);
        let mut raw = (Vec::new(), Vec::new());
        for request in requests(case) {
            let kept =
                pipeline.generate(&request).unwrap_or_else(|error| panic!("{name}: {error}")).raw.unwrap();
            raw.0.extend(kept.latents);
            raw.1.extend(kept.images);
        }
        assert_close(&name, &raw.0, &expected.f32::<4>(&format!("{name}.latents")).0, limits.whole);
        if expected.has(&format!("{name}.images")) {
            assert_close(&name, &raw.1, &expected.f32::<4>(&format!("{name}.images")).0, limits.whole);
        }
    }
    cases.len()
}

/// One request where the seeds count up, else one a seed.
fn requests(case: &Value) -> Vec<Request> {
    let seeds: Vec<u64> =
        case["seeds"].as_array().unwrap().iter().map(|seed| seed.as_u64().unwrap()).collect();
    let counted = seeds.windows(2).all(|pair| pair[1] == pair[0] + 1);
    let starts: Vec<(u64, u32)> = if counted {
        vec![(seeds[0], seeds.len() as u32)]
    } else {
        seeds.iter().map(|seed| (*seed, 1)).collect()
    };
    starts.into_iter().map(|(seed, count)| request(case, seed, count)).collect()
}

fn request(case: &Value, seed: u64, count: u32) -> Request {
    let side = |key: &str| case[key].as_u64().map(|side| side as u32);
    let rescale = case["guidance_rescale"].as_f64().unwrap_or(0.0) as f32;
    let guidance = Guidance::classifier_free(case["guidance"].as_f64().unwrap() as f32)
        .negative(case["negative_prompt"].as_str().unwrap_or_default())
        .rescaled(rescale);
    let input = match case["file"].as_str() {
        None => Input::Text,
        Some(file) => Input::Image {
            image: open(fixtures().join(file)).unwrap(),
            strength: case["strength"].as_f64().unwrap() as f32,
        },
    };
    Request {
        input,
        width: side("width"),
        height: side("height"),
        steps: case["steps"].as_u64().map(|steps| steps as usize),
        guidance: Some(guidance),
        sampler: case["sampler"].as_str().map(|name| name.parse().unwrap()),
        sigmas: case["sigmas"].as_str().map(|name| name.parse().unwrap()),
        seed,
        count: Some(count),
        clip_skip: case["clip_skip"].as_u64().map(|skip| skip as usize),
        keep_raw: true,
        ..Request::new(case["prompt"].as_str().unwrap())
    }
}

/// The checkpoint `name` in a folder of its own.
pub(crate) fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(checkpoint(name)).unwrap() {
        let entry = entry.unwrap();
        let target = folder.path().join(entry.file_name());
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), target).unwrap();
            continue;
        }
        std::fs::create_dir(&target).unwrap();
        for file in std::fs::read_dir(entry.path()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), target.join(file.file_name())).unwrap();
        }
    }
    folder
}

/// A copy of the checkpoint `name` with `changes` made to its scheduler config.
pub(crate) fn with_scheduler(name: &str, changes: &Value) -> tempfile::TempDir {
    let folder = copy(name);
    let path = folder.path().join("scheduler/scheduler_config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(&path, config.to_string()).unwrap();
    folder
}
