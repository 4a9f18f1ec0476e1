//! Every operation in f64, straight from its definition.
//!
//! Each element comes with the sum of the magnitudes of its terms: rounding errors are proportional to that, so a
//! tolerance relative to it stays meaningful beside outliers and cancellation.

/// A value and the sum of its terms' magnitudes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Exact {
    pub(crate) value: f64,
    pub(crate) magnitude: f64,
}

impl Exact {
    pub(crate) fn add(&mut self, term: f64) {
        self.value += term;
        self.magnitude += term.abs();
    }

    /// As the input of a function whose slope is at most about one.
    pub(crate) fn map(self, f: impl Fn(f64) -> f64) -> Self {
        let value = f(self.value);
        Self { value, magnitude: self.magnitude.max(value.abs()) }
    }
}

pub(crate) fn linear(
    x: &[f64],
    weight: &[f64],
    bias: Option<&[f64]>,
    residual: Option<&[f64]>,
    k: usize,
) -> Vec<Exact> {
    let n = weight.len() / k;
    let mut out = vec![Exact::default(); x.len() / k * n];
    for (i, out) in out.iter_mut().enumerate() {
        let (row, column) = (i / n, i % n);
        for k_i in 0..k {
            out.add(x[row * k + k_i] * weight[column * k + k_i]);
        }
        bias.iter().for_each(|bias| out.add(bias[column]));
        residual.iter().for_each(|residual| out.add(residual[i]));
    }
    out
}

pub(crate) struct Conv {
    /// Of the input: batch, height, width, channels.
    pub(crate) x: [usize; 4],
    /// outputs, kh, kw, channels.
    pub(crate) weight: [usize; 4],
    pub(crate) stride: usize,
    /// Top, bottom, left, right.
    pub(crate) padding: [usize; 4],
}

impl Conv {
    pub(crate) fn output(&self) -> [usize; 4] {
        let [batch, height, width, _] = self.x;
        let [outputs, kh, kw, _] = self.weight;
        let [top, bottom, left, right] = self.padding;
        let size = |length: usize, pads: usize, kernel: usize| (length + pads - kernel) / self.stride + 1;
        [batch, size(height, top + bottom, kh), size(width, left + right, kw), outputs]
    }

