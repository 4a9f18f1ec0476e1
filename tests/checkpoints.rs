//! Checkpoints that cannot be loaded, or that compute nonsense, get a typed error that says where.
#![cfg(feature = "cpu")]

mod common;

use std::fs;
use std::path::Path;

use aquatint::weights::{ConfigError, FilesError, WeightsError};
use aquatint::{DeviceChoice, Error, Guidance, Pipeline, Precision, Request, Stage};
use common::parity::copy;
use common::{checkpoint, options};
use proptest::prelude::*;
use serde_json::{Value, json};

fn load(folder: &Path) -> Result<Pipeline, Error> {
    Pipeline::load(folder, options(DeviceChoice::Cpu, Precision::F32))
}

/// The error of a copy of the `sd15` checkpoint after `damage`.
fn damaged(damage: impl FnOnce(&Path)) -> Error {
    let folder = copy("sd15");
    damage(folder.path());
    load(folder.path()).unwrap_err()
}

fn set(folder: &Path, file: &str, key: &str, value: Value) {
    let path = folder.join(file);
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn a_missing_folder_part_or_file_is_named() {
    let error = load(Path::new("/no/such/folder")).unwrap_err();
    assert!(matches!(error, Error::Files(FilesError::NoFolder { .. })), "{error:?}");
    for file in ["model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
    {
        let error = damaged(|folder| fs::remove_file(folder.join(file)).unwrap());
        assert!(error.to_string().contains(file), "{error}");
    }
    let error = damaged(|folder| fs::remove_dir_all(folder.join("text_encoder")).unwrap());
    assert!(error.to_string().contains("text_encoder"), "{error}");
    let error =
        damaged(|folder| fs::remove_file(folder.join("unet/diffusion_pytorch_model.safetensors")).unwrap());
    assert!(matches!(error, Error::Weights(_)), "{error:?}");
}

#[test]
fn an_unsupported_config_value_is_refused_by_name() {
    for (file, key, value) in [
        ("unet/config.json", "class_embed_type", json!("timestep")),
        ("unet/config.json", "act_fn", json!("gelu")),
        ("unet/config.json", "mid_block_type", Value::Null),
        (
            "unet/config.json",
            "down_block_types",
            json!(["AttnDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"]),
        ),
        ("unet/config.json", "time_cond_proj_dim", json!(256)),
        ("unet/config.json", "block_out_channels", json!([])),
        ("unet/config.json", "norm_num_groups", json!(0)),
        ("unet/config.json", "norm_num_groups", json!(5)),
        ("unet/config.json", "attention_head_dim", json!(3)),
        ("unet/config.json", "in_channels", json!(9)),
        ("unet/config.json", "cross_attention_dim", json!(99)),
        ("unet/config.json", "sample_size", Value::Null),
        ("unet/config.json", "downsample_padding", json!(0)),
        ("unet/config.json", "num_attention_heads", json!(2)),
        ("unet/config.json", "block_out_channels", json!([8, 8, 8, 8, 8, 8, 8, 8, 8])),
        ("vae/config.json", "block_out_channels", json!([8, 8, 8, 8, 8, 8, 8, 8, 8])),
        ("vae/config.json", "shift_factor", json!(0.1)),
        ("vae/config.json", "act_fn", json!("relu")),
        ("vae/config.json", "scaling_factor", json!(0)),
        ("text_encoder/config.json", "hidden_act", json!("relu")),
        ("text_encoder/config.json", "num_attention_heads", json!(5)),
        ("model_index.json", "_class_name", json!("FluxPipeline")),
        ("model_index.json", "image_encoder", json!(["transformers", "CLIPVisionModel"])),
        ("model_index.json", "unet", json!(["diffusers", "UNet3DConditionModel"])),
    ] {
        let error = damaged(|folder| set(folder, file, key, value.clone()));
        assert!(matches!(error, Error::Config(_)), "{file} {key} {value}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(key) && text.contains(file), "{file} {key} {value}: {text}");
    }
}

#[test]
fn an_unknown_config_key_is_refused_by_name() {
    for file in ["unet/config.json", "vae/config.json", "text_encoder/config.json"] {
        let error = damaged(|folder| set(folder, file, "frobnicate", json!(1)));
        assert!(
            matches!(&error, Error::Config(ConfigError::Unknown { keys, .. }) if keys == &["frobnicate"]),
            "{error:?}"
        );
    }
    let error = damaged(|folder| set(folder, "scheduler/scheduler_config.json", "frobnicate", json!(1)));
    assert!(matches!(error, Error::Scheduler { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("frobnicate") && text.contains("scheduler_config.json"), "{text}");
}

#[test]
fn a_config_that_asks_for_other_weights_is_refused_by_key() {
    let error = damaged(|folder| set(folder, "unet/config.json", "layers_per_block", json!(3)));
    assert!(matches!(error, Error::Weights(WeightsError::Missing { .. })), "{error:?}");
    let error = damaged(|folder| set(folder, "unet/config.json", "layers_per_block", json!(1)));
    assert!(
        matches!(error, Error::Weights(WeightsError::Shape { .. } | WeightsError::Unused { .. })),
        "{error:?}"
    );
    let error = damaged(|folder| set(folder, "vae/config.json", "mid_block_add_attention", json!(false)));
    assert!(matches!(error, Error::Weights(WeightsError::Unused { .. })), "{error:?}");
}

#[test]
fn weights_that_are_not_finite_are_refused_by_key() {
    let error = damaged(|folder| {
        let path = folder.join("vae/diffusion_pytorch_model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(path, bytes).unwrap();
    });
    assert!(matches!(error, Error::Weights(WeightsError::NonFinite { .. })), "{error:?}");
}

#[test]
fn latents_that_overflow_name_the_stage() {
    let pipeline = load(&checkpoint("sd15")).unwrap();
    let request =
        Request { steps: Some(3), guidance: Some(Guidance::classifier_free(3e38)), ..Request::new("a fox") };
    let error = pipeline.generate(&request).unwrap_err();
    assert!(matches!(error, Error::NonFinite { stage: Stage::Denoise, .. }), "{error:?}");
    assert!(pipeline.generate(&Request { guidance: None, ..request }).is_ok());
}

#[test]
fn a_decoder_that_overflows_half_precision_is_an_error_and_no_black_picture() {
    let folder = copy("sd15");
    set(folder.path(), "vae/config.json", "scaling_factor", json!(1e-7));
    set(folder.path(), "vae/config.json", "force_upcast", json!(false));
    let request = Request { steps: Some(2), ..Request::new("a fox") };
    let half = Pipeline::load(folder.path(), options(DeviceChoice::Cpu, Precision::F16)).unwrap();
    let error = half.generate(&request).unwrap_err();
    assert!(matches!(error, Error::NonFinite { stage: Stage::Decode, .. }), "{error:?}");
    // The config's `force_upcast` keeps the decoder in f32.
    set(folder.path(), "vae/config.json", "force_upcast", json!(true));
    let upcast = Pipeline::load(folder.path(), options(DeviceChoice::Cpu, Precision::F16)).unwrap();
    assert_eq!(upcast.precision(), Precision::F16);
    assert!(upcast.generate(&request).is_ok());
}

#[test]
fn the_digest_is_the_same_in_every_precision_and_differs_with_the_weights() {
    let digest = |name: &str, precision| {
        let pipeline = Pipeline::load(checkpoint(name), options(DeviceChoice::Cpu, precision)).unwrap();
        pipeline.weights_digest().to_owned()
    };
    assert_eq!(digest("sd15", Precision::F32), digest("sd15", Precision::Bf16));
    assert_ne!(digest("sd15", Precision::F32), digest("sd21", Precision::F32));
}

/// Numbers that no network has, in every place where a config holds a number.
#[test]
fn absurd_numbers_in_a_config_end_in_a_typed_error() {
    let mut tried = 0;
    for file in ["unet/config.json", "vae/config.json", "text_encoder/config.json"] {
        let text = fs::read_to_string(checkpoint("sd15").join(file)).unwrap();
        let config: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
        for key in config.iter().filter(|(_, value)| value.is_number()).map(|(key, _)| key) {
            for number in
                [json!(0), json!(-1), json!(1), json!(1 << 28), json!(1u64 << 32), json!(1e300), json!(0.5)]
            {
                let folder = copy("sd15");
                set(folder.path(), file, key, number.clone());
                let drawn = load(folder.path()).and_then(|pipeline| {
                    pipeline.generate(&Request { steps: Some(1), ..Request::new("a fox") })
                });
                // What is caught as a panic was not checked where it should have been.
                let caught = matches!(&drawn, Err(Error::Device(_)));
                assert!(!caught, "{file} {key} {number}: {drawn:?}");
                tried += 1;
            }
        }
    }
    assert!(tried > 100, "{tried}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens to one file's bytes, loading ends with a pipeline or a typed error.
    #[test]
    fn a_corrupted_file_never_panics(file in 0..11usize, cut in any::<prop::sample::Index>(), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), extra in 0..64usize, shorten in any::<bool>()) {
        let file = [
            "unet/diffusion_pytorch_model.safetensors",
            "text_encoder/model.safetensors",
            "unet/config.json",
            "model_index.json",
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
            "scheduler/scheduler_config.json",
            "vae/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "text_encoder/config.json",
            "tokenizer/tokenizer_config.json",
        ][file];
        let folder = copy("sd15");
        let path = folder.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        for (index, byte) in flips {
            // The header is where a flip decides most.
            let index = index.index(bytes.len().min(4096));
            bytes[index] ^= byte;
        }
        if shorten {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(vec![b'x'; extra]);
        fs::write(path, bytes).unwrap();
        let drawn = load(folder.path())
            .and_then(|pipeline| pipeline.generate(&Request { steps: Some(1), ..Request::new("a fox") }));
        prop_assert!(!matches!(drawn, Err(Error::Device(_))), "a panic was caught: {drawn:?}");
    }
}
