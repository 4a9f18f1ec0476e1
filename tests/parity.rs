//! The CPU against diffusers: every network alone, every sampler end to end.
#![cfg(feature = "cpu")]

mod common;

use aquatint::{DeviceChoice, Pipeline, Precision};
use common::parity::{self, Limits};
use common::{Expected, load_cpu, options};
use serde_json::Value;

const LIMITS: Limits = Limits { single: 1e-4, whole: 1e-3 };

fn checkpoint_matches_diffusers(name: &str) {
    let expected = Expected::read(name);
    let pipeline = load_cpu(name);
    parity::text(&pipeline, &expected, LIMITS);
    parity::networks(&pipeline, &expected, LIMITS);
    let scheduled = |changes: &Value| {
        if changes.as_object().is_none_or(serde_json::Map::is_empty) {
            return pipeline.clone();
        }
        let folder = parity::with_scheduler(name, changes);
        Pipeline::load(folder.path(), options(DeviceChoice::Cpu, Precision::F32)).unwrap()
    };
    for kind in ["text_to_image", "image_to_image"] {
        if expected.cases[kind].as_array().is_some_and(|cases| !cases.is_empty()) {
            parity::pictures(&scheduled, &expected, kind, LIMITS, &|_| true);
        }
    }
}

macro_rules! checkpoints {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                checkpoint_matches_diffusers($name);
            }
        )*
    };
}

checkpoints! {
    stable_diffusion_1_matches_diffusers: "sd15",
    stable_diffusion_2_in_f16_files_matches_diffusers: "sd21",
    a_sharded_bf16_checkpoint_matches_diffusers: "sharded",
    a_checkpoint_with_the_names_of_old_releases_matches_diffusers: "old_names",
    a_checkpoint_with_unusual_settings_matches_diffusers: "odd",
}

#[cfg(feature = "embedded")]
#[test]
fn the_embedded_model_matches_diffusers() {
    let pipeline = Pipeline::embedded(options(DeviceChoice::Cpu, Precision::F32)).unwrap();
    let expected = Expected::read("embedded");
    parity::text(&pipeline, &expected, LIMITS);
    for kind in ["text_to_image", "image_to_image"] {
        parity::pictures(&|_| pipeline.clone(), &expected, kind, LIMITS, &|_| true);
    }
}
