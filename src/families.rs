//! Checkpoint families: one recipe each, found by the pipeline class that the checkpoint names.

pub(crate) mod stable_diffusion;

use serde_json::Value;

use crate::autoencoder::Autoencoder;
use crate::denoisers::Denoiser;
use crate::device::Target;
use crate::error::Result;
use crate::request::Guidance;
use crate::samplers::{Sampler, SchedulerConfig, SigmaSchedule};
use crate::text::TextEncoder;
use crate::weights::{ConfigError, Files};

/// How one family of checkpoints is recognised and put together.
pub(crate) struct Family {
    pub(crate) name: &'static str,
    /// `_class_name` values in `model_index.json`.
    pub(crate) classes: &'static [&'static str],
    pub(crate) load: fn(&Files, &Value, &Target) -> Result<Model>,
}

/// Every family that can be loaded.
pub(crate) const REGISTRY: &[&Family] = &[&stable_diffusion::FAMILY];

/// A checkpoint on its device.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) text: TextEncoder,
    pub(crate) denoiser: Denoiser,
    pub(crate) autoencoder: Autoencoder,
    pub(crate) schedulers: Schedulers,
    pub(crate) defaults: Defaults,
    /// Of all weights, as stored.
    pub(crate) digest: String,
    /// Of the configs that decide what is computed with the weights.
    pub(crate) configs: String,
    /// Bytes of weights on the device.
    pub(crate) bytes: u64,
    /// What a user should know of this checkpoint.
    pub(crate) notes: Vec<String>,
}

/// The checkpoint's scheduler config, as its own sampler reads it and as another one does.
#[derive(Debug)]
pub(crate) struct Schedulers {
    pub(crate) own: SchedulerConfig,
    pub(crate) other: SchedulerConfig,
}

impl Schedulers {
    /// The one that diffusers' pipeline has, or the one that `from_config` makes for other settings.
    pub(crate) fn config(&self, sampler: Option<Sampler>, sigmas: Option<SigmaSchedule>) -> &SchedulerConfig {
        if sampler.is_none() && sigmas.is_none() { &self.own } else { &self.other }
    }
}

/// What a request gets where it says nothing.
#[derive(Clone, Debug)]
pub(crate) struct Defaults {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) steps: usize,
    pub(crate) guidance: Guidance,
}

/// Reads `model_index.json` and hands over to the family that knows its class.
pub(crate) fn load(files: &Files, target: &Target) -> Result<(&'static Family, Model)> {
    const INDEX: &str = "model_index.json";
    let index = files.json(INDEX)?;
    let class = index.get("_class_name").and_then(Value::as_str).unwrap_or_default();
    let family = REGISTRY.iter().find(|family| family.classes.contains(&class)).ok_or_else(|| {
        let known: Vec<&str> = REGISTRY.iter().flat_map(|family| family.classes).copied().collect();
        unsupported(files.name(INDEX), "_class_name", known.join(" or "), class)
    })?;
    Ok((family, (family.load)(files, &index, target)?))
}

/// A value that no family can follow.
fn unsupported(file: String, key: &str, expected: impl Into<String>, found: impl ToString) -> ConfigError {
    ConfigError::Unsupported {
        file,
        key: key.to_owned(),
        expected: expected.into(),
        found: found.to_string(),
    }
}
