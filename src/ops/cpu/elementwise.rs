//! Activations, gated and biased ones, and upsampling.

use super::isa::multiversion;
use super::math;
use super::parallel;
use crate::ops::activation::Gate;
use crate::ops::{Gelu, Nonlinearity};

/// Multiply-adds that one activation costs, for the decision to use threads.
const WORK: usize = 24;

/// Elements a task takes at least; a multiple of a cache line.
const UNIT: usize = 1024;

pub(crate) fn unary(x: &[f32], activation: Nonlinearity) -> Vec<f32> {
    let mut out = parallel::output(x.len());
    parallel::fill(&mut out, UNIT, WORK * x.len(), |start, out| {
        activate(&x[start..start + out.len()], activation, out);
    });
    out
}

multiversion! {
    fn activate(x: &[f32], activation: Nonlinearity, out: &mut [f32]) {
        let values = out.iter_mut().zip(x);
        match activation {
            Nonlinearity::Gelu(Gelu::Exact) => values.for_each(|(out, x)| *out = math::gelu::<FMA>(*x)),
            Nonlinearity::Gelu(Gelu::Tanh) => values.for_each(|(out, x)| *out = math::gelu_tanh::<FMA>(*x)),
            Nonlinearity::QuickGelu => values.for_each(|(out, x)| *out = math::swish::<FMA>(*x, 1.702)),
            Nonlinearity::Silu => values.for_each(|(out, x)| *out = math::swish::<FMA>(*x, 1.0)),
        }
    }
}

multiversion! {
    /// `y = residual + gate * activation(y)`, of which each part may be missing.
    pub(crate) fn shape(
        activation: Option<Nonlinearity>,
        gate: Option<&[f32]>,
        residual: Option<&[f32]>,
        y: &mut [f32],
    ) {
        match activation {
            Some(Nonlinearity::Gelu(Gelu::Exact)) => y.iter_mut().for_each(|y| *y = math::gelu::<FMA>(*y)),
            Some(Nonlinearity::Gelu(Gelu::Tanh)) => y.iter_mut().for_each(|y| *y = math::gelu_tanh::<FMA>(*y)),
            Some(Nonlinearity::QuickGelu) => y.iter_mut().for_each(|y| *y = math::swish::<FMA>(*y, 1.702)),
            Some(Nonlinearity::Silu) => y.iter_mut().for_each(|y| *y = math::swish::<FMA>(*y, 1.0)),
            None => {}
        }
        if let Some(gate) = gate {
            y.iter_mut().zip(gate).for_each(|(y, gate)| *y *= gate);
        }
        if let Some(residual) = residual {
            y.iter_mut().zip(residual).for_each(|(y, residual)| *y += residual);
        }
    }
}

/// `x`: `[rows, 2 * half]`; returns `[rows, half]`.
pub(crate) fn gated(x: &[f32], half: usize, gate: Gate) -> Vec<f32> {
    let mut out = parallel::output(x.len() / 2);
    parallel::fill(&mut out, half, WORK * x.len(), |start, out| {
        gated_rows(&x[2 * start..2 * (start + out.len())], half, gate, out);
    });
    out
}

multiversion! {
    fn gated_rows(x: &[f32], half: usize, gate: Gate, out: &mut [f32]) {
        let half = half.max(1);
        for (x, out) in x.chunks_exact(2 * half).zip(out.chunks_exact_mut(half)) {
            let (values, gates) = x.split_at(half);
            let values = out.iter_mut().zip(values.iter().zip(gates));
            match gate {
                Gate::Gelu => values.for_each(|(out, (value, gate))| *out = value * math::gelu::<FMA>(*gate)),
                Gate::Silu => {
                    values.for_each(|(out, (value, gate))| *out = value * math::swish::<FMA>(*gate, 1.0));
                }
            }
        }
    }
}

/// `x`: `[rows, bias.len()]`.
pub(crate) fn bias_gelu(x: &[f32], bias: &[f32], form: Gelu) -> Vec<f32> {
    let mut out = parallel::output(x.len());
    parallel::fill(&mut out, bias.len(), WORK * x.len(), |start, out| {
        bias_gelu_rows(&x[start..start + out.len()], bias, form, out);
    });
    out
}

multiversion! {
    fn bias_gelu_rows(x: &[f32], bias: &[f32], form: Gelu, out: &mut [f32]) {
        let channels = bias.len().max(1);
        for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
            let values = out.iter_mut().zip(x.iter().zip(bias));
            match form {
                Gelu::Exact => values.for_each(|(out, (x, bias))| *out = math::gelu::<FMA>(x + bias)),
                Gelu::Tanh => values.for_each(|(out, (x, bias))| *out = math::gelu_tanh::<FMA>(x + bias)),
            }
        }
    }
}

/// `x`: `[batch * height, width, channels]`, each row and pixel twice.
pub(crate) fn upsample_2x<T: Copy + Send + Sync>(x: &[T], width: usize, channels: usize, out: &mut [T]) {
    let line = width * channels;
    // A line is written twice in full; a multiply-add's time copies about four elements.
    parallel::fill(out, 4 * line, x.len(), |start, out| {
        let lines = x[start / 4..].chunks_exact(line.max(1));
        for (x, out) in lines.zip(out.chunks_exact_mut(4 * line.max(1))) {
            let (upper, lower) = out.split_at_mut(2 * line);
            for (x, out) in x.chunks_exact(channels).zip(upper.chunks_exact_mut(2 * channels)) {
                let (left, right) = out.split_at_mut(channels);
                left.copy_from_slice(x);
                right.copy_from_slice(x);
            }
            lower.copy_from_slice(upper);
        }
    });
}
