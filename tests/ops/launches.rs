//! Which kernels an operation launches, and how many a denoising step.

use std::sync::{Arc, Mutex};

use aquatint::ops::{
    self, Activation, Conv2d, DenoiseRow, Epilogue, Estimate, Gelu, Guided, Mask, Nonlinearity, Sinusoids,
    Slot, Source,
};
use aquatint::{DeviceChoice, LoadOptions, Pipeline, Precision, Request};
use burn::tensor::{DType, Tensor};
use cubecl::logging::{LaunchObservation, LaunchObserver};

use crate::definitions::{On, bits};
use crate::hopper;

#[derive(Default)]
struct Seen(Mutex<Vec<&'static str>>);

impl LaunchObserver for Seen {
    fn launched(&self, kernel: &'static str) {
        self.0.lock().unwrap().push(kernel);
    }
}

pub(crate) fn launches(compute: impl FnOnce()) -> Vec<&'static str> {
    let seen = Arc::new(Seen::default());
    let observation = LaunchObservation::new(seen.clone());
    compute();
    drop(observation);
    std::mem::take(&mut *seen.0.lock().unwrap())
}

/// Without the gaps between rows that burn's CUDA tensors may have, and that a launch of its own takes out.
fn dense<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    ops::silu(x)
}

/// The launches that differ from language to language.
pub(crate) struct Names {
    /// Of a small map and of a large one.
    group_norm: [&'static [&'static str]; 2],
    /// A product of one row a picture.
    one_row: &'static str,
    /// A product that is more than one tile of a GPU wide, on a software adapter.
    wide: &'static str,
    /// A convolution to few outputs.
    few: &'static str,
    /// Upsampling, then a convolution.
    upsampled: &'static [&'static str],
    /// gelu, quick_gelu, silu and gelu_tanh.
    activations: [&'static str; 4],
}

pub(crate) const WGSL: Names = Names {
    group_norm: [
        &["group_norm_statistics", "group_norm_apply"],
        &["group_norm_statistics", "group_norm_combine", "group_norm_apply"],
    ],
    one_row: "matvec",
    wide: "matmul_wide",
    few: "conv2d_few",
    upsampled: &["conv2d"],
    activations: ["gelu", "quick_gelu", "silu", "gelu_tanh"],
};

pub(crate) const CUDA: Names = Names {
    group_norm: [&["group_norm_statistics", "group_norm"]; 2],
    one_row: "matmul",
    wide: "matmul",
    few: "conv2d",
    upsampled: &["upsample_nearest_2x", "conv2d"],
    activations: ["activation"; 4],
};

