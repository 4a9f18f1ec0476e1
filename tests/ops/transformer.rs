//! The operations of diffusion transformers, as `definitions.rs` does for the others.

use aquatint::ops::{self, Epilogue, Gelu, Nonlinearity};
use burn::tensor::{DType, Tensor};

use crate::definitions::{self, On, assert_rows_independent, bits, outlier, read};
use crate::host::{self, Exact};

/// Of a product of two values, one of them through a function whose slope is at most about one.
fn product(a: f64, b: f64, f: fn(f64) -> f64) -> Exact {
    Exact { value: a * f(b), magnitude: (a * b).abs() }
}

/// A single row and element, tails of every vector width, rows of several passes.
const ROWS: [[usize; 3]; 7] =
    [[1, 1, 1], [2, 3, 7], [5, 2, 34], [2, 3, 100], [1, 5, 320], [2, 9, 1283], [3, 7, 1536]];

/// Likewise, of the fewest variants of the kernels.
const FEW_ROWS: [[usize; 3]; 2] = [[2, 3, 7], [1, 5, 48]];

pub(crate) fn rms_norm_matches_its_definition(on: &On) {
    for &dtype in on.dtypes {
        for &shape in on.cases(&ROWS, &FEW_ROWS) {
            let (x, x_values) = on.random(shape, dtype, 41, 1e4);
            let (weight, w) = on.random([shape[2]], dtype, 42, 1.0);
            let expected = host::rms_norm(&x_values, &w, f64::from(1e-6_f32));
            let what = format!("rms_norm {shape:?}");
            on.assert_close(ops::rms_norm(x.clone(), &weight, 1e-6), &expected, 5e-7, &what);
            on.assert_reference(|| ops::reference::rms_norm(x, &weight, 1e-6), &expected, 2e-6, &what);
        }
        // eps is what keeps a row of zeros finite, and a small one small.
        let (x, x_values) = on.random([2, 2, 8], dtype, 43, 1.0);
        let weight = on.ones(8, dtype);
        let expected = host::rms_norm(&x_values, &[1.0; 8], 100.0);
        on.assert_close(ops::rms_norm(x.clone(), &weight, 100.0), &expected, 5e-7, "a large eps");
        assert_eq!(read(ops::rms_norm(on.map(&x, |_| 0.0), &weight, 1e-6)), [0.0; 32]);
    }
}

pub(crate) fn layer_norm_modulate_matches_its_definition(on: &On) {
    for &dtype in on.dtypes {
        for &[batch, tokens, channels] in on.cases(&ROWS, &FEW_ROWS) {
            let (x, x_values) = on.random([batch, tokens, channels], dtype, 44, 1e4);
            let (scale, s) = on.random([batch, channels], dtype, 45, 1.0);
            let (shift, b) = on.random([batch, channels], dtype, 46, 1.0);
            let eps = f64::from(1e-6_f32);
            let expected = host::layer_norm_modulate(&x_values, channels, &s, &b, eps, on.sums);
            let what = format!("layer_norm_modulate {batch}x{tokens}x{channels}");
            let y = ops::layer_norm_modulate(x.clone(), &scale, &shift, 1e-6);
            on.assert_close(y, &expected, 1e-6, &what);
            let reference = || ops::reference::layer_norm_modulate(x, &scale, &shift, 1e-6);
            on.assert_reference(reference, &expected, 1e-5, &what);
        }
    }
}

pub(crate) fn gate_residual_matches_its_definition(on: &On) {
    for &dtype in on.dtypes {
        for &[batch, tokens, channels] in on.cases(&ROWS, &FEW_ROWS) {
            let (residual, r) = on.random([batch, tokens, channels], dtype, 47, 1.0);
            let (x, x_values) = on.random([batch, tokens, channels], dtype, 48, outlier(dtype));
            let (gate, g) = on.random([batch, channels], dtype, 49, 1.0);
            let mut expected = vec![Exact::default(); r.len()];
            for (i, out) in expected.iter_mut().enumerate() {
                out.add(r[i]);
                out.add(g[i / (tokens * channels) * channels + i % channels] * x_values[i]);
            }
            let what = format!("gate_residual {batch}x{tokens}x{channels}");
            let y = ops::gate_residual(residual.clone(), x.clone(), &gate);
            on.assert_close(y, &expected, 2e-7, &what);
            let reference = || ops::reference::gate_residual(residual, x, &gate);
            on.assert_reference(reference, &expected, 2e-7, &what);
        }
    }
}

