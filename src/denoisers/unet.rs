//! The U-Net of Stable Diffusion 1.x and 2.x (Rombach et al. 2022), as diffusers'
//! `UNet2DConditionModel` runs it.

mod config;

use burn::tensor::{Device, Tensor};

pub(crate) use self::config::{Level, UNetConfig};
use crate::nn::attention::Transformer;
use crate::nn::resnet::{BlockStyle, Downsample, ResnetBlock, Upsample};
use crate::nn::{Conv2d, GroupNorm, Linear, Load, Weights, bytes_of_maps};
use crate::ops::{self, Activation, Nonlinearity, Sinusoids};

/// One resolution on the way down: each layer's output is kept for the way up.
#[derive(Debug)]
struct DownBlock {
    layers: Vec<(ResnetBlock, Option<Transformer>)>,
    downsample: Option<Downsample>,
}

impl DownBlock {
    fn load(
        weights: &Weights,
        config: &UNetConfig,
        index: usize,
        level: &Level,
        inputs: usize,
    ) -> Load<Self> {
        let name = format!("down_blocks.{index}");
        let style = config.style();
        let layer = |i: usize| {
            let inputs = if i == 0 { inputs } else { level.channels };
            let resnet =
                ResnetBlock::load(weights, &format!("{name}.resnets.{i}"), inputs, level.channels, &style)?;
            let transformer = level.down_attention.then(|| {
                Transformer::load(weights, &format!("{name}.attentions.{i}"), &config.transformer(level))
            });
            Ok((resnet, transformer.transpose()?))
        };
        let last = index + 1 == config.levels.len();
        let downsample = (!last)
            .then(|| Downsample::load(weights, &format!("{name}.downsamplers.0"), level.channels, [1; 4]));
        Ok(Self {
            layers: (0..level.layers).map(layer).collect::<Load<_>>()?,
            downsample: downsample.transpose()?,
        })
    }

    fn forward(
        &self,
        mut x: Tensor<4>,
        time: &Tensor<3>,
        context: &Tensor<3>,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (resnet, transformer) in &self.layers {
            x = resnet.forward(x, Some(time));
            if let Some(transformer) = transformer {
                x = transformer.forward(x, context);
            }
            skips.push(x.clone());
        }
        if let Some(downsample) = &self.downsample {
            x = downsample.forward(x);
            skips.push(x.clone());
        }
        x
    }
}

#[derive(Debug)]
struct MidBlock {
    resnet_in: ResnetBlock,
    transformer: Transformer,
    resnet_out: ResnetBlock,
}

impl MidBlock {
    fn load(weights: &Weights, config: &UNetConfig, level: &Level) -> Load<Self> {
        let style = config.style();
        let resnet = |i: usize| {
            ResnetBlock::load(
                weights,
                &format!("mid_block.resnets.{i}"),
                level.channels,
                level.channels,
                &style,
            )
        };
        Ok(Self {
            resnet_in: resnet(0)?,
            transformer: Transformer::load(weights, "mid_block.attentions.0", &config.transformer(level))?,
            resnet_out: resnet(1)?,
        })
    }

    fn forward(&self, x: Tensor<4>, time: &Tensor<3>, context: &Tensor<3>) -> Tensor<4> {
        let x = self.resnet_in.forward(x, Some(time));
        let x = self.transformer.forward(x, context);
        self.resnet_out.forward(x, Some(time))
    }
}

/// One resolution on the way up: each layer reads one kept output beside its input.
#[derive(Debug)]
struct UpBlock {
    layers: Vec<(ResnetBlock, Option<Transformer>)>,
    upsample: Option<Upsample>,
}

impl UpBlock {
    /// `index` counts from the deepest level; `skips` are the channels of the kept outputs, last first.
    fn load(
        weights: &Weights,
        config: &UNetConfig,
        index: usize,
        level: &Level,
        inputs: usize,
        skips: &mut Vec<usize>,
    ) -> Load<Self> {
        let name = format!("up_blocks.{index}");
        let style = config.style();
        let mut layers = Vec::new();
        for i in 0..=level.layers {
            let before = if i == 0 { inputs } else { level.channels };
            let inputs = before + skips.pop().unwrap_or_default();
            let resnet =
                ResnetBlock::load(weights, &format!("{name}.resnets.{i}"), inputs, level.channels, &style)?;
            let transformer = level.up_attention.then(|| {
                Transformer::load(weights, &format!("{name}.attentions.{i}"), &config.transformer(level))
            });
            layers.push((resnet, transformer.transpose()?));
        }
        let last = index + 1 == config.levels.len();
        let upsample =
            (!last).then(|| Upsample::load(weights, &format!("{name}.upsamplers.0"), level.channels));
        Ok(Self { layers, upsample: upsample.transpose()? })
    }

