//! Prompts to the states that steer a denoiser.

pub(crate) mod clip;
pub mod tokenizer;

use burn::tensor::{Device, Tensor};

use self::clip::ClipTextModel;
use self::tokenizer::{Encoded, Tokenizer};
use crate::error::{Error, Result};
use crate::request::RequestError;

/// A tokenizer and the network that reads its tokens.
#[derive(Debug)]
pub(crate) struct TextEncoder {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) model: ClipTextModel,
}

/// What the text encoder made of one prompt.
pub(crate) struct TextStates {
    /// `[1, tokens, channels]`
    pub(crate) states: Tensor<3>,
    pub(crate) encoded: Encoded,
}

impl TextEncoder {
    /// * `clip_skip`: layers left out at the end, as diffusers counts them
    pub(crate) fn encode(&self, prompt: &str, clip_skip: usize, device: &Device) -> Result<TextStates> {
        let max = self.model.layers();
        if clip_skip > max {
            return Err(Error::Request(RequestError::ClipSkip { max, found: clip_skip }));
        }
        let encoded = self.tokenizer.encode(prompt)?;
        let states = self.model.forward(&encoded.ids, clip_skip, device);
        Ok(TextStates { states, encoded })
    }
}
