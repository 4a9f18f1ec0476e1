//! Jobs to bytes and back: a job that was interrupted goes on elsewhere, or later.

use std::time::{Duration, Instant};

use ::image::RgbImage;
use burn::tensor::Tensor;
use xxhash_rust::xxh3::xxh3_128;

use super::{Pipeline, download, upload};
use crate::device::{DeviceKind, guard};
use crate::error::{Result, Stage};
use crate::guidance::GuidancePlan;
use crate::job::saved::{Head, SavedRequest, SavedRow, Tensors, Values, content, decode, encode};
use crate::job::{Job, Row, SavedJobError};
use crate::ops::{self, Slot};
use crate::request::{Input, Request};
use crate::samplers::Plan;
use crate::samplers::noise::{Generator, GeneratorState};

const INPUT: &str = "input";
const POSITIVE: &str = "text.positive";
const NEGATIVE: &str = "text.negative";

/// Whether a job may go on where its remaining steps could give other bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// Only on the device, in the precision and with the kernels that it was saved from.
    #[default]
    Exact,
    /// Anywhere that has the same weights and configs; the report says so where it matters.
    Inexact,
}

impl Pipeline {
    /// A job as bytes, for [`resume`](Self::resume): its request and input picture, the steps done, latents
    /// and all sampler history, the random-number generators, text states; digests of weights, configs and
    /// schedule; a fingerprint of device, precision and kernels; a checksum. The job can go on as well.
    ///
    /// # Errors
    /// [`Error::ForeignJob`] for a job of another pipeline, [`Error::Device`] where the device fails.
    ///
    /// [`Error::ForeignJob`]: crate::Error::ForeignJob
    /// [`Error::Device`]: crate::Error::Device
    pub fn save(&self, job: &Job) -> Result<Vec<u8>> {
        self.check_owner(job)?;
        self.0.target.run(|| guard(Stage::Denoise, || self.save_owned(job)))
    }

    fn save_owned(&self, job: &Job) -> Result<Vec<u8>> {
        let mut tensors = Tensors::default();
        put(&mut tensors, POSITIVE, job.positive.clone())?;
        if let Some((_, negative)) = &job.guided {
            put(&mut tensors, NEGATIVE, negative.clone())?;
        }
        let mut rows = Vec::new();
        for (index, row) in job.rows.iter().enumerate() {
            put(&mut tensors, &row_tensor(index, "latents"), row.latents.tensor())?;
            if let Some(denoised) = &row.denoised {
                put(&mut tensors, &row_tensor(index, "denoised"), denoised.tensor())?;
            }
            for (register, value) in row.registers.iter().enumerate() {
                if let Some(value) = value {
                    put(&mut tensors, &row_tensor(index, &format!("register.{register}")), value.tensor())?;
                }
            }
            let GeneratorState { words, position, spare } = row.generator.state();
            let shape = [words.len()];
            tensors.put(row_tensor(index, "generator"), Values::U32(words), &shape);
            rows.push(SavedRow { seed: row.seed, position, spare });
        }
        let request = &job.request;
        let strength = match &request.input {
            Input::Text => None,
            Input::Image { image, strength } => {
                let shape = [image.height() as usize, image.width() as usize, 3];
                tensors.put(INPUT, Values::U8(image.as_raw().clone()), &shape);
                Some(*strength)
            }
        };
        let head = Head {
            weights: self.weights_digest().to_owned(),
            configs: self.0.model.configs.clone(),
            schedule: schedule_digest(&job.plan),
            fingerprint: self.fingerprint(),
            request: SavedRequest {
                prompt: request.prompt.clone(),
                strength,
                width: job.width,
                height: job.height,
                steps: request.steps.unwrap_or(self.0.model.defaults.steps),
                guidance: request.guidance.clone().unwrap_or_else(|| self.0.model.defaults.guidance.clone()),
                sampler: request.sampler.map(|sampler| sampler.to_string()),
                sigmas: request.sigmas.map(|sigmas| sigmas.to_string()),
                seed: request.seed,
                count: request.count,
                clip_skip: request.clip_skip,
                keep_raw: request.keep_raw,
            },
            step: job.index,
            rows,
            notes: job.notes.clone(),
            applied: job.applied.clone(),
            elapsed: micros(job.elapsed()),
            encoding: micros(job.encoding),
            denoising: micros(job.denoising),
        };
        Ok(encode(&head, &tensors)?)
    }

