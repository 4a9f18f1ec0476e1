//! Sinusoidal timestep embeddings.

use burn::tensor::{DType, Device, Tensor, TensorData};

/// Row-major `[timesteps, channels]`. Each step rounds to f32 as PyTorch's tensor operations do.
pub(crate) fn sinusoids(
    timesteps: &[f32],
    channels: usize,
    flip_sin_to_cos: bool,
    downscale_freq_shift: f32,
) -> Vec<f32> {
    const MAX_PERIOD: f64 = 10_000.0;
    let half = channels / 2;
    // diffusers: exponent = -log(max_period) * arange(half) / (half - shift), in f32.
    let log_period = -(MAX_PERIOD.ln()) as f32;
    let divisor = (half as f64 - f64::from(downscale_freq_shift)) as f32;
    let frequencies: Vec<f32> = (0..half).map(|i| (log_period * i as f32 / divisor).exp()).collect();
    let mut values = Vec::with_capacity(timesteps.len() * channels);
    for &timestep in timesteps {
        let angles = frequencies.iter().map(|frequency| timestep * frequency);
        if flip_sin_to_cos {
            values.extend(angles.clone().map(f32::cos));
            values.extend(angles.map(f32::sin));
        } else {
            values.extend(angles.clone().map(f32::sin));
            values.extend(angles.map(f32::cos));
        }
        values.extend((2 * half < channels).then_some(0.0));
    }
    values
}

/// The values on `device` in `dtype`.
pub(crate) fn upload(values: Vec<f32>, shape: [usize; 2], device: &Device, dtype: DType) -> Tensor<2> {
    let data = TensorData::new(values, shape).convert_dtype(dtype);
    Tensor::from_data(data, (device, dtype))
}
