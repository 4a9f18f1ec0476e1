//! CLIP's text transformer (Radford et al. 2021), as transformers' `CLIPTextModel` runs it.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::error::Result;
use crate::nn::{LayerNorm, Linear, Load, Weights, bytes_of_maps};
use crate::ops::{self, Gelu, Mask, Nonlinearity};
use crate::weights::{ConfigError, ConfigReader};

/// The numbers in the text encoder's `config.json`.
#[derive(Clone, Debug)]
pub(crate) struct ClipConfig {
    vocab_size: usize,
    pub(crate) hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    pub(crate) max_positions: usize,
    act: Nonlinearity,
    eps: f32,
}

impl ClipConfig {
    pub(crate) fn read(mut config: ConfigReader) -> Result<Self, ConfigError> {
        config.ignore(&[
            "architectures",
            "attention_dropout",
            "bos_token_id",
            "dropout",
            "dtype",
            "eos_token_id",
            "initializer_factor",
            "initializer_range",
            "model_type",
            "pad_token_id",
            "projection_dim",
            "torch_dtype",
            "transformers_version",
        ]);
        let acts = [("quick_gelu", Nonlinearity::QuickGelu), ("gelu", Nonlinearity::Gelu(Gelu::Exact))];
        let read = Self {
            vocab_size: config.count("vocab_size", 49408)?,
            hidden_size: config.count("hidden_size", 512)?,
            intermediate_size: config.count("intermediate_size", 2048)?,
            layers: config.count("num_hidden_layers", 12)?,
            heads: config.count("num_attention_heads", 8)?,
            max_positions: config.count("max_position_embeddings", 77)?,
            act: config.choice("hidden_act", Nonlinearity::QuickGelu, &acts)?,
            eps: config.f32_in("layer_norm_eps", 1e-5, 0.0..=1.0)?,
        };
        if !read.hidden_size.is_multiple_of(read.heads) {
            return Err(config
                .refuse("num_attention_heads", format!("a divisor of hidden_size {}", read.hidden_size)));
        }
        config.finish()?;
        Ok(read)
    }
}

#[derive(Debug)]
struct Layer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Layer {
    fn load(weights: &Weights, name: &str, config: &ClipConfig) -> Load<Self> {
        let channels = config.hidden_size;
        let norm = |part: &str| LayerNorm::load(weights, &format!("{name}.{part}"), channels, config.eps);
        let proj =
            |part: &str| Linear::load(weights, &format!("{name}.self_attn.{part}"), channels, channels);
        Ok(Self {
            layer_norm1: norm("layer_norm1")?,
            q_proj: proj("q_proj")?,
            k_proj: proj("k_proj")?,
            v_proj: proj("v_proj")?,
            out_proj: proj("out_proj")?,
            layer_norm2: norm("layer_norm2")?,
            fc1: Linear::load(weights, &format!("{name}.mlp.fc1"), channels, config.intermediate_size)?,
            fc2: Linear::load(weights, &format!("{name}.mlp.fc2"), config.intermediate_size, channels)?,
        })
    }

    fn forward(&self, x: Tensor<3>, config: &ClipConfig) -> Tensor<3> {
        let normed = self.layer_norm1.forward(x.clone());
        let q = self.q_proj.forward(normed.clone());
        let k = self.k_proj.forward(normed.clone());
        let v = self.v_proj.forward(normed);
        let x = self.out_proj.forward_add(ops::attention(q, k, v, config.heads, Mask::Causal), x);
        let hidden = self.fc1.forward_activated(self.layer_norm2.forward(x.clone()), config.act);
        self.fc2.forward_add(hidden, x)
    }
}

/// The text transformer.
#[derive(Debug)]
pub(crate) struct ClipTextModel {
    config: ClipConfig,
    token_embedding: Tensor<2>,
    position_embedding: Tensor<2>,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
}

impl ClipTextModel {
    pub(crate) fn load(weights: &Weights, config: ClipConfig) -> Load<Self> {
        let ClipConfig { vocab_size, hidden_size, max_positions, .. } = config;
        let layer = |i| Layer::load(weights, &format!("encoder.layers.{i}"), &config);
        let layers = (0..config.layers).map(layer).collect::<Load<_>>()?;
        Ok(Self {
            token_embedding: weights.take("embeddings.token_embedding.weight", [vocab_size, hidden_size])?,
            position_embedding: weights
                .take("embeddings.position_embedding.weight", [max_positions, hidden_size])?,
            layers,
            final_layer_norm: LayerNorm::load(weights, "final_layer_norm", hidden_size, config.eps)?,
            config,
        })
    }

    pub(crate) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Channels of the states.
    pub(crate) fn width(&self) -> usize {
        self.config.hidden_size
    }

    pub(crate) fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    pub(crate) fn max_positions(&self) -> usize {
        self.config.max_positions
    }

    /// An upper estimate of the activations' bytes for some rows: queries, keys, values, two residuals and
    /// their norms, and the wider layer before and after its activation.
    pub(crate) fn peak_bytes(&self, rows: usize, tokens: usize) -> u64 {
        let ClipConfig { hidden_size, intermediate_size, .. } = self.config;
        let channels = hidden_size.saturating_mul(8).saturating_add(intermediate_size.saturating_mul(3));
        bytes_of_maps(1, &[rows, tokens, channels])
    }

    /// States after the final norm, `[rows, tokens, hidden_size]`, all of one launch.
    ///
    /// * `rows`: of one length, at most `max_positions` tokens, each under `vocab_size`
    /// * `skip`: layers left out at the end
    pub(crate) fn forward(&self, rows: &[&[u32]], skip: usize, device: &Device) -> Tensor<3> {
        let tokens = rows.first().map_or(0, |row| row.len());
        let ids: Vec<i32> = rows.iter().flat_map(|row| row.iter()).map(|id| *id as i32).collect();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [rows.len() * tokens]), device);
        let embedded = self.token_embedding.clone().select(0, ids);
        let embedded = embedded.reshape([rows.len(), tokens, self.config.hidden_size]);
        let positions = self.position_embedding.clone().narrow(0, 0, tokens);
        let mut hidden = embedded + positions.unsqueeze::<3>();
        for layer in self.layers.iter().take(self.layers.len() - skip) {
            hidden = layer.forward(hidden, &self.config);
        }
        self.final_layer_norm.forward(hidden)
    }
}