/// A kernel that is passed over would let burn's own operations stand every other test.
pub(crate) fn every_operation_launches_its_kernel_and_nothing_else(on: &On, names: &Names) {
    for &dtype in on.dtypes {
        let tokens = dense(on.random([2, 5, 24], dtype, 1, 1.0).0);
        let map = dense(on.random([2, 3, 5, 24], dtype, 2, 1.0).0);
        let large = dense(on.random([1, 40, 40, 24], dtype, 3, 1.0).0);
        let (affine, eps) = (on.ones(24, dtype), 1e-5);
        let group_norm =
            |x: &Tensor<4>| ops::group_norm(x.clone(), 4, &affine, &affine, eps, Activation::Silu);
        let found = launches(|| drop(ops::layer_norm(tokens.clone(), &affine, &affine, eps)));
        assert_eq!(found, ["layer_norm"]);
        assert_eq!(launches(|| drop(group_norm(&map))), names.group_norm[0]);
        assert_eq!(launches(|| drop(group_norm(&large))), names.group_norm[1]);
        let weight = dense(on.random([40, 24], dtype, 4, 1.0).0);
        let kernel = dense(on.random([40, 3, 3, 24], dtype, 5, 1.0).0);
        let token = dense(on.narrow(&tokens, 1, 2, 1));
        assert_eq!(launches(|| drop(ops::linear(token.clone(), &weight, None))), [names.one_row]);
        let walk = Conv2d { stride: 1, padding: [1; 4] };
        assert_eq!(launches(|| drop(ops::linear(tokens.clone(), &weight, None))), ["matmul"]);
        let software = on.device.identity().is_some_and(|identity| identity.name.starts_with("llvmpipe"));
        let wide = dense(on.random([65, 24], dtype, 7, 1.0).0);
        let found = launches(|| drop(ops::linear(tokens.clone(), &wide, None)));
        assert_eq!(found, [if software { names.wide } else { "matmul" }]);
        assert_eq!(launches(|| drop(ops::conv2d(map.clone(), &kernel, None, &walk))), ["conv2d"]);
        let few = dense(on.narrow(&kernel, 0, 0, 3));
        assert_eq!(launches(|| drop(ops::conv2d(map.clone(), &few, None, &walk))), [names.few]);
        let upsampled = || drop(ops::upsample_conv2d(map.clone(), [6, 10], &kernel, None, &walk));
        assert_eq!(launches(upsampled), names.upsampled);
        let tile = dense(on.random([1, 128, 64], dtype, 7, 1.0).0);
        let weight = dense(on.random([128, 64], dtype, 8, 1.0).0);
        let [product, convolution] = if hopper::is_hopper(on) && dtype != DType::F32 {
            ["matmul_sm90", "conv2d_sm90"]
        } else {
            [if software { names.wide } else { "matmul" }, "conv2d"]
        };
        assert_eq!(launches(|| drop(ops::linear(tile.clone(), &weight, None))), [product]);
        let (map, kernel) = (tile.reshape([1, 16, 8, 64]), weight.reshape([128, 1, 1, 64]));
        let walk = Conv2d { stride: 1, padding: [0; 4] };
        assert_eq!(launches(|| drop(ops::conv2d(map.clone(), &kernel, None, &walk))), [convolution]);
        let all = [8, 16, 24, 32, 40, 64, 80, 96, 128, 160, 512];
        for &head_dim in on.cases(&all, &[64, 512]) {
            let q = dense(on.random([1, 3, 2 * head_dim], dtype, 6, 1.0).0);
            let attention = || drop(ops::attention(q.clone(), q.clone(), q.clone(), 2, Mask::None));
            assert_eq!(launches(attention), ["attention"]);
        }
        assert_eq!(launches(|| drop(ops::geglu(tokens.clone()))), ["geglu"]);
        let [gelu, quick_gelu, silu, gelu_tanh] = names.activations;
        assert_eq!(launches(|| drop(ops::gelu(tokens.clone()))), [gelu]);
        assert_eq!(launches(|| drop(ops::quick_gelu(tokens.clone()))), [quick_gelu]);
        assert_eq!(launches(|| drop(ops::silu(tokens.clone()))), [silu]);
        let form = Nonlinearity::Gelu(Gelu::Tanh);
        assert_eq!(launches(|| drop(ops::activate(tokens.clone(), form))), [gelu_tanh]);
        let gate = dense(on.random([2, 24], dtype, 7, 1.0).0);
        let square = dense(on.random([24, 24], dtype, 8, 1.0).0);
        for (x, name) in [(&tokens, "matmul"), (&token, names.one_row)] {
            let epilogue = Epilogue {
                bias: Some(&affine),
                activation: Some(form),
                gate: Some(&gate),
                residual: Some(x.clone()),
            };
            assert_eq!(launches(|| drop(ops::linear_with(x.clone(), &square, epilogue))), [name]);
        }
        assert_eq!(launches(|| drop(ops::upsample_nearest_2x(map.clone()))), ["upsample_nearest_2x"]);
    }
}

