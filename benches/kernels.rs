//! Every operation at the shapes of an SD1.5-size U-Net, of the embedded model and of a diffusion transformer, on every
//! device present: this crate's kernel (`kernel`) beside the same in burn's own operations (`burn`).
//!
//! `cargo bench --bench kernels` (CPU), `--features wgpu` and `cuda` for more; criterion's "elem/s" are floating-point
//! operations a second, or elements for what only moves memory. A device that is absent is named and passed over.

use std::hint::black_box;
use std::time::{Duration, Instant};

use aquatint::ops::{self, Activation, Conv2d, Gelu, Mask};
use burn::tensor::{DType, Device, Distribution, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// A device and a precision to measure on.
#[derive(Clone)]
struct Place {
    device: Device,
    dtype: DType,
    name: String,
}

impl Place {
    /// Normally distributed.
    fn random<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), (&self.device, self.dtype))
    }

    fn measure(
        &self,
        criterion: &mut Criterion,
        op: &str,
        side: &str,
        operations: usize,
        compute: impl Fn() + Send + Sync,
    ) {
        let mut group = criterion.benchmark_group(op.split(' ').next().unwrap_or(op));
        group
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_secs(1))
            .sample_size(10);
        group.throughput(Throughput::Elements(operations as u64));
        let run = |rounds: u64| {
            let begun = Instant::now();
            (0..rounds).for_each(|_| compute());
            self.device.sync().expect("the device works");
            begun.elapsed()
        };
        let name = format!("{op} {} {:?} {side}", self.name, self.dtype);
        // On a thread of the pool, as `ops` asks of callers that run many small operations.
        group.bench_function(name, |bencher| rayon::scope(|_| bencher.iter_custom(run)));
        group.finish();
    }

    fn pair<const D: usize>(
        &self,
        criterion: &mut Criterion,
        op: &str,
        operations: usize,
        kernel: impl Fn() -> Tensor<D> + Send + Sync,
        burn: impl Fn() -> Tensor<D> + Send + Sync,
    ) {
        self.measure(criterion, op, "kernel", operations, || drop(black_box(kernel())));
        self.measure(criterion, op, "burn", operations, || drop(black_box(burn())));
    }
}

/// What is here to measure on.
fn places() -> Vec<Place> {
    [
        #[cfg(feature = "cpu")]
        vec![Place { device: Device::flex(), dtype: DType::F32, name: "cpu".to_owned() }],
        #[cfg(feature = "wgpu")]
        gpu(burn::tensor::DeviceType::Wgpu, "wgpu"),
        #[cfg(feature = "cuda")]
        gpu(burn::tensor::DeviceType::Cuda, "cuda"),
    ]
    .concat()
}

/// The first device of a kind, in every precision that it has.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn gpu(kind: burn::tensor::DeviceType, name: &str) -> Vec<Place> {
    let found = std::panic::catch_unwind(|| Device::enumerate(kind).into_vec()).unwrap_or_default();
    let Some(device) = found.into_iter().next() else {
        eprintln!("{name}: no such device here, passed over");
        return Vec::new();
    };
    let (here, absent): (Vec<_>, Vec<_>) =
        [DType::F32, DType::F16, DType::BF16].into_iter().partition(|dtype| device.supports_dtype(*dtype));
    absent.iter().for_each(|dtype| eprintln!("{name}: no {dtype:?} here, passed over"));
    here.into_iter().map(|dtype| Place { device: device.clone(), dtype, name: name.to_owned() }).collect()
}

/// Tokens, outputs, inputs.
const LINEAR: [[usize; 3]; 7] = [
    [1024, 1280, 1280],
    [1024, 2560, 320],
    [64, 10240, 1280],
    [1, 1280, 1280],
    [64, 64, 64],
    [16, 1024, 128],
    [1, 128, 128],
];

fn linear(criterion: &mut Criterion, place: &Place) {
    for [m, n, k] in LINEAR {
        let (x, weight, bias) = (place.random([1, m, k]), place.random([n, k]), place.random([n]));
        let kernel = || ops::linear(x.clone(), &weight, Some(&bias));
        let burn = || ops::reference::linear(x.clone(), &weight, Some(&bias), None);
        place.pair(criterion, &format!("linear {m}x{n}x{k}"), 2 * m * n * k, kernel, burn);
    }
}

/// Side, inputs, outputs.
const CONV: [[usize; 3]; 7] = [
    [32, 320, 320],
    [64, 128, 128],
    [16, 640, 640],
    [8, 1280, 1280],
    [16, 32, 32],
    [8, 96, 96],
    [64, 32, 16],
];

fn conv2d(criterion: &mut Criterion, place: &Place) {
    let walk = Conv2d { stride: 1, padding: [1; 4] };
    for [side, inputs, outputs] in CONV {
        let x = place.random([1, side, side, inputs]);
        let (weight, bias) = (place.random([outputs, 3, 3, inputs]), place.random([outputs]));
        let operations = 2 * side * side * 9 * inputs * outputs;
        let kernel = || ops::conv2d(x.clone(), &weight, Some(&bias), &walk);
        let burn = || ops::reference::conv2d(x.clone(), &weight, Some(&bias), &walk, None);
        place.pair(criterion, &format!("conv2d {side}² {inputs}->{outputs}"), operations, kernel, burn);
    }
}