pub(crate) fn swiglu_gates_the_first_half_by_the_second(on: &On) {
    for &dtype in on.dtypes {
        for &[batch, tokens, half] in on.cases(&ROWS, &FEW_ROWS) {
            let (x, x_values) = on.random([batch, tokens, 2 * half], dtype, 50, outlier(dtype));
            let expected: Vec<Exact> = x_values
                .chunks_exact(2 * half)
                .flat_map(|row| (0..half).map(|c| product(row[c], row[half + c], host::silu)))
                .collect();
            let what = format!("swiglu {batch}x{tokens}x{half}");
            on.assert_close(ops::swiglu(x.clone()), &expected, 1e-6, &what);
            on.assert_reference(|| ops::reference::swiglu(x), &expected, 1e-6, &what);
        }
    }
}

pub(crate) fn bias_gelu_matches_its_definition(on: &On) {
    let forms = [(Gelu::Exact, host::gelu as fn(f64) -> f64), (Gelu::Tanh, host::gelu_tanh)];
    for &dtype in on.dtypes {
        for &shape in on.cases(&ROWS, &FEW_ROWS) {
            // Several widths of the bell, so that its tails are met.
            let (x, x_values) = on.random(shape, dtype, 51, 1e4);
            let (bias, b) = on.random([shape[2]], dtype, 52, 5.0);
            for (form, gelu) in forms {
                let expected: Vec<Exact> = x_values
                    .iter()
                    .enumerate()
                    .map(|(i, x)| {
                        let bias = b[i % shape[2]];
                        Exact { value: gelu(x + bias), magnitude: x.abs() + bias.abs() }
                    })
                    .collect();
                let what = format!("bias_gelu {form:?} {shape:?}");
                on.assert_close(ops::bias_gelu(x.clone(), &bias, form), &expected, 4e-7, &what);
                let reference = || ops::reference::bias_gelu(x.clone(), &bias, form);
                on.assert_reference(reference, &expected, 1e-6, &what);
            }
        }
    }
}

type Function = fn(f64) -> f64;

const NONLINEARITIES: [(Nonlinearity, Function); 4] = [
    (Nonlinearity::Gelu(Gelu::Exact), host::gelu),
    (Nonlinearity::Gelu(Gelu::Tanh), host::gelu_tanh),
    (Nonlinearity::QuickGelu, host::quick_gelu),
    (Nonlinearity::Silu, host::silu),
];

