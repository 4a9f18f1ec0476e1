//! One function an operation: the kernel for the tensor's device, or the reference in plain burn operations.
//!
//! This file is the only dispatch. Feature maps are `[batch, height, width, channels]`, tokens are
//! `[batch, tokens, channels]`; the tensors of one call share one float dtype (f32, f16 or bf16) and one
//! device. Shapes are guaranteed by the callers, who check them when weights and requests are loaded.
//!
//! Any of batch, tokens, height, width and channels may be 0 where the output then has no element: it is empty, and nothing
//! is launched for it. Sums over nothing (no inputs of `linear`, no keys of `attention`) are zero, as PyTorch's.
//!
//! An output row's bits depend on that row's inputs and on the shapes of one row alone: never on the batch
//! size, the other rows, the thread count or timing. Sums are taken in f32 or f64.
//!
//! CUDA runs the references, whose matrix products burn chooses by timing, unless the environment has
//! `AQUATINT_CUDA_KERNELS` (`1`, or `client` for those that are launched through cubecl's client) when the first
//! operation on CUDA is computed: no GPU has run the CUDA kernels yet.

mod activation;
mod attention;
mod conv;
#[cfg(feature = "cpu")]
mod cpu;
mod denoise;
mod embedding;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
mod linear;
mod modulate;
mod norm;
mod rope;
mod upsample;

use burn::tensor::{DType, Device, Tensor};

pub use denoise::{DenoiseRow, Estimate, Guided, NonFinite, Slot, Source, Stepped};
pub use embedding::Sinusoids;
pub use linear::Epilogue;

/// How a [`conv2d`] walks its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    /// Step between outputs, the same in both directions, at least 1.
    pub stride: usize,
    /// Zero pixels added at the top, bottom, left and right.
    pub padding: [usize; 4],
}

impl Conv2d {
    /// `[height, width]` of the output for an input of `[height, width]` and a kernel of `[kh, kw]`.
    pub fn output_size(&self, input: [usize; 2], kernel: [usize; 2]) -> [usize; 2] {
        let [top, bottom, left, right] = self.padding;
        [
            (input[0] + top + bottom).saturating_sub(kernel[0]) / self.stride + 1,
            (input[1] + left + right).saturating_sub(kernel[1]) / self.stride + 1,
        ]
    }

    /// Of the output for an input of `[batch, height, width, inputs]` and weights of `[outputs, kh, kw, inputs]`.
    fn shape(&self, x: [usize; 4], weight: [usize; 4]) -> [usize; 4] {
        let [batch, height, width, _] = x;
        let [outputs, kh, kw, _] = weight;
        let [height, width] = self.output_size([height, width], [kh, kw]);
        [batch, height, width, outputs]
    }
}

/// What follows a [`group_norm`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// `x * sigmoid(x)`.
    Silu,
}

/// A form of the gelu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gelu {
    /// `x / 2 * (1 + erf(x / sqrt(2)))`.
    Exact,
    /// `x / 2 * (1 + tanh(sqrt(2 / π) * (x + 0.044715 x³)))`, PyTorch's `approximate="tanh"`.
    Tanh,
}

/// An element-wise activation, in [`linear_with`] and [`activate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nonlinearity {
    /// A form of the gelu.
    Gelu(Gelu),
    /// `x * sigmoid(1.702 x)`, CLIP's activation.
    QuickGelu,
    /// `x * sigmoid(x)`.
    Silu,
}

/// Which keys a query sees in `attention`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    None,
    /// Keys at or before the query's own position.
    Causal,
}

/// Runs the CPU kernel where the tensor lives on burn's flex backend.
macro_rules! on_cpu {
    ($tensor:expr, $kernel:expr) => {
        #[cfg(feature = "cpu")]
        if cpu::holds(&$tensor) {
            return $kernel;
        }
    };
}

/// Runs the kernel for the tensor's GPU, where there is one for the call.
macro_rules! on_gpu {
    ($kernel:expr) => {
        #[cfg(any(feature = "wgpu", feature = "cuda"))]
        if let Some(y) = $kernel {
            return y;
        }
    };
}

/// Returns an output that has no element.
macro_rules! unless_empty {
    ($like:expr, $shape:expr) => {
        let shape = $shape;
        if shape.contains(&0) {
            return Tensor::empty(shape, (&$like.device(), $like.dtype()));
        }
    };
}

