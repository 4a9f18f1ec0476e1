//! Pictures to latents and back: diffusers' `AutoencoderKL` (Rombach et al. 2022).

mod config;

use burn::tensor::Tensor;

pub(crate) use self::config::AutoencoderConfig;
use crate::nn::attention::MapAttention;
use crate::nn::resnet::{BlockStyle, Downsample, ResnetBlock, Upsample};
use crate::nn::{Conv2d, GroupNorm, Linear, Load, Weights, bytes_of_maps};
use crate::ops::Activation;

const EPS: f32 = 1e-6;

#[derive(Debug)]
struct MidBlock {
    resnet_in: ResnetBlock,
    attention: Option<MapAttention>,
    resnet_out: ResnetBlock,
}

impl MidBlock {
    fn load(weights: &Weights, name: &str, channels: usize, config: &AutoencoderConfig) -> Load<Self> {
        let style = config.style();
        let resnet =
            |i: usize| ResnetBlock::load(weights, &format!("{name}.resnets.{i}"), channels, channels, &style);
        let attention = config.mid_block_add_attention.then(|| {
            MapAttention::load(weights, &format!("{name}.attentions.0"), channels, config.groups, EPS)
        });
        Ok(Self { resnet_in: resnet(0)?, attention: attention.transpose()?, resnet_out: resnet(1)? })
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mut x = self.resnet_in.forward(x, None);
        if let Some(attention) = &self.attention {
            x = attention.forward(x);
        }
        self.resnet_out.forward(x, None)
    }
}

#[derive(Debug)]
struct Encoder {
    conv_in: Conv2d,
    levels: Vec<(Vec<ResnetBlock>, Option<Downsample>)>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn load(weights: &Weights, config: &AutoencoderConfig) -> Load<Self> {
        let style = config.style();
        let mut channels = config.first_channels();
        let conv_in = Conv2d::load(weights, "encoder.conv_in", config.in_channels, channels, 3)?;
        let mut levels = Vec::new();
        for (index, &outputs) in config.channels.iter().enumerate() {
            let name = format!("encoder.down_blocks.{index}");
            let mut resnets = Vec::new();
            for i in 0..config.layers {
                resnets.push(ResnetBlock::load(
                    weights,
                    &format!("{name}.resnets.{i}"),
                    channels,
                    outputs,
                    &style,
                )?);
                channels = outputs;
            }
            let last = index + 1 == config.channels.len();
            let down = (!last)
                .then(|| Downsample::load(weights, &format!("{name}.downsamplers.0"), outputs, [0, 1, 0, 1]));
            levels.push((resnets, down.transpose()?));
        }
        Ok(Self {
            conv_in,
            levels,
            mid_block: MidBlock::load(weights, "encoder.mid_block", channels, config)?,
            conv_norm_out: GroupNorm::load(weights, "encoder.conv_norm_out", channels, config.groups, EPS)?,
            conv_out: Conv2d::load(weights, "encoder.conv_out", channels, config.latent_channels * 2, 3)?,
        })
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mut x = self.conv_in.forward(x);
        for (resnets, down) in &self.levels {
            for resnet in resnets {
                x = resnet.forward(x, None);
            }
            if let Some(down) = down {
                x = down.forward(x);
            }
        }
        let x = self.mid_block.forward(x);
        self.conv_out.forward(self.conv_norm_out.forward(x, Activation::Silu))
    }
}

#[derive(Debug)]
struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    levels: Vec<(Vec<ResnetBlock>, Option<Upsample>)>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn load(weights: &Weights, config: &AutoencoderConfig) -> Load<Self> {
        let style = config.style();
        let mut channels = config.last_channels();
        let conv_in = Conv2d::load(weights, "decoder.conv_in", config.latent_channels, channels, 3)?;
        let mid_block = MidBlock::load(weights, "decoder.mid_block", channels, config)?;
        let mut levels = Vec::new();
        for (index, &outputs) in config.channels.iter().rev().enumerate() {
            let name = format!("decoder.up_blocks.{index}");
            let mut resnets = Vec::new();
            for i in 0..=config.layers {
                resnets.push(ResnetBlock::load(
                    weights,
                    &format!("{name}.resnets.{i}"),
                    channels,
                    outputs,
                    &style,
                )?);
                channels = outputs;
            }
            let last = index + 1 == config.channels.len();
            let up = (!last).then(|| Upsample::load(weights, &format!("{name}.upsamplers.0"), outputs));
            levels.push((resnets, up.transpose()?));
        }
        Ok(Self {
            conv_in,
            mid_block,
            levels,
            conv_norm_out: GroupNorm::load(weights, "decoder.conv_norm_out", channels, config.groups, EPS)?,
            conv_out: Conv2d::load(weights, "decoder.conv_out", channels, config.out_channels, 3)?,
        })
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mut x = self.mid_block.forward(self.conv_in.forward(x));
        for (resnets, up) in &self.levels {
            for resnet in resnets {
                x = resnet.forward(x, None);
            }
            if let Some(up) = up {
                x = up.forward(x, None);
            }
        }
        self.conv_out.forward(self.conv_norm_out.forward(x, Activation::Silu))
    }
}

