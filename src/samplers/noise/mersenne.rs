//! MT19937: "Mersenne Twister: a 623-dimensionally equidistributed uniform pseudo-random number
//! generator", Matsumoto & Nishimura, 1998; the seeding is that of its 2002 revision.

use super::GeneratorStateError;

/// Words of state.
const N: usize = 624;
/// The distance of the word that the recurrence mixes in.
const M: usize = 397;

#[derive(Debug, Clone)]
pub(super) struct Mersenne {
    words: [u32; N],
    position: usize,
}

impl Mersenne {
    pub(super) fn new(seed: u32) -> Self {
        let mut words = [0; N];
        let mut word = seed;
        for (i, slot) in (0_u32..).zip(words.iter_mut()) {
            if i > 0 {
                word = 1_812_433_253_u32.wrapping_mul(word ^ (word >> 30)).wrapping_add(i);
            }
            *slot = word;
        }
        Self { words, position: N }
    }

    pub(super) fn from_parts(words: &[u32], position: usize) -> Result<Self, GeneratorStateError> {
        let found = words.len();
        let words = <[u32; N]>::try_from(words).map_err(|_| GeneratorStateError::Words { found })?;
        if words.iter().all(|&word| word == 0) {
            return Err(GeneratorStateError::Zeros);
        }
        if position > N {
            return Err(GeneratorStateError::Position { found: position });
        }
        Ok(Self { words, position })
    }

    pub(super) fn words(&self) -> &[u32] {
        &self.words
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    fn twist(&mut self) {
        for i in 0..N {
            let mixed = (self.words[i] & 0x8000_0000) | (self.words[(i + 1) % N] & 0x7fff_ffff);
            let odd = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
            self.words[i] = self.words[(i + M) % N] ^ (mixed >> 1) ^ odd;
        }
        self.position = 0;
    }

    pub(super) fn next_u32(&mut self) -> u32 {
        if self.position >= N {
            self.twist();
        }
        let mut y = self.words[self.position];
        self.position += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// A multiple of 2⁻²⁴ in `[0, 1)`.
    pub(super) fn uniform(&mut self) -> f32 {
        const SCALE: f32 = 1.0 / 16_777_216.0;
        // exact: 24 bits fit the significand
        (self.next_u32() & 0x00ff_ffff) as f32 * SCALE
    }

    /// A multiple of 2⁻⁵³ in `[0, 1)`; the first word drawn is the high one.
    pub(super) fn uniform_f64(&mut self) -> f64 {
        const SCALE: f64 = 1.0 / 9_007_199_254_740_992.0;
        let high = u64::from(self.next_u32());
        let low = u64::from(self.next_u32());
        // exact: 53 bits fit the significand
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 * SCALE
    }
}
