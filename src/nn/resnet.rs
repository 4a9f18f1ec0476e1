//! Residual blocks and the layers that change the resolution, shared by U-Net and autoencoder.

use burn::tensor::Tensor;

use super::{Conv2d, GroupNorm, Linear, Load, Weights};
use crate::ops::{self, Activation};

/// How the blocks of one network are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockStyle {
    pub(crate) groups: usize,
    pub(crate) eps: f32,
    /// Width of the time embedding; `None` for blocks that have none.
    pub(crate) time_channels: Option<usize>,
}

/// GroupNorm, SiLU, convolution, twice, around a time shift; plus the input.
#[derive(Debug)]
pub(crate) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Linear>,
}

impl ResnetBlock {
    pub(crate) fn load(
        weights: &Weights,
        name: &str,
        inputs: usize,
        outputs: usize,
        style: &BlockStyle,
    ) -> Load<Self> {
        let time_emb_proj = style
            .time_channels
            .map(|channels| Linear::load(weights, &format!("{name}.time_emb_proj"), channels, outputs))
            .transpose()?;
        let conv_shortcut = (inputs != outputs)
            .then(|| Linear::load_pointwise(weights, &format!("{name}.conv_shortcut"), inputs, outputs))
            .transpose()?;
        Ok(Self {
            norm1: GroupNorm::load(weights, &format!("{name}.norm1"), inputs, style.groups, style.eps)?,
            conv1: Conv2d::load(weights, &format!("{name}.conv1"), inputs, outputs, 3)?,
            time_emb_proj,
            norm2: GroupNorm::load(weights, &format!("{name}.norm2"), outputs, style.groups, style.eps)?,
            conv2: Conv2d::load(weights, &format!("{name}.conv2"), outputs, outputs, 3)?,
            conv_shortcut,
        })
    }

    /// * `x`: `[batch, height, width, inputs]`
    /// * `time`: `[batch, 1, time_channels]`, already through SiLU
    pub(crate) fn forward(&self, x: Tensor<4>, time: Option<&Tensor<3>>) -> Tensor<4> {
        let hidden = self.norm1.forward(x.clone(), Activation::Silu);
        let hidden = match (&self.time_emb_proj, time) {
            // One vector a picture, added to its every pixel.
            (Some(proj), Some(time)) => {
                self.conv1.forward_add(hidden, proj.forward(time.clone()).unsqueeze_dim(1))
            }
            _ => self.conv1.forward(hidden),
        };
        let hidden = self.norm2.forward(hidden, Activation::Silu);
        let shortcut = match &self.conv_shortcut {
            Some(conv) => conv.forward_map(x),
            None => x,
        };
        self.conv2.forward_add(hidden, shortcut)
    }
}

/// A 3×3 convolution of stride 2.
#[derive(Debug)]
pub(crate) struct Downsample(Conv2d);

impl Downsample {
    /// * `padding`: top, bottom, left, right; the autoencoder pads two sides alone
    pub(crate) fn load(weights: &Weights, name: &str, channels: usize, padding: [usize; 4]) -> Load<Self> {
        let shape = ops::Conv2d { stride: 2, padding };
        Conv2d::load_shaped(weights, &format!("{name}.conv"), channels, channels, 3, shape).map(Self)
    }

    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.0.forward(x)
    }
}

/// Nearest neighbour ×2, then a 3×3 convolution.
#[derive(Debug)]
pub(crate) struct Upsample(Conv2d);

impl Upsample {
    pub(crate) fn load(weights: &Weights, name: &str, channels: usize) -> Load<Self> {
        Conv2d::load(weights, &format!("{name}.conv"), channels, channels, 3).map(Self)
    }

    /// To `size` (height, width), which is twice the input's or one less: the skip connection that
    /// it meets may have had an odd side, and nearest neighbour to an odd side is the doubled map cut.
    pub(crate) fn forward(&self, x: Tensor<4>, size: Option<[usize; 2]>) -> Tensor<4> {
        let [_, height, width, _] = x.dims();
        self.0.forward_upsampled(x, size.unwrap_or([2 * height, 2 * width]))
    }
}