/// The instruction set that the CPU's kernels use on this machine: with it, and the crate's version, their bits
/// are settled.
pub(crate) fn instruction_set() -> String {
    #[cfg(feature = "cpu")]
    {
        cpu::instruction_set()
    }
    #[cfg(not(feature = "cpu"))]
    {
        "no CPU kernels".to_owned()
    }
}

/// The most bytes that one tensor may have on a device: what is larger is refused there when it is read. `None` where
/// nothing says so.
pub(crate) fn largest_tensor(device: &Device) -> Option<u64> {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    {
        gpu::largest_tensor(device)
    }
    #[cfg(not(any(feature = "wgpu", feature = "cuda")))]
    {
        let _ = device;
        None
    }
}

/// `x · weightᵀ + bias`.
///
/// * `x`: `[batch, tokens, inputs]`; `weight`: `[outputs, inputs]`; `bias`: `[outputs]`
/// * returns `[batch, tokens, outputs]`
pub fn linear(x: Tensor<3>, weight: &Tensor<2>, bias: Option<&Tensor<1>>) -> Tensor<3> {
    linear_with(x, weight, Epilogue { bias, ..Epilogue::default() })
}

/// `x · weightᵀ + bias + residual`, with `residual` of the output's shape.
pub fn linear_add(
    x: Tensor<3>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    residual: Tensor<3>,
) -> Tensor<3> {
    linear_with(x, weight, Epilogue { bias, residual: Some(residual), ..Epilogue::default() })
}

/// `residual + gate * activation(x · weightᵀ + bias)`, of which the [`Epilogue`] may leave out each part: what follows
/// the product is computed in f32 and rounded once. Where no kernel runs, burn rounds its product before that and, without
/// activation and gate, each sum after it.
///
/// * `x`: `[batch, tokens, inputs]`; `weight`: `[outputs, inputs]`
/// * returns `[batch, tokens, outputs]`
pub fn linear_with(x: Tensor<3>, weight: &Tensor<2>, epilogue: Epilogue<'_>) -> Tensor<3> {
    unless_empty!(x, linear::shape(&x, weight));
    on_cpu!(x, linear::cpu(x, weight, epilogue));
    on_gpu!(gpu::matmul::linear(x.clone(), weight, epilogue.clone()));
    linear::reference(x, weight, epilogue)
}

/// Cross-correlation, as every framework's `conv2d`.
///
/// * `x`: `[batch, height, width, inputs]`; `weight`: `[outputs, kh, kw, inputs]`; `bias`: `[outputs]`; every size but
///   the batch's and the outputs' at least 1
/// * returns `[batch, (height + pads - kh) / stride + 1, (width + pads - kw) / stride + 1, outputs]`
pub fn conv2d(x: Tensor<4>, weight: &Tensor<4>, bias: Option<&Tensor<1>>, conv: &Conv2d) -> Tensor<4> {
    unless_empty!(x, conv.shape(x.dims(), weight.dims()));
    on_cpu!(x, conv::cpu(x, weight, bias, conv, None));
    on_gpu!(gpu::conv2d::conv2d(x.clone(), weight, bias, conv, None));
    conv::reference(x, weight, bias, conv, None)
}

/// [`conv2d`], then `+ residual`.
///
/// * `residual`: the output's shape, or `[batch, 1, 1, outputs]` to add one vector to every pixel of a picture
///   (a residual block's timestep embedding).
pub fn conv2d_add(
    x: Tensor<4>,
    weight: &Tensor<4>,
    bias: Option<&Tensor<1>>,
    conv: &Conv2d,
    residual: Tensor<4>,
) -> Tensor<4> {
    unless_empty!(x, conv.shape(x.dims(), weight.dims()));
    on_cpu!(x, conv::cpu(x, weight, bias, conv, Some(residual)));
    on_gpu!(gpu::conv2d::conv2d(x.clone(), weight, bias, conv, Some(residual.clone())));
    conv::reference(x, weight, bias, conv, Some(residual))
}

