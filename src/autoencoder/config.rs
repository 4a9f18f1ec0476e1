//! The numbers in an autoencoder's `config.json`; what this crate does not compute is refused by name.

use serde_json::Value;

use crate::nn::MAX_LEVELS;
use crate::weights::{ConfigError, ConfigReader};

#[derive(Clone, Debug)]
pub(crate) struct AutoencoderConfig {
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    /// From the finest level to the deepest.
    pub(crate) channels: Vec<usize>,
    /// Residual blocks a level of the encoder; the decoder has one more.
    pub(crate) layers: usize,
    pub(crate) latent_channels: usize,
    pub(crate) groups: usize,
    /// Latents are multiplied by this after encoding and divided by it before decoding.
    pub(crate) scaling_factor: f32,
    /// Whether activations overflow f16.
    pub(crate) force_upcast: bool,
    pub(crate) use_quant_conv: bool,
    pub(crate) use_post_quant_conv: bool,
    pub(crate) mid_block_add_attention: bool,
}

impl AutoencoderConfig {
    pub(crate) fn read(mut config: ConfigReader) -> Result<Self, ConfigError> {
        config.require_default("act_fn", "silu")?;
        for key in ["shift_factor", "latents_mean", "latents_std"] {
            config.require_default(key, Value::Null)?;
        }
        // The size it was trained at; the layers take any.
        config.ignore(&["sample_size"]);
        let channels = config.counts("block_out_channels", &[64])?;
        if channels.len() > MAX_LEVELS {
            return Err(config.refuse("block_out_channels", format!("at most {MAX_LEVELS} levels")));
        }
        for (key, block) in
            [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")]
        {
            let blocks = config.strs(key, &[block])?;
            if blocks.len() != channels.len() || blocks.iter().any(|found| found != block) {
                return Err(config.refuse(key, format!("{} of {block}", channels.len())));
            }
        }
        let read = Self {
            in_channels: config.count("in_channels", 3)?,
            out_channels: config.count("out_channels", 3)?,
            channels,
            layers: config.count("layers_per_block", 1)?,
            latent_channels: config.count("latent_channels", 4)?,
            groups: config.count("norm_num_groups", 32)?,
            scaling_factor: config.f32("scaling_factor", 0.18215)?,
            force_upcast: config.bool("force_upcast", true)?,
            use_quant_conv: config.bool("use_quant_conv", true)?,
            use_post_quant_conv: config.bool("use_post_quant_conv", true)?,
            mid_block_add_attention: config.bool("mid_block_add_attention", true)?,
        };
        for (key, found) in [("in_channels", read.in_channels), ("out_channels", read.out_channels)] {
            if found != 3 {
                return Err(config.refuse(key, "3"));
            }
        }
        if read.scaling_factor == 0.0 {
            return Err(config.refuse("scaling_factor", "a number other than 0"));
        }
        if read.channels.iter().any(|channels| !channels.is_multiple_of(read.groups)) {
            return Err(config.refuse("norm_num_groups", "a divisor of every block_out_channels"));
        }
        config.finish()?;
        Ok(read)
    }

    /// Pixels to a latent, in each direction.
    pub(crate) fn factor(&self) -> usize {
        1 << (self.channels.len() - 1)
    }

    pub(crate) fn first_channels(&self) -> usize {
        self.channels.first().copied().unwrap_or_default()
    }

    pub(crate) fn last_channels(&self) -> usize {
        self.channels.last().copied().unwrap_or_default()
    }
}