pub(crate) fn an_epilogue_matches_its_definition(on: &On) {
    // Batch, tokens, inputs, outputs.
    let shapes =
        [(1, 1, 1, 1), (3, 1, 34, 6), (2, 1, 1283, 33), (2, 3, 5, 7), (3, 25, 320, 65), (2, 70, 96, 136)];
    // Bias 1, gate 2, residual 4; bias and residual alone are in `linear_matches_its_definition`.
    let none = (None, (|x| x) as Function, &[0b010, 0b011, 0b110, 0b111][..]);
    let all =
        || NONLINEARITIES.into_iter().map(|(kind, f)| (Some(kind), f, &[0b001, 0b111][..])).chain([none]);
    for &dtype in on.dtypes {
        for &(batch, tokens, k, n) in on.cases(&shapes, &[(3, 1, 34, 6), (2, 3, 5, 7)]) {
            let (x, x_values) = on.random([batch, tokens, k], dtype, 62, outlier(dtype));
            // What keeps most sums where an activation bends.
            let small: Vec<f64> =
                definitions::values(n * k, 63, 1.0).iter().map(|w| w / (k as f64).sqrt()).collect();
            let weight = on.tensor(&small, [n, k], dtype);
            let w = read(weight.clone());
            let (bias, b) = on.random([n], dtype, 64, 1.0);
            let (gate, g) = on.random([batch, n], dtype, 65, 1.0);
            let (residual, r) = on.random([batch, tokens, n], dtype, 66, 1.0);
            for (activation, f, parts) in
                all().flat_map(|(kind, f, parts)| parts.iter().map(move |parts| (kind, f, *parts)))
            {
                let [has_bias, has_gate, has_residual] = [1, 2, 4].map(|part| parts & part != 0);
                let mut expected = host::linear(&x_values, &w, has_bias.then_some(&b[..]), None, k);
                for (i, out) in expected.iter_mut().enumerate() {
                    *out = out.map(f);
                    if has_gate {
                        let gate = g[i / (tokens * n) * n + i % n];
                        *out = Exact { value: out.value * gate, magnitude: out.magnitude * gate.abs() };
                    }
                    if has_residual {
                        out.add(r[i]);
                    }
                }
                let epilogue = Epilogue {
                    bias: has_bias.then_some(&bias),
                    activation,
                    gate: has_gate.then_some(&gate),
                    residual: has_residual.then(|| residual.clone()),
                };
                let what = format!("linear_with {batch}x{tokens}x{k}x{n} {activation:?} {parts}");
                let y = ops::linear_with(x.clone(), &weight, epilogue.clone());
                on.assert_close(y, &expected, 2e-6, &what);
                // burn's own product is rounded to f16 or bf16.
                if dtype == DType::F32 {
                    let reference = || ops::reference::linear(x.clone(), &weight, epilogue);
                    on.assert_reference(reference, &expected, 2e-6, &what);
                }
            }
        }
    }
}

/// Cosines and sines of random angles, as f32 keeps them.
fn tables(on: &On, tokens: usize, pairs: usize) -> [(Tensor<2>, Vec<f64>); 2] {
    let (_, angles) = on.random([tokens, pairs], DType::F32, 53, 10.0);
    let table = |f: fn(f64) -> f64| {
        let values: Vec<f64> = angles.iter().map(|angle| f(*angle)).collect();
        let tensor = on.tensor(&values, [tokens, pairs], DType::F32);
        let stored = read(tensor.clone());
        (tensor, stored)
    };
    [table(f64::cos), table(f64::sin)]
}

pub(crate) fn qk_norm_rope_matches_its_definition(on: &On) {
    // Batch, tokens, heads of q, heads of k, channels of a head.
    let cases = [
        [1, 1, 1, 1, 2],
        [2, 3, 2, 1, 6],
        [1, 5, 3, 3, 70],
        [2, 7, 4, 2, 64],
        [1, 9, 2, 2, 128],
        [3, 3, 1, 1, 256],
    ];
    for &dtype in on.dtypes {
        for [batch, tokens, q_heads, k_heads, d] in cases {
            let (q, q_values) = on.random([batch, tokens, q_heads * d], dtype, 54, 1e4);
            let (k, k_values) = on.random([batch, tokens, k_heads * d], dtype, 55, 1e4);
            let (q_weight, qw) = on.random([d], dtype, 56, 1.0);
            let (k_weight, kw) = on.random([d], dtype, 57, 1.0);
            let [(cos, c), (sin, s)] = tables(on, tokens, d / 2);
            let eps = f64::from(1e-6_f32);
            let q_expected = host::norm_rope(&q_values, q_heads, &qw, &c, &s, eps);
            let k_expected = host::norm_rope(&k_values, k_heads, &kw, &c, &s, eps);
            let what = format!("qk_norm_rope {batch}x{tokens}x{q_heads}+{k_heads}x{d}");
            let (q_y, k_y) = ops::qk_norm_rope(q.clone(), k.clone(), &q_weight, &k_weight, &cos, &sin, 1e-6);
            on.assert_close(q_y, &q_expected, 5e-7, &what);
            on.assert_close(k_y, &k_expected, 5e-7, &what);
            if !on.generated {
                continue;
            }
            let (q_y, k_y) = ops::reference::qk_norm_rope(q, k, &q_weight, &k_weight, &cos, &sin, 1e-6);
            on.assert_close(q_y, &q_expected, 2e-6, &what);
            on.assert_close(k_y, &k_expected, 2e-6, &what);
        }
    }
}

