//! What every backend's operations must give: their definitions in f64, with odd sizes, outliers and every dtype that
//! the backend computes in; and a row's bits in any batch.

use aquatint::ops::{self, Activation, Conv2d, Gelu, Mask, Nonlinearity};
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::host::{self, Exact, Sums};

/// Where the operations run.
#[derive(Clone, Debug)]
pub(crate) struct On {
    pub(crate) device: Device,
    pub(crate) dtypes: &'static [DType],
    /// How much further than the CPU's kernels a result may be from its definition.
    pub(crate) slack: f64,
    pub(crate) sums: Sums,
    /// Whether attention rounds its exponentials to f16 or bf16 before they meet the values.
    pub(crate) rounds_weights: bool,
    /// Whether the kernels that cubecl generates run there: burn's own operations, and its copies of views.
    pub(crate) generated: bool,
}

/// Normally distributed values (the sum of twelve uniform ones), every 61st an outlier.
pub(crate) fn values(count: usize, seed: u64, outlier: f64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    (0..count)
        .map(|i| {
            let normal = (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
            if i % 61 == 60 { normal * outlier } else { normal }
        })
        .collect()
}

/// The largest outlier that a product of two still fits into the dtype.
pub(crate) fn outlier(dtype: DType) -> f64 {
    if dtype == DType::F16 { 10.0 } else { 1e4 }
}

pub(crate) fn read<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.into_data().convert::<f64>().try_to_vec().unwrap()
}

pub(crate) fn bits<const D: usize>(x: Tensor<D>) -> Vec<u8> {
    x.into_data().bytes().to_vec()
}

/// Half a unit in the last place of an f16 or bf16, relative.
pub(crate) fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => 0.0,
    }
}

impl On {
    pub(crate) fn tensor<const D: usize>(
        &self,
        values: &[f64],
        shape: [usize; D],
        dtype: DType,
    ) -> Tensor<D> {
        if !self.generated {
            // Of one dimension, without the gaps between rows that burn would have to take out.
            let data = TensorData::new(values.to_vec(), [values.len()]).convert_dtype(dtype);
            return Tensor::<1>::from_data(data, (&self.device, dtype)).reshape(shape);
        }
        let data = TensorData::new(values.to_vec(), shape).convert_dtype(dtype);
        Tensor::from_data(data, (&self.device, dtype))
    }

    pub(crate) fn ones(&self, count: usize, dtype: DType) -> Tensor<1> {
        self.tensor(&vec![1.0; count], [count], dtype)
    }

    /// A function of every element.
    pub(crate) fn map<const D: usize>(&self, x: &Tensor<D>, function: impl Fn(f64) -> f64) -> Tensor<D> {
        let values: Vec<f64> = read(x.clone()).into_iter().map(function).collect();
        self.tensor(&values, x.dims(), x.dtype())
    }

    /// A part of a dimension: a view where there is what copies one.
    pub(crate) fn narrow<const D: usize>(
        &self,
        x: &Tensor<D>,
        dimension: usize,
        start: usize,
        length: usize,
    ) -> Tensor<D> {
        if self.generated {
            return x.clone().narrow(dimension, start, length);
        }
        let mut shape = x.dims();
        let inner: usize = shape[dimension + 1..].iter().product();
        let values = read(x.clone());
        let parts = values.chunks(shape[dimension] * inner);
        let kept: Vec<f64> =
            parts.flat_map(|part| &part[start * inner..(start + length) * inner]).copied().collect();
        shape[dimension] = length;
        self.tensor(&kept, shape, x.dtype())
    }

    /// The cases of a test: all, or a few where every kernel takes a second to compile and its threads run one by one.
    pub(crate) fn cases<'a, T>(&self, all: &'a [T], few: &'a [T]) -> &'a [T] {
        if self.generated { all } else { few }
    }

    /// As [`assert_close`](Self::assert_close) of what burn's own operations compute, where they run.
    #[track_caller]
    pub(crate) fn assert_reference<const D: usize>(
        &self,
        compute: impl FnOnce() -> Tensor<D>,
        expected: &[Exact],
        tolerance: f64,
        what: &str,
    ) {
        if self.generated {
            self.assert_close(compute(), expected, tolerance, what);
        }
    }

