//! Stable Diffusion 1.x and 2.x: CLIP text states, a U-Net with cross-attention, a 4-channel
//! autoencoder (Rombach et al. 2022). The versions differ in their configs alone.

use burn::tensor::DType;
use serde_json::Value;

use super::{Defaults, Family, Model, Schedulers, unsupported};
use crate::autoencoder::{Autoencoder, AutoencoderConfig};
use crate::denoisers::Denoiser;
use crate::denoisers::unet::{UNet2dCondition, UNetConfig};
use crate::device::Target;
use crate::error::{Error, Result};
use crate::nn::Weights;
use crate::request::Guidance;
use crate::samplers::{SamplerError, SchedulerConfig};
use crate::text::TextEncoder;
use crate::text::clip::{ClipConfig, ClipTextModel};
use crate::text::tokenizer::Tokenizer;
use crate::weights::{ConfigError, ConfigReader, Files, KeyMap, NON_WEIGHTS, OLD_ATTENTION, WeightStore};

pub(crate) const FAMILY: Family = Family {
    name: "Stable Diffusion",
    classes: &["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"],
    load,
};

const INDEX: &str = "model_index.json";
const TEXT_CONFIG: &str = "text_encoder/config.json";
const UNET_CONFIG: &str = "unet/config.json";
const VAE_CONFIG: &str = "vae/config.json";
const SCHEDULER_CONFIG: &str = "scheduler/scheduler_config.json";

/// The classes that each part may have; the scheduler's are the samplers' concern.
const PARTS: &[(&str, &[&str])] = &[
    ("text_encoder", &["CLIPTextModel"]),
    ("tokenizer", &["CLIPTokenizer", "CLIPTokenizerFast"]),
    ("unet", &["UNet2DConditionModel"]),
    ("vae", &["AutoencoderKL"]),
];

/// Text encoder keys: older transformers put a prefix before every one.
const TEXT_KEYS: &[(&str, &str)] = &[("text_model.**", "**")];
/// The file stem of diffusers' networks.
const NETWORK: &str = "diffusion_pytorch_model";

fn load(files: &Files, index: &Value, target: &Target) -> Result<Model> {
    let notes = check_index(files, index)?;
    let clip = ClipConfig::read(reader(files, TEXT_CONFIG)?)?;
    let unet = UNetConfig::read(reader(files, UNET_CONFIG)?)?;
    let vae = AutoencoderConfig::read(reader(files, VAE_CONFIG)?)?;
    if unet.context != clip.hidden_size {
        let expected = format!("the text encoder's hidden_size {}", clip.hidden_size);
        return Err(
            unsupported(files.name(UNET_CONFIG), "cross_attention_dim", expected, unet.context).into()
        );
    }
    if unet.in_channels != vae.latent_channels {
        let expected = format!("the autoencoder's latent_channels {}", vae.latent_channels);
        return Err(unsupported(files.name(UNET_CONFIG), "in_channels", expected, unet.in_channels).into());
    }
    let schedulers = schedulers(files.json_after(SCHEDULER_CONFIG, SchedulerConfig::quote_infinities)?)
        .map_err(|source| Error::Scheduler { file: files.name(SCHEDULER_CONFIG), source })?;
    let tokenizer = Tokenizer::load(files, "tokenizer")?;

    let Target { device, dtype, .. } = target;
    let text =
        Weights::new(open(files, "text_encoder", "model", TEXT_KEYS, NON_WEIGHTS)?.load(device, *dtype)?);
    let text_model = ClipTextModel::load(&text, clip)?;
    check_tokenizer(files, &tokenizer, &text_model)?;
    let text_stats = finish(text)?;

    let unet_weights = Weights::new(open(files, "unet", NETWORK, &[], &[])?.load(device, *dtype)?);
    let sample_size = unet.sample_size;
    let denoiser = Denoiser::UNet(UNet2dCondition::load(&unet_weights, unet, device)?);
    let unet_stats = finish(unet_weights)?;

    // The config says whether its activations overflow f16.
    let vae_dtype = if vae.force_upcast && *dtype == DType::F16 { DType::F32 } else { *dtype };
    let vae_weights = Weights::new(open(files, "vae", NETWORK, OLD_ATTENTION, &[])?.load(device, vae_dtype)?);
    let factor = vae.factor();
    let autoencoder = Autoencoder::load(&vae_weights, vae)?;
    let vae_stats = finish(vae_weights)?;

    let side = |latents: usize| u32::try_from(latents * factor).unwrap_or(u32::MAX);
    Ok(Model {
        text: TextEncoder { tokenizer, model: text_model },
        denoiser,
        autoencoder,
        schedulers,
        defaults: Defaults {
            height: side(sample_size[0]),
            width: side(sample_size[1]),
            steps: 30,
            guidance: Guidance::classifier_free(7.5),
        },
        digest: format!("{}-{}-{}", text_stats.0, unet_stats.0, vae_stats.0),
        configs: files.digest(&[UNET_CONFIG, VAE_CONFIG, SCHEDULER_CONFIG])?,
        bytes: text_stats.1 + unet_stats.1 + vae_stats.1,
        notes,
    })
}

