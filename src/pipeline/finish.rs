//! From denoised latents to pictures.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use serde_json::json;

use super::step::first_non_finite_step;
use super::{Pipeline, check_finite, download, memory, no_output, together};
use crate::device::{DeviceKind, guard};
use crate::error::{Error, Result, Stage};
use crate::image::{Picture, from_unit};
use crate::job::{Applied, Job, Row};
use crate::request::{Guidance, Input};

/// What a request gave.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The pictures, in the order of their seeds.
    pub images: Vec<Picture>,
    /// Times, memory and notes.
    pub report: Report,
    /// What was done where it is not what was asked for: only an engine does so, with the submitter's consent.
    pub applied: Option<Applied>,
    /// Latents and floats, where the request asked to keep them.
    pub raw: Option<Raw>,
}

/// Where the time went, and what is worth knowing.
#[derive(Clone, Debug)]
pub struct Report {
    /// Tokenizer, text encoder, image encoder, of all jobs that were started together.
    pub encoding: Duration,
    /// All steps this job was part of, neighbours in its launches included.
    pub denoising: Duration,
    /// The autoencoder's decoder, of all jobs that were finished together.
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

/// One picture to decode.
struct Entry<'a> {
    job: usize,
    row: &'a Row,
    /// The latents' values.
    latents: Vec<f32>,
}

/// A job's pictures as they come.
struct Decoded {
    images: Vec<Picture>,
    latents: Vec<f32>,
    units: Vec<f32>,
}

impl Pipeline {
    /// Decodes a job whose steps are done.
    ///
    /// # Errors
    /// [`Error::Unfinished`] and [`Error::ForeignJob`] for jobs that are not ready or not this
    /// pipeline's; [`Error::NonFinite`] names the stage that overflowed and, of steps that count, the first that did;
    /// [`Error::Device`].
    pub fn finish(&self, job: Job) -> Result<Generation> {
        self.decode_jobs(&[&job]).pop().unwrap_or_else(|| Err(no_output(Stage::Decode)))
    }

    /// [`finish`](Self::finish) for several jobs, one result each, in their order: pictures of one size
    /// share launches of the decoder. Jobs that failed before are handed through. One job's failure leaves
    /// the others alone, and a picture's bits are those of a job alone.
    pub fn finish_batch(&self, jobs: Vec<Result<Job>>) -> Vec<Result<Generation>> {
        let there: Vec<&Job> = jobs.iter().flatten().collect();
        let mut decoded = self.decode_jobs(&there).into_iter();
        let result = |job: Result<Job>| {
            job.and_then(|_| decoded.next().unwrap_or_else(|| Err(no_output(Stage::Decode))))
        };
        jobs.into_iter().map(result).collect()
    }

    /// [`finish_batch`](Self::finish_batch) for a caller that keeps the jobs, to try again or to save them.
    pub(crate) fn decode_jobs(&self, jobs: &[&Job]) -> Vec<Result<Generation>> {
        let begun = Instant::now();
        let mut decoded: Vec<Result<Decoded>> = jobs.iter().map(|job| self.check_done(job)).collect();
        self.0.target.run(|| self.decode_all(jobs, &mut decoded));
        let decoding = begun.elapsed();
        let results = jobs.iter().zip(decoded);
        results.map(|(job, decoded)| Ok(self.generation(job, decoded?, decoding))).collect()
    }

    fn check_done(&self, job: &Job) -> Result<Decoded> {
        self.check_owner(job)?;
        if !job.is_done() {
            return Err(Error::Unfinished { done: job.step(), total: job.total() });
        }
        Ok(Decoded { images: Vec::new(), latents: Vec::new(), units: Vec::new() })
    }