    /// A random tensor, and the same values as it stores them.
    pub(crate) fn random<const D: usize>(
        &self,
        shape: [usize; D],
        dtype: DType,
        seed: u64,
        outlier: f64,
    ) -> (Tensor<D>, Vec<f64>) {
        let tensor = self.tensor(&values(shape.iter().product(), seed, outlier), shape, dtype);
        let stored = read(tensor.clone());
        (tensor, stored)
    }

    /// `tolerance` is relative to the sum of the terms' magnitudes; storing in `dtype` adds half a unit in the last place.
    #[track_caller]
    pub(crate) fn assert_close<const D: usize>(
        &self,
        actual: Tensor<D>,
        expected: &[Exact],
        tolerance: f64,
        what: &str,
    ) {
        let dtype = actual.dtype();
        let epsilon = rounding(dtype);
        let tiny = match dtype {
            DType::F16 => 2f64.powi(-25),
            DType::BF16 => 0.0,
            _ => 1e-37,
        };
        let actual = read(actual);
        assert_eq!(actual.len(), expected.len(), "{what}");
        assert!(!actual.is_empty(), "{what}: nothing compared");
        for (i, (actual, exact)) in actual.iter().zip(expected).enumerate() {
            let allowed =
                self.slack * tolerance * exact.magnitude + 1.01 * epsilon * exact.value.abs() + tiny;
            let error = (actual - exact.value).abs();
            assert!(
                error <= allowed,
                "{what} {dtype:?} [{i}]: {actual} for {exact:?}, error {error:e} > {allowed:e}"
            );
        }
    }
}

/// Each row of a batch alone, then in batches of 2, 5 and 16 of its neighbours.
#[track_caller]
pub(crate) fn assert_rows_independent<const D: usize>(
    on: &On,
    x: Tensor<D>,
    compute: impl Fn(Tensor<D>) -> Tensor<D>,
    what: &str,
) {
    let batch = x.dims()[0];
    assert_eq!(batch, 16);
    let alone: Vec<_> = (0..batch).map(|row| bits(compute(on.narrow(&x, 0, row, 1)))).collect();
    for size in [2, 5, 16] {
        for start in (0..=batch - size).step_by(size) {
            let together = bits(compute(on.narrow(&x, 0, start, size)));
            for (row, alone) in alone[start..start + size].iter().enumerate() {
                let same = &together[row * alone.len()..(row + 1) * alone.len()] == alone;
                assert!(same, "{what}: row {row} of {size} differs from itself alone");
            }
        }
    }
}

pub(crate) fn linear_matches_its_definition(on: &On) {
    let shapes = [
        (1, 1, 1, 1),
        (3, 1, 34, 6),
        (2, 1, 1283, 33),
        (5, 1, 320, 130),
        (2, 3, 5, 7),
        (1, 13, 33, 31),
        (3, 25, 320, 65),
        (1, 97, 641, 48),
        (1, 131, 69, 259),
        (3, 7, 36, 132),
        (2, 50, 1283, 33),
        (2, 131, 72, 136),
    ];
    for &dtype in on.dtypes {
        for (batch, tokens, k, n) in shapes {
            let (x, x_values) = on.random([batch, tokens, k], dtype, 1, outlier(dtype));
            let (weight, w) = on.random([n, k], dtype, 2, 1.0);
            let (bias, b) = on.random([n], dtype, 3, 1.0);
            let (residual, r) = on.random([batch, tokens, n], dtype, 4, 1.0);
            let what = format!("linear {batch}x{tokens}x{k}x{n}");
            let y = ops::linear(x.clone(), &weight, Some(&bias));
            on.assert_close(y, &host::linear(&x_values, &w, Some(&b), None, k), 2e-6, &what);
            let y = ops::linear(x.clone(), &weight, None);
            on.assert_close(y, &host::linear(&x_values, &w, None, None, k), 2e-6, &what);
            let y = ops::linear_add(x, &weight, Some(&bias), residual);
            on.assert_close(y, &host::linear(&x_values, &w, Some(&b), Some(&r), k), 2e-6, &what);
        }
    }
}

