//! Typed access to the keys of a `scheduler_config.json`.

use serde_json::{Map, Value};

use super::Unsupported;
use crate::samplers::{SamplerError, SigmaSchedule};

/// Keys of diffusers' schedulers for latent and pixel diffusion, version 0.42. Only these may occur.
const KNOWN: &[&str] = &[
    "algorithm_type",
    "beta_end",
    "beta_schedule",
    "beta_start",
    "clip_sample",
    "clip_sample_range",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "interpolation_type",
    "lambda_min_clipped",
    "lower_order_final",
    "num_train_timesteps",
    "original_inference_steps",
    "predict_x0",
    "prediction_type",
    "rescale_betas_zero_snr",
    "sample_max_value",
    "set_alpha_to_one",
    "shift_terminal",
    "sigma_max",
    "sigma_min",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "steps_offset",
    "thresholding",
    "time_shift_type",
    "timestep_scaling",
    "timestep_spacing",
    "timestep_type",
    "trained_betas",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_flow_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    "variance_type",
];

/// Keys for which `null` says what absence says.
const NULLABLE: &[&str] =
    &["shift_terminal", "sigma_max", "sigma_min", "solver_p", "trained_betas", "variance_type"];

/// More training timesteps than any model has; a bound on what a file can make this code allocate.
pub(super) const MOST_TIMESTEPS: usize = 100_000;
pub(super) const FROM_1: &str = "a whole number from 1 to 100000";
pub(super) const FROM_0: &str = "a whole number from 0 to 100000";

/// The schedulers of diffusers that read each other's configurations.
const COMPATIBLE: &[&str] = &[
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
];

pub(super) struct Reader<'a> {
    map: &'a Map<String, Value>,
    /// Keys that the file lists but does not mean.
    defaulted: Vec<&'a str>,
}

impl<'a> Reader<'a> {
    /// Refuses unknown keys.
    pub(super) fn new(json: &'a Value) -> Result<Self, SamplerError> {
        let map = json.as_object().ok_or(SamplerError::NotAnObject)?;
        let listed = map.get("_use_default_values").and_then(Value::as_array);
        let defaulted = listed.into_iter().flatten().filter_map(Value::as_str).collect();
        let unknown = |key: &str| !key.starts_with('_') && !KNOWN.contains(&key);
        if let Some((key, value)) = map.iter().find(|(key, _)| unknown(key)) {
            return Err(SamplerError::UnknownKey { key: key.clone(), found: value.to_string() });
        }
        Ok(Self { map, defaulted })
    }

    fn get(&self, key: &'static str) -> Option<&'a Value> {
        if self.defaulted.contains(&key) {
            return None;
        }
        self.map.get(key).filter(|value| !(value.is_null() && NULLABLE.contains(&key)))
    }

    pub(super) fn class_name(&self) -> Result<String, SamplerError> {
        let key = "_class_name";
        let value = self.map.get(key).ok_or(SamplerError::Missing { key })?;
        let name = value.as_str().filter(|name| COMPATIBLE.contains(name));
        let expected = "a scheduler of diffusion by denoising, such as DDIMScheduler";
        name.map(str::to_owned).ok_or_else(|| refuse(key, value, expected))
    }

    pub(super) fn flag(&self, key: &'static str) -> Result<Option<bool>, SamplerError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| refuse(key, value, "true or false"))
    }

    pub(super) fn number(&self, key: &'static str) -> Result<Option<f64>, SamplerError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match value.as_str() {
            Some("Infinity") => Some(f64::INFINITY),
            Some("-Infinity") => Some(f64::NEG_INFINITY),
            _ => value.as_f64(),
        };
        number.map(Some).ok_or_else(|| refuse(key, value, "a number"))
    }