/// Numbers from torch 2.15 and diffusers 0.42 (`RMSNorm`, `AdaLayerNormZero`, `apply_rotary_emb`, `SwiGLU`) in f32.
pub(crate) fn a_transformers_operations_are_those_of_diffusers(on: &On) {
    const X: [f64; 8] = [0.5, -1.25, 2.0, 0.75, -0.3, 1.1, -2.2, 0.4];
    let row = |values: [f64; 4]| on.tensor(&values, [1, 4], DType::F32);
    let vector = |values: [f64; 4]| on.tensor(&values, [4], DType::F32);
    let x = on.tensor(&X, [1, 2, 4], DType::F32);
    let close = |actual: Tensor<3>, expected: &[f64], what: &str| {
        let exact = expected.iter().map(|&value| Exact { value, magnitude: 1.0 });
        on.assert_close(actual, &exact.collect::<Vec<_>>(), 5e-7, what);
    };
    let weight = vector([0.9, 1.2, -0.4, 1.5]);
    let normalised = [
        0.356_453,
        -1.188_176_8,
        -0.633_694_2,
        0.891_132_5,
        -0.215_141_1,
        1.051_800_8,
        0.701_200_5,
        0.478_091_3,
    ];
    close(ops::rms_norm(x.clone(), &weight, 1e-6), &normalised, "rms_norm");
    let (scale, shift) = (row([0.5, -0.2, 1.0, 0.1]), row([0.1, 0.2, -0.3, 0.4]));
    let modulated =
        [0.1, -1.007_726_7, 2.287_985_8, 0.637_232_1, 0.039_016_4, 1.078_164_6, -3.471_149_7, 0.981_377_5];
    close(ops::layer_norm_modulate(x.clone(), &scale, &shift, 1e-6), &modulated, "layer_norm_modulate");
    let cos = on.tensor(&[1.0, 0.6, 0.28, -0.8], [2, 2], DType::F32);
    let sin = on.tensor(&[0.0, 0.8, 0.96, 0.6], [2, 2], DType::F32);
    let turned = [
        0.356_453,
        -1.188_176_8,
        -1.093_122_6,
        0.027_724_1,
        -1.069_968_3,
        0.087_968_8,
        -0.847_815_3,
        0.038_247_3,
    ];
    let (q, k) = ops::qk_norm_rope(x.clone(), x.clone(), &weight, &weight, &cos, &sin, 1e-6);
    close(q, &turned, "qk_norm_rope");
    close(k, &turned, "qk_norm_rope");
    close(ops::swiglu(x.clone()), &[0.880_797, -0.636_730_1, 0.065_835_3, 0.263_422_6], "swiglu");
    let gated = [3.5, -0.5, 3.25, 5.75, 0.3, -0.5, -3.05, 4.0];
    let branch = on.map(&x, |x| x * 2.0 + 1.0);
    close(ops::gate_residual(x.clone(), branch, &row([1.5, -0.5, 0.25, 2.0])), &gated, "gate_residual");
    let bias = vector([0.1, -0.2, 0.3, -0.4]);
    let exact =
        [0.435_448_1, -0.106_617_4, 2.275_334_6, 0.222_890_7, -0.084_148_1, 0.734_345_9, -0.054_561_4, 0.0];
    close(ops::bias_gelu(x.clone(), &bias, Gelu::Exact), &exact, "bias_gelu");
    let tanh =
        [0.435_415_2, -0.106_844_8, 2.275_672_9, 0.222_886_2, -0.084_148_6, 0.734_228_6, -0.054_548_7, 0.0];
    close(ops::bias_gelu(x, &bias, Gelu::Tanh), &tanh, "bias_gelu");
}

