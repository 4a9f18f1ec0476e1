//! The CPU's kernels against their definitions, and to the bit against themselves on other thread counts.
#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "ops/corners.rs"]
mod corners;
#[path = "ops/definitions.rs"]
mod definitions;
#[path = "ops/denoise.rs"]
mod denoise;
#[path = "ops/embedding.rs"]
mod embedding;
#[path = "ops/host.rs"]
mod host;
#[path = "ops/rows.rs"]
mod rows;
#[path = "ops/transformer.rs"]
mod transformer;

use aquatint::ops::{self, Activation, Conv2d, Epilogue, Gelu, Mask, Nonlinearity};
use burn::tensor::{DType, Device, Tensor};
use definitions::{On, bits};
use host::Sums;

fn cpu() -> On {
    On {
        device: Device::flex(),
        dtypes: &[DType::F32, DType::F16, DType::BF16],
        slack: 1.0,
        sums: Sums::F64,
        rounds_weights: false,
        generated: true,
    }
}

#[test]
fn linear_matches_its_definition() {
    definitions::linear_matches_its_definition(&cpu());
}

#[test]
fn conv2d_matches_its_definition() {
    definitions::conv2d_matches_its_definition(&cpu());
}

#[test]
fn upsample_conv2d_matches_its_definition() {
    definitions::upsample_conv2d_matches_its_definition(&cpu());
}

#[test]
fn a_vector_a_picture_can_be_added_to_a_convolution() {
    definitions::a_vector_a_picture_can_be_added_to_a_convolution(&cpu());
}

#[test]
fn group_norm_matches_its_definition() {
    definitions::group_norm_matches_its_definition(&cpu());
}

#[test]
fn group_norm_far_from_zero_keeps_its_mean() {
    definitions::group_norm_far_from_zero_keeps_its_mean(&cpu());
}

#[test]
fn layer_norm_matches_its_definition() {
    definitions::layer_norm_matches_its_definition(&cpu());
}

#[test]
fn attention_matches_its_definition() {
    definitions::attention_matches_its_definition(&cpu());
}

#[test]
fn attention_survives_scores_that_overflow_an_exponential() {
    definitions::attention_survives_scores_that_overflow_an_exponential(&cpu());
}

#[test]
fn activations_match_their_definitions() {
    definitions::activations_match_their_definitions(&cpu());
}

#[test]
fn geglu_gates_the_first_half_by_the_second() {
    definitions::geglu_gates_the_first_half_by_the_second(&cpu());
}

#[test]
fn upsampling_repeats_every_pixel() {
    definitions::upsampling_repeats_every_pixel(&cpu());
}

#[test]
fn a_view_gives_the_bits_of_its_copy() {
    rows::a_view_gives_the_bits_of_its_copy(&cpu());
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    rows::a_row_has_the_same_bits_in_any_batch(&cpu());
}

#[test]
fn a_step_matches_its_definition() {
    denoise::a_step_matches_its_definition(&cpu());
}

#[test]
fn every_samplers_coefficients_are_carried_out_in_one_batch() {
    denoise::every_samplers_coefficients_are_carried_out_in_one_batch(&cpu());
}

#[test]
fn values_that_are_not_finite_are_counted_and_stay_in_their_row() {
    denoise::values_that_are_not_finite_are_counted_and_stay_in_their_row(&cpu());
}

#[test]
fn a_row_of_a_step_has_the_same_bits_in_any_batch() {
    denoise::a_row_of_a_step_has_the_same_bits_in_any_batch(&cpu());
}

#[test]
fn the_networks_input_is_each_slot_times_its_factor() {
    denoise::the_networks_input_is_each_slot_times_its_factor(&cpu());
}

#[test]
fn rms_norm_matches_its_definition() {
    transformer::rms_norm_matches_its_definition(&cpu());
}

#[test]
fn layer_norm_modulate_matches_its_definition() {
    transformer::layer_norm_modulate_matches_its_definition(&cpu());
}

#[test]
fn gate_residual_matches_its_definition() {
    transformer::gate_residual_matches_its_definition(&cpu());
}

#[test]
fn swiglu_gates_the_first_half_by_the_second() {
    transformer::swiglu_gates_the_first_half_by_the_second(&cpu());
}

#[test]
fn bias_gelu_matches_its_definition() {
    transformer::bias_gelu_matches_its_definition(&cpu());
}

#[test]
fn an_epilogue_matches_its_definition() {
    transformer::an_epilogue_matches_its_definition(&cpu());
}

#[test]
fn an_epilogue_is_that_of_pytorch() {
    transformer::an_epilogue_is_that_of_pytorch(&cpu());
}

#[test]
fn qk_norm_rope_matches_its_definition() {
    transformer::qk_norm_rope_matches_its_definition(&cpu());
}

#[test]
fn a_transformers_operations_are_those_of_diffusers() {
    transformer::a_transformers_operations_are_those_of_diffusers(&cpu());
}

#[test]
fn a_transformers_row_has_the_same_bits_in_any_batch() {
    transformer::a_transformers_row_has_the_same_bits_in_any_batch(&cpu());
}

