//! The single-precision Box–Muller transform, 16 values at a time, with the rounding of torch's
//! AVX2 kernel.
//!
//! A block of 16 uniforms holds 8 radii `u1` and 8 angles `u2`; it becomes
//! `sqrt(-2 ln(1 - u1)) · cos(2π u2)` and the same with the sine. Logarithm, sine and cosine are
//! those of the Cephes library (Moshier, 1992; `logf`, `sinf`, `cosf`): a reduction of the range,
//! then a minimax polynomial. To give torch's bits, each product that feeds a sum is fused with it,
//! which is what its compiler does.

/// Values in a block: 8 radii, 8 angles.
pub(super) const BLOCK: usize = 16;

// The coefficients keep the digits they were published with.
/// Cephes `logf`: `ln(1 + x) = x - x²/2 + x³ P(x)`, highest power first.
#[allow(clippy::excessive_precision)]
const LOG: [f32; 9] = [
    7.037_683_629_2e-2,
    -1.151_461_031_0e-1,
    1.167_699_874_0e-1,
    -1.242_014_084_6e-1,
    1.424_932_278_7e-1,
    -1.666_805_766_5e-1,
    2.000_071_476_5e-1,
    -2.499_999_399_3e-1,
    3.333_333_117_4e-1,
];
/// `ln 2` in two parts; the first has few bits, so that its product with an exponent is exact.
#[allow(clippy::excessive_precision)]
const LN_2: [f32; 2] = [0.693_359_375, -2.121_944_40e-4];
/// Cephes `sinf`: `sin x = x + x³ P(x²)` on `[0, π/4]`.
#[allow(clippy::excessive_precision)]
const SIN: [f32; 3] = [-1.951_529_589_1e-4, 8.332_160_873_6e-3, -1.666_665_461_1e-1];
/// Cephes `cosf`: `cos x = 1 - x²/2 + x⁴ P(x²)` on `[0, π/4]`.
#[allow(clippy::excessive_precision)]
const COS: [f32; 3] = [2.443_315_711_8e-5, -1.388_731_625_5e-3, 4.166_664_568_3e-2];
/// `π/4` in three parts.
#[allow(clippy::excessive_precision)]
const QUARTER_PI: [f32; 3] = [0.785_156_25, 2.418_756_484_985e-4, 3.774_894_977_4e-8];

/// Turns uniforms on `[0, 1)` into normals, block by block; a part block at the end stays as it is.
pub(super) fn fill(values: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // `unsafe` is denied in this crate; without it every fused step is a call into libm,
        // twenty times slower.
        #[allow(unsafe_code)]
        // SAFETY: the CPU has the two features that the function is compiled for.
        unsafe {
            fill_fused(values);
        }
        return;
    }
    fill_portable(values);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fill_fused(values: &mut [f32]) {
    fill_portable(values);
}

#[inline(always)]
fn fill_portable(values: &mut [f32]) {
    let (blocks, _) = values.as_chunks_mut::<BLOCK>();
    for block in blocks {
        let mut cosines = [0.0; BLOCK / 2];
        let mut sines = [0.0; BLOCK / 2];
        for lane in 0..BLOCK / 2 {
            let radius = (-2.0 * ln(1.0 - block[lane])).sqrt();
            let (sin, cos) = sin_cos(std::f32::consts::TAU * block[lane + BLOCK / 2]);
            // the sum turns -0 into +0, as torch's scaling by the mean does
            cosines[lane] = radius * cos + 0.0;
            sines[lane] = radius * sin + 0.0;
        }
        let (front, back) = block.split_at_mut(BLOCK / 2);
        front.copy_from_slice(&cosines);
        back.copy_from_slice(&sines);
    }
}

/// The natural logarithm of a normal `x` in `(0, 1]`.
#[inline(always)]
fn ln(x: f32) -> f32 {
    let bits = x.to_bits();
    // x = mantissa · 2^exponent with the mantissa in [1/2, 1)
    let mantissa = f32::from_bits(bits & 0x807f_ffff | 0x3f00_0000);
    let exponent = (bits >> 23) as i32 - 126;
    let small = mantissa < std::f32::consts::FRAC_1_SQRT_2;
    let exponent = (exponent - i32::from(small)) as f32;
    let x = (mantissa - 1.0) + if small { mantissa } else { 0.0 };

    let square = x * x;
    let mut p = LOG[0];
    for &c in &LOG[1..] {
        p = p.mul_add(x, c);
    }
    let cubic = p * x;
    let y = cubic.mul_add(square, exponent * LN_2[1]);
    let y = (-0.5_f32).mul_add(square, y);
    exponent.mul_add(LN_2[0], x + y)
}

/// The sine and the cosine of `x` in `[0, 2π]`.
#[inline(always)]
fn sin_cos(x: f32) -> (f32, f32) {
    const FOUR_OVER_PI: f32 = 1.273_239_5;
    // the nearest even multiple of π/4
    let octant = ((x * FOUR_OVER_PI) as i32 + 1) & !1;
    let k = octant as f32;
    let mut x = x;
    for part in QUARTER_PI {
        x = (-k).mul_add(part, x);
    }

    let square = x * x;
    let c = COS[0].mul_add(square, COS[1]).mul_add(square, COS[2]) * square;
    let cos = c.mul_add(square, -0.5 * square) + 1.0;
    let s = SIN[0].mul_add(square, SIN[1]).mul_add(square, SIN[2]) * square;
    let sin = s.mul_add(x, x);

    let swapped = octant & 2 != 0;
    let (sin, cos) = if swapped { (cos, sin) } else { (sin, cos) };
    let sin_sign = ((octant & 4) as u32) << 29;
    let cos_sign = (((octant + 2) & 4) as u32) << 29;
    (f32::from_bits(sin.to_bits() ^ sin_sign), f32::from_bits(cos.to_bits() ^ cos_sign))
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, fill, fill_portable};

    #[test]
    fn the_fused_and_the_portable_path_give_the_same_bits() {
        let uniforms: Vec<f32> =
            (0..1000 * BLOCK as u32).map(|i| (i * 1049 % (1 << 24)) as f32 / 16_777_216.0).collect();
        let mut fused = uniforms.clone();
        fill(&mut fused);
        let mut portable = uniforms;
        fill_portable(&mut portable);
        assert!(fused.iter().zip(&portable).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}
