//! From denoised latents to pictures.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{Pipeline, check_finite, download, memory};
use crate::device::{DeviceKind, guard};
use crate::error::{Error, Result, Stage};
use crate::image::{Picture, from_unit};
use crate::job::{Job, Row};
use crate::request::{Guidance, Input};

/// What a request gave.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The pictures, in the order of their seeds.
    pub images: Vec<Picture>,
    /// Times, memory and notes.
    pub report: Report,
    /// Latents and floats, where the request asked to keep them.
    pub raw: Option<Raw>,
}

/// Where the time went, and what is worth knowing.
#[derive(Clone, Debug)]
pub struct Report {
    /// Tokenizer, text encoder, image encoder.
    pub encoding: Duration,
    /// All steps this job was part of, neighbours in its launches included.
    pub denoising: Duration,
    /// The autoencoder's decoder.
    pub decoding: Duration,
    /// Bytes of memory: the most that this process has held on the CPU (Linux), what the device's pool
    /// holds at the end elsewhere; `None` where it cannot be read.
    pub memory: Option<u64>,
    /// Such as a prompt that was cut.
    pub notes: Vec<String>,
}

/// Values before they became pixels.
#[derive(Clone, Debug)]
pub struct Raw {
    /// The latents before decoding, row-major.
    pub latents: Vec<f32>,
    /// `[pictures, channels, height, width]` of `latents`.
    pub latents_shape: [usize; 4],
    /// The decoded pictures in `0..=1`, row-major.
    pub images: Vec<f32>,
    /// `[pictures, height, width, 3]` of `images`.
    pub images_shape: [usize; 4],
}

struct Decoded {
    latents: Vec<f32>,
    unit: Vec<f32>,
}

impl Pipeline {
    /// Decodes a job whose steps are done.
    ///
    /// # Errors
    /// [`Error::Unfinished`] and [`Error::ForeignJob`] for jobs that are not ready or not this
    /// pipeline's; [`Error::NonFinite`] names the stage that overflowed; [`Error::Device`].
    pub fn finish(&self, job: Job) -> Result<Generation> {
        self.decode_job(&job)
    }

    /// [`finish`](Self::finish) for a caller that keeps the job, to try again or to save it.
    pub(crate) fn decode_job(&self, job: &Job) -> Result<Generation> {
        self.check_owner(job)?;
        if !job.is_done() {
            return Err(Error::Unfinished { done: job.step(), total: job.total() });
        }
        let begun = Instant::now();
        let (mut images, mut latents, mut units) = (Vec::new(), Vec::new(), Vec::new());
        for row in &job.rows {
            let decoded = self.0.target.run(|| guard(Stage::Decode, || self.decode(row)))?;
            images.push(Picture {
                pixels: from_unit(job.width, job.height, &decoded.unit),
                seed: row.seed,
                parameters: self.parameters(job, row.seed),
            });
            if job.request.keep_raw {
                latents.extend(decoded.latents);
                units.extend(decoded.unit);
            }
        }
        let raw = job.request.keep_raw.then(|| {
            let [_, channels, lines, columns] = job.rows.first().map_or([0; 4], |row| row.latents.dims());
            Raw {
                latents,
                latents_shape: [job.rows.len(), channels, lines, columns],
                images: units,
                images_shape: [job.rows.len(), job.height as usize, job.width as usize, 3],
            }
        });
        let report = Report {
            encoding: job.encoding,
            denoising: job.denoising,
            decoding: begun.elapsed(),
            memory: self.memory(),
            notes: job.notes.clone(),
        };
        Ok(Generation { images, report, raw })
    }

    fn decode(&self, row: &Row) -> Result<Decoded> {
        let latents = download(row.latents.clone(), Stage::Denoise)?;
        check_finite(&latents, Stage::Denoise, "; a higher precision may help")?;
        let autoencoder = &self.0.model.autoencoder;
        let scaled = row.latents.clone() / autoencoder.config().scaling_factor;
        let mut unit = download(autoencoder.decode(scaled), Stage::Decode)?;
        check_finite(&unit, Stage::Decode, "; a higher precision may help")?;
        for value in &mut unit {
            *value = (*value * 0.5 + 0.5).clamp(0.0, 1.0);
        }
        Ok(Decoded { latents, unit })
    }

    fn memory(&self) -> Option<u64> {
        match self.0.target.kind {
            DeviceKind::Cpu => memory::peak(),
            _ => self.device().memory_pool_usage().map(|usage| usage.bytes_reserved),
        }
    }

    /// The request with every default filled in.
    fn parameters(&self, job: &Job, seed: u64) -> String {
        let request = &job.request;
        let mut parameters = json!({
            "prompt": request.prompt,
            "width": job.width,
            "height": job.height,
            "steps": request.steps.unwrap_or(self.0.model.defaults.steps),
            "sampler": job.plan.sampler().to_string(),
            "seed": seed,
            "model": self.weights_digest(),
            "precision": self.precision().to_string(),
            "aquatint": env!("CARGO_PKG_VERSION"),
        });
        let mut set = |key: &str, value: serde_json::Value| {
            if let Some(object) = parameters.as_object_mut() {
                object.insert(key.to_owned(), value);
            }
        };
        if let Some(sigmas) = request.sigmas {
            set("sigmas", json!(sigmas.to_string()));
        }
        if let Some(skip) = request.clip_skip {
            set("clip_skip", json!(skip));
        }
        if let Input::Image { strength, .. } = &request.input {
            set("strength", decimal(*strength));
        }
        if let Some(Guidance::ClassifierFree { scale, negative_prompt, rescale, interval }) =
            &request.guidance
        {
            set("guidance_scale", decimal(*scale));
            set("negative_prompt", json!(negative_prompt));
            set("guidance_rescale", decimal(*rescale));
            set("guidance_interval", json!([decimal(*interval.start()), decimal(*interval.end())]));
        }
        parameters.to_string()
    }
}

/// The number as it was typed: JSON numbers are f64, and widening would show digits nobody wrote.
fn decimal(value: f32) -> serde_json::Value {
    value.to_string().parse::<f64>().map_or(serde_json::Value::Null, |value| json!(value))
}