pub(crate) fn every_operation_of_a_transformer_launches_its_kernel_and_nothing_else(on: &On) {
    for &dtype in on.dtypes {
        let tokens = dense(on.random([2, 5, 24], dtype, 1, 1.0).0);
        let row = dense(on.random([2, 24], dtype, 2, 1.0).0);
        let weight = dense(on.random([24], dtype, 3, 1.0).0);
        let head = dense(on.random([12], dtype, 4, 1.0).0);
        let table = dense(on.random([5, 6], DType::F32, 5, 1.0).0);
        let found = launches(|| drop(ops::rms_norm(tokens.clone(), &weight, 1e-6)));
        assert_eq!(found, ["rms_norm"]);
        let found = launches(|| drop(ops::layer_norm_modulate(tokens.clone(), &row, &row, 1e-6)));
        assert_eq!(found, ["layer_norm_modulate"]);
        let found = launches(|| drop(ops::gate_residual(tokens.clone(), tokens.clone(), &row)));
        assert_eq!(found, ["gate_residual"]);
        assert_eq!(launches(|| drop(ops::swiglu(tokens.clone()))), ["swiglu"]);
        for (form, name) in [(Gelu::Exact, "bias_gelu"), (Gelu::Tanh, "bias_gelu_tanh")] {
            assert_eq!(launches(|| drop(ops::bias_gelu(tokens.clone(), &weight, form))), [name]);
        }
        let rope = || {
            drop(ops::qk_norm_rope(tokens.clone(), tokens.clone(), &head, &head, &table, &table, 1e-6));
        };
        assert_eq!(launches(rope), ["qk_norm_rope"]);
        let sinusoids = Sinusoids::new(24, true, 0.0, &on.device);
        let embed = |rows| drop(ops::timestep_embedding(&vec![500.0; rows], &sinusoids, dtype));
        assert_eq!(launches(|| embed(64)), ["timestep_embedding"]);
        assert_eq!(launches(|| embed(65)), ["timestep_embedding"; 2]);
    }
}

pub(crate) fn a_denoising_step_ends_in_one_launch_and_gathers_rows_only_once(on: &On) {
    let slot = |seed| Slot::new(dense(on.random([1, 4, 8, 8], DType::F32, seed, 1.0).0));
    for &dtype in on.dtypes {
        let mut slots = [slot(1), slot(2)];
        let predictions = dense(on.random([4, 4, 8, 8], dtype, 3, 1.0).0);
        ops::side_by_side(slots.iter_mut().collect());
        assert!(launches(|| ops::side_by_side(slots.iter_mut().rev().collect())).is_empty());
        let entries = [(&slots[0], 0.5), (&slots[1], 1.0)];
        assert_eq!(launches(|| drop(ops::denoise_input(&entries, dtype))), ["denoise_input"]);
        for (rescale, expected) in
            [(0.0, &["denoise_step"][..]), (0.7, &["denoise_deviations", "denoise_step"][..])]
        {
            let row = |index: usize| DenoiseRow {
                positive: index,
                guided: Some(Guided { negative: index + 2, scale: 5.0, rescale }),
                sample: &slots[index],
                estimate: Estimate { sample: 1.0, output: -1.0, clamp: None },
                noise: Some(vec![0.5; 256]),
                writes: vec![
                    vec![(Source::Slot(&slots[index]), 0.5), (Source::Noise, 0.5)],
                    vec![(Source::Denoised, 1.0)],
                ],
            };
            let rows = vec![row(1), row(0)];
            assert_eq!(launches(|| drop(ops::denoise_step(predictions.clone(), rows))), expected);
        }
    }
}

