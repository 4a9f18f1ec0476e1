//! Where operations end on every backend: no element at all, a single one, values that are infinite or not a number, and
//! batches of more pictures than a launch takes.

use aquatint::ops::{
    self, Activation, Conv2d, DenoiseRow, Epilogue, Estimate, Gelu, Mask, Nonlinearity, Sinusoids, Slot,
    Source,
};
use burn::tensor::{DType, Tensor};

use crate::definitions::{On, bits, read};
use crate::host::{self, Exact};

#[track_caller]
fn assert_empty<const D: usize>(y: Tensor<D>, shape: [usize; D], dtype: DType, what: &str) {
    assert_eq!((y.dims(), y.dtype()), (shape, dtype), "{what}");
    assert!(read(y).is_empty(), "{what}");
}

/// No picture, no token, no channel.
pub(crate) fn tokens_that_are_not_there_give_none(on: &On) {
    for &dtype in on.dtypes {
        for shape @ [batch, tokens, channels] in [[0, 3, 8], [2, 0, 8], [0, 1, 8], [2, 3, 0], [0, 0, 0]] {
            let what = format!("{shape:?}");
            let x = || on.tensor(&[], shape, dtype);
            let ones = |count| Tensor::<1>::ones([count], (&on.device, dtype));
            let row = Tensor::<2>::ones([batch, channels], (&on.device, dtype));
            let affine = ones(channels);
            let check = |y: Tensor<3>, channels| assert_empty(y, [batch, tokens, channels], dtype, &what);
            check(ops::gelu(x()), channels);
            check(ops::quick_gelu(x()), channels);
            check(ops::silu(x()), channels);
            check(ops::geglu(x()), channels / 2);
            check(ops::swiglu(x()), channels / 2);
            check(ops::bias_gelu(x(), &affine, Gelu::Exact), channels);
            check(ops::layer_norm(x(), &affine, &affine, 1e-5), channels);
            check(ops::rms_norm(x(), &affine, 1e-5), channels);
            check(ops::layer_norm_modulate(x(), &row, &row, 1e-5), channels);
            check(ops::gate_residual(x(), x(), &row), channels);
            let table = Tensor::<2>::ones([tokens, 2], (&on.device, DType::F32));
            let head = ones(4);
            let (q, k) = ops::qk_norm_rope(x(), x(), &head, &head, &table, &table, 1e-5);
            check(q, channels);
            check(k, channels);
            let keys = Tensor::<3>::ones([batch, 5, channels], (&on.device, dtype));
            check(ops::attention(x(), keys.clone(), keys, 1, Mask::None), channels);
            check(ops::attention(x(), x(), x(), 1, Mask::Causal), channels);
            if channels > 0 {
                let weight = Tensor::<2>::ones([12, channels], (&on.device, dtype));
                check(ops::linear(x(), &weight, Some(&ones(12))), 12);
                let residual = on.tensor(&[], [batch, tokens, 12], dtype);
                check(ops::linear_add(x(), &weight, None, residual), 12);
            }
        }
        let none = Tensor::<2>::zeros([0, 8], (&on.device, dtype));
        let y = ops::linear(Tensor::ones([2, 3, 8], (&on.device, dtype)), &none, None);
        assert_empty(y, [2, 3, 0], dtype, "no outputs");
    }
}

