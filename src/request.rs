//! What a caller asks for, validated once at the door.

use std::ops::RangeInclusive;

use ::image::RgbImage;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::samplers::{Sampler, SigmaSchedule};

/// The longest side that is accepted, in pixels.
pub const MAX_SIDE: u32 = 16_384;
/// The most pictures that one request may ask for.
pub const MAX_COUNT: u32 = 1_024;
/// The longest prompt that is accepted, in bytes; the encoder reads the first tokens only.
pub const MAX_PROMPT_BYTES: usize = 1 << 20;

/// A request for one or more pictures.
///
/// ```
/// use aquatint::{Guidance, Request};
///
/// let request = Request {
///     guidance: Some(Guidance::classifier_free(5.0).negative("blur")),
///     seed: 7,
///     ..Request::new("a lighthouse at dusk")
/// };
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// What to draw. Tokens past the encoder's length are cut, and the report says so.
    pub prompt: String,
    /// Where the latents start from.
    pub input: Input,
    /// Width in pixels; `None` takes the input picture's, else the checkpoint's own.
    pub width: Option<u32>,
    /// Height in pixels; `None` takes the input picture's, else the checkpoint's own.
    pub height: Option<u32>,
    /// Denoising steps as the sampler counts them; `None` takes the checkpoint's default.
    pub steps: Option<usize>,
    /// How the prompt steers; `None` takes the checkpoint's default.
    pub guidance: Option<Guidance>,
    /// The sampler; `None` takes the one in the checkpoint's scheduler config.
    pub sampler: Option<Sampler>,
    /// The spacing of noise levels; `None` takes the scheduler config's.
    pub sigmas: Option<SigmaSchedule>,
    /// The first picture's seed; picture `i` takes `seed + i` (wrapping).
    pub seed: u64,
    /// How many pictures; `None` is one.
    pub count: Option<u32>,
    /// CLIP layers to skip from the end for the prompt, as diffusers counts them: `Some(1)` ends at the
    /// last layer but one. The negative prompt goes through all of them, as it does there.
    pub clip_skip: Option<usize>,
    /// Also return the latents before decoding and the decoded pictures as floats.
    pub keep_raw: bool,
}

impl Request {
    /// A request for `prompt` with the checkpoint's defaults.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), ..Self::default() }
    }

    /// Checks everything that needs no checkpoint.
    ///
    /// # Errors
    /// [`RequestError`] naming the field, what it may be and what it is.
    pub fn validate(&self) -> Result<(), RequestError> {
        check_prompt("prompt", &self.prompt)?;
        for (field, side) in [("width", self.width), ("height", self.height)] {
            if let Some(found) = side
                && !(1..=MAX_SIDE).contains(&found)
            {
                return Err(RequestError::Size { field, expected: format!("1..={MAX_SIDE}"), found });
            }
        }
        if let Some(found) = self.count
            && !(1..=MAX_COUNT).contains(&found)
        {
            return Err(RequestError::Count { max: MAX_COUNT, found });
        }
        if let Some(guidance) = &self.guidance {
            guidance.validate()?;
        }
        if let Input::Image { image, strength } = &self.input {
            if !(0.0..=1.0).contains(strength) {
                return Err(RequestError::Strength { found: *strength });
            }
            if image.width() == 0 || image.height() == 0 {
                return Err(RequestError::EmptyImage { width: image.width(), height: image.height() });
            }
        }
        Ok(())
    }
}

fn check_prompt(field: &'static str, prompt: &str) -> Result<(), RequestError> {
    if prompt.len() > MAX_PROMPT_BYTES {
        return Err(RequestError::PromptTooLong { field, max: MAX_PROMPT_BYTES, found: prompt.len() });
    }
    Ok(())
}

/// Where the latents start from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Input {
    /// Noise alone: text to image.
    #[default]
    Text,
    /// A picture, noised to `strength`: image to image, as diffusers does it.
    Image {
        /// The picture; resized (Lanczos, as Pillow) where the request's size differs.
        image: RgbImage,
        /// Share of the schedule that is run, in `0.0..=1.0`; 1 forgets the picture.
        strength: f32,
    },
}