/// Numbers from torch 2.15 (`residual + gate * f(F.linear(x, weight, bias))`, with `F.gelu`, `F.silu` and transformers'
/// `QuickGELUActivation`) in f32.
pub(crate) fn an_epilogue_is_that_of_pytorch(on: &On) {
    let x = on.tensor(&[0.5, -1.25, 2.0, 0.75, -0.3, 1.1, -2.2, 0.4], [1, 2, 4], DType::F32);
    let weight = [0.8, -0.5, 0.3, 1.2, -0.7, 0.4, 0.9, -0.2, 0.1, 1.5, -0.6, 0.25];
    let weight = on.tensor(&weight, [3, 4], DType::F32);
    let bias = on.tensor(&[0.1, -0.3, 0.2], [3], DType::F32);
    let gate = on.tensor(&[1.5, -0.5, 2.0], [1, 3], DType::F32);
    let residual = on.tensor(&[0.3, -1.0, 0.6, 2.5, 0.0, -0.4], [1, 2, 3], DType::F32);
    let cases = [
        (None, [4.237_500_2, -1.25, -4.675_000_2, 1.194_999_9, 0.855, 6.079_999_9]),
        (
            Some(Nonlinearity::Gelu(Gelu::Exact)),
            [4.220_441_3, -1.172_865_6, 0.577_971_5, 2.249_244, 0.037_306_2, 6.076_128],
        ),
        (
            Some(Nonlinearity::Gelu(Gelu::Tanh)),
            [4.221_144_2, -1.172_857, 0.578_912_1, 2.249_083_5, 0.037_369_5, 6.076_749_3],
        ),
        (
            Some(Nonlinearity::QuickGelu),
            [4.192_837_2, -1.175_194_3, 0.541_411_4, 2.258_163, 0.044_152_9, 6.054_003_2],
        ),
        (
            Some(Nonlinearity::Silu),
            [3.971_534_5, -1.155_614_9, 0.247_821_9, 2.114_693_2, 0.130_955, 5.835_782_1],
        ),
    ];
    for (activation, expected) in cases {
        let epilogue =
            Epilogue { bias: Some(&bias), activation, gate: Some(&gate), residual: Some(residual.clone()) };
        let exact = expected.map(|value| Exact { value, magnitude: 5.0 });
        let y = ops::linear_with(x.clone(), &weight, epilogue);
        on.assert_close(y, &exact, 1e-7, &format!("linear_with {activation:?}"));
    }
}

