//! Sinusoidal timestep embeddings.

use burn::tensor::{DType, Tensor};

use super::Buffer;
use super::plan::{Language, Plan, Source, THREADS, Target, source, word};
use crate::ops::Sinusoids;

const WGSL: Source = source!("wgsl/timestep_embedding.wgsl");
const CUDA: Source = source!("cuda/common.cuh", "cuda/timestep_embedding.cu");

/// Timesteps that a launch's parameters have room for: so many rows need no transfer of their own.
pub(crate) const ROWS: usize = 64;

/// For rows `first..` of the output, at most [`ROWS`]; `None` where there is nothing to compute.
pub(crate) fn plan(
    target: Target,
    first: usize,
    timesteps: &[f32],
    channels: usize,
    cosines_first: bool,
) -> Option<Plan> {
    let elements = timesteps.len() * channels;
    if elements == 0 || timesteps.len() > ROWS {
        return None;
    }
    let (source, threads) = match target.language {
        Language::Wgsl => (WGSL, THREADS),
        Language::Cuda => (CUDA, 256),
    };
    word((first + timesteps.len()) * channels)?;
    let mut params = vec![word(first)?, word(timesteps.len())?, word(channels)?, u32::from(cosines_first)];
    params.extend(timesteps.iter().map(|timestep| timestep.to_bits()));
    params.resize(4 + ROWS, 0);
    Some(Plan {
        target,
        source,
        entry: "timestep_embedding",
        constants: Vec::new(),
        maps: Vec::new(),
        params,
        grid: target.spread(elements.div_ceil(threads), threads)?,
    })
}

pub(crate) fn timestep_embedding(
    timesteps: &[f32],
    sinusoids: &Sinusoids,
    dtype: DType,
) -> Option<Tensor<2>> {
    let &Sinusoids { channels, flip_sin_to_cos, ref on_device, .. } = sinusoids;
    let target = Target::of(on_device)?.storing(dtype)?;
    // Without a frequency there is nothing to bind.
    if timesteps.is_empty() || channels < 2 {
        return None;
    }
    let frequencies = Buffer::of(on_device.clone(), target)?;
    let y = frequencies.empty([timesteps.len(), channels], dtype);
    let plans = timesteps.chunks(ROWS).enumerate();
    let plans = plans.map(|(index, some)| plan(target, index * ROWS, some, channels, flip_sin_to_cos));
    // Everything is planned before the first launch.
    for plan in plans.collect::<Option<Vec<_>>>()? {
        plan.launch(&[&frequencies], &[&y])?;
    }
    y.tensor()
}
