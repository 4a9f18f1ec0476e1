//! Networks that predict what to remove from noisy latents.

pub(crate) mod unet;

use burn::tensor::Tensor;

use self::unet::UNet2dCondition;

/// What steers a denoiser, one row for each latent row.
#[derive(Clone, Debug)]
pub(crate) struct Conditioning {
    /// Text states, `[batch, tokens, channels]`.
    pub(crate) context: Tensor<3>,
}

/// A network behind one contract: latents in, the scheduler's prediction out.
#[derive(Debug)]
pub(crate) enum Denoiser {
    UNet(UNet2dCondition),
}

impl Denoiser {
    /// Predicts what the checkpoint was trained to predict (noise, velocity or clean latents).
    ///
    /// * `latents`: `[batch, channels, height, width]`, scaled as the sampler asks
    /// * `timesteps`: `[batch]`, one value a row: the rows of one batch may sit at different steps
    ///
    /// Returns `[batch, channels, height, width]` in the dtype of the weights.
    pub(crate) fn forward(
        &self,
        latents: Tensor<4>,
        timesteps: &[f32],
        conditioning: &Conditioning,
    ) -> Tensor<4> {
        match self {
            Self::UNet(unet) => unet.forward(latents, timesteps, &conditioning.context),
        }
    }

    pub(crate) fn latent_channels(&self) -> usize {
        match self {
            Self::UNet(unet) => unet.config().in_channels,
        }
    }

    /// Values of one row's widest tensor, for latents of `width` × `height`.
    pub(crate) fn widest_values(&self, width: usize, height: usize) -> u64 {
        match self {
            Self::UNet(unet) => unet.widest_values(width, height),
        }
    }

    /// An upper estimate of the activations' bytes for one call on latents of `width` × `height`.
    pub(crate) fn peak_bytes(&self, rows: usize, width: usize, height: usize) -> u64 {
        match self {
            Self::UNet(unet) => unet.peak_bytes(rows, width, height),
        }
    }
}
