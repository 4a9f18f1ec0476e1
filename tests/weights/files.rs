//! Files, folders and shards.

use std::{collections::BTreeMap, fs};

use aquatint::weights::{Files, FilesError, WeightStore, WeightsError};
use burn::tensor::{DType, Device};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Plain, checkpoint, f32s, file, files, open, values};

/// A sharded checkpoint; `change` edits its index.
pub(crate) fn sharded(shards: &[(&str, &[Plain])], change: impl FnOnce(&mut Value)) -> TempDir {
    let mut map = BTreeMap::new();
    let mut parts = Vec::new();
    for (name, tensors) in shards {
        let name = format!("model-{name}.safetensors");
        for tensor in *tensors {
            map.insert(tensor.key.clone(), name.clone());
        }
        parts.push((format!("unet/{name}"), file(tensors)));
    }
    let mut index = json!({"metadata": {"total_size": 0}, "weight_map": map});
    change(&mut index);
    parts.push(("unet/model.safetensors.index.json".into(), index.to_string().into_bytes()));
    let parts: Vec<_> = parts.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    checkpoint(&parts)
}

fn two_shards(change: impl FnOnce(&mut Value)) -> TempDir {
    let (a, b) = (f32s("a", &[1], &[1.0]), f32s("b", &[1], &[2.0]));
    sharded(&[("1", &[a][..]), ("2", &[b][..])], change)
}

#[test]
fn shards_load_as_one() {
    let mut loaded = open(&two_shards(|_| {})).unwrap().load(&Device::flex(), DType::F32).unwrap();
    assert_eq!(values(loaded.take("a", [1]).unwrap()), [1.0]);
    assert_eq!(values(loaded.take("b", [1]).unwrap()), [2.0]);
    loaded.finish().unwrap();
}

#[test]
fn a_missing_shard_is_refused_by_name() {
    let root = two_shards(|_| {});
    fs::remove_file(root.path().join("unet/model-2.safetensors")).unwrap();
    let error = open(&root).unwrap_err();
    assert!(
        matches!(&error, WeightsError::MissingShard { shard, .. } if shard == "model-2.safetensors"),
        "{error}"
    );
}