pub(crate) fn conv2d_matches_its_definition(on: &On) {
    let even = [1; 4];
    let cases = [
        ([1, 1, 1, 1], [1, 3, 3, 1], 1, even),
        ([2, 5, 7, 3], [4, 3, 3, 3], 1, even),
        ([1, 9, 8, 33], [17, 3, 3, 33], 1, even),
        ([2, 8, 8, 48], [40, 3, 3, 48], 2, even),
        ([2, 8, 9, 16], [16, 3, 3, 16], 2, [0, 1, 0, 1]),
        ([2, 6, 5, 20], [33, 1, 1, 20], 1, [0; 4]),
        ([1, 7, 11, 4], [5, 5, 2, 4], 3, [2, 1, 0, 3]),
        ([2, 9, 8, 36], [23, 3, 3, 36], 1, even),
        ([1, 12, 11, 44], [3, 3, 3, 44], 1, even),
        ([1, 4, 4, 130], [64, 3, 3, 130], 1, even),
        ([2, 12, 11, 64], [136, 3, 3, 64], 1, even),
    ];
    for &dtype in on.dtypes {
        for (x_shape, w_shape, stride, padding) in cases {
            let conv = host::Conv { x: x_shape, weight: w_shape, stride, padding };
            let (x, x_values) = on.random(x_shape, dtype, 5, outlier(dtype));
            let (weight, w) = on.random(w_shape, dtype, 6, 1.0);
            let (bias, b) = on.random([w_shape[0]], dtype, 7, 1.0);
            let (residual, r) = on.random(conv.output(), dtype, 8, 1.0);
            let what = format!("conv2d {x_shape:?} {w_shape:?} stride {stride} padding {padding:?}");
            let walk = Conv2d { stride, padding };
            let mut expected = conv.compute(&x_values, &w, &b);
            let y = ops::conv2d(x.clone(), &weight, Some(&bias), &walk);
            assert_eq!(y.dims(), conv.output(), "{what}");
            on.assert_close(y, &expected, 2e-6, &what);
            if dtype == DType::F32 {
                let reference = || ops::reference::conv2d(x.clone(), &weight, Some(&bias), &walk, None);
                on.assert_reference(reference, &expected, 2e-6, &what);
            }
            let y = ops::conv2d_add(x, &weight, Some(&bias), &walk, residual);
            expected.iter_mut().zip(r).for_each(|(expected, r)| expected.add(r));
            on.assert_close(y, &expected, 2e-6, &what);
        }
    }
}

pub(crate) fn upsample_conv2d_matches_its_definition(on: &On) {
    let cases = [
        ([1, 1, 1, 1], [2, 2], 1, 3),
        ([2, 3, 5, 7], [6, 10], 33, 3),
        ([2, 4, 3, 20], [7, 6], 3, 3),
        ([1, 5, 6, 24], [10, 11], 40, 3),
        ([3, 4, 4, 16], [7, 7], 70, 1),
    ];
    for &dtype in on.dtypes {
        // What cuts a map to an odd side is burn's own.
        for &(shape, size, outputs, kernel) in on.cases(&cases, &cases[..2]) {
            let ([batch, height, width, channels], [rows, columns]) = (shape, size);
            let (x, x_values) = on.random(shape, dtype, 33, outlier(dtype));
            let (weight, w) = on.random([outputs, kernel, kernel, channels], dtype, 34, 1.0);
            let (bias, b) = on.random([outputs], dtype, 35, 1.0);
            let mut upsampled = Vec::new();
            for picture in 0..batch {
                for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i / 2, j / 2))) {
                    let start = ((picture * height + i) * width + j) * channels;
                    upsampled.extend_from_slice(&x_values[start..start + channels]);
                }
            }
            let conv = host::Conv {
                x: [batch, rows, columns, channels],
                weight: [outputs, kernel, kernel, channels],
                stride: 1,
                padding: [kernel / 2; 4],
            };
            let walk = Conv2d { stride: 1, padding: [kernel / 2; 4] };
            let what = format!("upsample_conv2d {shape:?} to {size:?}, {outputs} outputs");
            let y = ops::upsample_conv2d(x.clone(), size, &weight, Some(&bias), &walk);
            assert_eq!(y.dims(), conv.output(), "{what}");
            on.assert_close(y.clone(), &conv.compute(&upsampled, &w, &b), 2e-6, &what);
            let map = on.narrow(&ops::upsample_nearest_2x(x), 1, 0, rows);
            let map = on.narrow(&map, 2, 0, columns);
            assert_eq!(bits(y), bits(ops::conv2d(map, &weight, Some(&bias), &walk)), "{what}");
        }
    }
}