/// [`conv2d`] of `x` upsampled by two, nearest neighbour, and cut to `size`: one launch on wgpu, with the bits of the two.
///
/// * `x`: `[batch, height, width, inputs]`; `weight`: `[outputs, kh, kw, inputs]`; `bias`: `[outputs]`
/// * `size`: height and width of the upsampled map: twice those of `x`, or one less
/// * every size but the batch's and the outputs' is at least 1
/// * returns what [`conv2d`] does of a map of that size
pub fn upsample_conv2d(
    x: Tensor<4>,
    size: [usize; 2],
    weight: &Tensor<4>,
    bias: Option<&Tensor<1>>,
    conv: &Conv2d,
) -> Tensor<4> {
    let [batch, _, _, inputs] = x.dims();
    let [height, width] = size;
    unless_empty!(x, conv.shape([batch, height, width, inputs], weight.dims()));
    on_gpu!(gpu::conv2d::upsampled(x.clone(), size, weight, bias, conv));
    conv2d(upsample::cut(upsample_nearest_2x(x), size), weight, bias, conv)
}

/// `(x - mean) / sqrt(var + eps) * weight + bias` over each picture's channel groups (Wu & He 2018), then
/// `activation`.
///
/// * `x`: `[batch, height, width, channels]`, `channels` a multiple of `groups`; `weight`, `bias`: `[channels]`
/// * mean and biased variance over `height * width * channels / groups` elements
pub fn group_norm(
    x: Tensor<4>,
    groups: usize,
    weight: &Tensor<1>,
    bias: &Tensor<1>,
    eps: f32,
    activation: Activation,
) -> Tensor<4> {
    unless_empty!(x, x.dims());
    on_cpu!(x, norm::group_norm_cpu(x, groups, weight, bias, eps, activation));
    on_gpu!(gpu::group_norm::group_norm(x.clone(), groups, weight, bias, eps, activation));
    norm::group_norm_reference(x, groups, weight, bias, eps, activation)
}

/// `(x - mean) / sqrt(var + eps) * weight + bias` over each token's channels (Ba et al. 2016).
///
/// * `x`: `[batch, tokens, channels]`; `weight`, `bias`: `[channels]`
pub fn layer_norm(x: Tensor<3>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f32) -> Tensor<3> {
    unless_empty!(x, x.dims());
    on_cpu!(x, norm::layer_norm_cpu(x, weight, bias, eps));
    on_gpu!(gpu::layer_norm::layer_norm(x.clone(), weight, bias, eps));
    norm::layer_norm_reference(x, weight, bias, eps)
}

/// `x / sqrt(mean(x²) + eps) * weight` over each token's channels (Zhang & Sennrich 2019), as diffusers' `RMSNorm`
/// in f32.
///
/// * `x`: `[batch, tokens, channels]`; `weight`: `[channels]`; `eps`: in units of `x²`
pub fn rms_norm(x: Tensor<3>, weight: &Tensor<1>, eps: f32) -> Tensor<3> {
    unless_empty!(x, x.dims());
    on_cpu!(x, norm::rms_norm_cpu(x, weight, eps));
    on_gpu!(gpu::rms_norm::rms_norm(x.clone(), weight, eps));
    norm::rms_norm_reference(x, weight, eps)
}

/// `(x - mean) / sqrt(var + eps) * (1 + scale) + shift` over each token's channels: a [`layer_norm`] whose weights come
/// from the picture's conditioning (AdaLN, Peebles & Xie 2023), as diffusers' `AdaLayerNormZero` applies it.
///
/// * `x`: `[batch, tokens, channels]`; `scale`, `shift`: `[batch, channels]`, one row a picture
/// * `eps`: in units of `x²`; mean and biased variance over the channels
pub fn layer_norm_modulate(x: Tensor<3>, scale: &Tensor<2>, shift: &Tensor<2>, eps: f32) -> Tensor<3> {
    unless_empty!(x, x.dims());
    on_cpu!(x, modulate::layer_norm_modulate_cpu(x, scale, shift, eps));
    on_gpu!(gpu::modulate::layer_norm_modulate(x.clone(), scale, shift, eps));
    modulate::layer_norm_modulate_reference(x, scale, shift, eps)
}

/// `residual + gate * x`: how a transformer's block adds its branch (AdaLN-zero, Peebles & Xie 2023).
///
/// * `residual`, `x`: `[batch, tokens, channels]`; `gate`: `[batch, channels]`, one row a picture
pub fn gate_residual(residual: Tensor<3>, x: Tensor<3>, gate: &Tensor<2>) -> Tensor<3> {
    unless_empty!(x, x.dims());
    on_gpu!(gpu::modulate::gate_residual(residual.clone(), x.clone(), gate));
    modulate::gate_residual_reference(residual, x, gate)
}

