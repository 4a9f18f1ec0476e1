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
#[path = "ops/launches.rs"]
mod launches;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[path = "common/leave.rs"]
mod leave;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[path = "ops/rows.rs"]
mod rows;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[path = "ops/transformer.rs"]
mod transformer;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[path = "common/warnings.rs"]
mod warnings;

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

    use burn::backend::DispatchDevice;
    use burn::tensor::{DType, Device, DeviceType};
    use libtest_mimic::{Arguments, Failed, Trial};

    use crate::corners;
    use crate::definitions::{self, On};
    use crate::denoise;
    use crate::embedding;
    use crate::hopper;
    use crate::host::Sums;
    use crate::launches::{self, CUDA, Names, WGSL, launches};
    use crate::leave::leave;
    use crate::rows;
    use crate::transformer;
    use crate::warnings;

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

    type Test = fn(&On);

    const TESTS: &[(&str, Test)] = &[
        (
            "every_operation_of_a_transformer_launches_its_kernel_and_nothing_else",
            launches::every_operation_of_a_transformer_launches_its_kernel_and_nothing_else,
        ),
        (
            "a_denoising_step_takes_half_as_many_launches_as_burns_own_operations",
            launches::a_denoising_step_takes_half_as_many_launches_as_burns_own_operations,
        ),
        (
            "a_denoising_step_ends_in_one_launch_and_gathers_rows_only_once",
            launches::a_denoising_step_ends_in_one_launch_and_gathers_rows_only_once,
        ),
        (
            "a_batch_of_four_takes_few_launches_beside_the_network",
            launches::a_batch_of_four_takes_few_launches_beside_the_network,
        ),
        (
            "a_job_of_many_pictures_ends_its_step_in_several_launches",
            launches::a_job_of_many_pictures_ends_its_step_in_several_launches,
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
        ("a_view_gives_the_bits_of_its_copy", rows::a_view_gives_the_bits_of_its_copy),
        (
            "an_output_has_the_same_bits_beside_any_others",
            launches::an_output_has_the_same_bits_beside_any_others,
        ),
        ("a_row_has_the_same_bits_in_any_batch", rows::a_row_has_the_same_bits_in_any_batch),
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
        "an_output_has_the_same_bits_beside_any_others",
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
        let of_each =
            move |on: &On| launches::every_operation_launches_its_kernel_and_nothing_else(on, names);
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
        warnings::show();
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
