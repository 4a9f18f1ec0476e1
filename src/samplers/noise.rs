//! Seeded Gaussian noise, equal to the bit to what `torch.randn` draws from a CPU generator.
//!
//! A seed names an image only if everybody's noise is the same, so this follows PyTorch: MT19937
//! (Matsumoto & Nishimura, 1998) seeded with the low 32 bits of the seed, Box–Muller normals in
//! double precision for draws of fewer than 16 values, and a 16-wide single-precision Box–Muller
//! for longer ones (`box_muller`).

mod box_muller;
mod mersenne;

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};

use mersenne::Mersenne;

/// Draws of this many values or more go through the 16-wide path.
const WIDE: usize = box_muller::BLOCK;

/// A random number generator with the stream of `torch.Generator("cpu").manual_seed(seed)`.
#[derive(Debug, Clone)]
pub struct Generator {
    engine: Mersenne,
    /// The sine half of the last pair that a short draw made and did not use.
    spare: Option<f64>,
}

/// Everything a [`Generator`] is, as plain data: a job that stops can go on with the same noise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneratorState {
    /// The 624 words of the MT19937 state.
    pub words: Vec<u32>,
    /// How many of `words` are used up, `0..=624`.
    pub position: usize,
    /// The bits of the `f64` normal that the last short draw left over. Bits, because a decimal
    /// number may come back from a text file one unit off.
    pub spare: Option<u64>,
}

/// Why a [`GeneratorState`] was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GeneratorStateError {
    /// MT19937 has 624 words.
    #[error("a generator state has 624 words, found {found}")]
    Words {
        /// How many there were.
        found: usize,
    },
    /// An engine of zeros draws zeros for ever.
    #[error("the generator state is all zeros, which no seed leads to")]
    Zeros,
    /// The position points past the last word.
    #[error("a generator position is at most 624, found {found}")]
    Position {
        /// The position.
        found: usize,
    },
    /// The left-over normal is infinite or not a number.
    #[error("the left-over normal of a generator is not finite (bits {bits:#018x})")]
    Spare {
        /// Its bits.
        bits: u64,
    },
}

impl Generator {
    /// The generator of `torch.manual_seed(seed)`; as there, only the low 32 bits of `seed` count.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let low = u32::try_from(seed & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        Self { engine: Mersenne::new(low), spare: None }
    }

    /// `n` draws from the standard normal distribution, as `torch.randn(n, generator=self)`.
    ///
    /// How many values one call asks for matters: two calls for 8 differ from one call for 16.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        if n < WIDE {
            return (0..n).map(|_| self.normal() as f32).collect();
        }
        let mut values: Vec<f32> = (0..n).map(|_| self.engine.uniform()).collect();
        let whole = n - n % WIDE;
        let (blocks, rest) = values.split_at_mut(whole);
        box_muller::fill(blocks);
        if !rest.is_empty() {
            // torch redraws the last 16 values instead of padding the last block
            let tail = n - WIDE;
            for value in values.iter_mut().skip(tail) {
                *value = self.engine.uniform();
            }
            let (_, last) = values.split_at_mut(tail);
            box_muller::fill(last);
        }
        values
    }

    /// One normal in double precision; every second one is the other half of a pair.
    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let angle = TAU * self.engine.uniform_f64();
        let radius = (-2.0 * (-self.engine.uniform_f64()).ln_1p()).sqrt();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    /// This generator as plain data.
    #[must_use]
    pub fn state(&self) -> GeneratorState {
        GeneratorState {
            words: self.engine.words().to_vec(),
            position: self.engine.position(),
            spare: self.spare.map(f64::to_bits),
        }
    }

    /// The generator that `state` was taken from.
    ///
    /// # Errors
    /// When `state` is none that [`Generator::state`] can give: see [`GeneratorStateError`].
    pub fn from_state(state: &GeneratorState) -> Result<Self, GeneratorStateError> {
        let engine = Mersenne::from_parts(&state.words, state.position)?;
        let spare = state.spare.map(f64::from_bits);
        match (spare, state.spare) {
            (Some(value), Some(bits)) if !value.is_finite() => Err(GeneratorStateError::Spare { bits }),
            _ => Ok(Self { engine, spare }),
        }
    }
}
