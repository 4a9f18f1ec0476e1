//! From a request to a job: sizes settled, prompt and picture encoded, noise drawn.

use std::time::Instant;

use ::image::RgbImage;

use super::{Pipeline, check_finite, download, upload};
use crate::device::guard;
use crate::error::{Result, Stage};
use crate::guidance::GuidancePlan;
use crate::image::{resize_lanczos, to_signed};
use crate::job::{Job, Row};
use crate::request::{Guidance, Input, MAX_SIDE, Request, RequestError};
use crate::samplers::Plan;
use crate::samplers::noise::Generator;
use crate::text::TextStates;

/// A picture's latents before noise: what the posterior gives, and the values of its draw.
struct Encoded {
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl Pipeline {
    /// Begins a job: checks the request, encodes its prompt and picture, draws its noise.
    ///
    /// # Errors
    /// [`Error::Request`] and [`Error::Sampler`] for what cannot be done, [`Error::Memory`] for what
    /// would not fit, [`Error::Device`] and [`Error::NonFinite`] for what goes wrong.
    ///
    /// [`Error::Request`]: crate::Error::Request
    /// [`Error::Sampler`]: crate::Error::Sampler
    /// [`Error::Memory`]: crate::Error::Memory
    /// [`Error::Device`]: crate::Error::Device
    /// [`Error::NonFinite`]: crate::Error::NonFinite
    pub fn start(&self, request: &Request) -> Result<Job> {
        request.validate()?;
        let (plan, guidance, (width, height)) = self.settle(request)?;
        self.check_memory(request, width, height, &guidance)?;
        let target = &self.0.target;
        target.run(|| guard(Stage::EncodeText, || self.encode(request, plan, &guidance, width, height)))
    }

    /// The schedule, guidance and size of a valid request, if it can be carried out here.
    pub(super) fn settle(&self, request: &Request) -> Result<(Plan, Guidance, (u32, u32))> {
        let (width, height) = self.size(request)?;
        let strength = match &request.input {
            Input::Text => None,
            Input::Image { strength, .. } => Some(*strength),
        };
        let steps = request.steps.unwrap_or(self.0.model.defaults.steps);
        let scheduler = self.0.model.schedulers.config(request.sampler, request.sigmas);
        let plan = Plan::new(scheduler, request.sampler, request.sigmas, steps, strength)?;
        let guidance = request.guidance.as_ref().unwrap_or(&self.0.model.defaults.guidance).clone();
        Ok((plan, guidance, (width, height)))
    }

    /// `[1, channels, height, width]` of one picture's latents.
    pub(super) fn latent_shape(&self, width: u32, height: u32) -> [usize; 4] {
        let factor = self.0.model.autoencoder.config().factor();
        [1, self.0.model.denoiser.latent_channels(), height as usize / factor, width as usize / factor]
    }

    fn size(&self, request: &Request) -> Result<(u32, u32), RequestError> {
        let factor = self.0.model.autoencoder.config().factor() as u32;
        let defaults = &self.0.model.defaults;
        // diffusers floors a picture's own sides to what the autoencoder can halve.
        let (natural_width, natural_height) = match &request.input {
            Input::Text => (defaults.width, defaults.height),
            Input::Image { image, .. } => (image.width() / factor * factor, image.height() / factor * factor),
        };
        let check = |field, found: u32| {
            if !(1..=MAX_SIDE).contains(&found) || !found.is_multiple_of(factor) {
                let expected = format!("a multiple of {factor} up to {MAX_SIDE}");
                return Err(RequestError::Size { field, expected, found });
            }
            Ok(found)
        };
        let width = check("width", request.width.unwrap_or(natural_width))?;
        let height = check("height", request.height.unwrap_or(natural_height))?;
        Ok((width, height))
    }

    fn encode(
        &self,
        request: &Request,
        plan: Plan,
        guidance: &Guidance,
        width: u32,
        height: u32,
    ) -> Result<Job> {
        let begun = Instant::now();
        let mut notes = Vec::new();
        let skip = request.clip_skip.unwrap_or(0);
        let positive = self.encode_text("prompt", &request.prompt, skip, &mut notes)?;
        let guided = match (GuidancePlan::new(guidance), guidance) {
            (Some(plan), Guidance::ClassifierFree { negative_prompt, .. }) => {
                // diffusers skips layers for the prompt alone.
                let negative = self.encode_text("negative prompt", negative_prompt, 0, &mut notes)?;
                Some((plan, negative.states))
            }
            _ => None,
        };
        let image = match &request.input {
            Input::Text => None,
            Input::Image { image, .. } => {
                if (image.width(), image.height()) != (width, height) {
                    notes.push(format!("input image resized from {}×{}", image.width(), image.height()));
                }
                Some(guard(Stage::EncodeImage, || self.encode_image(image, width, height))?)
            }
        };
        let count = u64::from(request.count.unwrap_or(1));
        let rows = (0..count)
            .map(|index| self.row(request.seed.wrapping_add(index), &plan, image.as_ref(), width, height))
            .collect();
        let mut settled = request.clone();
        settled.guidance = Some(guidance.clone());
        Ok(Job {
            request: settled,
            width,
            height,
            plan,
            index: 0,
            rows,
            positive: positive.states,
            guided,
            notes,
            pipeline: self.0.identity.clone(),
            begun,
            encoding: begun.elapsed(),
            denoising: std::time::Duration::ZERO,
        })
    }

    fn encode_text(
        &self,
        name: &str,
        prompt: &str,
        skip: usize,
        notes: &mut Vec<String>,
    ) -> Result<TextStates> {
        let states = self.0.model.text.encode(prompt, skip, self.device())?;
        if let Some(cut) = &states.encoded.truncated {
            const SHOWN: usize = 80;
            let text: String = cut.text.chars().take(SHOWN).collect();
            notes.push(format!("the {name}'s last {} tokens were cut, from \"{text}\" on", cut.tokens));
        }
        Ok(states)
    }

    fn encode_image(&self, image: &RgbImage, width: u32, height: u32) -> Result<Encoded> {
        let pixels = to_signed(&resize_lanczos(image, width, height));
        let shape = [1, 3, height as usize, width as usize];
        let posterior = self.0.model.autoencoder.encode(upload(pixels, shape, self.device()));
        let mean = download(posterior.mean, Stage::EncodeImage)?;
        let std = download(posterior.std, Stage::EncodeImage)?;
        check_finite(&mean, Stage::EncodeImage, "")?;
        check_finite(&std, Stage::EncodeImage, "")?;
        Ok(Encoded { mean, std })
    }

    /// Draws in diffusers' order: the posterior's noise first where there is a picture, then the
    /// latents' noise, one generator a picture.
    fn row(&self, seed: u64, plan: &Plan, image: Option<&Encoded>, width: u32, height: u32) -> Row {
        let autoencoder = self.0.model.autoencoder.config();
        let shape = self.latent_shape(width, height);
        let length = shape.iter().product();
        let mut generator = Generator::new(seed);
        let latents: Vec<f32> = match image {
            None => {
                let scale = plan.initial_scale();
                generator.randn(length).into_iter().map(|noise| noise * scale).collect()
            }
            Some(Encoded { mean, std }) => {
                let draw = generator.randn(length);
                let clean = mean.iter().zip(std).zip(draw).map(|((mean, std), draw)| mean + std * draw);
                let (keep, add) = plan.image_mix();
                let scaled = clean.map(|value| value * autoencoder.scaling_factor).collect::<Vec<_>>();
                scaled
                    .into_iter()
                    .zip(generator.randn(length))
                    .map(|(clean, noise)| keep * clean + add * noise)
                    .collect()
            }
        };
        Row {
            seed,
            generator,
            latents: upload(latents, shape, self.device()),
            registers: vec![None; plan.registers()],
            denoised: None,
        }
    }
}