/// Rows of the batch bring their own scale, shift and gate: the last three tokens of `x`.
pub(crate) fn a_transformers_row_has_the_same_bits_in_any_batch(on: &On) {
    for &dtype in on.dtypes {
        for &(tokens, channels) in on.cases(&[(1, 48), (5, 34), (70, 320)], &[(5, 48)]) {
            let (x, _) = on.random([16, tokens + 3, channels], dtype, 58, 100.0);
            let (affine, _) = on.random([channels], dtype, 59, 1.0);
            let own =
                |x: &Tensor<3>, which| on.narrow(x, 1, tokens + which, 1).reshape([x.dims()[0], channels]);
            let modulate = |x: Tensor<3>| {
                let (scale, shift) = (own(&x, 0), own(&x, 1));
                ops::layer_norm_modulate(on.narrow(&x, 1, 0, tokens), &scale, &shift, 1e-6)
            };
            assert_rows_independent(on, x.clone(), modulate, "layer_norm_modulate");
            let gate = |x: Tensor<3>| {
                let gate = own(&x, 2);
                let x = on.narrow(&x, 1, 0, tokens);
                ops::gate_residual(on.map(&x, |x| x * 0.5), x, &gate)
            };
            assert_rows_independent(on, x.clone(), gate, "gate_residual");
            assert_rows_independent(on, x.clone(), |x| ops::rms_norm(x, &affine, 1e-6), "rms_norm");
            assert_rows_independent(on, x.clone(), ops::swiglu, "swiglu");
            let (weight, _) = on.random([channels, channels], dtype, 67, 1.0);
            let layer = |x: Tensor<3>| {
                let gate = own(&x, 2);
                let x = on.narrow(&x, 1, 0, tokens);
                let epilogue = Epilogue {
                    bias: Some(&affine),
                    activation: Some(Nonlinearity::Gelu(Gelu::Tanh)),
                    gate: Some(&gate),
                    residual: Some(on.map(&x, |x| x * 0.5)),
                };
                ops::linear_with(x, &weight, epilogue)
            };
            assert_rows_independent(on, x.clone(), layer, "linear_with");
            let gelu = |x| ops::bias_gelu(x, &affine, Gelu::Tanh);
            assert_rows_independent(on, x.clone(), gelu, "bias_gelu");
            let [(cos, _), (sin, _)] = tables(on, tokens + 3, channels / 4);
            let weight = on.narrow(&affine, 0, 0, channels / 4 * 2);
            let rope = |x: Tensor<3>| {
                let q = on.narrow(&x, 2, 0, channels / 4 * 4);
                let k = on.map(&q, |x| x * 0.5);
                ops::qk_norm_rope(q, k, &weight, &weight, &cos, &sin, 1e-6)
            };
            assert_rows_independent(on, x.clone(), |x| rope(x).0, "q of qk_norm_rope");
            assert_rows_independent(on, x, |x| rope(x).1, "k of qk_norm_rope");
        }
    }
}

/// Queries, keys and gates that are parts of one product.
pub(crate) fn a_transformers_view_gives_the_bits_of_its_copy(on: &On) {
    let (x, _) = on.random([3, 7, 3 * 32], DType::F32, 60, 1.0);
    let (modulation, _) = on.random([3, 6 * 32], DType::F32, 61, 1.0);
    let solid = |x: Tensor<3>| Tensor::<3>::from_data(x.into_data(), &on.device);
    let flat = |x: Tensor<2>| Tensor::<2>::from_data(x.into_data(), &on.device);
    let (q, k) = (x.clone().narrow(2, 0, 32), x.narrow(2, 32, 32));
    let part = |which: usize| modulation.clone().narrow(1, 32 * which, 32);
    let weight = on.ones(16, DType::F32);
    let [(cos, _), (sin, _)] = tables(on, 7, 8);
    let rope = |q, k| {
        let (q, k) = ops::qk_norm_rope(q, k, &weight, &weight, &cos, &sin, 1e-6);
        (bits(q), bits(k))
    };
    assert_eq!(rope(q.clone(), k.clone()), rope(solid(q.clone()), solid(k.clone())));
    let modulate = |x, scale, shift| bits(ops::layer_norm_modulate(x, &scale, &shift, 1e-6));
    let copy = modulate(solid(q.clone()), flat(part(1)), flat(part(2)));
    assert_eq!(modulate(q.clone(), part(1), part(2)), copy);
    let gate = |residual, x, gate| bits(ops::gate_residual(residual, x, &gate));
    let copy = gate(solid(q.clone()), solid(k.clone()), flat(part(5)));
    assert_eq!(gate(q.clone(), k.clone(), part(5)), copy);
    let square = q.clone().narrow(0, 0, 1).narrow(1, 0, 1).reshape([1, 32]).repeat_dim(0, 32);
    let layer = |x, gate, residual| {
        let epilogue = Epilogue { gate: Some(&gate), residual: Some(residual), ..Epilogue::default() };
        bits(ops::linear_with(x, &square, epilogue))
    };
    let copy = layer(solid(q.clone()), flat(part(3)), solid(k.clone()));
    assert_eq!(layer(q.clone(), part(3), k), copy);
    assert_eq!(bits(ops::swiglu(q.clone())), bits(ops::swiglu(solid(q))));
}