/// The posterior over latents: a diagonal Gaussian, each `[batch, channels, height, width]` in f32.
pub(crate) struct Posterior {
    pub(crate) mean: Tensor<4>,
    pub(crate) std: Tensor<4>,
}

/// Encoder and decoder.
#[derive(Debug)]
pub(crate) struct Autoencoder {
    config: AutoencoderConfig,
    encoder: Encoder,
    quant_conv: Option<Linear>,
    post_quant_conv: Option<Linear>,
    decoder: Decoder,
}

impl Autoencoder {
    pub(crate) fn load(weights: &Weights, config: AutoencoderConfig) -> Load<Self> {
        let (z, moments) = (config.latent_channels, config.latent_channels * 2);
        let quant_conv =
            config.use_quant_conv.then(|| Linear::load_pointwise(weights, "quant_conv", moments, moments));
        let post_quant_conv =
            config.use_post_quant_conv.then(|| Linear::load_pointwise(weights, "post_quant_conv", z, z));
        Ok(Self {
            encoder: Encoder::load(weights, &config)?,
            quant_conv: quant_conv.transpose()?,
            post_quant_conv: post_quant_conv.transpose()?,
            decoder: Decoder::load(weights, &config)?,
            config,
        })
    }

    pub(crate) fn config(&self) -> &AutoencoderConfig {
        &self.config
    }

    /// An upper estimate of the activations' bytes for one picture: the finest level, entered with the
    /// channels of the next, holds about four maps of the full size at once.
    pub(crate) fn peak_bytes(&self, width: usize, height: usize) -> u64 {
        const MAPS: usize = 5;
        let channels = self.config.channels.iter().take(2).max().copied().unwrap_or_default();
        bytes_of_maps(MAPS, &[width, height, channels])
    }

    /// Values of one picture's widest tensor: a map of the full size with the channels of the finest level, which is
    /// entered with those of the next.
    pub(crate) fn widest_values(&self, width: usize, height: usize) -> u64 {
        let channels = self.config.channels.iter().take(2).max().copied().unwrap_or_default();
        (width as u64).saturating_mul(height as u64).saturating_mul(channels.max(3) as u64)
    }

    /// Of its weights, and of what it computes.
    pub(crate) fn dtype(&self) -> burn::tensor::DType {
        self.decoder.conv_in.dtype()
    }

    /// * `pixels`: `[batch, 3, height, width]` in `-1..=1`, sides a multiple of [`AutoencoderConfig::factor`]
    ///
    /// The latents are not scaled.
    pub(crate) fn encode(&self, pixels: Tensor<4>) -> Posterior {
        let mut moments = self.encoder.forward(pixels.cast(self.dtype()).permute([0, 2, 3, 1]));
        if let Some(conv) = &self.quant_conv {
            moments = conv.forward_map(moments);
        }
        let moments = moments.permute([0, 3, 1, 2]).cast(burn::tensor::DType::F32);
        let z = self.config.latent_channels;
        let log_variance = moments.clone().narrow(1, z, z).clamp(-30.0, 20.0);
        Posterior { mean: moments.narrow(1, 0, z), std: (log_variance * 0.5).exp() }
    }

    /// * `latents`: `[batch, channels, height, width]`, not scaled
    ///
    /// Returns `[batch, height * factor, width * factor, 3]` in `-1..=1` (not clamped), in f32.
    pub(crate) fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        let mut x = latents.cast(self.dtype()).permute([0, 2, 3, 1]);
        if let Some(conv) = &self.post_quant_conv {
            x = conv.forward_map(x);
        }
        self.decoder.forward(x).cast(burn::tensor::DType::F32)
    }
}

impl AutoencoderConfig {
    fn style(&self) -> BlockStyle {
        BlockStyle { groups: self.groups, eps: EPS, time_channels: None }
    }
}