#[test]
fn a_transformers_view_gives_the_bits_of_its_copy() {
    transformer::a_transformers_view_gives_the_bits_of_its_copy(&cpu());
}

#[test]
fn tokens_that_are_not_there_give_none() {
    corners::tokens_that_are_not_there_give_none(&cpu());
}

#[test]
fn maps_that_are_not_there_give_none() {
    corners::maps_that_are_not_there_give_none(&cpu());
}

#[test]
fn a_sum_over_nothing_is_zero() {
    corners::a_sum_over_nothing_is_zero(&cpu());
}

#[test]
fn single_elements_match_their_definitions() {
    corners::single_elements_match_their_definitions(&cpu());
}

#[test]
fn activations_keep_what_is_not_finite() {
    corners::activations_keep_what_is_not_finite(&cpu());
}

#[test]
fn scores_that_are_not_finite_stay_in_their_row() {
    corners::scores_that_are_not_finite_stay_in_their_row(&cpu());
}

#[test]
fn batches_of_more_pictures_than_a_launch_takes_have_the_bits_of_small_ones() {
    corners::batches_of_more_pictures_than_a_launch_takes_have_the_bits_of_small_ones(&cpu());
}

#[test]
fn more_workgroups_than_one_direction_takes_reach_every_row() {
    corners::more_workgroups_than_one_direction_takes_reach_every_row(&cpu());
}

/// Runs on pools of one, two and five threads and asserts that the bits agree.
#[track_caller]
fn assert_same_on_any_threads<const D: usize>(compute: impl Fn() -> Tensor<D> + Sync, what: &str) {
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bits(compute()))
    };
    let one = on(1);
    assert!(one == on(2) && one == on(5), "{what}: bits depend on the thread count");
}

#[test]
fn timestep_embeddings_are_those_of_diffusers() {
    embedding::timestep_embeddings_are_those_of_diffusers(&cpu());
}

#[test]
fn a_timestep_embedding_matches_its_definition() {
    embedding::a_timestep_embedding_matches_its_definition(&cpu());
}

#[test]
fn a_timesteps_row_has_the_same_bits_in_any_batch() {
    embedding::a_timesteps_row_has_the_same_bits_in_any_batch(&cpu());
}

#[test]
fn bits_do_not_depend_on_the_thread_count() {
    let (x, _) = cpu().random([2, 32, 32, 96], DType::F32, 35, 10.0);
    let (weight, _) = cpu().random([80, 3, 3, 96], DType::F32, 36, 1.0);
    let (affine, _) = cpu().random([96], DType::F32, 37, 1.0);
    let walk = Conv2d { stride: 1, padding: [1; 4] };
    assert_same_on_any_threads(|| ops::conv2d(x.clone(), &weight, None, &walk), "conv2d");
    let norm = || ops::group_norm(x.clone(), 32, &affine, &affine, 1e-5, Activation::Silu);
    assert_same_on_any_threads(norm, "group_norm");
    let tokens = x.clone().reshape([2, 1024, 96]);
    let (square, _) = cpu().random([1280, 96], DType::F32, 38, 1.0);
    assert_same_on_any_threads(|| ops::linear(tokens.clone(), &square, None), "linear");
    assert_same_on_any_threads(|| ops::layer_norm(tokens.clone(), &affine, &affine, 1e-5), "layer_norm");
    let attention = || ops::attention(tokens.clone(), tokens.clone(), tokens.clone(), 3, Mask::Causal);
    assert_same_on_any_threads(attention, "attention");
    assert_same_on_any_threads(|| ops::geglu(tokens.clone()), "geglu");
    assert_same_on_any_threads(|| ops::swiglu(tokens.clone()), "swiglu");
    assert_same_on_any_threads(|| ops::bias_gelu(tokens.clone(), &affine, Gelu::Exact), "bias_gelu");
    assert_same_on_any_threads(|| ops::rms_norm(tokens.clone(), &affine, 1e-6), "rms_norm");
    let (row, _) = cpu().random([2, 96], DType::F32, 39, 1.0);
    let modulate = || ops::layer_norm_modulate(tokens.clone(), &row, &row, 1e-6);
    assert_same_on_any_threads(modulate, "layer_norm_modulate");
    let gate = || ops::gate_residual(tokens.clone(), tokens.clone(), &row);
    assert_same_on_any_threads(gate, "gate_residual");
    let layer = || {
        let epilogue = Epilogue {
            bias: None,
            activation: Some(Nonlinearity::QuickGelu),
            gate: Some(&row),
            residual: Some(tokens.clone()),
        };
        ops::linear_with(tokens.clone(), &square.clone().narrow(0, 0, 96), epilogue)
    };
    assert_same_on_any_threads(layer, "linear_with");
    let (table, _) = cpu().random([1024, 24], DType::F32, 40, 1.0);
    let weight = affine.clone().narrow(0, 0, 48);
    let rope = || {
        let (q, k) =
            ops::qk_norm_rope(tokens.clone(), tokens.clone(), &weight, &weight, &table, &table, 1e-6);
        Tensor::cat(vec![q, k], 2)
    };
    assert_same_on_any_threads(rope, "qk_norm_rope");
}