/// For every head of `q` and of `k`: `n = x / sqrt(mean(x²) + eps) * weight` over the head's channels (Zhang & Sennrich
/// 2019), then rotary positions (Su et al. 2021) on neighbours, as FLUX and Qwen-Image pair them (diffusers'
/// `apply_rotary_emb` with `use_real_unbind_dim=-1`): `y[2i] = n[2i] cos[i] - n[2i + 1] sin[i]`,
/// `y[2i + 1] = n[2i + 1] cos[i] + n[2i] sin[i]`.
///
/// * `q`: `[batch, tokens, heads * d]`, `k`: `[batch, tokens, key heads * d]`, with an even `d`
/// * `q_weight`, `k_weight`: `[d]`, the same for every head; `eps`: in units of `x²`
/// * `cos`, `sin`: `[tokens, d / 2]` in f32, of each token's angles, the same for every picture and head
/// * returns `q` and `k` in their shapes
pub fn qk_norm_rope(
    q: Tensor<3>,
    k: Tensor<3>,
    q_weight: &Tensor<1>,
    k_weight: &Tensor<1>,
    cos: &Tensor<2>,
    sin: &Tensor<2>,
    eps: f32,
) -> (Tensor<3>, Tensor<3>) {
    if q.shape().num_elements() == 0 && k.shape().num_elements() == 0 {
        return (q, k);
    }
    on_cpu!(q, rope::cpu(q, k, q_weight, k_weight, cos, sin, eps));
    on_gpu!(gpu::rope::qk_norm_rope([q.clone(), k.clone()], [q_weight, k_weight], [cos, sin], eps));
    rope::reference(q, k, q_weight, k_weight, cos, sin, eps)
}

/// `softmax(q · kᵀ / sqrt(d)) · v` for each head (Vaswani et al. 2017).
///
/// * `q`: `[batch, queries, heads * d]`; `k`, `v`: `[batch, keys, heads * d]`
/// * returns `[batch, queries, heads * d]`
/// * [`Mask::Causal`] needs `queries == keys`
pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize, mask: Mask) -> Tensor<3> {
    unless_empty!(q, q.dims());
    if k.dims()[1] == 0 {
        return q.zeros_like();
    }
    on_cpu!(q, attention::cpu(q, k, v, heads, mask));
    on_gpu!(gpu::attention::attention(q.clone(), k.clone(), v.clone(), heads, mask));
    attention::reference(q, k, v, heads, mask)
}

/// `a * gelu(b)` with the exact gelu, where `a` and `b` are the two halves of the channels (Shazeer 2020).
///
/// * `x`: `[batch, tokens, 2 * channels]`; returns `[batch, tokens, channels]`
pub fn geglu(x: Tensor<3>) -> Tensor<3> {
    unless_empty!(x, activation::gated_shape(x.dims()));
    on_cpu!(x, activation::gated_cpu(x, activation::Gate::Gelu));
    on_gpu!(gpu::activation::gated(x.clone(), activation::Gate::Gelu));
    activation::geglu_reference(x)
}

/// `a * silu(b)`, where `a` and `b` are the two halves of the channels (Shazeer 2020), the order of diffusers' `SwiGLU`.
///
/// * `x`: `[batch, tokens, 2 * channels]`; returns `[batch, tokens, channels]`
pub fn swiglu(x: Tensor<3>) -> Tensor<3> {
    unless_empty!(x, activation::gated_shape(x.dims()));
    on_cpu!(x, activation::gated_cpu(x, activation::Gate::Silu));
    on_gpu!(gpu::activation::gated(x.clone(), activation::Gate::Silu));
    activation::swiglu_reference(x)
}

/// `gelu(x + bias)` (Hendrycks & Gimpel 2016).
///
/// * `x`: `[batch, tokens, channels]`; `bias`: `[channels]`
pub fn bias_gelu(x: Tensor<3>, bias: &Tensor<1>, form: Gelu) -> Tensor<3> {
    unless_empty!(x, x.dims());
    on_cpu!(x, activation::bias_gelu_cpu(x, bias, form));
    on_gpu!(gpu::activation::bias_gelu(x.clone(), bias, form));
    activation::bias_gelu_reference(x, bias, form)
}

/// `x / 2 * (1 + erf(x / sqrt(2)))`.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activate(x, Nonlinearity::Gelu(Gelu::Exact))
}

