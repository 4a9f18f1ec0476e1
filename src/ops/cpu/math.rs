//! Scalar functions written so that the compiler turns a loop over them into vectors.

/// `a * b + c`, fused where `FMA`.
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// [`fma`] in f64.
#[inline(always)]
pub(crate) fn fma64<const FMA: bool>(a: f64, b: f64, c: f64) -> f64 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `exp(x)`, within 2 units in the last place; 0 below -87.3, saturating at `exp(88.3)`; NaN stays NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `exp(r)` by its Taylor polynomial of degree 7 (truncation 6e-9),
/// `2^n` through the exponent bits. `ln 2` in two parts, the first with trailing zeros so that `n` times it is exact.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// 1.5 * 2^23: adding it rounds to an integer, kept in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > 88.3 { 88.3 } else { x };
    let shifted = fma::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -LN2_HIGH, clamped);
    let r = fma::<FMA>(n, -LN2_LOW, r);
    let mut p = fma::<FMA>(r, 1.0 / 5040.0, 1.0 / 720.0);
    p = fma::<FMA>(p, r, 1.0 / 120.0);
    p = fma::<FMA>(p, r, 1.0 / 24.0);
    p = fma::<FMA>(p, r, 1.0 / 6.0);
    p = fma::<FMA>(p, r, 0.5);
    p = fma::<FMA>(p, r, 1.0);
    p = fma::<FMA>(p, r, 1.0);
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.3 { 0.0 } else { p * scale }
}

/// `x * sigmoid(slope * x)`.
#[inline(always)]
pub(crate) fn swish<const FMA: bool>(x: f32, slope: f32) -> f32 {
    by_sigmoid::<FMA>(x, slope * x)
}

/// `x * sigmoid(u)`, nothing where `exp(-u)` leaves f32, but NaN for an infinite `x` there, as its product with zero.
#[inline(always)]
fn by_sigmoid<const FMA: bool>(x: f32, u: f32) -> f32 {
    let y = x / (1.0 + exp::<FMA>(-u));
    if u < -88.3 { x * 0.0 } else { y }
}

/// `erf(x)`, within 3e-7.
///
/// `x P(x²) / Q(x²)` on `|x| < 3.92`, coefficients by an iteratively reweighted least-squares fit to the relative
/// error (2e-8 before rounding); exactly ±1 beyond, where f32 rounds there.
#[inline(always)]
pub(crate) fn erf<const FMA: bool>(x: f32) -> f32 {
    const EDGE: f32 = 3.92;
    // The fit's constant term rounds to the series' own.
    const P: [f32; 6] = [
        std::f32::consts::FRAC_2_SQRT_PI,
        0.190_407_35,
        0.052_748_844,
        0.003_765_656,
        0.000_284_883_72,
        0.000_002_050_081_8,
    ];
    const Q: [f32; 6] = [1.0, 0.502_076_86, 0.114_109_49, 0.014_969_295, 0.001_162_545_2, 0.000_038_091_71];
    let t = x * x;
    let mut p = fma::<FMA>(P[5], t, P[4]);
    let mut q = fma::<FMA>(Q[5], t, Q[4]);
    for i in (0..4).rev() {
        p = fma::<FMA>(p, t, P[i]);
        q = fma::<FMA>(q, t, Q[i]);
    }
    let inside = x * p / q;
    let inside = if inside > 1.0 { 1.0 } else { inside };
    let inside = if inside < -1.0 { -1.0 } else { inside };
    let inside = if x >= EDGE { 1.0 } else { inside };
    if x <= -EDGE { -1.0 } else { inside }
}

/// `x / 2 * (1 + erf(x / sqrt(2)))`.
#[inline(always)]
pub(crate) fn gelu<const FMA: bool>(x: f32) -> f32 {
    let half = 0.5 * x;
    fma::<FMA>(half, erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2), half)
}

/// `x / 2 * (1 + tanh(u))` with `u = sqrt(2 / pi) * (x + 0.044715 x³)`, which is `x * sigmoid(2 u)`.
#[inline(always)]
pub(crate) fn gelu_tanh<const FMA: bool>(x: f32) -> f32 {
    /// `2 sqrt(2 / pi)`, and 0.044715 times that.
    const SLOPE: f32 = 1.595_769;
    const CUBIC: f32 = 0.071_354_814;
    let twice = x * fma::<FMA>(x * x, CUBIC, SLOPE);
    by_sigmoid::<FMA>(x, twice)
}