#[test]
fn a_truncated_shard_is_refused_by_name() {
    let root = two_shards(|_| {});
    let path = root.path().join("unet/model-2.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let error = open(&root).unwrap_err();
    assert!(
        matches!(&error, WeightsError::Truncated { file, .. } if file.ends_with("model-2.safetensors")),
        "{error}"
    );
}

#[test]
fn an_index_that_places_a_tensor_where_it_is_not_is_refused() {
    for (key, shard) in [("a", "model-2.safetensors"), ("c", "model-1.safetensors")] {
        let error = open(&two_shards(|index| index["weight_map"][key] = json!(shard))).unwrap_err();
        assert!(
            matches!(&error, WeightsError::NotInShard { key: k, shard: s, .. } if k == key && s == shard)
                || key == "a" && matches!(&error, WeightsError::NotInShard { .. }),
            "{error}"
        );
    }
}

#[test]
fn a_tensor_that_the_index_leaves_out_is_refused() {
    let (a, b, c) = (f32s("a", &[1], &[1.0]), f32s("b", &[1], &[2.0]), f32s("c", &[1], &[2.0]));
    let root = sharded(&[("1", &[a, c][..]), ("2", &[b][..])], |index| {
        index["weight_map"].as_object_mut().unwrap().remove("c");
    });
    let error = open(&root).unwrap_err();
    assert!(
        matches!(&error, WeightsError::NotInIndex { key, shard, .. }
            if key == "c" && shard == "model-1.safetensors"),
        "{error}"
    );
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let (a, b, c) = (f32s("a", &[1], &[1.0]), f32s("b", &[1], &[2.0]), f32s("c", &[1], &[3.0]));
    let root = sharded(&[("1", &[a.clone(), c][..]), ("2", &[b, a][..])], |_| {});
    let error = open(&root).unwrap_err();
    assert!(matches!(&error, WeightsError::InTwoShards { key, .. } if key == "a"), "{error}");
}

#[test]
fn an_index_that_leads_out_of_the_checkpoint_is_refused() {
    for path in ["../secret.safetensors", "/etc/passwd", "a/../../b", "", "a\\b", "./a"] {
        let error = open(&two_shards(|index| index["weight_map"]["a"] = json!(path))).unwrap_err();
        assert!(
            matches!(&error, WeightsError::Files(FilesError::Escapes { path: found, .. }) if found == path),
            "{path}: {error}"
        );
    }
}

#[test]
fn an_index_of_another_form_is_refused() {
    for index in [
        json!([]),
        json!({}),
        json!({"weight_map": []}),
        json!({"weight_map": {}}),
        json!({"weight_map": {"a": 1}}),
    ] {
        let error = open(&two_shards(|found| *found = index)).unwrap_err();
        assert!(matches!(error, WeightsError::InvalidIndex { .. }), "{error}");
    }
}

#[test]
fn the_full_precision_file_is_taken_before_the_shards_and_those_before_the_half_files() {
    let one = |value: f32| file(&[f32s("a", &[1], &[value])]);
    let index = |shard: &str| json!({"weight_map": {"a": shard}}).to_string().into_bytes();
    let mut parts = vec![
        ("unet/model.safetensors", one(1.0)),
        ("unet/model.safetensors.index.json", index("s2.safetensors")),
        ("unet/model.fp16.safetensors", one(3.0)),
        ("unet/model.safetensors.index.fp16.json", index("s4.safetensors")),
    ];
    for expected in [1.0, 2.0, 3.0, 4.0] {
        let mut all = parts.clone();
        all.push(("unet/s2.safetensors", one(2.0)));
        all.push(("unet/s4.safetensors", one(4.0)));
        let store = open(&checkpoint(&all)).unwrap();
        let mut loaded = store.load(&Device::flex(), DType::F32).unwrap();
        assert_eq!(values(loaded.take("a", [1]).unwrap()), [expected]);
        parts.remove(0);
    }
}

#[test]
fn a_folder_with_pickles_alone_says_what_is_read_instead() {
    let error = open(&checkpoint(&[("unet/model.bin", vec![1])])).unwrap_err();
    assert!(
        matches!(&error, WeightsError::NotSafetensors { file, expected }
            if file.ends_with("model.bin") && expected == "model.safetensors"),
        "{error}"
    );
    let error = open(&checkpoint(&[("unet/config.json", vec![1])])).unwrap_err();
    assert!(matches!(&error, WeightsError::NoWeights { expected, .. } if expected.len() == 4), "{error}");
}

#[test]
fn a_missing_checkpoint_a_missing_part_and_a_missing_file_are_three_errors() {
    let root = checkpoint(&[("unet/config.json", b"{}".to_vec())]);
    let nowhere = root.path().join("nowhere");
    let error = Files::folder(&nowhere).unwrap_err();
    assert!(matches!(&error, FilesError::NoFolder { path } if *path == nowhere), "{error}");
    let error = Files::Folder(nowhere.clone()).json("unet/config.json").unwrap_err();
    assert!(matches!(&error, FilesError::NoFolder { path } if *path == nowhere), "{error}");
    let error = Files::folder(root.path().join("unet/config.json")).unwrap_err();
    assert!(matches!(error, FilesError::NotAFolder { .. }), "{error}");
    let error = files(&root).json("vae/config.json").unwrap_err();
    assert!(matches!(&error, FilesError::NoPart { folder, .. } if folder == "vae"), "{error}");
    let error = files(&root).json("unet/other.json").unwrap_err();
    assert!(matches!(&error, FilesError::NoFile { file } if file.ends_with("unet/other.json")), "{error}");
    let error = WeightStore::open(&files(&root), "vae", "model").unwrap_err();
    assert!(
        matches!(&error, WeightsError::Files(FilesError::NoPart { folder, .. }) if folder == "vae"),
        "{error}"
    );
}

#[test]
fn what_is_no_regular_file_is_not_opened() {
    let root = checkpoint(&[("unet/config.json/inner", b"{}".to_vec())]);
    let error = files(&root).json("unet/config.json").unwrap_err();
    assert!(matches!(error, FilesError::NotAFile { .. }), "{error}");
    #[cfg(target_os = "linux")]
    {
        let error = Files::folder("/dev").unwrap().text("null").unwrap_err();
        assert!(matches!(error, FilesError::NotAFile { .. }), "{error}");
    }
}

#[test]
fn a_path_out_of_the_checkpoint_is_refused_for_every_kind_of_reading() {
    let root = checkpoint(&[("unet/config.json", b"{}".to_vec()), ("secret", b"{}".to_vec())]);
    let inner = Files::folder(root.path().join("unet")).unwrap();
    assert!(!inner.exists("../secret"));
    let error = inner.text("../secret").unwrap_err();
    assert!(matches!(error, FilesError::Escapes { .. }), "{error}");
    let error = inner.list("..").unwrap_err();
    assert!(matches!(error, FilesError::Escapes { .. }), "{error}");
    let error = WeightStore::open_file(&inner, "../secret").unwrap_err();
    assert!(matches!(error, WeightsError::Files(FilesError::Escapes { .. })), "{error}");
}

#[test]
fn a_text_that_is_too_large_not_utf8_or_not_json_is_refused() {
    let root = checkpoint(&[
        ("bytes.json", vec![b'"', 0xff, b'"']),
        ("broken.json", b"{\"a\":\n }".to_vec()),
        ("twice.json", b"{\"a\": {\"b\": 1, \"b\": 1}}".to_vec()),
        ("deep.json", vec![b'['; 1 << 20]),
    ]);
    fs::File::create(root.path().join("big.json")).unwrap().set_len((64 << 20) + 1).unwrap();
    let files = files(&root);
    let error = files.json("big.json").unwrap_err();
    assert!(matches!(error, FilesError::TooLarge { found: 67_108_865, .. }), "{error}");
    let error = files.json("bytes.json").unwrap_err();
    assert!(matches!(error, FilesError::NotUtf8 { offset: 1, .. }), "{error}");
    for name in ["broken.json", "twice.json", "deep.json"] {
        let error = files.json(name).unwrap_err();
        assert!(matches!(&error, FilesError::InvalidJson { file, .. } if file.ends_with(name)), "{error}");
    }
    assert!(files.json("twice.json").unwrap_err().to_string().contains("`b` stands twice"));
}

#[test]
fn embedded_files_are_read_like_a_folder() {
    let weights: &'static [u8] = file(&[f32s("a", &[1], &[5.0])]).leak();
    let list: &'static [(&'static str, &'static [u8])] =
        vec![("unet/model.safetensors", weights), ("unet/config.json", &b"{\"a\": 1}"[..])].leak();
    let files = Files::Embedded(list);
    assert_eq!(files.list("unet").unwrap(), ["config.json", "model.safetensors"]);
    assert_eq!(files.json("unet/config.json").unwrap(), json!({"a": 1}));
    let store = WeightStore::open(&files, "unet", "model").unwrap();
    let mut loaded = store.load(&Device::flex(), DType::F32).unwrap();
    assert_eq!(values(loaded.take("a", [1]).unwrap()), [5.0]);
    let error = files.text("vae/config.json").unwrap_err();
    assert!(matches!(&error, FilesError::NoPart { folder, .. } if folder == "vae"), "{error}");
    let error = files.text("unet/none.json").unwrap_err();
    assert!(matches!(&error, FilesError::NoFile { file } if file == "embedded:unet/none.json"), "{error}");
    let error = WeightStore::open(&files, "vae", "model").unwrap_err();
    assert!(matches!(error, WeightsError::Files(FilesError::NoPart { .. })), "{error}");
}