pub(crate) fn maps_that_are_not_there_give_none(on: &On) {
    let walk = Conv2d { stride: 1, padding: [1; 4] };
    for &dtype in on.dtypes {
        let affine = Tensor::<1>::ones([8], (&on.device, dtype));
        let ones = |shape: [usize; 4]| Tensor::<4>::ones(shape, (&on.device, dtype));
        for shape @ [batch, height, width, channels] in [[0, 5, 4, 8], [2, 0, 4, 8], [2, 5, 0, 8]] {
            let what = format!("{shape:?}");
            let x = || on.tensor(&[], shape, dtype);
            let y = ops::group_norm(x(), 2, &affine, &affine, 1e-5, Activation::Silu);
            assert_empty(y, shape, dtype, &what);
            assert_empty(
                ops::upsample_nearest_2x(x()),
                [batch, 2 * height, 2 * width, channels],
                dtype,
                &what,
            );
        }
        for outputs in [4, 32] {
            let what = format!("{outputs} outputs");
            let x = || on.tensor(&[], [0, 5, 4, 8], dtype);
            let weight = ones([outputs, 3, 3, 8]);
            let y = ops::upsample_conv2d(x(), [10, 7], &weight, None, &walk);
            assert_empty(y, [0, 10, 7, outputs], dtype, &what);
            let y = ops::conv2d(x(), &weight, None, &walk);
            assert_empty(y, [0, 5, 4, outputs], dtype, &what);
            for residual in [[0, 5, 4, outputs], [0, 1, 1, outputs]] {
                let y = ops::conv2d_add(x(), &weight, None, &walk, on.tensor(&[], residual, dtype));
                assert_empty(y, [0, 5, 4, outputs], dtype, &what);
            }
        }
        let y = ops::conv2d(ones([2, 5, 4, 8]), &on.tensor(&[], [0, 3, 3, 8], dtype), None, &walk);
        assert_empty(y, [2, 5, 4, 0], dtype, "no outputs");
        let embedded = ops::timestep_embedding(&[], &Sinusoids::new(8, true, 0.0, &on.device), dtype);
        assert_empty(embedded, [0, 8], dtype, "no timesteps");
        let embedded = ops::timestep_embedding(&[1.0, 2.0], &Sinusoids::new(0, true, 0.0, &on.device), dtype);
        assert_empty(embedded, [2, 0], dtype, "no channels");
    }
    let predictions = Tensor::<4>::ones([1, 4, 2, 2], (&on.device, DType::F32));
    assert!(ops::denoise_step(predictions, Vec::new()).is_empty());
    ops::side_by_side(Vec::new());
}

/// PyTorch's `linear` of no inputs is its bias, `scaled_dot_product_attention` over no keys is zero.
pub(crate) fn a_sum_over_nothing_is_zero(on: &On) {
    for &dtype in on.dtypes {
        let (bias, b) = on.random([12], dtype, 200, 1.0);
        let (residual, r) = on.random([2, 3, 12], dtype, 201, 1.0);
        let none = || (on.tensor(&[], [2, 3, 0], dtype), on.tensor(&[], [12, 0], dtype));
        let (x, weight) = none();
        assert_eq!(read(ops::linear(x, &weight, Some(&bias))), b.repeat(6), "{dtype:?}");
        let (x, weight) = none();
        assert_eq!(read(ops::linear(x, &weight, None)), [0.0; 72], "{dtype:?}");
        let (x, weight) = none();
        let y = ops::linear_add(x, &weight, Some(&bias), residual);
        let expected: Vec<Exact> = (0..72)
            .map(|i| Exact { value: r[i] + b[i % 12], magnitude: r[i].abs() + b[i % 12].abs() })
            .collect();
        on.assert_close(y, &expected, 1e-7, "linear_add of no inputs");
        for head_dim in [8, 7] {
            let (q, _) = on.random([2, 3, 2 * head_dim], dtype, 202, 1.0);
            let keys = || on.tensor(&[], [2, 0, 2 * head_dim], dtype);
            let y = ops::attention(q, keys(), keys(), 2, Mask::None);
            assert_eq!(read(y), vec![0.0; 12 * head_dim], "{dtype:?} {head_dim}");
        }
    }
}