/// diffusers' pipeline overrules two settings of older configs, `steps_offset` and `clip_sample`: for the
/// checkpoint's own sampler even where the file leaves them out, for another one where it names them.
fn schedulers(mut json: Value) -> Result<Schedulers, SamplerError> {
    let overruled = [("steps_offset", Value::from(1)), ("clip_sample", Value::from(false))];
    if let Some(config) = json.as_object_mut() {
        for (key, value) in &overruled {
            // A value of another kind is left for the reader to refuse.
            if let Some(found) = config.get_mut(*key)
                && std::mem::discriminant(found) == std::mem::discriminant(value)
            {
                found.clone_from(value);
            }
        }
    }
    let other = SchedulerConfig::from_json(&json)?;
    if let Some(config) = json.as_object_mut() {
        for (key, value) in overruled {
            config.entry(key).or_insert(value);
        }
    }
    Ok(Schedulers { own: SchedulerConfig::from_json(&json)?, other })
}

fn reader(files: &Files, path: &str) -> Result<ConfigReader> {
    Ok(ConfigReader::open(files, path)?)
}

fn open(
    files: &Files,
    folder: &str,
    stem: &str,
    keys: &[(&str, &str)],
    ignored: &[&str],
) -> Result<WeightStore> {
    let mut store = WeightStore::open(files, folder, stem)?;
    store.rename(&KeyMap::table(keys)?)?;
    store.ignore(ignored)?;
    Ok(store)
}

/// Refuses weights that no layer took; else their digest and size.
fn finish(weights: Weights) -> Result<(String, u64)> {
    let weights = weights.into_inner();
    let stats = (weights.digest().to_owned(), weights.bytes() as u64);
    weights.finish()?;
    Ok(stats)
}

/// Every entry of the index is known: a part with a class that is read, or one that is reported.
fn check_index(files: &Files, index: &Value) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for (part, classes) in PARTS {
        let class =
            index.get(part).and_then(|entry| entry.get(1)).and_then(Value::as_str).unwrap_or("nothing");
        if !classes.contains(&class) {
            return Err(unsupported(files.name(INDEX), part, classes.join(" or "), class).into());
        }
    }
    for (key, value) in index.as_object().into_iter().flatten() {
        let class = value.get(1).and_then(Value::as_str);
        match (key.as_str(), class) {
            ("scheduler" | "feature_extractor" | "requires_safety_checker", _) => {}
            ("safety_checker", Some(class)) => notes.push(format!("the checkpoint's {class} is not run")),
            (part, _) if part.starts_with('_') || PARTS.iter().any(|(known, _)| *known == part) => {}
            (_, None) if value.is_null() || value.get(1).is_some_and(Value::is_null) => {}
            (part, _) => {
                return Err(unsupported(files.name(INDEX), part, "null", value.to_string()).into());
            }
        }
    }
    Ok(notes)
}

/// A tokenizer whose tokens the text encoder cannot read would index past its tables.
fn check_tokenizer(files: &Files, tokenizer: &Tokenizer, model: &ClipTextModel) -> Result<(), ConfigError> {
    let file = files.name(TEXT_CONFIG);
    if tokenizer.max_length() > model.max_positions() {
        let expected = format!("at least the tokenizer's {} positions", tokenizer.max_length());
        return Err(unsupported(file, "max_position_embeddings", expected, model.max_positions()));
    }
    if tokenizer.vocabulary() > model.vocab_size() {
        let expected = format!("at least the tokenizer's {} tokens", tokenizer.vocabulary());
        return Err(unsupported(file, "vocab_size", expected, model.vocab_size()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samplers::{Plan, Sampler, SigmaSchedule};

    /// Leading spacing: `(7 - 1) * (1000 / 7)`, plus `steps_offset`.
    #[test]
    fn an_offset_that_the_file_leaves_out_is_overruled_for_the_checkpoints_own_settings_alone() {
        let json =
            serde_json::json!({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"});
        let schedulers = schedulers(json).unwrap();
        let first = |sampler, sigmas| {
            let config = schedulers.config(sampler, sigmas);
            Plan::new(config, None, None, 7, None).unwrap().steps()[0].timestep
        };
        assert_eq!(first(None, None), 853.0);
        assert_eq!(first(Some(Sampler::Euler), None), 852.0);
        assert_eq!(first(None, Some(SigmaSchedule::Karras)), 852.0);
    }
}
