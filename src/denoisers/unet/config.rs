//! The numbers in a U-Net's `config.json`; what this crate does not compute is refused by name.

use serde_json::Value;

use crate::nn::MAX_LEVELS;
use crate::nn::attention::TransformerShape;
use crate::weights::{ConfigError, ConfigReader};

/// One resolution of the U-Net.
#[derive(Clone, Debug)]
pub(crate) struct Level {
    pub(crate) channels: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) transformer_layers: usize,
    pub(crate) down_attention: bool,
    pub(crate) up_attention: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct UNetConfig {
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    /// Height and width of the latents that it was trained on.
    pub(crate) sample_size: [usize; 2],
    /// From the finest to the deepest.
    pub(crate) levels: Vec<Level>,
    pub(crate) context: usize,
    pub(crate) groups: usize,
    pub(crate) eps: f32,
    pub(crate) flip_sin_to_cos: bool,
    pub(crate) freq_shift: f32,
    pub(crate) linear_projection: bool,
    pub(crate) conv_in_kernel: usize,
    pub(crate) conv_out_kernel: usize,
}

/// Switches that change the network and that Stable Diffusion 1 and 2 leave at these values.
fn require_fixed(config: &mut ConfigReader) -> Result<(), ConfigError> {
    for key in [
        "addition_embed_type",
        "class_embed_type",
        "cross_attention_norm",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        // diffusers refuses it too: its own name for the number of heads is attention_head_dim.
        "num_attention_heads",
        "num_class_embeds",
        "projection_class_embeddings_input_dim",
        "reverse_transformer_layers_per_block",
        "time_cond_proj_dim",
        "time_embedding_act_fn",
        "time_embedding_dim",
        "timestep_post_act",
    ] {
        config.require_default(key, Value::Null)?;
    }
    for key in
        ["center_input_sample", "class_embeddings_concat", "dual_cross_attention", "resnet_skip_time_act"]
    {
        config.require_default(key, false)?;
    }
    config.require_one_of("mid_block_only_cross_attention", &[Value::Null, false.into()])?;
    config.require_default("act_fn", "silu")?;
    config.require_default("attention_type", "default")?;
    config.require_default("downsample_padding", 1)?;
    config.require_default("mid_block_scale_factor", 1)?;
    config.require_default("mid_block_type", "UNetMidBlock2DCrossAttn")?;
    config.require_default("resnet_out_scale_factor", 1)?;
    config.require_default("resnet_time_scale_shift", "default")?;
    config.require_default("time_embedding_type", "positional")
}

/// No effect on what is computed here: scores are always f32, dropout only trains, the rest belongs
/// to embeddings that [`require_fixed`] keeps off.
const WITHOUT_EFFECT: &[&str] =
    &["addition_embed_type_num_heads", "addition_time_embed_dim", "dropout", "upcast_attention"];

impl UNetConfig {
    pub(crate) fn read(mut config: ConfigReader) -> Result<Self, ConfigError> {
        require_fixed(&mut config)?;
        config.ignore(WITHOUT_EFFECT);
        let levels = read_levels(&mut config)?;
        let context = config.one_or_many("cross_attention_dim", levels.len(), 1280)?;
        let Some(&sample_size) =
            config.optional_one_or_many("sample_size", 2)?.as_deref().and_then(<[usize]>::first_chunk)
        else {
            return Err(config.refuse("sample_size", "a side or [height, width]"));
        };
        let read = Self {
            in_channels: config.count("in_channels", 4)?,
            out_channels: config.count("out_channels", 4)?,
            sample_size,
            context: context.first().copied().unwrap_or_default(),
            groups: config.count("norm_num_groups", 32)?,
            eps: config.f32_in("norm_eps", 1e-5, 0.0..=1.0)?,
            flip_sin_to_cos: config.bool("flip_sin_to_cos", true)?,
            freq_shift: config.f32("freq_shift", 0.0)?,
            linear_projection: config.bool("use_linear_projection", false)?,
            conv_in_kernel: choice_of(&mut config, "conv_in_kernel", 3, &[1, 3, 5, 7])?,
            conv_out_kernel: choice_of(&mut config, "conv_out_kernel", 3, &[1, 3, 5, 7])?,
            levels,
        };
        if context.iter().any(|dim| *dim != read.context) {
            return Err(config.refuse("cross_attention_dim", "one width for all levels"));
        }
        if read.out_channels != read.in_channels {
            return Err(config.refuse("out_channels", format!("in_channels {}", read.in_channels)));
        }
        if read.levels.iter().any(|level| !level.channels.is_multiple_of(read.groups)) {
            return Err(config.refuse("norm_num_groups", "a divisor of every block_out_channels"));
        }
        config.finish()?;
        Ok(read)
    }

