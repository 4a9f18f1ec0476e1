//! The kernels of `kernels/wgsl` against their definitions, on whatever wgpu adapter there is. Without one every test
//! is reported as ignored, with the reason.

#[cfg(feature = "wgpu")]
#[path = "ops/definitions.rs"]
mod definitions;
#[cfg(feature = "wgpu")]
#[path = "ops/host.rs"]
mod host;
#[cfg(feature = "wgpu")]
#[path = "common/leave.rs"]
mod leave;

#[cfg(not(feature = "wgpu"))]
fn main() {
    let arguments = libtest_mimic::Arguments::from_args();
    let trial = libtest_mimic::Trial::test("every_kernel", || Ok(()));
    let trial = trial.with_kind("built without the feature wgpu").with_ignored_flag(true);
    libtest_mimic::run(&arguments, vec![trial]).exit();
}

#[cfg(feature = "wgpu")]
fn main() {
    on_wgpu::main();
}

#[cfg(feature = "wgpu")]
mod on_wgpu {
    use std::panic::catch_unwind;
    use std::sync::{Arc, Mutex};

    use aquatint::ops::{self, Activation, Conv2d, Mask};
    use aquatint::{DeviceChoice, LoadOptions, Pipeline, Precision, Request};
    use burn::tensor::{DType, Device, DeviceType, Tensor};
    use cubecl::logging::{LaunchObservation, LaunchObserver};
    use libtest_mimic::{Arguments, Failed, Trial};

    use crate::definitions::{self, On};
    use crate::host::Sums;
    use crate::leave::leave;

    #[derive(Default)]
    struct Names(Mutex<Vec<&'static str>>);

    impl LaunchObserver for Names {
        fn launched(&self, kernel: &'static str) {
            self.0.lock().unwrap().push(kernel);
        }
    }

    fn launches(compute: impl FnOnce()) -> Vec<&'static str> {
        let names = Arc::new(Names::default());
        let observation = LaunchObservation::new(names.clone());
        compute();
        drop(observation);
        std::mem::take(&mut *names.0.lock().unwrap())
    }