    /// The job that [`save`](Self::save) wrote, on this pipeline. With [`Resume::Exact`] its pictures have the
    /// bits that they would have had without the interruption.
    ///
    /// # Errors
    /// [`Error::SavedJob`] for bytes that are no whole saved job, or one of another model or (unless
    /// [`Resume::Inexact`]) another machine; [`Error::Request`], [`Error::Sampler`] and [`Error::Memory`] for
    /// what cannot be carried out here; [`Error::Device`].
    ///
    /// [`Error::SavedJob`]: crate::Error::SavedJob
    /// [`Error::Request`]: crate::Error::Request
    /// [`Error::Sampler`]: crate::Error::Sampler
    /// [`Error::Memory`]: crate::Error::Memory
    /// [`Error::Device`]: crate::Error::Device
    pub fn resume(&self, bytes: &[u8], resume: Resume) -> Result<Job> {
        let (head, tensors) = decode(bytes)?;
        self.0.target.run(|| guard(Stage::Denoise, || self.rebuild(head, tensors, resume)))
    }

    fn rebuild(&self, head: Head, mut tensors: Tensors, resume: Resume) -> Result<Job> {
        let moved = self.check_origin(&head, resume)?;
        let mut notes = head.notes;
        notes.extend(moved);
        let request = request(head.request, &mut tensors)?;
        let (plan, guidance, (width, height)) = self.settle(&request)?;
        self.check_memory(&request, width, height, &guidance)?;
        let model = &self.0.model;
        same("schedule", &schedule_digest(&plan), &head.schedule)?;
        let total = plan.steps().len();
        if head.step > total {
            return Err(content("the step", format!("at most {total}"), head.step).into());
        }
        let text = [1, model.text.tokenizer.max_length(), model.text.model.width()];
        let states = |tensors: &mut Tensors, name: &str| {
            let values = tensors.take_f32(name, text)?;
            Ok::<_, SavedJobError>(upload(values, text, self.device()).cast(self.0.target.dtype))
        };
        let positive = states(&mut tensors, POSITIVE)?;
        let guided = match GuidancePlan::new(&guidance) {
            Some(guidance) => Some((guidance, states(&mut tensors, NEGATIVE)?)),
            None => None,
        };
        let shape = self.latent_shape(width, height);
        let rows = self.rows(&request, &plan, head.step, head.rows, &mut tensors, shape)?;
        tensors.finish()?;
        let now = Instant::now();
        Ok(Job {
            request,
            width,
            height,
            plan,
            index: head.step,
            rows,
            positive,
            guided,
            notes,
            applied: head.applied,
            pipeline: self.0.identity.clone(),
            begun: now.checked_sub(Duration::from_micros(head.elapsed)).unwrap_or(now),
            encoding: Duration::from_micros(head.encoding),
            denoising: Duration::from_micros(head.denoising),
        })
    }

    /// Refuses a job of another model, and one of another machine unless other bits are allowed; then the
    /// note that says so.
    pub(super) fn check_origin(&self, head: &Head, resume: Resume) -> Result<Option<String>, SavedJobError> {
        let model = &self.0.model;
        same("weights", &model.digest, &head.weights)?;
        same("configs", &model.configs, &head.configs)?;
        let here = self.fingerprint();
        if here == head.fingerprint {
            return Ok(None);
        }
        if resume == Resume::Exact {
            return Err(SavedJobError::OtherMachine { expected: here, found: head.fingerprint.clone() });
        }
        Ok(Some(format!("begun on {}, resumed after step {} on {here}", head.fingerprint, head.step)))
    }