    pub(crate) fn first_channels(&self) -> usize {
        self.levels.first().map_or(0, |level| level.channels)
    }

    /// # Panics
    /// Never: a config without levels is not read.
    pub(crate) fn deepest(&self) -> &Level {
        &self.levels[self.levels.len() - 1]
    }

    /// From the deepest to the finest.
    pub(crate) fn up_levels(&self) -> Vec<Level> {
        self.levels.iter().rev().cloned().collect()
    }

    pub(crate) fn transformer(&self, level: &Level) -> TransformerShape {
        TransformerShape {
            channels: level.channels,
            context: self.context,
            heads: level.heads,
            layers: level.transformer_layers,
            groups: self.groups,
            linear_projection: self.linear_projection,
        }
    }
}

/// The levels, from the lists that hold one entry a level.
fn read_levels(config: &mut ConfigReader) -> Result<Vec<Level>, ConfigError> {
    let channels = config.counts("block_out_channels", &[320, 640, 1280, 1280])?;
    let depth = channels.len();
    if depth > MAX_LEVELS {
        return Err(config.refuse("block_out_channels", format!("at most {MAX_LEVELS} levels")));
    }
    let layers = config.one_or_many("layers_per_block", depth, 2)?;
    let transformer_layers = config.one_or_many("transformer_layers_per_block", depth, 1)?;
    let only_cross = config.one_or_many_bools("only_cross_attention", depth, false)?;
    if only_cross.contains(&true) {
        return Err(config.refuse("only_cross_attention", "false"));
    }
    // diffusers' name for the number of heads, kept since the first release.
    let heads = config.one_or_many("attention_head_dim", depth, 8)?;
    let cross = "CrossAttnDownBlock2D";
    let down = read_blocks(config, "down_block_types", [cross, cross, cross, "DownBlock2D"], depth)?;
    let cross = "CrossAttnUpBlock2D";
    let up = read_blocks(config, "up_block_types", ["UpBlock2D", cross, cross, cross], depth)?;
    let levels: Vec<Level> =
        (channels.iter().zip(layers).zip(transformer_layers).zip(heads))
            .zip(down.into_iter().zip(up.into_iter().rev()))
            .map(|((((channels, layers), transformer_layers), heads), (down_attention, up_attention))| {
                Level { channels: *channels, layers, heads, transformer_layers, down_attention, up_attention }
            })
            .collect();
    for (index, level) in levels.iter().enumerate() {
        let attends = level.down_attention || level.up_attention || index + 1 == depth;
        if attends && !level.channels.is_multiple_of(level.heads) {
            let expected = format!("a divisor of level {index}'s {} channels", level.channels);
            return Err(config.refuse("attention_head_dim", expected));
        }
    }
    Ok(levels)
}

/// For each block, whether it attends to the prompt. `types` are diffusers' defaults, of which the
/// second and the last name the two kinds.
fn read_blocks(
    config: &mut ConfigReader,
    key: &str,
    types: [&str; 4],
    depth: usize,
) -> Result<Vec<bool>, ConfigError> {
    let with = types[1];
    let without = if types[0] == with { types[3] } else { types[0] };
    let blocks = config.strs(key, &types)?;
    if blocks.len() != depth || blocks.iter().any(|block| block != with && block != without) {
        return Err(config.refuse(key, format!("{depth} of {with} and {without}")));
    }
    Ok(blocks.iter().map(|block| block == with).collect())
}

fn choice_of(
    config: &mut ConfigReader,
    key: &str,
    default: usize,
    choices: &[usize],
) -> Result<usize, ConfigError> {
    let found = config.usize(key, default)?;
    if choices.contains(&found) { Ok(found) } else { Err(config.refuse(key, format!("one of {choices:?}"))) }
}