pub(crate) fn a_vector_a_picture_can_be_added_to_a_convolution(on: &On) {
    for n in [37, 5] {
        let conv = host::Conv { x: [3, 6, 5, 8], weight: [n, 3, 3, 8], stride: 1, padding: [1; 4] };
        let (x, x_values) = on.random(conv.x, DType::F32, 9, 1.0);
        let (weight, w) = on.random(conv.weight, DType::F32, 10, 1.0);
        let (bias, b) = on.random([n], DType::F32, 11, 1.0);
        let (shift, s) = on.random([3, 1, 1, n], DType::F32, 12, 1.0);
        let mut expected = conv.compute(&x_values, &w, &b);
        expected.iter_mut().enumerate().for_each(|(i, expected)| expected.add(s[i / (30 * n) * n + i % n]));
        let walk = Conv2d { stride: 1, padding: [1; 4] };
        let y = ops::conv2d_add(x.clone(), &weight, Some(&bias), &walk, shift.clone());
        on.assert_close(y, &expected, 2e-6, "conv2d_add");
        let reference = || ops::reference::conv2d(x, &weight, Some(&bias), &walk, Some(shift));
        on.assert_reference(reference, &expected, 2e-6, "reference");
    }
}

pub(crate) fn group_norm_matches_its_definition(on: &On) {
    let small =
        [([1, 1, 1, 2], 1), ([2, 3, 5, 6], 3), ([1, 4, 4, 320], 32), ([3, 7, 3, 36], 4), ([1, 9, 9, 16], 16)];
    group_norm_of(on, &small);
}

/// Shapes, and groups of each.
pub(crate) fn group_norm_of(on: &On, shapes: &[([usize; 4], usize)]) {
    for &dtype in on.dtypes {
        for &(shape, groups) in shapes {
            for offset in [0.0, 100.0] {
                let shifted: Vec<f64> =
                    values(shape.iter().product(), 13, outlier(dtype)).iter().map(|x| x + offset).collect();
                let x = on.tensor(&shifted, shape, dtype);
                let (weight, w) = on.random([shape[3]], dtype, 14, 1.0);
                let (bias, b) = on.random([shape[3]], dtype, 15, 1.0);
                let stored = read(x.clone());
                let expected = host::group_norm(
                    &stored,
                    shape[1] * shape[2],
                    groups,
                    &w,
                    &b,
                    f64::from(1e-5_f32),
                    on.sums,
                );
                let what = format!("group_norm {shape:?} {groups} offset {offset}");
                let y = ops::group_norm(x.clone(), groups, &weight, &bias, 1e-5, Activation::None);
                on.assert_close(y, &expected, 5e-7, &what);
                let silu: Vec<_> = expected.iter().map(|x| x.map(host::silu)).collect();
                let y = ops::group_norm(x.clone(), groups, &weight, &bias, 1e-5, Activation::Silu);
                on.assert_close(y, &silu, 1e-6, &what);
                let reference =
                    || ops::reference::group_norm(x, groups, &weight, &bias, 1e-5, Activation::Silu);
                on.assert_reference(reference, &silu, 1e-5, &what);
            }
        }
    }
}

