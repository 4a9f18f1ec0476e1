//! A checkpoint of Stable Diffusion 1.5's full size with random weights, N(0, 0.02) in f16, in diffusers' layout: 2.1 GB
//! that draw noise. Loading it checks every name and shape here.

use std::borrow::Cow;
use std::fs;
use std::io::{self, Error};
use std::path::Path;

use half::f16;
use safetensors::{Dtype, View, serialize_to_file};
use serde_json::{Value, json};

/// The configs of a small checkpoint of the same family, and its tokenizer.
macro_rules! small {
    ($path:literal) => {
        include_str!(concat!("../../tests/fixtures/pipelines/sd15/", $path))
    };
}

const COPIED: [(&str, &str); 6] = [
    ("model_index.json", small!("model_index.json")),
    ("scheduler/scheduler_config.json", small!("scheduler/scheduler_config.json")),
    ("tokenizer/merges.txt", small!("tokenizer/merges.txt")),
    ("tokenizer/special_tokens_map.json", small!("tokenizer/special_tokens_map.json")),
    ("tokenizer/tokenizer_config.json", small!("tokenizer/tokenizer_config.json")),
    ("tokenizer/vocab.json", small!("tokenizer/vocab.json")),
];

const TIME: usize = 1280;
const CONTEXT: usize = 768;
const VOCABULARY: usize = 49408;

/// Writes the checkpoint; `model_index.json`, by which it is known, comes last.
pub(crate) fn write(folder: &Path) -> io::Result<()> {
    let text = json!({
        "hidden_size": CONTEXT, "intermediate_size": 4 * CONTEXT, "num_hidden_layers": 12, "num_attention_heads": 12,
        "vocab_size": VOCABULARY,
    });
    let unet = json!({
        "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": CONTEXT, "norm_num_groups": 32,
        "sample_size": 64,
    });
    let vae =
        json!({ "block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "sample_size": 512 });
    let networks = [
        ("text_encoder", small!("text_encoder/config.json"), text, text_encoder(), "model.safetensors"),
        ("unet", small!("unet/config.json"), unet, self::unet(), "diffusion_pytorch_model.safetensors"),
        ("vae", small!("vae/config.json"), vae, autoencoder(), "diffusion_pytorch_model.safetensors"),
    ];
    for (part, config, sizes, tensors, file) in networks {
        fs::create_dir_all(folder.join(part))?;
        let mut config: Value = serde_json::from_str(config)?;
        for (key, value) in sizes.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        fs::write(folder.join(part).join("config.json"), config.to_string())?;
        let tensors = tensors.0.into_iter().enumerate();
        let tensors = tensors.map(|(seed, (name, shape))| (name, Random { shape, seed: seed as u64 }));
        serialize_to_file(tensors, None, &folder.join(part).join(file)).map_err(Error::other)?;
    }
    for (file, text) in COPIED.iter().rev() {
        let path = folder.join(file);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(path, text)?;
    }
    Ok(())
}

/// Values near a normal distribution, the sum of four uniform ones, the same on every run.
pub(crate) fn normal(seed: u64, deviation: f32, count: usize) -> Vec<f32> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    // A uniform variable on 0..=65535 has a deviation of 65536 / sqrt(12), the sum of four twice that.
    let scale = deviation * 3f32.sqrt() / 65536.0;
    let draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let mixed = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
        let sum: i32 = [0, 16, 32, 48].map(|shift| i32::from((mixed >> shift) as u16)).iter().sum();
        (sum - 131_070) as f32 * scale
    };
    std::iter::repeat_with(draw).take(count).collect()
}

/// A tensor that is drawn when it is written.
struct Random {
    shape: Vec<usize>,
    seed: u64,
}

