//! Quantiles of the Beta(0.6, 0.6) distribution.

/// Both shape parameters.
const SHAPE: f64 = 0.6;
/// The Beta function at `(SHAPE, SHAPE)`: `Γ(0.6)² / Γ(1.2)`.
const NORMALISER: f64 = 1.489_192_248_812_817 * 1.489_192_248_812_817 / 0.918_168_742_399_76;

/// The `x` below which a share `p` of the distribution lies; `p` in `0.0..=1.0`.
pub(super) fn beta_quantile(p: f64) -> f64 {
    // the density is symmetric about 1/2, and the series is for the lower half
    if p > 0.5 {
        return 1.0 - lower_quantile(1.0 - p);
    }
    lower_quantile(p)
}

/// Newton's method on [`cumulative`], kept inside a shrinking bracket; `p` in `0.0..=0.5`.
fn lower_quantile(p: f64) -> f64 {
    if p <= 0.0 {
        return 0.0;
    }
    let (mut low, mut high) = (0.0, 0.5);
    // near 0 the distribution function is x^a / (a B)
    let mut x = (p * SHAPE * NORMALISER).powf(1.0 / SHAPE).min(0.5);
    for _ in 0..100 {
        let excess = cumulative(x) - p;
        if excess > 0.0 {
            high = x;
        } else {
            low = x;
        }
        let density = (x * (1.0 - x)).powf(SHAPE - 1.0) / NORMALISER;
        let newton = x - excess / density;
        let next = if low < newton && newton < high { newton } else { 0.5 * (low + high) };
        if (next - x).abs() <= 1e-16 * x {
            return next;
        }
        x = next;
    }
    x
}

/// The distribution function on `0.0..=0.5`, by the series of the incomplete Beta function
/// (Abramowitz & Stegun 26.5.4 in its binomial form): `x^a Σ (1-a)_k / k! · x^k / (a + k)`, over B.
fn cumulative(x: f64) -> f64 {
    let mut sum = 0.0;
    let mut factor = 1.0;
    // x ≤ 1/2: sixty terms leave less than 2⁻⁶⁰
    for k in 0..60 {
        let k = f64::from(k);
        sum += factor / (SHAPE + k);
        factor *= (k + 1.0 - SHAPE) / (k + 1.0) * x;
    }
    x.powf(SHAPE) * sum / NORMALISER
}

#[cfg(test)]
mod tests {
    use super::beta_quantile;

    /// `scipy.stats.beta.ppf(p, 0.6, 0.6)`, scipy 1.17.1.
    #[test]
    fn quantiles_are_those_of_scipy() {
        let expected = [
            (0.0, 0.0),
            (1e-09, 1.85588246249141e-15),
            (0.0001, 3.998377158137721e-07),
            (0.01, 0.0008612388215429059),
            (0.05, 0.012554456873611399),
            (0.1, 0.03958440558878085),
            (0.25, 0.17568037865269498),
            (0.3333333333333333, 0.2754132907776234),
            (0.4999, 0.49986127490549975),
            (0.5, 0.5000000000000001),
            (0.7, 0.7659829961247643),
            (0.9, 0.9604155944112192),
            (0.99, 0.9991387611784571),
            (0.9999, 0.9999996001622842),
            (1.0, 1.0),
        ];
        for (p, x) in expected {
            let error = (beta_quantile(p) - x).abs();
            assert!(error <= 1e-12 * f64::max(x, 1e-300), "p {p}: {} is not {x}", beta_quantile(p));
        }
    }
}
