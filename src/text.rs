//! Prompts to the states that steer a denoiser.

pub(crate) mod clip;
pub mod tokenizer;

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Device, Int, Tensor, TensorData};

use self::clip::ClipTextModel;
use self::tokenizer::{Encoded, Tokenizer, Truncated};
use crate::error::{Error, Result};
use crate::request::RequestError;

/// A tokenizer and the network that reads its tokens.
#[derive(Debug)]
pub(crate) struct TextEncoder {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) model: ClipTextModel,
}

/// A prompt as the text encoder takes it. Equal ones have equal states.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tokens {
    /// Layers left out at the end, as diffusers counts them.
    pub(crate) skip: usize,
    pub(crate) ids: Vec<u32>,
}

impl TextEncoder {
    /// The tokens of a prompt, and the prompt as the tokenizer saw it.
    ///
    /// * `skip`: layers left out at the end, as diffusers counts them
    pub(crate) fn tokens(&self, prompt: &str, skip: usize) -> Result<(Tokens, Option<Truncated>)> {
        let max = self.model.layers();
        if skip > max {
            return Err(Error::Request(RequestError::ClipSkip { max, found: skip }));
        }
        let Encoded { ids, truncated, .. } = self.tokenizer.encode(prompt)?;
        Ok((Tokens { skip, ids }, truncated))
    }

    /// The states of several prompts, each `[1, tokens, channels]`, in their order; what is equal is
    /// computed once.
    ///
    /// * `most`: rows of one launch
    pub(crate) fn states(&self, texts: &[&Tokens], most: usize, device: &Device) -> Vec<Tensor<3>> {
        let mut groups: BTreeMap<(usize, usize), BTreeSet<&Tokens>> = BTreeMap::new();
        for text in texts {
            groups.entry((text.skip, text.ids.len())).or_default().insert(text);
        }
        let mut states: BTreeMap<&Tokens, Tensor<3>> = BTreeMap::new();
        for ((skip, _), group) in groups {
            let group: Vec<&Tokens> = group.into_iter().collect();
            for launch in group.chunks(most.max(1)) {
                let rows: Vec<&[u32]> = launch.iter().map(|text| text.ids.as_slice()).collect();
                let all = self.model.forward(&rows, skip, device);
                for (index, text) in launch.iter().enumerate() {
                    states.insert(text, row(&all, index));
                }
            }
        }
        texts.iter().filter_map(|text| states.get(text).cloned()).collect()
    }
}

/// One row of a launch, copied: a part would keep the whole on the device.
fn row(all: &Tensor<3>, index: usize) -> Tensor<3> {
    let index = Tensor::<1, Int>::from_data(TensorData::new(vec![index as i32], [1]), &all.device());
    all.clone().select(0, index)
}
