//! The kernels of `kernels/` against their definitions: WGSL on whatever wgpu adapter there is, CUDA on an NVIDIA GPU,
//! where AQUATINT_CUDA_KERNELS is set here, or on the software driver of `kernels/host/driver` (see `kernels/README.md`).
//! Without a device every test of its kernels is reported as ignored, with the reason; AQUATINT_REQUIRE_WGPU and
//! AQUATINT_REQUIRE_CUDA make that a failure.

#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[path = "ops/corners.rs"]
mod corners;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[path = "ops/definitions.rs"]
mod definitions;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[path = "ops/denoise.rs"]
mod denoise;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[path = "ops/embedding.rs"]
mod embedding;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[path = "ops/hopper.rs"]
mod hopper;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[path = "ops/host.rs"]
mod host;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[path = "common/leave.rs"]
mod leave;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[path = "ops/transformer.rs"]
mod transformer;

#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
fn main() {
    let arguments = libtest_mimic::Arguments::from_args();
    let trial = libtest_mimic::Trial::test("every_kernel", || Ok(()));
    let trial = trial.with_kind("built without the features wgpu and cuda").with_ignored_flag(true);
    libtest_mimic::run(&arguments, vec![trial]).exit();
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn main() {
    on_gpu::main();
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod on_gpu {
    use std::panic::catch_unwind;
    use std::sync::{Arc, Mutex};

    use aquatint::ops::{
        self, Activation, Conv2d, DenoiseRow, Epilogue, Estimate, Gelu, Guided, Mask, Nonlinearity,
        Sinusoids, Slot, Source,
    };
    use aquatint::{DeviceChoice, LoadOptions, Pipeline, Precision, Request};
    use burn::backend::DispatchDevice;
    use burn::tensor::{DType, Device, DeviceType, Tensor};
    use cubecl::logging::{LaunchObservation, LaunchObserver};
    use libtest_mimic::{Arguments, Failed, Trial};

    use crate::corners;
    use crate::definitions::{self, On};
    use crate::denoise;
    use crate::embedding;
    use crate::hopper;
    use crate::host::Sums;
    use crate::leave::leave;
    use crate::transformer;

    #[derive(Default)]
    struct Seen(Mutex<Vec<&'static str>>);

    impl LaunchObserver for Seen {
        fn launched(&self, kernel: &'static str) {
            self.0.lock().unwrap().push(kernel);
        }
    }

    fn launches(compute: impl FnOnce()) -> Vec<&'static str> {
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
    struct Names {
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

    const WGSL: Names = Names {
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

    const CUDA: Names = Names {
        group_norm: [&["group_norm_statistics", "group_norm"]; 2],
        one_row: "matmul",
        wide: "matmul",
        few: "conv2d",
        upsampled: &["upsample_nearest_2x", "conv2d"],
        activations: ["activation"; 4],
    };

    /// A kernel that is passed over would let burn's own operations stand every other test.
    fn every_operation_launches_its_kernel_and_nothing_else(on: &On, names: &Names) {
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

    fn every_operation_of_a_transformer_launches_its_kernel_and_nothing_else(on: &On) {
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

    fn a_denoising_step_ends_in_one_launch_and_gathers_rows_only_once(on: &On) {
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
    fn a_batch_of_four_takes_few_launches_beside_the_network(on: &On) {
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

    /// Launches of a step of four guided jobs that have stepped together before.
    const STABLE: usize = 134;

    /// A launch writes one buffer, which all pictures of a large job would make larger than a device can bind.
    fn a_job_of_many_pictures_ends_its_step_in_several_launches(on: &On) {
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
    fn a_denoising_step_takes_half_as_many_launches_as_burns_own_operations(on: &On) {
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
    }

    /// Large enough for several slices, blocks and rows of workgroups.
    fn group_norm_of_large_maps_matches_its_definition(on: &On) {
        definitions::group_norm_of(
            on,
            &[([1, 64, 65, 32], 8), ([2, 100, 100, 20], 2), ([1, 33, 31, 320], 32)],
        );
    }

    /// Where threads write single components of one shared vector, WGSL lets each write the other components too, with
    /// what they held before.
    fn shared_vectors_are_written_whole(_: &On) {
        let checkout = std::env::var("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").to_owned());
        let folder = format!("{checkout}/kernels/wgsl");
        let mut shared = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            for line in
                text.lines().filter(|line| line.starts_with("var<workgroup>") && line.contains("<vec"))
            {
                let name = line.split(&[' ', ':']).nth(1).unwrap();
                shared += 1;
                for (at, _) in text.match_indices(&format!("{name}[")) {
                    // What is left of an assignment, after the index of the element.
                    let statement = text[at..].split([';', '{', '}']).next().unwrap();
                    let Some((element, value)) = statement.split_once('=') else { continue };
                    let component = element.contains("][") || element.contains("].");
                    assert!(!component || value.starts_with('='), "{}: {statement}", path.display());
                }
            }
        }
        assert!(shared >= 3, "only {shared} shared arrays of vectors found");
    }

    /// Launches of that step with every operation in its reference form, counted the same way on wgpu on 2026-11-25.
    const BURNS_LAUNCHES: usize = 660;

    type Test = fn(&On);

    const TESTS: &[(&str, Test)] = &[
        (
            "every_operation_of_a_transformer_launches_its_kernel_and_nothing_else",
            every_operation_of_a_transformer_launches_its_kernel_and_nothing_else,
        ),
        (
            "a_denoising_step_takes_half_as_many_launches_as_burns_own_operations",
            a_denoising_step_takes_half_as_many_launches_as_burns_own_operations,
        ),
        (
            "a_denoising_step_ends_in_one_launch_and_gathers_rows_only_once",
            a_denoising_step_ends_in_one_launch_and_gathers_rows_only_once,
        ),
        (
            "a_batch_of_four_takes_few_launches_beside_the_network",
            a_batch_of_four_takes_few_launches_beside_the_network,
        ),
        (
            "a_job_of_many_pictures_ends_its_step_in_several_launches",
            a_job_of_many_pictures_ends_its_step_in_several_launches,
        ),
        ("group_norm_of_large_maps_matches_its_definition", group_norm_of_large_maps_matches_its_definition),
        ("group_norm_far_from_zero_keeps_its_mean", definitions::group_norm_far_from_zero_keeps_its_mean),
        ("shared_vectors_are_written_whole", shared_vectors_are_written_whole),
        ("linear_matches_its_definition", definitions::linear_matches_its_definition),
        ("conv2d_matches_its_definition", definitions::conv2d_matches_its_definition),
        ("upsample_conv2d_matches_its_definition", definitions::upsample_conv2d_matches_its_definition),
        (
            "a_vector_a_picture_can_be_added_to_a_convolution",
            definitions::a_vector_a_picture_can_be_added_to_a_convolution,
        ),
        ("group_norm_matches_its_definition", definitions::group_norm_matches_its_definition),
        ("layer_norm_matches_its_definition", definitions::layer_norm_matches_its_definition),
        ("attention_matches_its_definition", definitions::attention_matches_its_definition),
        (
            "attention_survives_scores_that_overflow_an_exponential",
            definitions::attention_survives_scores_that_overflow_an_exponential,
        ),
        ("activations_match_their_definitions", definitions::activations_match_their_definitions),
        ("geglu_gates_the_first_half_by_the_second", definitions::geglu_gates_the_first_half_by_the_second),
        ("upsampling_repeats_every_pixel", definitions::upsampling_repeats_every_pixel),
        ("a_view_gives_the_bits_of_its_copy", definitions::a_view_gives_the_bits_of_its_copy),
        ("a_row_has_the_same_bits_in_any_batch", definitions::a_row_has_the_same_bits_in_any_batch),
        ("a_step_matches_its_definition", denoise::a_step_matches_its_definition),
        (
            "every_samplers_coefficients_are_carried_out_in_one_batch",
            denoise::every_samplers_coefficients_are_carried_out_in_one_batch,
        ),
        (
            "values_that_are_not_finite_are_counted_and_stay_in_their_row",
            denoise::values_that_are_not_finite_are_counted_and_stay_in_their_row,
        ),
        (
            "a_row_of_a_step_has_the_same_bits_in_any_batch",
            denoise::a_row_of_a_step_has_the_same_bits_in_any_batch,
        ),
        (
            "the_networks_input_is_each_slot_times_its_factor",
            denoise::the_networks_input_is_each_slot_times_its_factor,
        ),
        ("rms_norm_matches_its_definition", transformer::rms_norm_matches_its_definition),
        (
            "layer_norm_modulate_matches_its_definition",
            transformer::layer_norm_modulate_matches_its_definition,
        ),
        ("gate_residual_matches_its_definition", transformer::gate_residual_matches_its_definition),
        ("swiglu_gates_the_first_half_by_the_second", transformer::swiglu_gates_the_first_half_by_the_second),
        ("bias_gelu_matches_its_definition", transformer::bias_gelu_matches_its_definition),
        ("an_epilogue_matches_its_definition", transformer::an_epilogue_matches_its_definition),
        ("an_epilogue_is_that_of_pytorch", transformer::an_epilogue_is_that_of_pytorch),
        ("qk_norm_rope_matches_its_definition", transformer::qk_norm_rope_matches_its_definition),
        ("timestep_embeddings_are_those_of_diffusers", embedding::timestep_embeddings_are_those_of_diffusers),
        (
            "a_timestep_embedding_matches_its_definition",
            embedding::a_timestep_embedding_matches_its_definition,
        ),
        (
            "a_timesteps_row_has_the_same_bits_in_any_batch",
            embedding::a_timesteps_row_has_the_same_bits_in_any_batch,
        ),
        (
            "a_transformers_operations_are_those_of_diffusers",
            transformer::a_transformers_operations_are_those_of_diffusers,
        ),
        (
            "a_transformers_row_has_the_same_bits_in_any_batch",
            transformer::a_transformers_row_has_the_same_bits_in_any_batch,
        ),
        (
            "a_transformers_view_gives_the_bits_of_its_copy",
            transformer::a_transformers_view_gives_the_bits_of_its_copy,
        ),
    ];

    /// What burn's own operations are needed for: views, slots of several buffers, the rest of a network.
    const GENERATED: &[&str] = &[
        "a_denoising_step_takes_half_as_many_launches_as_burns_own_operations",
        "a_denoising_step_ends_in_one_launch_and_gathers_rows_only_once",
        "a_batch_of_four_takes_few_launches_beside_the_network",
        "a_job_of_many_pictures_ends_its_step_in_several_launches",
        "a_view_gives_the_bits_of_its_copy",
        "a_transformers_view_gives_the_bits_of_its_copy",
    ];

    /// Tests of corners read what burn computes, all of them.
    fn is_generated(name: &str) -> bool {
        GENERATED.contains(&name) || corners::TESTS.iter().any(|&(corner, _)| corner == name)
    }

    fn all() -> impl Iterator<Item = &'static (&'static str, Test)> {
        TESTS.iter().chain(corners::TESTS)
    }

    /// The kernels of one language, on the first device that runs them.
    struct Backend {
        name: &'static str,
        names: &'static Names,
        /// Every one that the kernels are written for.
        dtypes: &'static [DType],
        /// The test of what large operations run, where they run something else.
        large: Option<&'static str>,
        on: Result<On, String>,
    }

    /// Hardware or not.
    #[cfg(feature = "wgpu")]
    fn wgpu(dtypes: &'static [DType]) -> Result<On, String> {
        open(DeviceType::Wgpu, "no wgpu adapter", dtypes)
    }

    #[cfg(not(feature = "wgpu"))]
    fn wgpu(_: &'static [DType]) -> Result<On, String> {
        Err("built without the feature wgpu".to_owned())
    }

    #[cfg(feature = "cuda")]
    fn cuda(dtypes: &'static [DType]) -> Result<On, String> {
        // Set where the device is the software driver's, which runs the kernels of `kernels/` alone.
        let software = std::env::var_os("AQUATINT_CUDA_CAPABILITY").is_some();
        let on = open(DeviceType::Cuda, "no CUDA device", dtypes)?;
        Ok(On { rounds_weights: true, generated: !software, ..on })
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(_: &'static [DType]) -> Result<On, String> {
        Err("built without the feature cuda".to_owned())
    }

    /// The first device of a kind, and those of `dtypes`, f32 first, that it has.
    fn open(kind: DeviceType, none: &str, dtypes: &'static [DType]) -> Result<On, String> {
        let devices = catch_unwind(|| Device::enumerate(kind).into_vec());
        let device = devices.ok().and_then(|devices| devices.into_iter().next()).ok_or(none)?;
        let has = dtypes.iter().take_while(|&&dtype| device.supports_dtype(dtype)).count();
        Ok(On {
            device,
            dtypes: &dtypes[..has],
            slack: 4.0,
            sums: Sums::F32,
            rounds_weights: false,
            generated: true,
        })
    }

    /// Runs a test; on the software driver with each buffer in memory of its own, beyond which nothing can be touched.
    fn run(on: &On, test: Box<dyn Fn(&On) + Send>) {
        match on.device.as_dispatch() {
            DispatchDevice::Cube(device) if !on.generated => {
                device.client().memory_dedicated_allocation(test, |test| test(on));
            }
            _ => test(on),
        }
    }

    fn trials(backend: &Backend) -> Vec<Trial> {
        let prefix = backend.name;
        let on = match &backend.on {
            Ok(on) => on,
            Err(reason) => {
                let names = all().map(|&(name, _)| name).chain([LAUNCHES]).chain(backend.large);
                let ignored = names.map(|name| Trial::test(format!("{prefix}::{name}"), || Ok(())));
                return ignored
                    .map(|trial| trial.with_kind(reason.clone()).with_ignored_flag(true))
                    .collect();
            }
        };
        let trial = |name, test: Box<dyn Fn(&On) + Send>| {
            let reason = match name {
                LARGE if !hopper::is_hopper(on) || !on.generated => "needs a GPU of compute capability 9.0",
                _ if !on.generated && is_generated(name) => "needs kernels that cubecl generates",
                _ => "",
            };
            let on = on.clone();
            let trial = Trial::test(format!("{prefix}::{name}"), move || {
                run(&on, test);
                Ok::<(), Failed>(())
            });
            trial.with_kind(reason).with_ignored_flag(!reason.is_empty())
        };
        let names = backend.names;
        let of_each = move |on: &On| every_operation_launches_its_kernel_and_nothing_else(on, names);
        let tests = all().map(|&(name, test)| trial(name, Box::new(test)));
        // What a device lacks of every test is named as left out.
        let lacking = backend.dtypes.iter().skip(on.dtypes.len()).map(|dtype| {
            let name = format!("{prefix}::every_operation_in_{dtype:?}").to_lowercase();
            Trial::test(name, || Ok(())).with_kind("the device lacks the type").with_ignored_flag(true)
        });
        let large =
            |on: &On| hopper::large_operations_match_their_definitions(on, |compute| launches(compute));
        let large = backend.large.map(|name| trial(name, Box::new(large)));
        tests.chain([trial(LAUNCHES, Box::new(of_each))]).chain(large).chain(lacking).collect()
    }

    const LAUNCHES: &str = "every_operation_launches_its_kernel_and_nothing_else";
    const LARGE: &str = "large_operations_match_their_definitions";

    pub(crate) fn main() {
        // No other thread is there yet that could read it.
        #[cfg(feature = "cuda")]
        #[allow(unsafe_code, reason = "the library reads this when the first operation is computed")]
        if std::env::var_os("AQUATINT_CUDA_KERNELS").is_none() {
            unsafe { std::env::set_var("AQUATINT_CUDA_KERNELS", "1") };
        }
        let mut arguments = Arguments::from_args();
        // Launches are counted for the whole process.
        arguments.test_threads = Some(1);
        let listed = || Err("not opened".to_owned());
        let halves: &[DType] = &[DType::F32, DType::F16];
        let all: &[DType] = &[DType::F32, DType::F16, DType::BF16];
        let backends = [
            Backend {
                name: "wgpu",
                names: &WGSL,
                dtypes: halves,
                large: None,
                on: if arguments.list { listed() } else { wgpu(halves) },
            },
            Backend {
                name: "cuda",
                names: &CUDA,
                dtypes: all,
                large: Some(LARGE),
                on: if arguments.list { listed() } else { cuda(all) },
            },
        ];
        for Backend { name, on, .. } in &backends {
            // Where a device must be there, its absence is a failure.
            let required = std::env::var_os(format!("AQUATINT_REQUIRE_{}", name.to_uppercase()));
            if let (Err(reason), false, Some(_)) = (on, arguments.list, required) {
                eprintln!("{name} is required here: {reason}");
                std::process::exit(1);
            }
        }
        leave(&libtest_mimic::run(&arguments, backends.iter().flat_map(trials).collect()));
    }
}