    fn forward(
        &self,
        mut x: Tensor<4>,
        time: &Tensor<3>,
        context: &Tensor<3>,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (resnet, transformer) in &self.layers {
            if let Some(skip) = skips.pop() {
                x = Tensor::cat(vec![x, skip], 3);
            }
            x = resnet.forward(x, Some(time));
            if let Some(transformer) = transformer {
                x = transformer.forward(x, context);
            }
        }
        match &self.upsample {
            Some(upsample) => {
                let size = skips.last().map(|skip| [skip.dims()[1], skip.dims()[2]]);
                upsample.forward(x, size)
            }
            None => x,
        }
    }
}

/// The whole network.
#[derive(Debug)]
pub(crate) struct UNet2dCondition {
    config: UNetConfig,
    time_proj: Sinusoids,
    time_linear_1: Linear,
    time_linear_2: Linear,
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl UNet2dCondition {
    pub(crate) fn load(weights: &Weights, config: UNetConfig, device: &Device) -> Load<Self> {
        let first = config.first_channels();
        let time = first * 4;
        let mut skips = vec![first];
        let mut down_blocks = Vec::new();
        let mut inputs = first;
        for (index, level) in config.levels.iter().enumerate() {
            down_blocks.push(DownBlock::load(weights, &config, index, level, inputs)?);
            skips.extend(std::iter::repeat_n(level.channels, level.layers));
            if index + 1 < config.levels.len() {
                skips.push(level.channels);
            }
            inputs = level.channels;
        }
        let mid_block = MidBlock::load(weights, &config, config.deepest())?;
        let mut up_blocks = Vec::new();
        for (index, level) in config.up_levels().iter().enumerate() {
            up_blocks.push(UpBlock::load(weights, &config, index, level, inputs, &mut skips)?);
            inputs = level.channels;
        }
        Ok(Self {
            time_proj: Sinusoids::new(first, config.flip_sin_to_cos, config.freq_shift, device),
            time_linear_1: Linear::load(weights, "time_embedding.linear_1", first, time)?,
            time_linear_2: Linear::load(weights, "time_embedding.linear_2", time, time)?,
            conv_in: Conv2d::load(weights, "conv_in", config.in_channels, first, config.conv_in_kernel)?,
            conv_norm_out: GroupNorm::load(weights, "conv_norm_out", first, config.groups, config.eps)?,
            conv_out: Conv2d::load(weights, "conv_out", first, config.out_channels, config.conv_out_kernel)?,
            down_blocks,
            mid_block,
            up_blocks,
            config,
        })
    }

    pub(crate) fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The finest level decides: its gated feed-forward holds twelve times the channels at once, its
    /// kept outputs and the layer at work about as much again.
    pub(crate) fn peak_bytes(&self, rows: usize, width: usize, height: usize) -> u64 {
        const MAPS: usize = 24;
        bytes_of_maps(MAPS, &[rows, width, height, self.config.first_channels()])
    }

    /// Of a level: the gated feed-forward's eight times its channels, or what a layer on the way up reads beside a kept
    /// output, or the map that is upsampled into it.
    pub(crate) fn widest_values(&self, width: usize, height: usize) -> u64 {
        let levels = &self.config.levels;
        let wide = |level: &Level| {
            if level.down_attention || level.up_attention { 8 * level.channels } else { 2 * level.channels }
        };
        let widest = levels.iter().enumerate().map(|(depth, level)| {
            let deeper = levels.get(depth + 1).unwrap_or(level);
            // Odd sides are rounded up where they are halved.
            let side = |length: usize| length.div_ceil(1 << depth) as u64;
            let last = depth + 1 == levels.len();
            let channels = if last { 8 * level.channels } else { wide(level) };
            let channels = channels.max(level.channels + deeper.channels) as u64;
            side(width).saturating_mul(side(height)).saturating_mul(channels)
        });
        widest.max().unwrap_or_default()
    }

    /// * `latents`: `[batch, in_channels, height, width]`
    /// * `timesteps`: `[batch]`
    /// * `context`: `[batch, tokens, context]`
    pub(crate) fn forward(&self, latents: Tensor<4>, timesteps: &[f32], context: &Tensor<3>) -> Tensor<4> {
        let dtype = context.dtype();
        let embedded = ops::timestep_embedding(timesteps, &self.time_proj, dtype);
        let silu = Nonlinearity::Silu;
        let time = self.time_linear_1.forward_activated(embedded.unsqueeze_dim::<3>(1), silu);
        let time = self.time_linear_2.forward_activated(time, silu);

        let mut x = self.conv_in.forward(latents.cast(dtype).permute([0, 2, 3, 1]));
        let mut skips = vec![x.clone()];
        for block in &self.down_blocks {
            x = block.forward(x, &time, context, &mut skips);
        }
        x = self.mid_block.forward(x, &time, context);
        for block in &self.up_blocks {
            x = block.forward(x, &time, context, &mut skips);
        }
        let x = self.conv_norm_out.forward(x, Activation::Silu);
        self.conv_out.forward(x).permute([0, 3, 1, 2])
    }
}

impl UNetConfig {
    fn style(&self) -> BlockStyle {
        BlockStyle { groups: self.groups, eps: self.eps, time_channels: Some(self.first_channels() * 4) }
    }
}