    /// A kernel that is passed over would let burn's own operations stand every other test.
    fn every_operation_launches_its_kernel_and_nothing_else(on: &On) {
        for &dtype in on.dtypes {
            let ones = |count| Tensor::<1>::ones([count], (&on.device, dtype));
            let (tokens, _) = on.random([2, 5, 24], dtype, 1, 1.0);
            let (map, _) = on.random([2, 3, 5, 24], dtype, 2, 1.0);
            let (large, _) = on.random([1, 40, 40, 24], dtype, 3, 1.0);
            let (affine, eps) = (ones(24), 1e-5);
            let group_norm =
                |x: &Tensor<4>| ops::group_norm(x.clone(), 4, &affine, &affine, eps, Activation::Silu);
            let found = launches(|| drop(ops::layer_norm(tokens.clone(), &affine, &affine, eps)));
            assert_eq!(found, ["layer_norm"]);
            let found = launches(|| drop(group_norm(&map)));
            assert_eq!(found, ["group_norm_statistics", "group_norm_apply"]);
            let found = launches(|| drop(group_norm(&large)));
            assert_eq!(found, ["group_norm_statistics", "group_norm_combine", "group_norm_apply"]);
            let (weight, _) = on.random([40, 24], dtype, 4, 1.0);
            let (kernel, _) = on.random([32, 3, 3, 24], dtype, 5, 1.0);
            let token = tokens.clone().narrow(1, 2, 1);
            assert_eq!(
                launches(|| drop(ops::linear(token.clone().reshape([2, 1, 24]), &weight, None))).last(),
                Some(&"matvec")
            );
            let walk = Conv2d { stride: 1, padding: [1; 4] };
            assert_eq!(launches(|| drop(ops::linear(tokens.clone(), &weight, None))), ["matmul"]);
            assert_eq!(launches(|| drop(ops::conv2d(map.clone(), &kernel, None, &walk))), ["conv2d"]);
            for head_dim in [16, 40, 64, 80, 128, 160, 512] {
                let (q, _) = on.random([1, 3, 2 * head_dim], dtype, 6, 1.0);
                let attention = || drop(ops::attention(q.clone(), q.clone(), q.clone(), 2, Mask::None));
                assert_eq!(launches(attention), ["attention"]);
            }
            assert_eq!(launches(|| drop(ops::geglu(tokens.clone()))), ["geglu"]);
            assert_eq!(launches(|| drop(ops::gelu(tokens.clone()))), ["gelu"]);
            assert_eq!(launches(|| drop(ops::quick_gelu(tokens.clone()))), ["quick_gelu"]);
            assert_eq!(launches(|| drop(ops::silu(tokens.clone()))), ["silu"]);
            assert_eq!(launches(|| drop(ops::upsample_nearest_2x(map.clone()))), ["upsample_nearest_2x"]);
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
        assert!(found.len() <= BURNS_LAUNCHES / 2, "{}: {counts:#?}", found.len());
    }

    /// Large enough for several slices, blocks and rows of workgroups.
    fn group_norm_of_large_maps_matches_its_definition(on: &On) {
        definitions::group_norm_of(
            on,
            &[([1, 64, 65, 32], 8), ([2, 100, 100, 20], 2), ([1, 33, 31, 320], 32)],
        );
    }

    /// Launches of that step with every operation in its reference form, counted the same way on 2026-11-25.
    const BURNS_LAUNCHES: usize = 660;

    type Test = fn(&On);

    const TESTS: &[(&str, Test)] = &[
        (
            "every_operation_launches_its_kernel_and_nothing_else",
            every_operation_launches_its_kernel_and_nothing_else,
        ),
        (
            "a_denoising_step_takes_half_as_many_launches_as_burns_own_operations",
            a_denoising_step_takes_half_as_many_launches_as_burns_own_operations,
        ),
        ("group_norm_of_large_maps_matches_its_definition", group_norm_of_large_maps_matches_its_definition),
        ("linear_matches_its_definition", definitions::linear_matches_its_definition),
        ("conv2d_matches_its_definition", definitions::conv2d_matches_its_definition),
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
    ];

    /// The first adapter, hardware or not; or why there is none.
    fn open() -> Result<On, String> {
        let devices = catch_unwind(|| Device::enumerate(DeviceType::Wgpu).into_vec());
        let device = devices.ok().and_then(|devices| devices.into_iter().next()).ok_or("no wgpu adapter")?;
        let halves = device.supports_dtype(DType::F16);
        let dtypes: &[DType] = if halves { &[DType::F32, DType::F16] } else { &[DType::F32] };
        Ok(On { device, dtypes, slack: 4.0, sums: Sums::F32 })
    }

    pub(crate) fn main() {
        let mut arguments = Arguments::from_args();
        // Launches are counted for the whole process.
        arguments.test_threads = Some(1);
        let on = if arguments.list { Err("not opened".to_owned()) } else { open() };
        // Where an adapter must be there, its absence is a failure.
        if let (Err(reason), false, Ok(_)) = (&on, arguments.list, std::env::var("AQUATINT_REQUIRE_WGPU")) {
            eprintln!("wgpu is required here: {reason}");
            std::process::exit(1);
        }
        let trials = TESTS.iter().map(|&(name, test)| match &on {
            Ok(on) => {
                let on = on.clone();
                Trial::test(name, move || {
                    test(&on);
                    Ok::<(), Failed>(())
                })
            }
            Err(reason) => Trial::test(name, || Ok(())).with_kind(reason.clone()).with_ignored_flag(true),
        });
        // Where the adapter lacks f16, that half of every test is named as left out.
        let halves = Trial::test("every_operation_in_f16", || Ok(())).with_ignored_flag(true);
        let lacking = on.as_ref().is_ok_and(|on| !on.dtypes.contains(&DType::F16));
        let halves = lacking.then(|| halves.with_kind("the adapter has no f16"));
        leave(&libtest_mimic::run(&arguments, trials.chain(halves).collect()));
    }
}
