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

#[test]
fn stable_diffusion_1_matches_diffusers() {
    checkpoint_matches_diffusers("sd15");
}