/// One picture of one pixel or token, of one group, head, key or channel.
pub(crate) fn single_elements_match_their_definitions(on: &On) {
    for &dtype in on.dtypes {
        let one = |value: f64| on.tensor(&[value], [1, 1, 1], dtype);
        let (weight, bias) = (on.tensor(&[3.0], [1], dtype), on.tensor(&[-0.5], [1], dtype));
        // One channel has no deviation: what is left is the bias, and the rounding of a factor of 1 / sqrt(eps).
        let eps = f64::from(1e-5_f32);
        let expected = host::layer_norm(&[7.0], &[3.0], &[-0.5], eps, on.sums);
        on.assert_close(ops::layer_norm(one(7.0), &weight, &bias, 1e-5), &expected, 5e-7, "layer_norm");
        let pixel = one(7.0).reshape([1, 1, 1, 1]);
        let expected = host::group_norm(&[7.0], 1, 1, &[3.0], &[-0.5], eps, on.sums);
        assert_eq!((expected.len(), expected[0].value), (1, -0.5));
        for (activation, f) in [(Activation::None, (|x| x) as fn(f64) -> f64), (Activation::Silu, host::silu)]
        {
            let y = ops::group_norm(pixel.clone(), 1, &weight, &bias, 1e-5, activation);
            let expected: Vec<Exact> = expected.iter().map(|x| x.map(f)).collect();
            on.assert_close(y, &expected, 1e-6, "group_norm");
        }
        let exact = |value: f64| [Exact { value, magnitude: 1.0 }];
        on.assert_close(ops::rms_norm(one(-7.0), &weight, 1e-12), &exact(-3.0), 4e-7, "rms_norm");
        assert_eq!(read(ops::upsample_nearest_2x(pixel)), [7.0; 4]);
        // A single key has all of the weight, whatever its score.
        for head_dim in [1, 8, 64, 512] {
            let (q, _) = on.random([1, 1, head_dim], dtype, 203, 1.0);
            let (v, values) = on.random([1, 1, head_dim], dtype, 204, 1.0);
            for mask in [Mask::None, Mask::Causal] {
                let y = ops::attention(q.clone(), q.clone() * 50.0, v.clone(), 1, mask);
                assert_eq!(read(y), values, "attention of {head_dim} {mask:?}");
            }
        }
        let slot = Slot::new(on.tensor(&[2.0], [1, 1, 1, 1], DType::F32));
        let row = DenoiseRow {
            positive: 0,
            guided: None,
            sample: &slot,
            estimate: Estimate { sample: 1.0, output: -1.0, clamp: None },
            noise: Some(vec![4.0]),
            writes: vec![vec![(Source::Denoised, 0.5), (Source::Noise, 2.0)]],
        };
        let prediction = on.tensor(&[5.0], [1, 1, 1, 1], dtype);
        let stepped = ops::denoise_step(prediction, vec![row]);
        assert_eq!(read(stepped[0].values[0].tensor()), [6.5]);
        assert_eq!(read(ops::denoise_input(&[(&slot, 3.0)], dtype)), [6.0]);
    }
}

/// At the ends as torch 2.15's `x * sigmoid(x)` and `x / 2 * (1 + erf(x / sqrt(2)))`: an infinite value stays so above, is
/// no number below, where it meets a factor of zero; finite ones are themselves or nothing.
pub(crate) fn activations_keep_what_is_not_finite(on: &On) {
    const ENDS: [(f64, f64); 7] = [
        (f64::INFINITY, f64::INFINITY),
        (f64::NEG_INFINITY, f64::NAN),
        (f64::NAN, f64::NAN),
        (3e38, 3e38),
        (-3e38, 0.0),
        (1e20, 1e20),
        (-1e20, 0.0),
    ];
    for &dtype in on.dtypes {
        // 3e38 is infinite in f16.
        let ends =
            || ENDS.into_iter().filter(|(x, _)| dtype != DType::F16 || x.abs() != 3e38 && x.abs() != 1e20);
        for width in [1, 2, 4, 8] {
            let x: Vec<f64> = ends().flat_map(|(x, _)| std::iter::repeat_n(x, width)).collect();
            let expected: Vec<f64> = ends().flat_map(|(_, y)| std::iter::repeat_n(y, width)).collect();
            let rows = ends().count();
            let tensor = || on.tensor(&x, [1, rows, width], dtype);
            let check = |y: Tensor<3>, what: &str| {
                for ((x, expected), y) in x.iter().zip(&expected).zip(read(y)) {
                    let same = y.is_nan() && expected.is_nan()
                        || (y - expected).abs() <= 1e-2 * expected.abs()
                        || y == *expected;
                    assert!(same, "{what} {dtype:?} in rows of {width}: {y} for {x}");
                }
            };
            check(ops::gelu(tensor()), "gelu");
            check(ops::quick_gelu(tensor()), "quick_gelu");
            check(ops::silu(tensor()), "silu");
            check(ops::activate(tensor(), Nonlinearity::Gelu(Gelu::Tanh)), "gelu_tanh");
            let zeros = Tensor::<1>::zeros([width], (&on.device, dtype));
            check(ops::bias_gelu(tensor(), &zeros, Gelu::Exact), "bias_gelu");
            check(ops::bias_gelu(tensor(), &zeros, Gelu::Tanh), "bias_gelu_tanh");
            // A value of one leaves the gate.
            let gated = || Tensor::cat(vec![Tensor::ones_like(&tensor()), tensor()], 2);
            check(ops::geglu(gated()), "geglu");
            check(ops::swiglu(gated()), "swiglu");
        }
        let values: Vec<f64> = ends().map(|(x, _)| x).collect();
        let one = on.tensor(&[1.0], [1, 1], dtype);
        // Many rows of one picture, and one row of many.
        for shape in [[1, values.len(), 1], [values.len(), 1, 1]] {
            for activation in [
                Nonlinearity::Gelu(Gelu::Exact),
                Nonlinearity::Gelu(Gelu::Tanh),
                Nonlinearity::QuickGelu,
                Nonlinearity::Silu,
            ] {
                let epilogue = Epilogue { activation: Some(activation), ..Epilogue::default() };
                let y = read(ops::linear_with(on.tensor(&values, shape, dtype), &one, epilogue));
                for ((x, expected), y) in ends().zip(y) {
                    let same = y.is_nan() && expected.is_nan()
                        || (y - expected).abs() <= 1e-2 * expected.abs()
                        || y == expected;
                    assert!(same, "{activation:?} behind a product, {dtype:?}: {y} for {x}");
                }
            }
        }
        if dtype != DType::F16 {
            // The gate closes before its value could overflow with it.
            let x = on.tensor(&[1e30, -1e30], [1, 1, 2], dtype);
            assert_eq!(read(ops::swiglu(x.clone()))[0].abs(), 0.0, "{dtype:?}");
            assert_eq!(read(ops::geglu(x))[0].abs(), 0.0, "{dtype:?}");
        }
    }
}

