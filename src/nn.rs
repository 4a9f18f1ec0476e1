//! Shared layers: weights taken by name from a [`Loaded`] store, arithmetic in [`ops`](crate::ops).
//!
//! Feature maps are `[batch, height, width, channels]`, tokens `[batch, tokens, channels]`.

pub(crate) mod attention;
pub(crate) mod resnet;

use std::cell::RefCell;

use burn::tensor::{DType, Tensor};

use crate::ops::{self, Activation, Epilogue, Nonlinearity};
use crate::weights::{Loaded, WeightsError};

pub(crate) type Load<T> = Result<T, WeightsError>;

/// Loaded tensors that layers take by name; shared while a network is put together, so that its
/// constructor can read like its diagram.
pub(crate) struct Weights(RefCell<Loaded>);

impl Weights {
    pub(crate) fn new(loaded: Loaded) -> Self {
        Self(RefCell::new(loaded))
    }

    pub(crate) fn take<const D: usize>(&self, key: &str, shape: [usize; D]) -> Load<Tensor<D>> {
        self.0.borrow_mut().take(key, shape)
    }

    /// A convolution's kernel `[out, in, height, width]`, as `[out, height, width, in]`.
    fn take_conv(&self, key: &str, shape: [usize; 4]) -> Load<Tensor<4>> {
        self.0.borrow_mut().take_conv(key, shape)
    }

    /// A matrix `[out, in]`, stored as such or as a 1×1 convolution.
    fn take_linear(&self, key: &str, shape: [usize; 2]) -> Load<Tensor<2>> {
        self.0.borrow_mut().take_linear(key, shape)
    }

    pub(crate) fn into_inner(self) -> Loaded {
        self.0.into_inner()
    }
}

/// Bytes of `maps` tensors of f32 with these sides; never less than it takes, whatever the sides.
pub(crate) fn bytes_of_maps(maps: usize, sides: &[usize]) -> u64 {
    let values = sides.iter().fold(maps as u64, |bytes, side| bytes.saturating_mul(*side as u64));
    values.saturating_mul(size_of::<f32>() as u64)
}

/// The most levels that a network may have: each halves the sides.
pub(crate) const MAX_LEVELS: usize = 8;

/// `y = x · weightᵀ + bias`.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
}

impl Linear {
    pub(crate) fn load(weights: &Weights, name: &str, inputs: usize, outputs: usize) -> Load<Self> {
        let weight = weights.take(&format!("{name}.weight"), [outputs, inputs])?;
        let bias = Some(weights.take(&format!("{name}.bias"), [outputs])?);
        Ok(Self { weight, bias })
    }

    /// A linear layer that older checkpoints store as a 1×1 convolution.
    pub(crate) fn load_either(weights: &Weights, name: &str, inputs: usize, outputs: usize) -> Load<Self> {
        let weight = weights.take_linear(&format!("{name}.weight"), [outputs, inputs])?;
        let bias = Some(weights.take(&format!("{name}.bias"), [outputs])?);
        Ok(Self { weight, bias })
    }

    pub(crate) fn load_without_bias(
        weights: &Weights,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> Load<Self> {
        let weight = weights.take(&format!("{name}.weight"), [outputs, inputs])?;
        Ok(Self { weight, bias: None })
    }

    /// A 1×1 convolution is a linear layer over the channels.
    pub(crate) fn load_pointwise(weights: &Weights, name: &str, inputs: usize, outputs: usize) -> Load<Self> {
        let weight = weights.take_conv(&format!("{name}.weight"), [outputs, inputs, 1, 1])?;
        let bias = Some(weights.take(&format!("{name}.bias"), [outputs])?);
        Ok(Self { weight: weight.reshape([outputs, inputs]), bias })
    }

    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        ops::linear(x, &self.weight, self.bias.as_ref())
    }