    /// Every job's first picture, then every job's second: so a launch holds one of each.
    fn decode_all(&self, jobs: &[&Job], decoded: &mut [Result<Decoded>]) {
        let mut sizes: BTreeMap<(u32, u32), Vec<usize>> = BTreeMap::new();
        for (index, job) in jobs.iter().enumerate() {
            if decoded.get(index).is_some_and(Result::is_ok) {
                sizes.entry((job.width, job.height)).or_default().push(index);
            }
        }
        for ((width, height), group) in sizes {
            let most = self.autoencoder_rows(width, height, group.len());
            let of = |index: &usize| jobs.get(*index).map_or(&[][..], |job| &job.rows);
            let pictures = group.iter().map(|index| of(index).len()).max().unwrap_or_default();
            let order = (0..pictures).flat_map(|picture| {
                group.iter().filter_map(move |index| Some((*index, of(index).get(picture)?)))
            });
            let order: Vec<(usize, &Row)> = order.collect();
            for launch in order.chunks(most) {
                self.decode_launch((width, height), launch, jobs, decoded);
            }
        }
    }

    fn decode_launch(
        &self,
        (width, height): (u32, u32),
        rows: &[(usize, &Row)],
        jobs: &[&Job],
        decoded: &mut [Result<Decoded>],
    ) {
        let mut entries = Vec::with_capacity(rows.len());
        for (job, row) in rows {
            let Some(slot) = decoded.get_mut(*job).filter(|decoded| decoded.is_ok()) else {
                continue;
            };
            let done = jobs.get(*job).map_or(0, |job| job.step());
            match guard(Stage::Decode, || finite_latents(row, done)) {
                Ok(latents) => entries.push(Entry { job: *job, row, latents }),
                Err(error) => *slot = Err(error),
            }
        }
        let units = together(&entries, Stage::Decode, &|entries| self.decode(entries));
        for (entry, unit) in entries.into_iter().zip(units) {
            let Some(slot) = decoded.get_mut(entry.job) else {
                continue;
            };
            let finite = unit.and_then(|unit| {
                check_finite(&unit, Stage::Decode, "; a higher precision may help")?;
                Ok(unit)
            });
            match (&mut *slot, finite) {
                (Ok(decoded), Ok(mut unit)) => {
                    for value in &mut unit {
                        *value = (*value * 0.5 + 0.5).clamp(0.0, 1.0);
                    }
                    let Some(job) = jobs.get(entry.job) else {
                        continue;
                    };
                    decoded.images.push(Picture {
                        pixels: from_unit(width, height, &unit),
                        seed: entry.row.seed,
                        parameters: self.parameters(job, entry.row.seed),
                    });
                    if job.request.keep_raw {
                        decoded.latents.extend(entry.latents);
                        decoded.units.extend(unit);
                    }
                }
                (Ok(_), Err(error)) => *slot = Err(error),
                (Err(_), _) => {}
            }
        }
    }

    /// One launch of the decoder; each picture's values in `-1..=1`, `[height, width, 3]`.
    fn decode(&self, entries: &[Entry]) -> Result<Vec<Vec<f32>>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let autoencoder = &self.0.model.autoencoder;
        let latents = Tensor::cat(entries.iter().map(|entry| entry.row.latents.tensor()).collect(), 0);
        let values =
            download(autoencoder.decode(latents / autoencoder.config().scaling_factor), Stage::Decode)?;
        let length = (values.len() / entries.len()).max(1);
        Ok(values.chunks(length).map(<[f32]>::to_vec).collect())
    }

    fn generation(&self, job: &Job, decoded: Decoded, decoding: Duration) -> Generation {
        let Decoded { images, latents, units } = decoded;
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
            decoding,
            memory: self.memory(),
            notes: job.notes.clone(),
        };
        Generation { images, report, applied: job.applied.clone(), raw }
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

/// The latents' values after `done` steps. What the steps counted is read where they are refused alone.
fn finite_latents(row: &Row, done: usize) -> Result<Vec<f32>> {
    let latents = download(row.latents.tensor(), Stage::Denoise)?;
    let finite = check_finite(&latents, Stage::Denoise, "; a higher precision may help");
    finite.map(|()| latents).map_err(|error| match error {
        Error::NonFinite { stage, count, total, hint, .. } => {
            let step = first_non_finite_step(row, done);
            Error::NonFinite { stage, count, total, step, hint }
        }
        other => other,
    })
}

/// The number as it was typed: JSON numbers are f64, and widening would show digits nobody wrote.
fn decimal(value: f32) -> serde_json::Value {
    value.to_string().parse::<f64>().map_or(serde_json::Value::Null, |value| json!(value))
}
