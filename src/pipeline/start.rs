//! From a request to a job: sizes settled, prompt and picture encoded, noise drawn.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ::image::RgbImage;
use burn::tensor::Tensor;

use super::{Pipeline, check_finite, download, no_output, together, upload};
use crate::device::guard;
use crate::error::{Error, Result, Stage};
use crate::guidance::GuidancePlan;
use crate::image::{resize_lanczos, to_signed};
use crate::job::{Job, Row};
use crate::ops::Slot;
use crate::request::{Guidance, Input, MAX_SIDE, Request, RequestError};
use crate::samplers::Plan;
use crate::samplers::noise::Generator;
use crate::text::Tokens;

/// A request that can be carried out, and what its networks are to read.
struct Settled<'a> {
    request: &'a Request,
    plan: Plan,
    guidance: Guidance,
    width: u32,
    height: u32,
    positive: Tokens,
    guided: Option<(GuidancePlan, Tokens)>,
    notes: Vec<String>,
}

/// What the networks made of it.
struct Encoded {
    positive: Tensor<3>,
    negative: Option<Tensor<3>>,
    image: Option<Posterior>,
}

/// A picture's latents before noise: what the posterior gives, and the values of its draw.
struct Posterior {
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
        self.start_batch(&[request]).pop().unwrap_or_else(|| Err(no_output(Stage::EncodeText)))
    }

    /// [`start`](Self::start) for several requests, one result each, in their order: their prompts share
    /// launches of the text encoder, pictures of one size those of the autoencoder. One request's failure
    /// leaves the others alone, and a job is the one that it would be alone.
    pub fn start_batch(&self, requests: &[&Request]) -> Vec<Result<Job>> {
        let begun = Instant::now();
        let mut errors = Vec::with_capacity(requests.len());
        let mut settled = Vec::with_capacity(requests.len());
        for request in requests {
            match self.prepare(request) {
                Ok(request) => {
                    settled.push(request);
                    errors.push(None);
                }
                Err(error) => errors.push(Some(error)),
            }
        }
        let target = &self.0.target;
        let jobs = target.run(|| {
            let encoded = together(&settled, Stage::EncodeText, &|settled| self.encode(settled));
            settled
                .into_iter()
                .zip(encoded)
                .map(|(settled, encoded)| {
                    guard(Stage::EncodeText, || Ok(self.job(settled, encoded??, begun)))
                })
                .collect::<Vec<_>>()
        });
        let mut jobs = jobs.into_iter();
        let result = |error: Option<Error>| match error {
            Some(error) => Err(error),
            None => jobs.next().unwrap_or_else(|| Err(no_output(Stage::EncodeText))),
        };
        errors.into_iter().map(result).collect()
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

    fn prepare<'a>(&self, request: &'a Request) -> Result<Settled<'a>> {
        request.validate()?;
        let (plan, guidance, (width, height)) = self.settle(request)?;
        self.check_memory(request, width, height, &guidance)?;
        let mut notes = Vec::new();
        let positive = self.tokens("prompt", &request.prompt, request.clip_skip.unwrap_or(0), &mut notes)?;
        let guided = match (GuidancePlan::new(&guidance), &guidance) {
            (Some(plan), Guidance::ClassifierFree { negative_prompt, .. }) => {
                // diffusers skips layers for the prompt alone.
                Some((plan, self.tokens("negative prompt", negative_prompt, 0, &mut notes)?))
            }
            _ => None,
        };
        if let Input::Image { image, .. } = &request.input
            && (image.width(), image.height()) != (width, height)
        {
            notes.push(format!("input image resized from {}×{}", image.width(), image.height()));
        }
        Ok(Settled { request, plan, guidance, width, height, positive, guided, notes })
    }

    fn tokens(&self, name: &str, prompt: &str, skip: usize, notes: &mut Vec<String>) -> Result<Tokens> {
        let (tokens, truncated) = self.0.model.text.tokens(prompt, skip)?;
        if let Some(cut) = truncated {
            const SHOWN: usize = 80;
            let text: String = cut.text.chars().take(SHOWN).collect();
            notes.push(format!("the {name}'s last {} tokens were cut, from \"{text}\" on", cut.tokens));
        }
        Ok(tokens)
    }

    /// The networks' part, in shared launches. The inner results are those of single pictures.
    fn encode(&self, settled: &[Settled]) -> Result<Vec<Result<Encoded>>> {
        let negatives = settled.iter().filter_map(|one| one.guided.as_ref()).map(|(_, tokens)| tokens);
        let texts: Vec<&Tokens> = settled.iter().map(|one| &one.positive).chain(negatives).collect();
        let mut positive = self.0.model.text.states(&texts, self.0.max_batch, self.device());
        let mut negative = positive.split_off(settled.len().min(positive.len())).into_iter();
        let mut images = guard(Stage::EncodeImage, || self.encode_images(settled))?.into_iter();
        let encoded = settled.iter().zip(positive).zip(images.by_ref()).map(|((one, positive), image)| {
            let negative = if one.guided.is_some() { negative.next() } else { None };
            Ok(Encoded { positive, negative, image: image.transpose()? })
        });
        Ok(encoded.collect())
    }

    fn encode_images(&self, settled: &[Settled]) -> Result<Vec<Option<Result<Posterior>>>> {
        let mut groups: BTreeMap<(u32, u32), Vec<(usize, &RgbImage)>> = BTreeMap::new();
        for (index, one) in settled.iter().enumerate() {
            if let Input::Image { image, .. } = &one.request.input {
                groups.entry((one.width, one.height)).or_default().push((index, image));
            }
        }
        let mut posteriors: Vec<Option<Result<Posterior>>> = settled.iter().map(|_| None).collect();
        for ((width, height), pictures) in groups {
            let most = self.autoencoder_rows(width, height, pictures.len());
            for launch in pictures.chunks(most) {
                let pixels: Vec<f32> = launch
                    .iter()
                    .flat_map(|(_, image)| to_signed(&resize_lanczos(image, width, height)))
                    .collect();
                let shape = [launch.len(), 3, height as usize, width as usize];
                let posterior = self.0.model.autoencoder.encode(upload(pixels, shape, self.device()));
                let mean = download(posterior.mean, Stage::EncodeImage)?;
                let std = download(posterior.std, Stage::EncodeImage)?;
                let length = (mean.len() / launch.len()).max(1);
                let values = mean.chunks(length).zip(std.chunks(length));
                for ((index, _), (mean, std)) in launch.iter().zip(values) {
                    let finite = check_finite(mean, Stage::EncodeImage, "")
                        .and_then(|()| check_finite(std, Stage::EncodeImage, ""));
                    if let Some(slot) = posteriors.get_mut(*index) {
                        *slot = Some(finite.map(|()| Posterior { mean: mean.to_vec(), std: std.to_vec() }));
                    }
                }
            }
        }
        Ok(posteriors)
    }

    fn job(&self, settled: Settled, encoded: Encoded, begun: Instant) -> Job {
        let Settled { request, plan, guidance, width, height, guided, notes, .. } = settled;
        let count = u64::from(request.count.unwrap_or(1));
        let image = encoded.image.as_ref();
        let rows = (0..count)
            .map(|index| self.row(request.seed.wrapping_add(index), &plan, image, width, height))
            .collect();
        let request = Request { guidance: Some(guidance), ..request.clone() };
        Job {
            request,
            width,
            height,
            plan,
            index: 0,
            rows,
            positive: encoded.positive,
            guided: guided.map(|(plan, _)| plan).zip(encoded.negative),
            notes,
            applied: None,
            pipeline: self.0.identity.clone(),
            begun,
            encoding: begun.elapsed(),
            denoising: Duration::ZERO,
        }
    }

    /// Draws in diffusers' order: the posterior's noise first where there is a picture, then the
    /// latents' noise, one generator a picture.
    fn row(&self, seed: u64, plan: &Plan, image: Option<&Posterior>, width: u32, height: u32) -> Row {
        let autoencoder = self.0.model.autoencoder.config();
        let shape = self.latent_shape(width, height);
        let length = shape.iter().product();
        let mut generator = Generator::new(seed);
        let latents: Vec<f32> = match image {
            None => {
                let scale = plan.initial_scale();
                generator.randn(length).into_iter().map(|noise| noise * scale).collect()
            }
            Some(Posterior { mean, std }) => {
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
            latents: Slot::new(upload(latents, shape, self.device())),
            registers: vec![None; plan.registers()],
            denoised: None,
            placed: Vec::new(),
            counted: Vec::new(),
        }
    }
}