    pub(crate) fn compute(&self, x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<Exact> {
        let [batch, height, width, channels] = self.x;
        let [_, kh, kw, _] = self.weight;
        let [_, out_height, out_width, outputs] = self.output();
        let mut all = Vec::new();
        for b in 0..batch {
            for (oy, ox) in (0..out_height).flat_map(|y| (0..out_width).map(move |x| (y, x))) {
                for (o, bias) in bias.iter().enumerate().take(outputs) {
                    let mut out = Exact::default();
                    out.add(*bias);
                    for (ky, kx) in (0..kh).flat_map(|y| (0..kw).map(move |x| (y, x))) {
                        let (y, x_) = (oy * self.stride + ky, ox * self.stride + kx);
                        let inside =
                            |at: usize, pad: usize, length| at.checked_sub(pad).filter(|at| *at < length);
                        let Some(y) = inside(y, self.padding[0], height) else { continue };
                        let Some(x_) = inside(x_, self.padding[2], width) else { continue };
                        for c in 0..channels {
                            let from = ((b * height + y) * width + x_) * channels + c;
                            out.add(x[from] * weight[((o * kh + ky) * kw + kx) * channels + c]);
                        }
                    }
                    all.push(out);
                }
            }
        }
        all
    }
}

/// What a backend takes means in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "each test binary has one kind of backend")]
pub(crate) enum Sums {
    F32,
    F64,
}

/// Of the elements at `members`, each with its weight and bias.
fn normalise(
    x: &[f64],
    members: &[usize],
    affine: impl Fn(usize) -> (f64, f64),
    eps: f64,
    sums: Sums,
    out: &mut [Exact],
) {
    let count = members.len() as f64;
    let size = members.iter().map(|i| x[*i].abs()).sum::<f64>() / count;
    let mean = members.iter().map(|i| x[*i]).sum::<f64>() / count;
    let variance = members.iter().map(|i| (x[*i] - mean).powi(2)).sum::<f64>() / count;
    let factor = 1.0 / (variance + eps).sqrt();
    for &i in members {
        let (weight, bias) = affine(i);
        out[i].add(x[i] * factor * weight);
        out[i].add(-mean * factor * weight);
        out[i].add(bias);
        if sums == Sums::F32 {
            // The mean carries the rounding of a sum of this size.
            out[i].magnitude += (size * factor * weight).abs();
        }
    }
}

pub(crate) fn group_norm(
    x: &[f64],
    pixels: usize,
    groups: usize,
    weight: &[f64],
    bias: &[f64],
    eps: f64,
    sums: Sums,
) -> Vec<Exact> {
    let channels = weight.len();
    let size = channels / groups;
    let mut out = vec![Exact::default(); x.len()];
    for picture in 0..x.len() / (pixels * channels) {
        for group in 0..groups {
            let members: Vec<usize> = (0..pixels)
                .flat_map(|p| (0..size).map(move |c| (picture * pixels + p) * channels + group * size + c))
                .collect();
            normalise(x, &members, |i| (weight[i % channels], bias[i % channels]), eps, sums, &mut out);
        }
    }
    out
}

pub(crate) fn layer_norm(x: &[f64], weight: &[f64], bias: &[f64], eps: f64, sums: Sums) -> Vec<Exact> {
    let channels = weight.len();
    let mut out = vec![Exact::default(); x.len()];
    for row in 0..x.len() / channels {
        let members: Vec<usize> = (row * channels..(row + 1) * channels).collect();
        normalise(x, &members, |i| (weight[i % channels], bias[i % channels]), eps, sums, &mut out);
    }
    out
}

/// `scale`, `shift`: `[pictures, channels]`.
pub(crate) fn layer_norm_modulate(
    x: &[f64],
    channels: usize,
    scale: &[f64],
    shift: &[f64],
    eps: f64,
    sums: Sums,
) -> Vec<Exact> {
    let picture = x.len() / (scale.len() / channels);
    let affine = |i: usize| {
        let at = i / picture * channels + i % channels;
        (1.0 + scale[at], shift[at])
    };
    let mut out = vec![Exact::default(); x.len()];
    for row in 0..x.len() / channels {
        let members: Vec<usize> = (row * channels..(row + 1) * channels).collect();
        normalise(x, &members, affine, eps, sums, &mut out);
    }
    out
}

pub(crate) fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<Exact> {
    let mut out = Vec::new();
    for row in x.chunks_exact(weight.len()) {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        let factor = 1.0 / (mean + eps).sqrt();
        out.extend(row.iter().zip(weight).map(|(x, weight)| {
            let value = x * factor * weight;
            Exact { value, magnitude: value.abs() }
        }));
    }
    out
}

/// `x`: `[batch, tokens, heads, weight.len()]`; `cos`, `sin`: `[tokens, weight.len() / 2]`.
pub(crate) fn norm_rope(
    x: &[f64],
    heads: usize,
    weight: &[f64],
    cos: &[f64],
    sin: &[f64],
    eps: f64,
) -> Vec<Exact> {
    let normalised = rms_norm(x, weight, eps);
    let pairs = weight.len() / 2;
    let mut out = vec![Exact::default(); x.len()];
    for (i, (pair, out)) in normalised.chunks_exact(2).zip(out.chunks_exact_mut(2)).enumerate() {
        // Tables repeat for every picture, and each of their rows serves all heads.
        let angle = i / (heads * pairs) * pairs % cos.len() + i % pairs;
        out[0].add(pair[0].value * cos[angle]);
        out[0].add(-pair[1].value * sin[angle]);
        out[1].add(pair[1].value * cos[angle]);
        out[1].add(pair[0].value * sin[angle]);
    }
    out
}

pub(crate) struct Attention {
    pub(crate) batch: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) causal: bool,
}

impl Attention {
    pub(crate) fn compute(&self, q: &[f64], k: &[f64], v: &[f64]) -> Vec<Exact> {
        let channels = self.heads * self.head_dim;
        let mut out = vec![Exact::default(); self.batch * self.queries * channels];
        for (b, h) in (0..self.batch).flat_map(|b| (0..self.heads).map(move |h| (b, h))) {
            for i in 0..self.queries {
                let keys = if self.causal { i + 1 } else { self.keys };
                let q_at = (b * self.queries + i) * channels + h * self.head_dim;
                let kv_at = |j: usize| (b * self.keys + j) * channels + h * self.head_dim;
                let mut sharpness = 0.0_f64;
                let scores: Vec<f64> = (0..keys)
                    .map(|j| {
                        let terms = (0..self.head_dim).map(|d| q[q_at + d] * k[kv_at(j) + d]);
                        let scale = (self.head_dim as f64).sqrt();
                        sharpness = sharpness.max(terms.clone().map(f64::abs).sum::<f64>() / scale);
                        terms.sum::<f64>() / scale
                    })
                    .collect();
                let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let exps: Vec<f64> = scores.iter().map(|score| (score - maximum).exp()).collect();
                let sum: f64 = exps.iter().sum();
                for d in 0..self.head_dim {
                    let out = &mut out[q_at + d];
                    exps.iter().enumerate().for_each(|(j, exp)| out.add(exp / sum * v[kv_at(j) + d]));
                    // An error in a score is an error of that size, relative, in its weight.
                    out.magnitude *= 1.0 + sharpness;
                }
            }
        }
        out
    }
}

pub(crate) fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

pub(crate) fn quick_gelu(x: f64) -> f64 {
    x / (1.0 + (-1.702 * x).exp())
}

pub(crate) fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))
}

pub(crate) fn gelu_tanh(x: f64) -> f64 {
    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + u.tanh())
}

/// Abramowitz & Stegun 7.1.6 near zero; beyond 5, where it is 1 to 2e-12, one.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}
