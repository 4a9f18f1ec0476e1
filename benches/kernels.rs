//! Every operation at the shapes of an SD1.5-size U-Net, of the embedded model and of diffusion transformers, and on a
//! GPU at those of larger models, on every device present: this crate's kernel (`kernel`) beside the same in burn's own
//! operations (`burn`).
//!
//! `cargo bench --bench kernels` (CPU), `--features wgpu` and `cuda` for more; then `-- 'linear 64x'` for what has that
//! in its name. Criterion's "elem/s" are floating-point operations a second, or elements for what only moves memory.
//! What cannot run here is reported as skipped, by name and with the reason.

#[path = "common/mod.rs"]
mod common;

use std::hint::black_box;
use std::time::Instant;

use aquatint::ops::{self, Activation, Conv2d, Epilogue, Gelu, Mask, Nonlinearity, Sinusoids};
use burn::tensor::{DType, Distribution, Tensor};
use common::{Place, asked_for, places, skip};
use criterion::{Criterion, criterion_group, criterion_main};

/// One operation at one shape on one device.
struct Case<'a> {
    place: &'a Place,
    name: String,
    /// Floating-point operations, or elements.
    operations: usize,
}

impl<'a> Case<'a> {
    /// Nothing where it is not asked for, or where `large` work would take minutes.
    fn new(place: &'a Place, op: &str, operations: usize, large: bool) -> Option<Self> {
        let case = Self { place, name: place.name(op), operations };
        let sides = ["kernel", "burn"].map(|side| case.side(side));
        if large && !place.hardware {
            sides.iter().for_each(|name| skip(name, "of this size on a GPU only"));
            return None;
        }
        sides.iter().any(|name| asked_for(name)).then_some(case)
    }

    fn side(&self, side: &str) -> String {
        format!("{} {side}", self.name)
    }

    /// Normally distributed.
    fn random<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), (&self.place.device, self.place.dtype))
    }

    fn measure<const D: usize>(
        &self,
        criterion: &mut Criterion,
        side: &str,
        compute: impl Fn() -> Tensor<D> + Send + Sync,
    ) {
        let rounds = |rounds: u64| {
            let begun = Instant::now();
            (0..rounds).for_each(|_| drop(black_box(compute())));
            self.place.device.sync().map_err(|error| error.to_string())?;
            Ok(begun.elapsed())
        };
        // On a thread of the pool, as `ops` asks of callers that run many small operations on the CPU.
        let run =
            |count| if self.place.kind == "cpu" { rayon::scope(|_| rounds(count)) } else { rounds(count) };
        self.place.measure(criterion, &self.side(side), self.operations as u64, run);
    }

    fn pair<const D: usize>(
        &self,
        criterion: &mut Criterion,
        kernel: impl Fn() -> Tensor<D> + Send + Sync,
        burn: impl Fn() -> Tensor<D> + Send + Sync,
    ) {
        self.measure(criterion, "kernel", kernel);
        self.measure(criterion, "burn", burn);
    }
}