    pub(super) fn number_in(
        &self,
        key: &'static str,
        least: f64,
        most: f64,
        expected: &'static str,
    ) -> Result<Option<f64>, SamplerError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|number| (least..=most).contains(number));
        number.map(Some).ok_or_else(|| refuse(key, value, expected))
    }

    pub(super) fn whole(
        &self,
        key: &'static str,
        least: usize,
        most: usize,
        expected: &'static str,
    ) -> Result<Option<usize>, SamplerError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        let number = number.filter(|number| (least..=most).contains(number));
        number.map(Some).ok_or_else(|| refuse(key, value, expected))
    }

    pub(super) fn choice<T: Copy>(
        &self,
        key: &'static str,
        choices: &[(&str, T)],
        expected: &'static str,
    ) -> Result<Option<T>, SamplerError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let chosen = choices.iter().find(|(name, _)| value.as_str() == Some(*name));
        chosen.map(|(_, choice)| Some(*choice)).ok_or_else(|| refuse(key, value, expected))
    }

    /// One beta a training timestep.
    pub(super) fn betas(
        &self,
        key: &'static str,
        timesteps: usize,
    ) -> Result<Option<Vec<f32>>, SamplerError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let beta = |value: &Value| value.as_f64().filter(|beta| (0.0..=1.0).contains(beta));
        let betas: Option<Vec<f32>> = value
            .as_array()
            .and_then(|array| array.iter().map(|value| beta(value).map(|b| b as f32)).collect());
        let betas = betas.filter(|betas| betas.len() == timesteps);
        let expected = "num_train_timesteps numbers from 0 to 1";
        betas.map(Some).ok_or_else(|| SamplerError::Value {
            key,
            // the whole list would bury the message
            found: value.as_array().map_or_else(|| value.to_string(), |a| format!("{} values", a.len())),
            expected,
        })
    }

    pub(super) fn indices(&self, key: &'static str) -> Result<Vec<usize>, SamplerError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let index = |value: &Value| value.as_u64().and_then(|index| usize::try_from(index).ok());
        let indices = value.as_array().and_then(|array| array.iter().map(index).collect());
        indices.ok_or_else(|| refuse(key, value, "a list of whole numbers"))
    }

    /// The one sigma schedule of three flags.
    pub(super) fn sigma_schedule(&self) -> Result<Option<SigmaSchedule>, SamplerError> {
        let flags = [
            ("use_karras_sigmas", SigmaSchedule::Karras),
            ("use_exponential_sigmas", SigmaSchedule::Exponential),
            ("use_beta_sigmas", SigmaSchedule::Beta),
        ];
        let mut chosen = None;
        for (key, schedule) in flags {
            if !self.flag(key)?.unwrap_or(false) {
                continue;
            }
            if let Some((first, _)) = chosen {
                return Err(SamplerError::Conflict { first, second: key });
            }
            chosen = Some((key, schedule));
        }
        Ok(chosen.map(|(_, schedule)| schedule))
    }

    /// The settings that change numbers and are not supported.
    pub(super) fn unsupported(&self) -> Result<Vec<Unsupported>, SamplerError> {
        let mut found = Vec::new();
        for key in ["thresholding", "use_flow_sigmas", "use_dynamic_shifting"] {
            if self.flag(key)? == Some(true) {
                found.push(Unsupported { key, found: "true".to_owned(), expected: "false" });
            }
        }
        for key in ["solver_p", "shift_terminal"] {
            if let Some(value) = self.get(key) {
                found.push(Unsupported { key, found: value.to_string(), expected: "null" });
            }
        }
        if let Some(value) = self.get("variance_type")
            && value.as_str().is_some_and(|name| name.starts_with("learned"))
        {
            let expected = "a fixed variance, or null";
            found.push(Unsupported { key: "variance_type", found: value.to_string(), expected });
        }
        Ok(found)
    }
}

fn refuse(key: &'static str, value: &Value, expected: &'static str) -> SamplerError {
    SamplerError::Value { key, found: value.to_string(), expected }
}

/// Puts quotation marks around `Infinity` and `-Infinity` where they stand outside of a string.
pub(super) fn quote_infinities(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['"', 'I', '-']) {
        let (before, tail) = rest.split_at(at);
        quoted.push_str(before);
        let taken = if tail.starts_with('"') {
            string_length(tail)
        } else if let Some(word) = ["Infinity", "-Infinity"].into_iter().find(|word| tail.starts_with(word)) {
            quoted.push('"');
            quoted.push_str(word);
            quoted.push('"');
            rest = tail.get(word.len()..).unwrap_or_default();
            continue;
        } else {
            1
        };
        let (token, after) = tail.split_at(taken);
        quoted.push_str(token);
        rest = after;
    }
    quoted.push_str(rest);
    quoted
}

/// The length of the string literal that `text` begins with, or of all of it if none ends.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            b'"' if !escaped => return at + 1,
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}