/// As a softmax: a score of -inf has no weight; where a score is no number, nor is the query's row; other rows, heads and
/// pictures do not notice.
pub(crate) fn scores_that_are_not_finite_stay_in_their_row(on: &On) {
    const KEYS: usize = 70;
    let shape = [2, KEYS, 16];
    let at = |picture: usize, token: usize, head: usize| (picture * KEYS + token) * 16 + head * 8;
    for &dtype in on.dtypes {
        let (_, q) = on.random(shape, dtype, 205, 1.0);
        let (_, mut k) = on.random(shape, dtype, 206, 1.0);
        let (v, _) = on.random(shape, dtype, 207, 1.0);
        // One channel decides whether a key is seen: all queries have one there.
        let mut q = q;
        for token in 0..KEYS {
            q[at(0, token, 0)] = 1.0;
        }
        let run = |q: &[f64], k: &[f64], v: &Tensor<3>| {
            let (q, k) = (on.tensor(q, shape, dtype), on.tensor(k, shape, dtype));
            read(ops::attention(q, k, v.clone(), 2, Mask::None))
        };
        let row = |y: &[f64], start: usize| y[start..start + 8].to_vec();
        // Keys at -inf are as if they were far below the others.
        let hidden = [3, 40, 69];
        for token in hidden {
            k[at(0, token, 0)] = -3e4;
        }
        let expected = run(&q, &k, &v);
        for token in hidden {
            k[at(0, token, 0)] = f64::NEG_INFINITY;
        }
        assert_eq!(run(&q, &k, &v), expected, "{dtype:?}: scores of -inf");
        for poison in [f64::NAN, f64::INFINITY] {
            let mut lost = q.clone();
            lost[at(1, 5, 1)] = poison;
            let y = run(&lost, &k, &v);
            assert!(row(&y, at(1, 5, 1)).iter().all(|y| y.is_nan()), "{dtype:?} {poison}: {y:?}");
            let others = |y: &[f64]| [&y[..at(1, 5, 1)], &y[at(1, 5, 1) + 8..]].concat();
            assert_eq!(others(&y), others(&expected), "{dtype:?} {poison}");
        }
    }
}

/// More pictures than a grid has workgroups in one direction.
pub(crate) fn batches_of_more_pictures_than_a_launch_takes_have_the_bits_of_small_ones(on: &On) {
    const BATCH: usize = 65_541;
    for &dtype in on.dtypes {
        let (x, _) = on.random([BATCH, 1, 8], dtype, 208, 10.0);
        let (weight, _) = on.random([3, 8], dtype, 209, 1.0);
        let (affine, _) = on.random([8], dtype, 210, 1.0);
        check_parts(x.clone(), |x| ops::linear(x, &weight, None), "linear");
        let (square, _) = on.random([8, 8], dtype, 211, 1.0);
        let gated = |x: Tensor<3>| {
            let gate = x.clone().reshape([x.dims()[0], 8]);
            let epilogue = Epilogue { gate: Some(&gate), residual: Some(x.clone()), ..Epilogue::default() };
            ops::linear_with(x, &square, epilogue)
        };
        check_parts(x.clone(), gated, "linear_with");
        check_parts(x.clone(), |x| ops::attention(x.clone(), x.clone() * 0.5, x, 1, Mask::None), "attention");
        let norm = |x: Tensor<3>| {
            let batch = x.dims()[0];
            let x = x.reshape([batch, 1, 1, 8]);
            ops::group_norm(x, 2, &affine, &affine, 1e-5, Activation::Silu).reshape([batch, 1, 8])
        };
        check_parts(x, norm, "group_norm");
    }
}

