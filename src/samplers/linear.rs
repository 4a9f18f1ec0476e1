//! Linear combinations of [`Term`]s, with `+`, `-` and `*`, so that a sampler reads as its formula.

use std::ops::{Add, Mul, Sub};

use super::plan::Term;

/// A sum of terms with coefficients in double precision; no term occurs twice.
#[derive(Debug, Clone)]
pub(super) struct Linear(Vec<(Term, f64)>);

impl Linear {
    /// The terms that count, in single precision.
    pub(super) fn into_terms(self) -> Vec<(Term, f32)> {
        let terms = self.0.into_iter().map(|(term, factor)| (term, factor as f32));
        terms.filter(|(_, factor)| *factor != 0.0).collect()
    }
}

/// A term on its own. [`Term`] is public and cannot have operators that give a private type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Atom(Term);

pub(super) const SAMPLE: Atom = Atom(Term::Sample);
pub(super) const OUTPUT: Atom = Atom(Term::Output);
pub(super) const DENOISED: Atom = Atom(Term::Denoised);
pub(super) const NOISE: Atom = Atom(Term::Noise);

pub(super) const fn register(index: usize) -> Atom {
    Atom(Term::Register(index))
}

impl From<Atom> for Linear {
    fn from(Atom(term): Atom) -> Self {
        Self(vec![(term, 1.0)])
    }
}

impl Add for Linear {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        for (term, factor) in other.0 {
            match self.0.iter_mut().find(|(known, _)| *known == term) {
                Some((_, sum)) => *sum += factor,
                None => self.0.push((term, factor)),
            }
        }
        self
    }
}

impl Mul<f64> for Linear {
    type Output = Self;

    fn mul(mut self, scale: f64) -> Self {
        for (_, factor) in &mut self.0 {
            *factor *= scale;
        }
        self
    }
}

impl Sub for Linear {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + other * -1.0
    }
}

impl Mul<f64> for Atom {
    type Output = Linear;

    fn mul(self, scale: f64) -> Linear {
        Linear::from(self) * scale
    }
}

impl Sub for Atom {
    type Output = Linear;

    fn sub(self, other: Self) -> Linear {
        Linear::from(self) - Linear::from(other)
    }
}