/// Four jobs with guidance in one batch: what surrounds the network.
pub(crate) fn a_batch_of_four_takes_few_launches_beside_the_network(on: &On) {
    let options = LoadOptions {
        device: DeviceChoice::Existing(on.device.clone()),
        precision: Precision::F32,
        ..LoadOptions::default()
    };
    let pipeline = Pipeline::embedded(options).unwrap();
    let request = |seed| Request { steps: Some(4), seed, ..Request::new("a fox") };
    let mut jobs: Vec<_> = (0..4).map(|seed| pipeline.start(&request(seed)).unwrap()).collect();
    let mut step = |count: usize| {
        let found = launches(|| {
            for result in pipeline.step(&mut jobs.iter_mut().take(count).collect::<Vec<_>>()) {
                result.unwrap();
            }
        });
        let of = |name: &str| found.iter().filter(|found| **found == name).count();
        assert_eq!((of("denoise_input"), of("denoise_step")), (1, 1));
        found.len()
    };
    let (joined, stable) = (step(4), step(4));
    // One job leaves: the others' rows stay where they are.
    let left = step(3);
    println!("launches of a step of four jobs: {joined} joined, {stable} after that, {left} of three");
    assert!(stable <= STABLE, "{stable}");
    assert!(joined > stable && left <= stable, "{joined}, {left}");
}

/// Launches of a guided step, and of one of four guided jobs that have stepped together before.
const STABLE: usize = 132;

/// A launch writes one buffer, which all pictures of a large job would make larger than a device can bind.
pub(crate) fn a_job_of_many_pictures_ends_its_step_in_several_launches(on: &On) {
    let options = LoadOptions {
        device: DeviceChoice::Existing(on.device.clone()),
        precision: Precision::F32,
        max_batch: 2,
    };
    let pipeline = Pipeline::embedded(options).unwrap();
    let request = Request { steps: Some(4), count: Some(5), ..Request::new("a fox") };
    let mut job = pipeline.start(&request).unwrap();
    for _ in 0..2 {
        let found = launches(|| pipeline.step(&mut [&mut job]).remove(0).unwrap());
        assert_eq!(found.iter().filter(|found| **found == "denoise_step").count(), 3);
    }
}

/// The embedded model, with guidance, in one step of the whole pipeline.
pub(crate) fn a_denoising_step_takes_half_as_many_launches_as_burns_own_operations(on: &On) {
    let options = LoadOptions {
        device: DeviceChoice::Existing(on.device.clone()),
        precision: Precision::F32,
        ..LoadOptions::default()
    };
    let pipeline = Pipeline::embedded(options).unwrap();
    let mut job = pipeline.start(&Request { steps: Some(3), ..Request::new("a fox") }).unwrap();
    let mut found = Vec::new();
    for _ in 0..2 {
        found = launches(|| {
            for result in pipeline.step(&mut [&mut job]) {
                result.unwrap();
            }
        });
    }
    let mut counts = std::collections::BTreeMap::<_, usize>::new();
    found.iter().for_each(|name| *counts.entry(*name).or_default() += 1);
    println!("launches of a step of one job: {}", found.len());
    assert!(found.len() <= BURNS_LAUNCHES / 2, "{counts:#?}");
    assert!(found.len() <= STABLE, "{counts:#?}");
}

/// Launches of that step with every operation in its reference form, counted the same way on wgpu on 2026-11-25.
const BURNS_LAUNCHES: usize = 660;

/// An output is one sum, whatever tile it stands in and however many outputs stand beside it.
pub(crate) fn an_output_has_the_same_bits_beside_any_others(on: &On) {
    // Where few outputs are computed by other instructions.
    if hopper::is_hopper(on) {
        return;
    }
    for &dtype in on.dtypes {
        for k in [69, 72] {
            let (x, _) = on.random([2, 131, k], dtype, 34, 100.0);
            let (weight, _) = on.random([136, k], dtype, 35, 1.0);
            let all = ops::linear(x.clone(), &weight, None);
            for (first, count) in [(0, 64), (64, 64), (128, 8)] {
                let some = ops::linear(x.clone(), &weight.clone().narrow(0, first, count), None);
                let same = bits(all.clone().narrow(2, first, count)) == bits(some);
                assert!(same, "{dtype:?}, {k} inputs, outputs from {first}");
            }
        }
    }
}