/// Heads, queries, keys, head dimension.
const ATTENTION: [[usize; 4]; 6] = [
    [8, 1024, 1024, 64],
    [8, 1024, 1024, 40],
    [8, 1024, 77, 40],
    [8, 256, 256, 80],
    [8, 64, 64, 160],
    [4, 64, 64, 16],
];

fn attention(criterion: &mut Criterion, place: &Place) {
    for [heads, queries, keys, head_dim] in ATTENTION {
        let channels = heads * head_dim;
        let q = place.random([1, queries, channels]);
        let (k, v) = (place.random([1, keys, channels]), place.random([1, keys, channels]));
        let kernel = || ops::attention(q.clone(), k.clone(), v.clone(), heads, Mask::None);
        let burn = || ops::reference::attention(q.clone(), k.clone(), v.clone(), heads, Mask::None);
        let name = format!("attention {heads}x{queries}x{keys}x{head_dim}");
        place.pair(criterion, &name, 4 * queries * keys * channels, kernel, burn);
    }
}

/// Side, channels, groups.
const MAPS: [[usize; 3]; 4] = [[64, 320, 32], [32, 640, 32], [16, 1280, 32], [8, 96, 16]];

fn memory_bound(criterion: &mut Criterion, place: &Place) {
    for [side, channels, groups] in MAPS {
        let count = side * side * channels;
        let (x, affine) = (place.random([1, side, side, channels]), place.random([channels]));
        let kernel = || ops::group_norm(x.clone(), groups, &affine, &affine, 1e-5, Activation::Silu);
        let burn = || ops::reference::group_norm(x.clone(), groups, &affine, &affine, 1e-5, Activation::Silu);
        place.pair(criterion, &format!("group_norm_silu {side}² {channels}"), count, kernel, burn);
        let kernel = || ops::upsample_nearest_2x(x.clone());
        let burn = || ops::reference::upsample_nearest_2x(x.clone());
        place.pair(criterion, &format!("upsample {side}² {channels}"), 4 * count, kernel, burn);
        let tokens: Tensor<3> = x.clone().reshape([1, side * side, channels]);
        let kernel = || ops::layer_norm(tokens.clone(), &affine, &affine, 1e-5);
        let burn = || ops::reference::layer_norm(tokens.clone(), &affine, &affine, 1e-5);
        place.pair(criterion, &format!("layer_norm {}x{channels}", side * side), count, kernel, burn);
        let kernel = || ops::geglu(tokens.clone());
        let burn = || ops::reference::geglu(tokens.clone());
        place.pair(criterion, &format!("geglu {}x{channels}", side * side), count / 2, kernel, burn);
    }
}

/// Tokens, heads: FLUX and a smaller transformer at 512². A head has 128 channels.
const TRANSFORMER: [[usize; 2]; 2] = [[1024, 24], [1024, 12]];

fn transformer(criterion: &mut Criterion, place: &Place) {
    const HEAD_DIM: usize = 128;
    for [tokens, heads] in TRANSFORMER {
        let channels = heads * HEAD_DIM;
        let count = tokens * channels;
        let shape = format!("{tokens}x{channels}");
        let (x, residual) = (place.random([1, tokens, channels]), place.random([1, tokens, channels]));
        let (weight, row) = (place.random([channels]), place.random([1, channels]));
        let kernel = || ops::rms_norm(x.clone(), &weight, 1e-6);
        let burn = || ops::reference::rms_norm(x.clone(), &weight, 1e-6);
        place.pair(criterion, &format!("rms_norm {shape}"), count, kernel, burn);
        let kernel = || ops::layer_norm_modulate(x.clone(), &row, &row, 1e-6);
        let burn = || ops::reference::layer_norm_modulate(x.clone(), &row, &row, 1e-6);
        place.pair(criterion, &format!("layer_norm_modulate {shape}"), count, kernel, burn);
        let kernel = || ops::gate_residual(residual.clone(), x.clone(), &row);
        let burn = || ops::reference::gate_residual(residual.clone(), x.clone(), &row);
        place.pair(criterion, &format!("gate_residual {shape}"), count, kernel, burn);
        let kernel = || ops::swiglu(x.clone());
        let burn = || ops::reference::swiglu(x.clone());
        place.pair(criterion, &format!("swiglu {shape}"), count / 2, kernel, burn);
        for form in [Gelu::Exact, Gelu::Tanh] {
            let kernel = || ops::bias_gelu(x.clone(), &weight, form);
            let burn = || ops::reference::bias_gelu(x.clone(), &weight, form);
            place.pair(criterion, &format!("bias_gelu {form:?} {shape}"), count, kernel, burn);
        }
        let head = place.random([HEAD_DIM]);
        let tables = Place { dtype: DType::F32, ..place.clone() };
        let (cos, sin) =
            (tables.random([tokens, HEAD_DIM / 2]).cos(), tables.random([tokens, HEAD_DIM / 2]).sin());
        let kernel = || ops::qk_norm_rope(x.clone(), residual.clone(), &head, &head, &cos, &sin, 1e-6).0;
        let burn =
            || ops::reference::qk_norm_rope(x.clone(), residual.clone(), &head, &head, &cos, &sin, 1e-6).0;
        place.pair(criterion, &format!("qk_norm_rope {shape}"), 2 * count, kernel, burn);
    }
}

fn kernels(criterion: &mut Criterion) {
    for place in places() {
        for measure in [linear, conv2d, attention, memory_bound, transformer] {
            measure(criterion, &place);
        }
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
