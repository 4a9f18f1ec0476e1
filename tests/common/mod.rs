//! What several tests share: fixtures made by diffusers, and how far from them a result may be.
#![allow(dead_code)] // each test binary uses its own part

use std::fs;
use std::path::{Path, PathBuf};

use aquatint::{DeviceChoice, LoadOptions, Pipeline, Precision};
use safetensors::SafeTensors;
use serde_json::Value;

pub(crate) mod parity;

/// In the checkout where cargo says that it is, else in the one where this program was built.
pub(crate) fn fixtures() -> PathBuf {
    let checkout = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
    Path::new(&checkout).join("tests/fixtures")
}

pub(crate) fn checkpoint(name: &str) -> PathBuf {
    fixtures().join("pipelines").join(name)
}

pub(crate) fn options(device: DeviceChoice, precision: Precision) -> LoadOptions {
    LoadOptions { device, precision, ..LoadOptions::default() }
}

pub(crate) fn load_cpu(name: &str) -> Pipeline {
    Pipeline::load(checkpoint(name), options(DeviceChoice::Cpu, Precision::F32)).unwrap()
}

/// What diffusers computed for one pipeline (`recording.py` lists the keys).
pub(crate) struct Expected {
    bytes: Vec<u8>,
    pub(crate) cases: Value,
}

impl Expected {
    pub(crate) fn read(name: &str) -> Self {
        let folder = fixtures().join("expected");
        let bytes = fs::read(folder.join(format!("{name}.safetensors"))).unwrap();
        let json = fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
        Self { bytes, cases: serde_json::from_str(&json).unwrap() }
    }

    /// The cases of one kind; never an empty list that would pass unseen.
    pub(crate) fn of(&self, kind: &str) -> &[Value] {
        let cases = self.cases[kind].as_array().unwrap();
        assert!(!cases.is_empty(), "no {kind} cases");
        cases
    }

    pub(crate) fn f32<const D: usize>(&self, key: &str) -> (Vec<f32>, [usize; D]) {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(key).unwrap_or_else(|error| panic!("{key}: {error}"));
        let (words, remainder) = tensor.data().as_chunks::<4>();
        assert!(remainder.is_empty());
        (words.iter().map(|word| f32::from_le_bytes(*word)).collect(), tensor.shape().try_into().unwrap())
    }

    /// Whether the tensor was recorded; pictures are kept for some of the runs only.
    pub(crate) fn has(&self, key: &str) -> bool {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(key).is_ok()
    }

    /// Integers of either width, or floats, as f32.
    pub(crate) fn timesteps(&self, key: &str) -> Vec<f32> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        match tensors.tensor(key).unwrap().dtype() {
            safetensors::Dtype::I64 => self.i64(key).into_iter().map(|value| value as f32).collect(),
            _ => self.f32::<1>(key).0,
        }
    }

    pub(crate) fn i64(&self, key: &str) -> Vec<i64> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(key).unwrap();
        tensor.data().as_chunks::<8>().0.iter().map(|word| i64::from_le_bytes(*word)).collect()
    }
}

/// `‖found - expected‖ / ‖expected‖`
pub(crate) fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let squared = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = squared(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = squared(&mut expected.iter().map(|value| f64::from(*value)));
    (difference / size).sqrt()
}

#[track_caller]
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f32], limit: f64) {
    let error = relative_error(found, expected);
    assert!(error <= limit, "{what}: relative error {error:.2e}, limit {limit:.0e}");
}