    fn rows(
        &self,
        request: &Request,
        plan: &Plan,
        step: usize,
        saved: Vec<SavedRow>,
        tensors: &mut Tensors,
        shape: [usize; 4],
    ) -> Result<Vec<Row>, SavedJobError> {
        let count = request.count.unwrap_or(1);
        if saved.len() != count as usize {
            return Err(content("the rows", count, saved.len()));
        }
        let held = plan.held(step);
        let mut rows = Vec::with_capacity(saved.len());
        for (index, (number, SavedRow { seed, position, spare })) in (0_u64..).zip(saved).enumerate() {
            let expected = request.seed.wrapping_add(number);
            if seed != expected {
                return Err(content(format!("the seed of row {index}"), expected, seed));
            }
            let name = row_tensor(index, "generator");
            let state = GeneratorState { words: tensors.take_u32(&name)?, position, spare };
            let generator = Generator::from_state(&state)
                .map_err(|error| content(name, "the state of a generator", error))?;
            let take = |tensors: &mut Tensors, part: &str| {
                let name = row_tensor(index, part);
                let values = upload(tensors.take_f32(&name, shape)?, shape, self.device());
                Ok::<_, SavedJobError>(Slot::new(values))
            };
            let latents = take(tensors, "latents")?;
            // A value that the sampler goes without would change the picture, and nothing would say so.
            let mut held_at = |held: bool, part: &str| held.then(|| take(tensors, part)).transpose();
            let denoised = held_at(step > 0, "denoised")?;
            let registers = held.iter().enumerate();
            let registers = registers
                .map(|(register, held)| held_at(*held, &format!("register.{register}")))
                .collect::<Result<_, _>>()?;
            let (placed, counted) = (Vec::new(), Vec::new());
            rows.push(Row { seed, generator, latents, registers, denoised, placed, counted });
        }
        Ok(rows)
    }

    /// What decides the bits of a step besides weights, configs and request.
    fn fingerprint(&self) -> String {
        let target = &self.0.target;
        let instructions = match target.kind {
            DeviceKind::Cpu => format!(" ({})", ops::instruction_set()),
            _ => String::new(),
        };
        format!(
            "{}{instructions} in {}, aquatint {}",
            target.name,
            target.precision(),
            env!("CARGO_PKG_VERSION")
        )
    }
}

fn put<const D: usize>(tensors: &mut Tensors, name: &str, tensor: Tensor<D>) -> Result<()> {
    let shape = tensor.dims();
    tensors.put(name, Values::F32(download(tensor, Stage::Denoise)?), &shape);
    Ok(())
}

fn row_tensor(index: usize, part: &str) -> String {
    format!("row.{index}.{part}")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn same(what: &'static str, expected: &str, found: &str) -> Result<(), SavedJobError> {
    if expected == found {
        return Ok(());
    }
    Err(SavedJobError::OtherModel { what, expected: expected.to_owned(), found: found.to_owned() })
}

/// The shortest decimal numbers that mean the coefficients: equal digests, equal coefficients.
fn schedule_digest(plan: &Plan) -> String {
    format!("{:032x}", xxh3_128(format!("{plan:?}").as_bytes()))
}

pub(super) fn request(saved: SavedRequest, tensors: &mut Tensors) -> Result<Request> {
    let input = match saved.strength {
        None => Input::Text,
        Some(strength) => {
            let (pixels, width, height) = tensors.take_picture(INPUT)?;
            let image = RgbImage::from_raw(width, height, pixels)
                .ok_or_else(|| content(INPUT, "as many pixels as its sides say", "others"))?;
            Input::Image { image, strength }
        }
    };
    let request = Request {
        prompt: saved.prompt,
        input,
        width: Some(saved.width),
        height: Some(saved.height),
        steps: Some(saved.steps),
        guidance: Some(saved.guidance),
        sampler: saved.sampler.map(|name| name.parse()).transpose()?,
        sigmas: saved.sigmas.map(|name| name.parse()).transpose()?,
        seed: saved.seed,
        count: saved.count,
        clip_skip: saved.clip_skip,
        keep_raw: saved.keep_raw,
    };
    request.validate()?;
    Ok(request)
}