/// Rows and groups beyond 65,535, which is the most that a grid takes in one direction.
pub(crate) fn more_workgroups_than_one_direction_takes_reach_every_row(on: &On) {
    let rows = 65_535 * 4 + 1_001;
    let halves: Vec<f64> = (0..rows).flat_map(|row| [f64::from(row % 97), f64::from(row % 89)]).collect();
    let x = on.tensor(&halves, [1, rows as usize, 2], DType::F32);
    let ones = Tensor::<1>::ones([2], (&on.device, DType::F32));
    let y = read(ops::layer_norm(x, &ones, &ones, 1.0));
    for (x, y) in halves.chunks(2).zip(y.chunks(2)) {
        let half = (x[0] - x[1]) / 2.0;
        let normal = half / (half * half + 1.0).sqrt();
        let near = (y[0] - 1.0 - normal).abs() < 1e-5 && (y[1] - 1.0 + normal).abs() < 1e-5;
        assert!(near, "{y:?} for {x:?}");
    }
    let rows = 65_535 * 64 + 1_001;
    let x: Vec<f64> = (0..rows).map(|row| f64::from(row % 8_191)).collect();
    let three = on.tensor(&[3.0], [1, 1], DType::F32);
    let y = ops::linear(on.tensor(&x, [1, rows as usize, 1], DType::F32), &three, None);
    assert!(read(y).iter().zip(&x).all(|(y, x)| *y == 3.0 * x));
    // Groups of one channel, in maps of one slice and of several.
    const GROUPS: usize = 65_541;
    let affine = Tensor::<1>::ones([GROUPS], (&on.device, DType::F32));
    for pixels in [2, 66] {
        let sign = |i: usize| if (i / GROUPS).is_multiple_of(2) { 1.0 } else { -1.0 };
        let x: Vec<f64> = (0..pixels * GROUPS).map(|i| sign(i) * (1 + i % GROUPS % 5) as f64).collect();
        let map = on.tensor(&x, [1, pixels, 1, GROUPS], DType::F32);
        let y = read(ops::group_norm(map, GROUPS, &affine, &affine, 1.0, Activation::None));
        for (x, y) in x.iter().zip(y) {
            let expected = 1.0 + x / (x * x + 1.0).sqrt();
            assert!((y - expected).abs() < 1e-5, "{pixels} pixels: {y} for {x}");
        }
    }
}

#[track_caller]
fn check_parts(x: Tensor<3>, compute: impl Fn(Tensor<3>) -> Tensor<3>, what: &str) {
    let batch = x.dims()[0];
    let all = compute(x.clone());
    assert_eq!(all.dims()[0], batch);
    for start in [0, 32_768, batch / 2 - 3, batch - 7] {
        let some = bits(compute(x.clone().narrow(0, start, 7)));
        assert!(bits(all.clone().narrow(0, start, 7)) == some, "{what}: pictures from {start} on");
    }
}

type Test = fn(&On);

/// All of them, for a test program that runs by a list.
#[allow(dead_code, reason = "one of the programs names each test")]
pub(crate) const TESTS: &[(&str, Test)] = &[
    ("tokens_that_are_not_there_give_none", tokens_that_are_not_there_give_none),
    ("maps_that_are_not_there_give_none", maps_that_are_not_there_give_none),
    ("a_sum_over_nothing_is_zero", a_sum_over_nothing_is_zero),
    ("single_elements_match_their_definitions", single_elements_match_their_definitions),
    ("activations_keep_what_is_not_finite", activations_keep_what_is_not_finite),
    ("scores_that_are_not_finite_stay_in_their_row", scores_that_are_not_finite_stay_in_their_row),
    (
        "batches_of_more_pictures_than_a_launch_takes_have_the_bits_of_small_ones",
        batches_of_more_pictures_than_a_launch_takes_have_the_bits_of_small_ones,
    ),
    (
        "more_workgroups_than_one_direction_takes_reach_every_row",
        more_workgroups_than_one_direction_takes_reach_every_row,
    ),
];
