//! The CPU kernels at the shapes of an SD1.5-size U-Net at 256² and of the embedded model.
//!
//! `cargo bench --bench ops`; criterion's "elem/s" are floating-point operations a second.
#![cfg(feature = "cpu")]

use std::time::Duration;

use aquatint::ops::{self, Activation, Conv2d, Mask};
use burn::tensor::{DType, Device, Distribution, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), (&Device::flex(), DType::F32))
}

fn measure(criterion: &mut Criterion, name: &str, operations: usize, mut compute: impl FnMut() + Send) {
    let mut group = criterion.benchmark_group("ops");
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1)).sample_size(20);
    group.throughput(Throughput::Elements(operations as u64));
    // On a thread of the pool, as `ops` asks of callers that run many small operations.
    group.bench_function(name, |bencher| rayon::scope(|_| bencher.iter(&mut compute)));
    group.finish();
}

/// Tokens, outputs, inputs.
const LINEAR: [[usize; 3]; 10] = [
    [1024, 1280, 1280],
    [1024, 320, 320],
    [1024, 2560, 320],
    [256, 640, 640],
    [64, 10240, 1280],
    [16, 1280, 5120],
    [1, 1280, 1280],
    [64, 64, 64],
    [16, 1024, 128],
    [1, 128, 128],
];

fn linear(criterion: &mut Criterion) {
    for [m, n, k] in LINEAR {
        let (x, weight, bias) = (random([1, m, k]), random([n, k]), random([n]));
        measure(criterion, &format!("linear {m}x{n}x{k}"), 2 * m * n * k, || {
            std::hint::black_box(ops::linear(x.clone(), &weight, Some(&bias)));
        });
    }
}

/// Side, inputs, outputs.
const CONV: [[usize; 3]; 12] = [
    [32, 320, 320],
    [128, 128, 128],
    [16, 640, 640],
    [8, 1280, 1280],
    [4, 1280, 1280],
    [16, 4, 32],
    [16, 32, 32],
    [8, 64, 64],
    [4, 128, 128],
    [64, 32, 16],
    [64, 16, 16],
    [32, 64, 64],
];

fn conv2d(criterion: &mut Criterion) {
    let walk = Conv2d { stride: 1, padding: [1; 4] };
    for [side, inputs, outputs] in CONV {
        let (x, weight, bias) =
            (random([1, side, side, inputs]), random([outputs, 3, 3, inputs]), random([outputs]));
        let operations = 2 * side * side * 9 * inputs * outputs;
        measure(criterion, &format!("conv2d {side}² {inputs}->{outputs}"), operations, || {
            std::hint::black_box(ops::conv2d(x.clone(), &weight, Some(&bias), &walk));
        });
    }
}

/// Heads, queries, keys, head dimension.
const ATTENTION: [[usize; 4]; 7] = [
    [8, 1024, 1024, 64],
    [8, 1024, 1024, 40],
    [8, 1024, 77, 40],
    [8, 256, 256, 80],
    [8, 64, 64, 160],
    [4, 64, 64, 16],
    [4, 16, 24, 32],
];

fn attention(criterion: &mut Criterion) {
    for [heads, queries, keys, head_dim] in ATTENTION {
        let channels = heads * head_dim;
        let (q, k, v) =
            (random([1, queries, channels]), random([1, keys, channels]), random([1, keys, channels]));
        let operations = 4 * queries * keys * channels;
        measure(criterion, &format!("attention {heads}x{queries}x{keys}x{head_dim}"), operations, || {
            std::hint::black_box(ops::attention(q.clone(), k.clone(), v.clone(), heads, Mask::None));
        });
    }
}

/// Side, channels, groups.
const NORM: [[usize; 3]; 4] = [[32, 320, 32], [16, 1280, 32], [16, 32, 16], [64, 16, 4]];

fn elementwise(criterion: &mut Criterion) {
    for [side, channels, groups] in NORM {
        let count = side * side * channels;
        let (x, affine) = (random([1, side, side, channels]), random([channels]));
        measure(criterion, &format!("group_norm_silu {side}² {channels}"), count, || {
            std::hint::black_box(ops::group_norm(
                x.clone(),
                groups,
                &affine,
                &affine,
                1e-5,
                Activation::Silu,
            ));
        });
        measure(criterion, &format!("add {side}² {channels}"), count, || {
            std::hint::black_box(x.clone() + x.clone());
        });
        measure(criterion, &format!("upsample {side}² {channels}"), count, || {
            std::hint::black_box(ops::upsample_nearest_2x(x.clone()));
        });
        let tokens: Tensor<3> = x.clone().reshape([1, side * side, channels]);
        measure(criterion, &format!("layer_norm {}x{channels}", side * side), count, || {
            std::hint::black_box(ops::layer_norm(tokens.clone(), &affine, &affine, 1e-5));
        });
        measure(criterion, &format!("geglu {}x{channels}", side * side), count, || {
            std::hint::black_box(ops::geglu(tokens.clone()));
        });
    }
}

criterion_group!(benches, linear, conv2d, attention, elementwise);
criterion_main!(benches);