    /// `activation(forward(x))`.
    pub(crate) fn forward_activated(&self, x: Tensor<3>, activation: Nonlinearity) -> Tensor<3> {
        let (bias, activation) = (self.bias.as_ref(), Some(activation));
        ops::linear_with(x, &self.weight, Epilogue { bias, activation, ..Epilogue::default() })
    }

    /// `forward(x) + residual`.
    pub(crate) fn forward_add(&self, x: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        ops::linear_add(x, &self.weight, self.bias.as_ref(), residual)
    }

    /// Over the channels of a feature map.
    pub(crate) fn forward_map(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, height, width, channels] = x.dims();
        let y = self.forward(x.reshape([batch, height * width, channels]));
        let outputs = y.dims()[2];
        y.reshape([batch, height, width, outputs])
    }
}

/// A convolution over a channels-last feature map.
#[derive(Debug)]
pub(crate) struct Conv2d {
    weight: Tensor<4>,
    bias: Tensor<1>,
    shape: ops::Conv2d,
}

impl Conv2d {
    /// Padded evenly so that stride 1 keeps the size.
    pub(crate) fn load(
        weights: &Weights,
        name: &str,
        inputs: usize,
        outputs: usize,
        kernel: usize,
    ) -> Load<Self> {
        let shape = ops::Conv2d { stride: 1, padding: [kernel / 2; 4] };
        Self::load_shaped(weights, name, inputs, outputs, kernel, shape)
    }

    pub(crate) fn load_shaped(
        weights: &Weights,
        name: &str,
        inputs: usize,
        outputs: usize,
        kernel: usize,
        shape: ops::Conv2d,
    ) -> Load<Self> {
        let weight = weights.take_conv(&format!("{name}.weight"), [outputs, inputs, kernel, kernel])?;
        let bias = weights.take(&format!("{name}.bias"), [outputs])?;
        Ok(Self { weight, bias, shape })
    }

    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        ops::conv2d(x, &self.weight, Some(&self.bias), &self.shape)
    }

    /// Of `x` upsampled by two, nearest neighbour, and cut to `size`.
    pub(crate) fn forward_upsampled(&self, x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
        ops::upsample_conv2d(x, size, &self.weight, Some(&self.bias), &self.shape)
    }

    /// `forward(x) + residual`; the residual may be one vector a picture, `[batch, 1, 1, outputs]`.
    pub(crate) fn forward_add(&self, x: Tensor<4>, residual: Tensor<4>) -> Tensor<4> {
        ops::conv2d_add(x, &self.weight, Some(&self.bias), &self.shape, residual)
    }

    pub(crate) fn dtype(&self) -> DType {
        self.weight.dtype()
    }
}

/// Group normalisation (Wu & He 2018).
#[derive(Debug)]
pub(crate) struct GroupNorm {
    groups: usize,
    eps: f32,
    weight: Tensor<1>,
    bias: Tensor<1>,
}

impl GroupNorm {
    pub(crate) fn load(
        weights: &Weights,
        name: &str,
        channels: usize,
        groups: usize,
        eps: f32,
    ) -> Load<Self> {
        let weight = weights.take(&format!("{name}.weight"), [channels])?;
        let bias = weights.take(&format!("{name}.bias"), [channels])?;
        Ok(Self { groups, eps, weight, bias })
    }

    pub(crate) fn forward(&self, x: Tensor<4>, activation: Activation) -> Tensor<4> {
        ops::group_norm(x, self.groups, &self.weight, &self.bias, self.eps, activation)
    }
}

/// Layer normalisation over the channels.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    eps: f32,
    weight: Tensor<1>,
    bias: Tensor<1>,
}

impl LayerNorm {
    pub(crate) fn load(weights: &Weights, name: &str, channels: usize, eps: f32) -> Load<Self> {
        let weight = weights.take(&format!("{name}.weight"), [channels])?;
        let bias = weights.take(&format!("{name}.bias"), [channels])?;
        Ok(Self { eps, weight, bias })
    }

    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        ops::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