/// Those for every device, then those for a GPU alone.
fn shapes<const N: usize>(
    small: &'static [[usize; N]],
    large: &'static [[usize; N]],
) -> impl Iterator<Item = ([usize; N], bool)> {
    small.iter().map(|shape| (*shape, false)).chain(large.iter().map(|shape| (*shape, true)))
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

const LARGE_LINEAR: [[usize; 3]; 4] =
    [[4096, 9216, 3072], [4096, 12288, 3072], [4096, 3072, 3072], [4608, 3072, 15360]];

fn linear(criterion: &mut Criterion, place: &Place) {
    for ([m, n, k], large) in shapes(&LINEAR, &LARGE_LINEAR) {
        let Some(case) = Case::new(place, &format!("linear {m}x{n}x{k}"), 2 * m * n * k, large) else {
            continue;
        };
        let (x, weight, bias) = (case.random([1, m, k]), case.random([n, k]), case.random([n]));
        let kernel = || ops::linear(x.clone(), &weight, Some(&bias));
        let burn = || {
            ops::reference::linear(x.clone(), &weight, Epilogue { bias: Some(&bias), ..Epilogue::default() })
        };
        case.pair(criterion, kernel, burn);
    }
}

/// Side, inputs, outputs.
const CONV: [[usize; 3]; 9] = [
    [32, 320, 320],
    [64, 128, 128],
    [16, 640, 640],
    [8, 1280, 1280],
    [16, 32, 32],
    [8, 96, 96],
    [64, 32, 16],
    [32, 320, 4],
    [64, 128, 3],
];

const LARGE_CONV: [[usize; 3]; 3] = [[128, 320, 320], [128, 512, 512], [1024, 128, 128]];

fn conv2d(criterion: &mut Criterion, place: &Place) {
    let walk = Conv2d { stride: 1, padding: [1; 4] };
    for ([side, inputs, outputs], large) in shapes(&CONV, &LARGE_CONV) {
        let operations = 2 * side * side * 9 * inputs * outputs;
        let Some(case) = Case::new(place, &format!("conv2d {side}² {inputs}->{outputs}"), operations, large)
        else {
            continue;
        };
        let x = case.random([1, side, side, inputs]);
        let (weight, bias) = (case.random([outputs, 3, 3, inputs]), case.random([outputs]));
        let kernel = || ops::conv2d(x.clone(), &weight, Some(&bias), &walk);
        let burn = || ops::reference::conv2d(x.clone(), &weight, Some(&bias), &walk, None);
        case.pair(criterion, kernel, burn);
    }
}

/// Side before it is doubled, channels.
const UPSAMPLED: [[usize; 2]; 3] = [[16, 320], [8, 640], [4, 96]];

const LARGE_UPSAMPLED: [[usize; 2]; 2] = [[32, 1280], [64, 640]];

fn upsample_conv2d(criterion: &mut Criterion, place: &Place) {
    let walk = Conv2d { stride: 1, padding: [1; 4] };
    for ([side, channels], large) in shapes(&UPSAMPLED, &LARGE_UPSAMPLED) {
        let operations = 2 * 4 * side * side * 9 * channels * channels;
        let Some(case) = Case::new(place, &format!("upsample_conv2d {side}² {channels}"), operations, large)
        else {
            continue;
        };
        let x = case.random([1, side, side, channels]);
        let (weight, bias) = (case.random([channels, 3, 3, channels]), case.random([channels]));
        let size = [2 * side; 2];
        let kernel = || ops::upsample_conv2d(x.clone(), size, &weight, Some(&bias), &walk);
        let two = || ops::conv2d(ops::upsample_nearest_2x(x.clone()), &weight, Some(&bias), &walk);
        let upsampled = || ops::reference::upsample_nearest_2x(x.clone());
        let burn = || ops::reference::conv2d(upsampled(), &weight, Some(&bias), &walk, None);
        case.pair(criterion, kernel, burn);
        case.measure(criterion, "two kernels", two);
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

const LARGE_ATTENTION: [[usize; 4]; 6] = [
    [24, 4096, 4096, 64],
    [24, 4608, 4608, 64],
    [24, 16384, 16384, 64],
    [24, 4096, 4096, 128],
    [24, 4608, 4608, 128],
    [24, 16384, 16384, 128],
];

/// The most scores that burn's own attention, which stores them all, is asked for: 2 GB of them in f16.
const MOST_SCORES: usize = 1 << 30;

fn attention(criterion: &mut Criterion, place: &Place) {
    for ([heads, queries, keys, head_dim], large) in shapes(&ATTENTION, &LARGE_ATTENTION) {
        let channels = heads * head_dim;
        let op = format!("attention {heads}x{queries}x{keys}x{head_dim}");
        let Some(case) = Case::new(place, &op, 4 * queries * keys * channels, large) else {
            continue;
        };
        let q = case.random([1, queries, channels]);
        let (k, v) = (case.random([1, keys, channels]), case.random([1, keys, channels]));
        case.measure(criterion, "kernel", || {
            ops::attention(q.clone(), k.clone(), v.clone(), heads, Mask::None)
        });
        if heads * queries * keys > MOST_SCORES {
            skip(&case.side("burn"), "too many scores to store");
            continue;
        }
        case.measure(criterion, "burn", || {
            ops::reference::attention(q.clone(), k.clone(), v.clone(), heads, Mask::None)
        });
    }
}

/// Side, channels, groups.
const MAPS: [[usize; 3]; 4] = [[64, 320, 32], [32, 640, 32], [16, 1280, 32], [8, 96, 16]];

const LARGE_MAPS: [[usize; 3]; 3] = [[128, 320, 32], [512, 256, 32], [1024, 128, 32]];

fn maps(criterion: &mut Criterion, place: &Place) {
    for ([side, channels, groups], large) in shapes(&MAPS, &LARGE_MAPS) {
        let count = side * side * channels;
        if let Some(case) = Case::new(place, &format!("group_norm_silu {side}² {channels}"), count, large) {
            let (x, affine) = (case.random([1, side, side, channels]), case.random([channels]));
            let kernel = || ops::group_norm(x.clone(), groups, &affine, &affine, 1e-5, Activation::Silu);
            let burn =
                || ops::reference::group_norm(x.clone(), groups, &affine, &affine, 1e-5, Activation::Silu);
            case.pair(criterion, kernel, burn);
        }
        if let Some(case) = Case::new(place, &format!("upsample {side}² {channels}"), 4 * count, large) {
            let x = case.random([1, side, side, channels]);
            let kernel = || ops::upsample_nearest_2x(x.clone());
            let burn = || ops::reference::upsample_nearest_2x(x.clone());
            case.pair(criterion, kernel, burn);
        }
    }
}

/// Tokens, channels.
const TOKENS: [[usize; 2]; 4] = [[4096, 320], [1024, 640], [256, 1280], [64, 96]];

const LARGE_TOKENS: [[usize; 2]; 4] = [[8192, 2560], [4096, 3072], [16384, 3072], [16384, 10240]];

fn tokens(criterion: &mut Criterion, place: &Place) {
    for ([tokens, channels], large) in shapes(&TOKENS, &LARGE_TOKENS) {
        let count = tokens * channels;
        if let Some(case) = Case::new(place, &format!("layer_norm {tokens}x{channels}"), count, large) {
            let (x, affine) = (case.random([1, tokens, channels]), case.random([channels]));
            let kernel = || ops::layer_norm(x.clone(), &affine, &affine, 1e-5);
            let burn = || ops::reference::layer_norm(x.clone(), &affine, &affine, 1e-5);
            case.pair(criterion, kernel, burn);
        }
        if let Some(case) = Case::new(place, &format!("geglu {tokens}x{channels}"), count / 2, large) {
            let x = case.random([1, tokens, channels]);
            let kernel = || ops::geglu(x.clone());
            let burn = || ops::reference::geglu(x.clone());
            case.pair(criterion, kernel, burn);
        }
    }
}

/// Channels of a transformer's head.
const HEAD_DIM: usize = 128;

/// Tokens, heads of 128 channels: a small transformer, and FLUX at 512².
const TRANSFORMER: [[usize; 2]; 2] = [[1024, 12], [1024, 24]];

/// FLUX at 1024², with the tokens of its text: a block's width, that of its feed-forward, and both halves of FLUX.2's.
const LARGE_TRANSFORMER: [[usize; 2]; 3] = [[4608, 24], [4608, 96], [4608, 144]];

fn transformer(criterion: &mut Criterion, place: &Place) {
    for ([tokens, heads], large) in shapes(&TRANSFORMER, &LARGE_TRANSFORMER) {
        let channels = heads * HEAD_DIM;
        let case = |op: &str, parts: usize| {
            let elements = tokens * channels * parts / 2;
            Case::new(place, &format!("{op} {tokens}x{channels}"), elements, large)
        };
        if let Some(case) = case("rms_norm", 2) {
            let (x, weight) = (case.random([1, tokens, channels]), case.random([channels]));
            let kernel = || ops::rms_norm(x.clone(), &weight, 1e-6);
            let burn = || ops::reference::rms_norm(x.clone(), &weight, 1e-6);
            case.pair(criterion, kernel, burn);
        }
        if let Some(case) = case("layer_norm_modulate", 2) {
            let (x, row) = (case.random([1, tokens, channels]), case.random([1, channels]));
            let kernel = || ops::layer_norm_modulate(x.clone(), &row, &row, 1e-6);
            let burn = || ops::reference::layer_norm_modulate(x.clone(), &row, &row, 1e-6);
            case.pair(criterion, kernel, burn);
        }
        if let Some(case) = case("gate_residual", 2) {
            let (kept, x) = (case.random([1, tokens, channels]), case.random([1, tokens, channels]));
            let row = case.random([1, channels]);
            let kernel = || ops::gate_residual(kept.clone(), x.clone(), &row);
            let burn = || ops::reference::gate_residual(kept.clone(), x.clone(), &row);
            case.pair(criterion, kernel, burn);
        }
        if let Some(case) = case("swiglu", 1) {
            let x = case.random([1, tokens, channels]);
            let (kernel, burn) = (|| ops::swiglu(x.clone()), || ops::reference::swiglu(x.clone()));
            case.pair(criterion, kernel, burn);
        }
        for form in [Gelu::Exact, Gelu::Tanh] {
            if let Some(case) = case(&format!("bias_gelu {form:?}"), 2) {
                let (x, bias) = (case.random([1, tokens, channels]), case.random([channels]));
                let kernel = || ops::bias_gelu(x.clone(), &bias, form);
                let burn = || ops::reference::bias_gelu(x.clone(), &bias, form);
                case.pair(criterion, kernel, burn);
            }
        }
        // A layer of the block's MLP, and the one that ends a branch.
        let layer = |op: &str| {
            let name = format!("{op} {tokens}x{channels}x{channels}");
            Case::new(place, &name, 2 * tokens * channels * channels, large)
        };
        if let Some(case) = layer("linear_gelu") {
            let activation = Some(Nonlinearity::Gelu(Gelu::Tanh));
            linear_with(criterion, &case, tokens, channels, |epilogue, _| Epilogue {
                activation,
                ..epilogue
            });
        }
        if let Some(case) = layer("linear_gate_residual") {
            let gate = case.random([1, channels]);
            linear_with(criterion, &case, tokens, channels, |epilogue, x| Epilogue {
                gate: Some(&gate),
                residual: Some(x.clone()),
                ..epilogue
            });
        }
        if let Some(case) = case("qk_norm_rope", 4) {
            let (q, k) = (case.random([1, tokens, channels]), case.random([1, tokens, channels]));
            let (head, table) =
                (case.random([HEAD_DIM]), case.random([tokens, HEAD_DIM / 2]).cast(DType::F32));
            let (cos, sin) = (table.clone().cos(), table.sin());
            let kernel = || ops::qk_norm_rope(q.clone(), k.clone(), &head, &head, &cos, &sin, 1e-6).0;
            let burn =
                || ops::reference::qk_norm_rope(q.clone(), k.clone(), &head, &head, &cos, &sin, 1e-6).0;
            case.pair(criterion, kernel, burn);
        }
    }
}

/// Rows, channels.
const TIMESTEPS: [[usize; 2]; 3] = [[1, 320], [8, 320], [64, 256]];

fn timesteps(criterion: &mut Criterion, place: &Place) {
    for [rows, channels] in TIMESTEPS {
        let op = format!("timestep_embedding {rows}x{channels}");
        let Some(case) = Case::new(place, &op, rows * channels, false) else {
            continue;
        };
        let sinusoids = Sinusoids::new(channels, true, 0.0, &place.device);
        let timesteps: Vec<f32> = (0..rows).map(|row| 999.0 - row as f32).collect();
        let kernel = || ops::timestep_embedding(&timesteps, &sinusoids, place.dtype);
        let burn = || ops::reference::timestep_embedding(&timesteps, &sinusoids, place.dtype);
        case.pair(criterion, kernel, burn);
    }
}

/// A square layer with a bias and what `more` puts behind it, which gets the layer's input as well.
fn linear_with<'a>(
    criterion: &mut Criterion,
    case: &Case,
    tokens: usize,
    channels: usize,
    more: impl Fn(Epilogue<'a>, &Tensor<3>) -> Epilogue<'a> + Send + Sync,
) {
    let (x, weight) = (case.random([1, tokens, channels]), case.random([channels, channels]));
    let bias = case.random([channels]);
    let epilogue = || Epilogue { bias: Some(&bias), ..more(Epilogue::default(), &x) };
    let kernel = || ops::linear_with(x.clone(), &weight, epilogue());
    let burn = || ops::reference::linear(x.clone(), &weight, epilogue());
    case.pair(criterion, kernel, burn);
}

fn kernels(criterion: &mut Criterion) {
    for place in places() {
        for measure in [linear, conv2d, upsample_conv2d, attention, maps, tokens, transformer, timesteps] {
            measure(criterion, &place);
        }
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
