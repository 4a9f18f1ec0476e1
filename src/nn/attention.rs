//! Attention over tokens, and the transformer that the U-Net puts between its convolutions.

use burn::tensor::Tensor;

use super::{GroupNorm, LayerNorm, Linear, Load, Weights};
use crate::ops::{self, Activation, Mask};

/// Multi-head attention, of the tokens to themselves or to a context.
#[derive(Debug)]
pub(crate) struct Attention {
    heads: usize,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Attention {
    fn load(weights: &Weights, name: &str, channels: usize, context: usize, heads: usize) -> Load<Self> {
        Ok(Self {
            heads,
            to_q: Linear::load_without_bias(weights, &format!("{name}.to_q"), channels, channels)?,
            to_k: Linear::load_without_bias(weights, &format!("{name}.to_k"), context, channels)?,
            to_v: Linear::load_without_bias(weights, &format!("{name}.to_v"), context, channels)?,
            to_out: Linear::load(weights, &format!("{name}.to_out.0"), channels, channels)?,
        })
    }

    /// `residual + attention(x, context)`.
    fn forward(&self, x: Tensor<3>, context: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        let (q, k, v) =
            (self.to_q.forward(x), self.to_k.forward(context.clone()), self.to_v.forward(context));
        self.to_out.forward_add(ops::attention(q, k, v, self.heads, Mask::None), residual)
    }
}

/// The single-head attention in the middle of the autoencoder, with biases throughout.
#[derive(Debug)]
pub(crate) struct MapAttention {
    group_norm: GroupNorm,
    inner: Attention,
}

impl MapAttention {
    pub(crate) fn load(
        weights: &Weights,
        name: &str,
        channels: usize,
        groups: usize,
        eps: f32,
    ) -> Load<Self> {
        let linear = |part: &str| Linear::load_either(weights, &format!("{name}.{part}"), channels, channels);
        Ok(Self {
            group_norm: GroupNorm::load(weights, &format!("{name}.group_norm"), channels, groups, eps)?,
            inner: Attention {
                heads: 1,
                to_q: linear("to_q")?,
                to_k: linear("to_k")?,
                to_v: linear("to_v")?,
                to_out: linear("to_out.0")?,
            },
        })
    }

    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let shape = x.dims();
        let [batch, height, width, channels] = shape;
        let tokens = [batch, height * width, channels];
        let normed = self.group_norm.forward(x.clone(), Activation::None).reshape(tokens);
        self.inner.forward(normed.clone(), normed, x.reshape(tokens)).reshape(shape)
    }
}

/// Self-attention, attention to the prompt, and a gated feed-forward, each around a residual.
#[derive(Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff_in: Linear,
    ff_out: Linear,
}

impl TransformerBlock {
    fn load(weights: &Weights, name: &str, shape: &TransformerShape) -> Load<Self> {
        let TransformerShape { channels, context, heads, .. } = *shape;
        let norm = |part: &str| LayerNorm::load(weights, &format!("{name}.{part}"), channels, 1e-5);
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::load(weights, &format!("{name}.attn1"), channels, channels, heads)?,
            norm2: norm("norm2")?,
            attn2: Attention::load(weights, &format!("{name}.attn2"), channels, context, heads)?,
            norm3: norm("norm3")?,
            ff_in: Linear::load(weights, &format!("{name}.ff.net.0.proj"), channels, channels * 8)?,
            ff_out: Linear::load(weights, &format!("{name}.ff.net.2"), channels * 4, channels)?,
        })
    }

    fn forward(&self, x: Tensor<3>, context: &Tensor<3>) -> Tensor<3> {
        let normed = self.norm1.forward(x.clone());
        let x = self.attn1.forward(normed.clone(), normed, x);
        let x = self.attn2.forward(self.norm2.forward(x.clone()), context.clone(), x);
        let hidden = ops::geglu(self.ff_in.forward(self.norm3.forward(x.clone())));
        self.ff_out.forward_add(hidden, x)
    }
}

/// The size of a [`Transformer`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransformerShape {
    pub(crate) channels: usize,
    pub(crate) context: usize,
    pub(crate) heads: usize,
    pub(crate) layers: usize,
    pub(crate) groups: usize,
    /// Whether the projections around the blocks are stored as linear layers or 1×1 convolutions.
    pub(crate) linear_projection: bool,
}

/// Transformer blocks over the positions of a feature map (diffusers' `Transformer2DModel`).
#[derive(Debug)]
pub(crate) struct Transformer {
    norm: GroupNorm,
    proj_in: Linear,
    blocks: Vec<TransformerBlock>,
    proj_out: Linear,
}

impl Transformer {
    pub(crate) fn load(weights: &Weights, name: &str, shape: &TransformerShape) -> Load<Self> {
        let channels = shape.channels;
        let proj = |part: &str| {
            let load = if shape.linear_projection { Linear::load } else { Linear::load_pointwise };
            load(weights, &format!("{name}.{part}"), channels, channels)
        };
        let block = |i| TransformerBlock::load(weights, &format!("{name}.transformer_blocks.{i}"), shape);
        Ok(Self {
            norm: GroupNorm::load(weights, &format!("{name}.norm"), channels, shape.groups, 1e-6)?,
            proj_in: proj("proj_in")?,
            blocks: (0..shape.layers).map(block).collect::<Load<_>>()?,
            proj_out: proj("proj_out")?,
        })
    }

    /// * `x`: `[batch, height, width, channels]`
    /// * `context`: `[batch, tokens, context]`
    pub(crate) fn forward(&self, x: Tensor<4>, context: &Tensor<3>) -> Tensor<4> {
        let shape = x.dims();
        let [batch, height, width, channels] = shape;
        let tokens = [batch, height * width, channels];
        let normed = self.norm.forward(x.clone(), Activation::None).reshape(tokens);
        let mut hidden = self.proj_in.forward(normed);
        for block in &self.blocks {
            hidden = block.forward(hidden, context);
        }
        self.proj_out.forward_add(hidden, x.reshape(tokens)).reshape(shape)
    }
}
