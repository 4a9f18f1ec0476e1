//! Sinusoidal timestep embeddings.

use burn::tensor::{DType, Device, Tensor, TensorData};

/// The frequencies of a network's [`timestep_embedding`](super::timestep_embedding), on the host and on the network's
/// device.
#[derive(Debug, Clone)]
pub struct Sinusoids {
    pub(crate) channels: usize,
    pub(crate) flip_sin_to_cos: bool,
    frequencies: Vec<f32>,
    /// The same, in f32.
    #[cfg_attr(
        not(any(feature = "wgpu", feature = "cuda")),
        allow(dead_code, reason = "kernels of a GPU read it")
    )]
    pub(crate) on_device: Tensor<1>,
    device: Device,
}

impl Sinusoids {
    /// Frequencies as diffusers computes them in f32: `10000^(-i / (channels / 2 - downscale_freq_shift))`.
    ///
    /// * `channels`: of the embedding: sines then cosines, or cosines first with `flip_sin_to_cos`; an odd number ends
    ///   in a column of zeros
    pub fn new(channels: usize, flip_sin_to_cos: bool, downscale_freq_shift: f32, device: &Device) -> Self {
        const MAX_PERIOD: f64 = 10_000.0;
        let half = channels / 2;
        // diffusers: exponent = -log(max_period) * arange(half) / (half - shift), in f32.
        let log_period = -(MAX_PERIOD.ln()) as f32;
        let divisor = (half as f64 - f64::from(downscale_freq_shift)) as f32;
        let frequencies: Vec<f32> = (0..half).map(|i| (log_period * i as f32 / divisor).exp()).collect();
        let on_device = Tensor::from_data(TensorData::new(frequencies.clone(), [half]), (device, DType::F32));
        Self { channels, flip_sin_to_cos, frequencies, on_device, device: device.clone() }
    }
}

/// Computed on the host, then moved to the device. Each step rounds to f32 as PyTorch's tensor operations do.
pub fn reference(timesteps: &[f32], sinusoids: &Sinusoids, dtype: DType) -> Tensor<2> {
    let Sinusoids { channels, flip_sin_to_cos, frequencies, device, .. } = sinusoids;
    let mut values = Vec::with_capacity(timesteps.len() * channels);
    for &timestep in timesteps {
        let angles = frequencies.iter().map(|frequency| timestep * frequency);
        if *flip_sin_to_cos {
            values.extend(angles.clone().map(f32::cos));
            values.extend(angles.map(f32::sin));
        } else {
            values.extend(angles.clone().map(f32::sin));
            values.extend(angles.map(f32::cos));
        }
        values.extend((2 * frequencies.len() < *channels).then_some(0.0));
    }
    let data = TensorData::new(values, [timesteps.len(), *channels]).convert_dtype(dtype);
    Tensor::from_data(data, (device, dtype))
}