/// `x * sigmoid(1.702 x)`, CLIP's activation.
pub fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activate(x, Nonlinearity::QuickGelu)
}

/// `x * sigmoid(x)`.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activate(x, Nonlinearity::Silu)
}

/// A [`Nonlinearity`] of every element, computed in f32.
pub fn activate<const D: usize>(x: Tensor<D>, activation: Nonlinearity) -> Tensor<D> {
    unless_empty!(x, x.dims());
    on_cpu!(x, activation::unary_cpu(x, activation));
    on_gpu!(gpu::activation::unary(x.clone(), activation));
    activation::unary_reference(x, activation)
}

/// Each pixel becomes a square of 2×2.
///
/// * `x`: `[batch, height, width, channels]`; returns `[batch, 2 * height, 2 * width, channels]`
pub fn upsample_nearest_2x(x: Tensor<4>) -> Tensor<4> {
    unless_empty!(x, upsample::shape(x.dims()));
    on_cpu!(x, upsample::cpu(x));
    on_gpu!(gpu::upsample::nearest_2x(x.clone()));
    upsample::reference(x)
}

/// The sinusoidal embedding of timesteps, as `diffusers.models.embeddings.get_timestep_embedding` computes it in f32 (Ho
/// et al. 2020, after Vaswani et al. 2017). A GPU's kernel takes the timesteps with its launch; elsewhere the host computes
/// the values and uploads them.
///
/// * `timesteps`: one a row; their product with each frequency is below 2^23 in size
/// * returns `[timesteps, channels]` in `dtype` on the device of `sinusoids`
pub fn timestep_embedding(timesteps: &[f32], sinusoids: &Sinusoids, dtype: DType) -> Tensor<2> {
    on_gpu!(gpu::embedding::timestep_embedding(timesteps, sinusoids, dtype));
    embedding::reference(timesteps, sinusoids, dtype)
}

/// What the network is to see of each row: its sample times a factor.
///
/// * `entries`: at least one
/// * returns `[entries, channels, height, width]` in `dtype`
pub fn denoise_input(entries: &[(&Slot, f32)], dtype: DType) -> Tensor<4> {
    #[cfg(feature = "cpu")]
    if entries.first().is_some_and(|(first, _)| cpu::holds(&first.buffer)) {
        return denoise::input_cpu(entries, dtype);
    }
    on_gpu!(gpu::denoise::input(entries, dtype));
    denoise::input_reference(entries, dtype)
}

/// The end of a denoising step, for rows that may differ in guidance, sampler and coefficients: guidance, the clean
/// estimate, and whatever the row's sampler writes.
///
/// * `predictions`: `[predictions, channels, height, width]`, of which each row names its own
/// * returns what each row wrote, in the order of `rows`
pub fn denoise_step(predictions: Tensor<4>, mut rows: Vec<DenoiseRow>) -> Vec<Stepped> {
    denoise::without_zeros(&mut rows);
    on_cpu!(predictions, denoise::cpu(predictions, &rows));
    on_gpu!(gpu::denoise::step(predictions.clone(), &rows));
    denoise::reference(predictions, &rows)
}

/// Moves slots that lie in several buffers into one, where [`denoise_step`] runs a kernel that reads one buffer: rows
/// that it wrote together are there already.
pub fn side_by_side(slots: Vec<&mut Slot>) {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    gpu::denoise::side_by_side(slots);
    #[cfg(not(any(feature = "wgpu", feature = "cuda")))]
    drop(slots);
}

/// The plain burn forms, for tests.
#[doc(hidden)]
pub mod reference {
    pub use super::activation::{
        bias_gelu_reference as bias_gelu, geglu_reference as geglu, swiglu_reference as swiglu,
    };
    pub use super::attention::reference as attention;
    pub use super::conv::reference as conv2d;
    pub use super::denoise::{input_reference as denoise_input, reference as denoise_step};
    pub use super::embedding::reference as timestep_embedding;
    pub use super::linear::reference as linear;
    pub use super::modulate::{
        gate_residual_reference as gate_residual, layer_norm_modulate_reference as layer_norm_modulate,
    };
    pub use super::norm::{
        group_norm_reference as group_norm, layer_norm_reference as layer_norm,
        rms_norm_reference as rms_norm,
    };
    pub use super::rope::reference as qk_norm_rope;
    pub use super::upsample::reference as upsample_nearest_2x;
}