/// A sum of many equal numbers rounds the same way every time; the deviations here are a ten-thousandth of the mean.
pub(crate) fn group_norm_far_from_zero_keeps_its_mean(on: &On) {
    // An odd width of 65 channels leaves each thread a long column of pixels.
    let shape = [1, 256, 128, 65];
    let stored: Vec<f64> =
        (0..shape.iter().product()).map(|i| f64::from(if i % 2 == 0 { 100.1_f32 } else { 100.12 })).collect();
    let (ones, zeros) = (on.tensor(&[1.0; 65], [65], DType::F32), on.tensor(&[0.0; 65], [65], DType::F32));
    let x = on.tensor(&stored, shape, DType::F32);
    let y = ops::group_norm(x, 1, &ones, &zeros, 1e-6, Activation::None);
    let mean = stored.iter().sum::<f64>() / stored.len() as f64;
    let variance = stored.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / stored.len() as f64;
    let factor = 1.0 / (variance + f64::from(1e-6_f32)).sqrt();
    // Three roundings of the mean to f32.
    let allowed = 3.0 * 2f64.powi(-24) * mean * factor;
    for (x, y) in stored.iter().zip(read(y)) {
        let expected = (x - mean) * factor;
        assert!((y - expected).abs() <= allowed, "{y} for {expected}, allowed {allowed:e}");
    }
}

pub(crate) fn layer_norm_matches_its_definition(on: &On) {
    for &dtype in on.dtypes {
        let all = [[1, 1, 1], [2, 3, 7], [1, 5, 320], [2, 9, 1283]];
        for &shape in on.cases(&all, &[[2, 3, 7], [1, 5, 48]]) {
            let (x, x_values) = on.random(shape, dtype, 16, outlier(dtype));
            let (weight, w) = on.random([shape[2]], dtype, 17, 1.0);
            let (bias, b) = on.random([shape[2]], dtype, 18, 1.0);
            let expected = host::layer_norm(&x_values, &w, &b, f64::from(1e-5_f32), on.sums);
            let what = format!("layer_norm {shape:?}");
            on.assert_close(ops::layer_norm(x.clone(), &weight, &bias, 1e-5), &expected, 5e-7, &what);
            let reference = || ops::reference::layer_norm(x, &weight, &bias, 1e-5);
            on.assert_reference(reference, &expected, 1e-5, &what);
        }
    }
}

pub(crate) fn attention_matches_its_definition(on: &On) {
    let cases = [
        (1, 1, 1, 1, 1, Mask::None),
        (2, 5, 3, 2, 7, Mask::None),
        (1, 13, 77, 8, 40, Mask::None),
        (1, 100, 257, 2, 33, Mask::None),
        (1, 3, 600, 1, 321, Mask::None),
        (2, 24, 24, 4, 32, Mask::Causal),
        (1, 300, 300, 2, 16, Mask::Causal),
        (1, 70, 77, 2, 64, Mask::None),
        (1, 65, 65, 1, 80, Mask::Causal),
        (2, 9, 33, 1, 128, Mask::None),
        (1, 17, 200, 1, 160, Mask::None),
        (1, 40, 50, 1, 512, Mask::None),
        (1, 9, 40, 2, 24, Mask::None),
        (1, 33, 70, 1, 256, Mask::None),
        (1, 70, 70, 1, 264, Mask::Causal),
    ];
    let few =
        [(2, 70, 77, 2, 64, Mask::None), (1, 100, 100, 2, 16, Mask::Causal), (1, 40, 50, 1, 512, Mask::None)];
    for &dtype in on.dtypes {
        for &(batch, queries, keys, heads, head_dim, mask) in on.cases(&cases, &few) {
            let channels = heads * head_dim;
            let (q, q_values) = on.random([batch, queries, channels], dtype, 19, 3.0);
            let (k, k_values) = on.random([batch, keys, channels], dtype, 20, 3.0);
            let (v, v_values) = on.random([batch, keys, channels], dtype, 21, outlier(dtype));
            let exact =
                host::Attention { batch, queries, keys, heads, head_dim, causal: mask == Mask::Causal };
            let expected = exact.compute(&q_values, &k_values, &v_values);
            let what = format!("attention {batch}x{queries}x{keys} {heads}x{head_dim} {mask:?}");
            let y = ops::attention(q.clone(), k.clone(), v.clone(), heads, mask);
            let weights = if on.rounds_weights { rounding(dtype) / on.slack } else { 0.0 };
            on.assert_close(y, &expected, 5e-7 + weights, &what);
            let reference = || ops::reference::attention(q, k, v, heads, mask);
            on.assert_reference(reference, &expected, 2e-6, &what);
        }
    }
}

