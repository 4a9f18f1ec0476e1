//! Weight files and configurations: what is read, what is refused and how the refusal reads.

#![allow(clippy::unwrap_used, reason = "a test may fail by a panic")]

mod config;
mod damage;
mod files;
mod header;
mod keys;
mod load;

use std::fs;

use aquatint::weights::{Files, WeightStore, WeightsError};
use burn::tensor::Tensor;
use half::{bf16, f16};
use serde_json::{Value, json};
use tempfile::TempDir;

/// One tensor of a file to write.
#[derive(Clone)]
struct Plain {
    key: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn f32s(key: &str, shape: &[usize], values: &[f32]) -> Plain {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Plain { key: key.into(), dtype: "F32", shape: shape.into(), bytes }
}

fn f16s(key: &str, shape: &[usize], values: &[f32]) -> Plain {
    let bytes = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
    Plain { key: key.into(), dtype: "F16", shape: shape.into(), bytes }
}

fn bf16s(key: &str, shape: &[usize], values: &[f32]) -> Plain {
    let bytes = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
    Plain { key: key.into(), dtype: "BF16", shape: shape.into(), bytes }
}

fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

fn file(tensors: &[Plain]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut data = Vec::new();
    for tensor in tensors {
        let begin = data.len();
        data.extend_from_slice(&tensor.bytes);
        header.insert(
            tensor.key.clone(),
            json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()]}),
        );
    }
    raw(&Value::Object(header).to_string(), &data)
}

/// A checkpoint with these files.
fn checkpoint(files: &[(&str, Vec<u8>)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    root
}

fn files(root: &TempDir) -> Files {
    Files::folder(root.path()).unwrap()
}

fn open(root: &TempDir) -> Result<WeightStore, WeightsError> {
    WeightStore::open(&files(root), "unet", "model")
}

/// The store of one file with these bytes.
fn store(bytes: Vec<u8>) -> Result<WeightStore, WeightsError> {
    open(&checkpoint(&[("unet/model.safetensors", bytes)]))
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_cast_as::<f32>().unwrap().as_slice::<f32>().unwrap().to_vec()
}
