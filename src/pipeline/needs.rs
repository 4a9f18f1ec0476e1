//! What a request needs, said before anything is computed.

use burn::tensor::DType;

use super::saving::{self, Resume};
use super::{Pipeline, memory};
use crate::device::DeviceKind;
use crate::error::{Error, Result};
use crate::guidance::GuidancePlan;
use crate::job::saved::{content, decode};
use crate::nn::bytes_of_maps;
use crate::request::{Guidance, Input, Request};

/// What a request needs on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Width and height of the pictures, in pixels.
    pub(crate) size: (u32, u32),
    /// Tokens of the prompt, padding included.
    pub(crate) tokens: usize,
    /// Pictures.
    pub(crate) pictures: u32,
    /// Rows of a launch: pictures, twice that with classifier-free guidance.
    pub(crate) rows: u32,
    /// Model evaluations that are to come.
    pub(crate) steps: usize,
    /// Peak bytes on the device, beside the weights.
    pub(crate) memory: u64,
    /// Bytes on the host while it waits.
    pub(crate) bytes: u64,
}

/// Peak bytes of a request on its own, by what they are for.
struct Peaks([(&'static str, u64); 3]);

impl Pipeline {
    /// What a request needs, whatever is free at this moment.
    pub(crate) fn needs(&self, request: &Request) -> Result<Needs> {
        request.validate()?;
        let (plan, guidance, (width, height)) = self.settle(request)?;
        let pictures = request.count.unwrap_or(1);
        let Peaks(peaks) = self.peaks(request, width, height, &guidance);
        let negative = match &guidance {
            Guidance::ClassifierFree { negative_prompt, .. } => negative_prompt.len(),
            _ => 0,
        };
        let picture = match &request.input {
            Input::Text => 0,
            Input::Image { image, .. } => image.as_raw().len(),
        };
        Ok(Needs {
            size: (width, height),
            tokens: self.0.model.text.tokenizer.max_length(),
            pictures,
            rows: pictures.saturating_mul(halves(&guidance)),
            steps: plan.steps().len(),
            memory: peaks.iter().map(|(_, bytes)| *bytes).max().unwrap_or_default(),
            bytes: (size_of::<Request>() + request.prompt.len() + negative + picture) as u64,
        })
    }

    /// What the rest of a saved job needs, if it can go on here.
    pub(crate) fn needs_of_saved(&self, bytes: &[u8], resume: Resume) -> Result<Needs> {
        let (head, mut tensors) = decode(bytes)?;
        self.check_origin(&head, resume)?;
        let step = head.step;
        let needs = self.needs(&saving::request(head.request, &mut tensors)?)?;
        let left = needs.steps.checked_sub(step);
        let steps = left.ok_or_else(|| content("the step", format!("at most {}", needs.steps), step))?;
        Ok(Needs { steps, bytes: bytes.len() as u64, ..needs })
    }

    /// The number that the sides of a picture divide by.
    pub(crate) fn side_factor(&self) -> u32 {
        self.0.model.autoencoder.config().factor() as u32
    }

    /// Steps of a request that names none.
    pub(crate) fn default_steps(&self) -> usize {
        self.0.model.defaults.steps
    }

    /// On the CPU an allocation that fails ends the process, so what cannot fit is refused before.
    pub(super) fn check_memory(
        &self,
        request: &Request,
        width: u32,
        height: u32,
        guidance: &Guidance,
    ) -> Result<()> {
        let Some(available) = self.available_memory() else {
            return Ok(());
        };
        let Peaks(peaks) = self.peaks(request, width, height, guidance);
        match peaks.into_iter().find(|(_, needed)| *needed > available) {
            Some((what, needed)) => Err(Error::Memory { what, needed, available }),
            None => Ok(()),
        }
    }

    /// Bytes on the device that are free at this moment, where that can be known.
    pub(crate) fn available_memory(&self) -> Option<u64> {
        if self.0.target.kind == DeviceKind::Cpu { memory::available() } else { None }
    }

    /// Pictures of one size that share a launch of the autoencoder: one for each of `jobs`, since a job's
    /// plan has room for one, and no more than there is memory for where that is known.
    pub(super) fn autoencoder_rows(&self, width: u32, height: u32, jobs: usize) -> usize {
        let one = self.0.model.autoencoder.peak_bytes(width as usize, height as usize).max(1);
        let room = self
            .available_memory()
            .map_or(usize::MAX, |bytes| usize::try_from(bytes / one).unwrap_or(usize::MAX));
        let autoencoder = &self.0.model.autoencoder;
        let widest = autoencoder.widest_values(width as usize, height as usize);
        jobs.min(self.0.max_batch).min(room).min(self.rows_of(widest, autoencoder.dtype())).max(1)
    }

    /// Rows of latents of one size that share a launch of the denoiser.
    pub(super) fn denoiser_rows(&self, width: usize, height: usize) -> usize {
        let widest = self.0.model.denoiser.widest_values(width, height);
        self.0.max_batch.min(self.rows_of(widest, self.0.target.dtype)).max(1)
    }

    /// Rows of pictures of one size, in pixels, that share a launch of the denoiser.
    pub(crate) fn rows_a_launch(&self, width: u32, height: u32) -> usize {
        let factor = self.0.model.autoencoder.config().factor();
        self.denoiser_rows(width as usize / factor, height as usize / factor)
    }

    /// Rows whose tensors of so many values each the device holds in one.
    fn rows_of(&self, values: u64, dtype: DType) -> usize {
        let one = values.saturating_mul(dtype.size() as u64).max(1);
        let fit = |most: u64| usize::try_from(most / one).unwrap_or(usize::MAX);
        self.0.largest_tensor.map_or(usize::MAX, fit)
    }

    fn peaks(&self, request: &Request, width: u32, height: u32, guidance: &Guidance) -> Peaks {
        let autoencoder = &self.0.model.autoencoder;
        let factor = autoencoder.config().factor();
        let (width, height, count) = (width as usize, height as usize, request.count.unwrap_or(1) as usize);
        let (columns, lines) = (width / factor, height / factor);
        let rows = count.saturating_mul(halves(guidance) as usize).min(self.0.max_batch);
        // Every picture's latents with what its sampler keeps, the prompts' states, the request itself and
        // what is small, and every finished picture.
        const LATENTS: usize = 8;
        const SMALL: u64 = 1 << 16;
        let text = &self.0.model.text;
        let (tokens, states) = (text.tokenizer.max_length(), halves(guidance) as usize);
        let channels = self.0.model.denoiser.latent_channels();
        let kept = bytes_of_maps(LATENTS, &[count, channels, columns, lines])
            .saturating_add(bytes_of_maps(2, &[states, tokens, text.model.width()]))
            .saturating_add(SMALL);
        let (encoded, input) = match &request.input {
            Input::Text => (0, 0),
            Input::Image { image, .. } => {
                let pixels = bytes_of_maps(3, &[3, width, height]);
                (autoencoder.peak_bytes(width, height).saturating_add(pixels), image.as_raw().len() as u64)
            }
        };
        let kept = kept.saturating_add(input);
        let floats = if request.keep_raw { 2 } else { 1 };
        let pictures = bytes_of_maps(3 * floats, &[count, width, height]);
        Peaks([
            ("encoding", text.model.peak_bytes(states, tokens).max(encoded).saturating_add(kept)),
            ("denoising", self.0.model.denoiser.peak_bytes(rows, columns, lines).saturating_add(kept)),
            ("decoding", autoencoder.peak_bytes(width, height).saturating_add(kept).saturating_add(pictures)),
        ])
    }
}

/// Rows that one picture takes in a launch.
fn halves(guidance: &Guidance) -> u32 {
    if GuidancePlan::new(guidance).is_some() { 2 } else { 1 }
}