pub(crate) fn attention_survives_scores_that_overflow_an_exponential(on: &On) {
    let rows = |scale: f64| -> Vec<f64> { values(40 * 8, 22, 1.0).iter().map(|x| x * scale).collect() };
    let (q, k, v) = (rows(1e4), rows(1e4), rows(1.0));
    let shape = [1, 40, 8];
    let [tq, tk, tv] = [&q, &k, &v].map(|x| on.tensor(x, shape, DType::F32));
    let stored = [&tq, &tk, &tv].map(|x| read(x.clone()));
    let exact = host::Attention { batch: 1, queries: 40, keys: 40, heads: 1, head_dim: 8, causal: false };
    let expected = exact.compute(&stored[0], &stored[1], &stored[2]);
    on.assert_close(ops::attention(tq, tk, tv, 1, Mask::None), &expected, 5e-7, "attention");
}

pub(crate) fn activations_match_their_definitions(on: &On) {
    let mut x: Vec<f64> = (-2000..=2000).map(|i| f64::from(i) / 100.0).collect();
    x.extend([-1e4, 1e4, -88.0, 88.0, -90.0, 100.0, 1e-30, -0.0]);
    for &dtype in on.dtypes {
        let tensor = on.tensor(&x, [x.len()], dtype);
        let stored = read(tensor.clone());
        let exact = |f: fn(f64) -> f64| -> Vec<Exact> {
            stored.iter().map(|x| Exact { value: f(*x), magnitude: x.abs().clamp(1e-30, 4.0) }).collect()
        };
        on.assert_close(ops::gelu(tensor.clone()), &exact(host::gelu), 4e-7, "gelu");
        on.assert_close(ops::silu(tensor.clone()), &exact(host::silu), 4e-7, "silu");
        on.assert_close(ops::quick_gelu(tensor.clone()), &exact(host::quick_gelu), 4e-7, "quick_gelu");
        let y = ops::activate(tensor, Nonlinearity::Gelu(Gelu::Tanh));
        on.assert_close(y, &exact(host::gelu_tanh), 4e-7, "gelu_tanh");
    }
}

pub(crate) fn geglu_gates_the_first_half_by_the_second(on: &On) {
    for &dtype in on.dtypes {
        for shape in [[1, 1, 2], [2, 3, 38], [1, 5, 2560]] {
            let (x, x_values) = on.random(shape, dtype, 23, 5.0);
            let half = shape[2] / 2;
            let expected: Vec<Exact> = x_values
                .chunks_exact(2 * half)
                .flat_map(|row| (0..half).map(|c| (row[c], row[half + c])))
                .map(|(a, b)| Exact { value: a * host::gelu(b), magnitude: (a * b).abs() })
                .collect();
            on.assert_close(ops::geglu(x.clone()), &expected, 1e-6, "geglu");
            on.assert_reference(|| ops::reference::geglu(x), &expected, 1e-6, "reference");
        }
    }
}

pub(crate) fn upsampling_repeats_every_pixel(on: &On) {
    for &dtype in on.dtypes {
        let (x, values) = on.random([2, 3, 5, 7], dtype, 24, 1.0);
        let y = ops::upsample_nearest_2x(x.clone());
        assert_eq!(y.dims(), [2, 6, 10, 7]);
        if on.generated {
            assert_eq!(bits(y.clone()), bits(ops::reference::upsample_nearest_2x(x)));
        }
        for (i, actual) in read(y).into_iter().enumerate() {
            let (b, y, x, c) = (i / 420, i / 70 % 6, i / 7 % 10, i % 7);
            assert_eq!(actual, values[((b * 3 + y / 2) * 5 + x / 2) * 7 + c]);
        }
    }
}