/// How strongly the prompt steers each step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Guidance {
    /// The prompt alone: one model evaluation a step.
    None,
    /// Classifier-free guidance (Ho & Salimans 2022): `negative + scale * (positive - negative)`.
    ClassifierFree {
        /// The scale; up to 1 it does nothing and the negative half is not computed, as in diffusers.
        scale: f32,
        /// What to steer away from; usually empty.
        negative_prompt: String,
        /// Guidance rescale (Lin et al. 2023, section 3.4) in `0.0..=1.0`; 0 is off.
        rescale: f32,
        /// The part of the run, as fractions of its model evaluations in `0.0..=1.0`, in which it acts
        /// (Kynkäänniemi et al. 2024); outside it the prompt alone steers.
        interval: RangeInclusive<f32>,
    },
}

impl Guidance {
    /// Classifier-free guidance at `scale`, over the whole run, without a negative prompt.
    pub fn classifier_free(scale: f32) -> Self {
        Self::ClassifierFree { scale, negative_prompt: String::new(), rescale: 0.0, interval: 0.0..=1.0 }
    }

    /// The same guidance, steering away from `prompt`.
    #[must_use]
    pub fn negative(mut self, prompt: impl Into<String>) -> Self {
        if let Self::ClassifierFree { negative_prompt, .. } = &mut self {
            *negative_prompt = prompt.into();
        }
        self
    }

    /// The same guidance, rescaled by `factor`.
    #[must_use]
    pub fn rescaled(mut self, factor: f32) -> Self {
        if let Self::ClassifierFree { rescale, .. } = &mut self {
            *rescale = factor;
        }
        self
    }

    /// The same guidance, acting only within `range` of the run (fractions of its model evaluations).
    #[must_use]
    pub fn within(mut self, range: RangeInclusive<f32>) -> Self {
        if let Self::ClassifierFree { interval, .. } = &mut self {
            *interval = range;
        }
        self
    }

    fn validate(&self) -> Result<(), RequestError> {
        let Self::ClassifierFree { scale, negative_prompt, rescale, interval } = self else {
            return Ok(());
        };
        check_prompt("negative_prompt", negative_prompt)?;
        if !(scale.is_finite() && *scale >= 0.0) {
            return Err(RequestError::GuidanceScale { found: *scale });
        }
        if !(0.0..=1.0).contains(rescale) {
            return Err(RequestError::GuidanceRescale { found: *rescale });
        }
        let (start, end) = (*interval.start(), *interval.end());
        if !((0.0..=1.0).contains(&start) && (0.0..=1.0).contains(&end) && start <= end) {
            return Err(RequestError::GuidanceInterval { start, end });
        }
        Ok(())
    }
}

/// What a request may not ask for.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum RequestError {
    /// A width or height outside what this checkpoint can draw.
    #[error("{field}: expected {expected}, found {found}")]
    Size {
        /// `width` or `height`.
        field: &'static str,
        /// The range or multiple that is accepted.
        expected: String,
        /// What was asked for.
        found: u32,
    },
    /// A count of pictures outside `1..=max`.
    #[error("count: expected 1..={max}, found {found}")]
    Count {
        /// The most that is accepted.
        max: u32,
        /// What was asked for.
        found: u32,
    },
    /// A prompt longer than this crate reads at all.
    #[error("{field}: expected at most {max} bytes, found {found}")]
    PromptTooLong {
        /// `prompt` or `negative_prompt`.
        field: &'static str,
        /// The most that is accepted, in bytes.
        max: usize,
        /// The prompt's length in bytes.
        found: usize,
    },
    /// A guidance scale that is negative, infinite or NaN.
    #[error("guidance scale: expected a finite number of at least 0, found {found}")]
    GuidanceScale {
        /// What was asked for.
        found: f32,
    },
    /// A guidance rescale outside `0.0..=1.0`.
    #[error("guidance rescale: expected 0..=1, found {found}")]
    GuidanceRescale {
        /// What was asked for.
        found: f32,
    },
    /// A guidance interval that is not an ordered pair within `0.0..=1.0`.
    #[error("guidance interval: expected 0 <= start <= end <= 1, found {start}..={end}")]
    GuidanceInterval {
        /// Start that was asked for.
        start: f32,
        /// End that was asked for.
        end: f32,
    },
    /// A strength outside `0.0..=1.0`.
    #[error("strength: expected 0..=1, found {found}")]
    Strength {
        /// What was asked for.
        found: f32,
    },
    /// An input picture without pixels.
    #[error("input image: expected at least 1×1 pixels, found {width}×{height}")]
    EmptyImage {
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
    },
    /// More CLIP layers to skip than the text encoder has.
    #[error("clip_skip: expected at most {max}, found {found}")]
    ClipSkip {
        /// The most that this text encoder allows.
        max: usize,
        /// What was asked for.
        found: usize,
    },
}