impl View for Random {
    fn dtype(&self) -> Dtype {
        Dtype::F16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = normal(self.seed, 0.02, self.shape.iter().product());
        values.into_iter().flat_map(|value| f16::from_f32(value).to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        2 * self.shape.iter().product::<usize>()
    }
}

/// Names and shapes.
#[derive(Default)]
struct Tensors(Vec<(String, Vec<usize>)>);

impl Tensors {
    fn weight(&mut self, name: &str, shape: &[usize]) {
        self.0.push((format!("{name}.weight"), shape.to_vec()));
    }

    /// A weight, and a bias for each of its outputs.
    fn layer(&mut self, name: &str, shape: &[usize]) {
        self.weight(name, shape);
        self.0.push((format!("{name}.bias"), shape[..1].to_vec()));
    }

    fn convolution(&mut self, name: &str, outputs: usize, inputs: usize, side: usize) {
        self.layer(name, &[outputs, inputs, side, side]);
    }

    fn resnet(&mut self, name: &str, inputs: usize, outputs: usize, time: bool) {
        self.layer(&format!("{name}.norm1"), &[inputs]);
        self.convolution(&format!("{name}.conv1"), outputs, inputs, 3);
        if time {
            self.layer(&format!("{name}.time_emb_proj"), &[outputs, TIME]);
        }
        self.layer(&format!("{name}.norm2"), &[outputs]);
        self.convolution(&format!("{name}.conv2"), outputs, outputs, 3);
        if inputs != outputs {
            self.convolution(&format!("{name}.conv_shortcut"), outputs, inputs, 1);
        }
    }

    /// A transformer block between two 1×1 convolutions.
    fn transformer(&mut self, name: &str, channels: usize) {
        self.layer(&format!("{name}.norm"), &[channels]);
        self.convolution(&format!("{name}.proj_in"), channels, channels, 1);
        let block = format!("{name}.transformer_blocks.0");
        for (attention, context) in [("attn1", channels), ("attn2", CONTEXT)] {
            self.weight(&format!("{block}.{attention}.to_q"), &[channels, channels]);
            self.weight(&format!("{block}.{attention}.to_k"), &[channels, context]);
            self.weight(&format!("{block}.{attention}.to_v"), &[channels, context]);
            self.layer(&format!("{block}.{attention}.to_out.0"), &[channels, channels]);
        }
        for norm in ["norm1", "norm2", "norm3"] {
            self.layer(&format!("{block}.{norm}"), &[channels]);
        }
        self.layer(&format!("{block}.ff.net.0.proj"), &[8 * channels, channels]);
        self.layer(&format!("{block}.ff.net.2"), &[channels, 4 * channels]);
        self.convolution(&format!("{name}.proj_out"), channels, channels, 1);
    }

    /// The middle of the autoencoder's halves.
    fn middle(&mut self, name: &str, channels: usize) {
        self.resnet(&format!("{name}.resnets.0"), channels, channels, false);
        self.layer(&format!("{name}.attentions.0.group_norm"), &[channels]);
        for projection in ["to_q", "to_k", "to_v", "to_out.0"] {
            self.layer(&format!("{name}.attentions.0.{projection}"), &[channels, channels]);
        }
        self.resnet(&format!("{name}.resnets.1"), channels, channels, false);
    }
}

fn text_encoder() -> Tensors {
    let mut tensors = Tensors::default();
    tensors.weight("text_model.embeddings.token_embedding", &[VOCABULARY, CONTEXT]);
    tensors.weight("text_model.embeddings.position_embedding", &[77, CONTEXT]);
    for layer in 0..12 {
        let name = format!("text_model.encoder.layers.{layer}");
        for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            tensors.layer(&format!("{name}.self_attn.{projection}"), &[CONTEXT, CONTEXT]);
        }
        tensors.layer(&format!("{name}.layer_norm1"), &[CONTEXT]);
        tensors.layer(&format!("{name}.layer_norm2"), &[CONTEXT]);
        tensors.layer(&format!("{name}.mlp.fc1"), &[4 * CONTEXT, CONTEXT]);
        tensors.layer(&format!("{name}.mlp.fc2"), &[CONTEXT, 4 * CONTEXT]);
    }
    tensors.layer("text_model.final_layer_norm", &[CONTEXT]);
    tensors
}

