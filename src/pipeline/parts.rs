//! Single calls of the networks on host values: for tests that compare them with diffusers.

use burn::tensor::DType;

use super::{Pipeline, download, upload};
use crate::denoisers::Conditioning;
use crate::device::guard;
use crate::error::{Result, Stage};

impl Pipeline {
    fn guarded<T: Send>(&self, stage: Stage, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.0.target.run(|| guard(stage, work))
    }
}

#[doc(hidden)]
impl Pipeline {
    /// Token ids and text states `[1, tokens, channels]`.
    pub fn text_states(&self, prompt: &str, clip_skip: usize) -> Result<(Vec<u32>, Vec<f32>)> {
        self.guarded(Stage::EncodeText, || {
            let text = &self.0.model.text;
            let (tokens, _) = text.tokens(prompt, clip_skip)?;
            let states = text.model.forward(&[&tokens.ids], clip_skip, self.device());
            Ok((tokens.ids, download(states, Stage::EncodeText)?))
        })
    }

    /// One call of the denoiser: `latents` `[n, c, h, w]`, `states` `[n, tokens, channels]`.
    pub fn predict(
        &self,
        latents: (Vec<f32>, [usize; 4]),
        timesteps: &[f32],
        states: (Vec<f32>, [usize; 3]),
    ) -> Result<Vec<f32>> {
        self.guarded(Stage::Denoise, || {
            let latents = upload(latents.0, latents.1, self.device());
            let context = upload(states.0, states.1, self.device()).cast(self.0.target.dtype);
            let predicted = self.0.model.denoiser.forward(latents, timesteps, &Conditioning { context });
            download(predicted.cast(DType::F32), Stage::Denoise)
        })
    }

    /// The decoder on unscaled latents `[n, c, h, w]`; returns `[n, height, width, 3]` in `-1..=1`.
    pub fn decode_latents(&self, latents: (Vec<f32>, [usize; 4])) -> Result<Vec<f32>> {
        self.guarded(Stage::Decode, || {
            let latents = upload(latents.0, latents.1, self.device());
            download(self.0.model.autoencoder.decode(latents), Stage::Decode)
        })
    }

    /// The posterior's mean and standard deviation, each `[n, c, h, w]`, for pixels `[n, 3, height, width]`
    /// in `-1..=1`.
    pub fn encode_pixels(&self, pixels: (Vec<f32>, [usize; 4])) -> Result<(Vec<f32>, Vec<f32>)> {
        self.guarded(Stage::EncodeImage, || {
            let pixels = upload(pixels.0, pixels.1, self.device());
            let posterior = self.0.model.autoencoder.encode(pixels);
            Ok((download(posterior.mean, Stage::EncodeImage)?, download(posterior.std, Stage::EncodeImage)?))
        })
    }
}