fn unet() -> Tensors {
    const CHANNELS: [usize; 4] = [320, 640, 1280, 1280];
    let mut tensors = Tensors::default();
    tensors.layer("time_embedding.linear_1", &[TIME, 320]);
    tensors.layer("time_embedding.linear_2", &[TIME, TIME]);
    tensors.convolution("conv_in", 320, 4, 3);
    // What the way down keeps for the way up.
    let (mut kept, mut inputs) = (vec![320], 320);
    for (level, channels) in CHANNELS.into_iter().enumerate() {
        for index in 0..2 {
            tensors.resnet(&format!("down_blocks.{level}.resnets.{index}"), inputs, channels, true);
            if level < 3 {
                tensors.transformer(&format!("down_blocks.{level}.attentions.{index}"), channels);
            }
            inputs = channels;
            kept.push(channels);
        }
        if level < 3 {
            let name = format!("down_blocks.{level}.downsamplers.0.conv");
            tensors.convolution(&name, channels, channels, 3);
            kept.push(channels);
        }
    }
    tensors.resnet("mid_block.resnets.0", 1280, 1280, true);
    tensors.transformer("mid_block.attentions.0", 1280);
    tensors.resnet("mid_block.resnets.1", 1280, 1280, true);
    for (level, channels) in CHANNELS.into_iter().rev().enumerate() {
        for index in 0..3 {
            inputs += kept.pop().expect("as many as on the way down");
            tensors.resnet(&format!("up_blocks.{level}.resnets.{index}"), inputs, channels, true);
            if level > 0 {
                tensors.transformer(&format!("up_blocks.{level}.attentions.{index}"), channels);
            }
            inputs = channels;
        }
        if level < 3 {
            tensors.convolution(&format!("up_blocks.{level}.upsamplers.0.conv"), channels, channels, 3);
        }
    }
    tensors.layer("conv_norm_out", &[320]);
    tensors.convolution("conv_out", 4, 320, 3);
    tensors
}

fn autoencoder() -> Tensors {
    const CHANNELS: [usize; 4] = [128, 256, 512, 512];
    let mut tensors = Tensors::default();
    tensors.convolution("encoder.conv_in", 128, 3, 3);
    let mut inputs = 128;
    for (level, channels) in CHANNELS.into_iter().enumerate() {
        for index in 0..2 {
            tensors.resnet(&format!("encoder.down_blocks.{level}.resnets.{index}"), inputs, channels, false);
            inputs = channels;
        }
        if level < 3 {
            let name = format!("encoder.down_blocks.{level}.downsamplers.0.conv");
            tensors.convolution(&name, channels, channels, 3);
        }
    }
    tensors.middle("encoder.mid_block", 512);
    tensors.layer("encoder.conv_norm_out", &[512]);
    tensors.convolution("encoder.conv_out", 8, 512, 3);
    tensors.convolution("quant_conv", 8, 8, 1);
    tensors.convolution("post_quant_conv", 4, 4, 1);
    tensors.convolution("decoder.conv_in", 512, 4, 3);
    tensors.middle("decoder.mid_block", 512);
    let mut inputs = 512;
    for (level, channels) in CHANNELS.into_iter().rev().enumerate() {
        for index in 0..3 {
            tensors.resnet(&format!("decoder.up_blocks.{level}.resnets.{index}"), inputs, channels, false);
            inputs = channels;
        }
        if level < 3 {
            let name = format!("decoder.up_blocks.{level}.upsamplers.0.conv");
            tensors.convolution(&name, channels, channels, 3);
        }
    }
    tensors.layer("decoder.conv_norm_out", &[128]);
    tensors.convolution("decoder.conv_out", 3, 128, 3);
    tensors
}
