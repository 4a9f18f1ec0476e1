//! Values: converted exactly, refused with their place, handed out once.

use aquatint::weights::WeightsError;
use burn::tensor::{DType, Device, Tensor};
use half::{bf16, f16};

use crate::{Plain, bf16s, f16s, f32s, file, files::sharded, open, raw, store, values};

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

#[test]
fn every_float_type_loads_to_every_float_type() {
    // exact in all three
    let numbers = [0.0, -0.0, 1.0, -2.5, 0.15625, 96.0];
    let plain =
        file(&[f32s("a", &[2, 3], &numbers), f16s("b", &[2, 3], &numbers), bf16s("c", &[2, 3], &numbers)]);
    let store = store(plain).unwrap();
    for dtype in FLOATS {
        let mut loaded = store.load(&Device::flex(), dtype).unwrap();
        assert_eq!(loaded.bytes(), 18 * dtype.size());
        for key in ["a", "b", "c"] {
            let tensor = loaded.take(key, [2, 3]).unwrap();
            assert_eq!(tensor.dtype(), dtype);
            assert_eq!(values(tensor), numbers);
        }
        loaded.finish().unwrap();
    }
}

#[test]
fn every_f16_and_every_bf16_becomes_the_f32_that_it_is() {
    let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|h| h.is_finite()).collect();
    let brains: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).filter(|b| b.is_finite()).collect();
    let a: Vec<f32> = halves.iter().map(|half| half.to_f32()).collect();
    let b: Vec<f32> = brains.iter().map(|brain| brain.to_f32()).collect();
    let store = store(file(&[f16s("a", &[a.len()], &a), bf16s("b", &[b.len()], &b)])).unwrap();
    let mut loaded = store.load(&Device::flex(), DType::F32).unwrap();
    assert_eq!(values(loaded.take("a", [a.len()]).unwrap()), a);
    assert_eq!(values(loaded.take("b", [b.len()]).unwrap()), b);
}

#[test]
fn f32_is_rounded_to_the_nearest_half_and_ties_to_even() {
    let numbers = [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 65_519.0, 1e-8, 6e-8, -0.1];
    let expected = [1.0, 1.001_953_1, 65_504.0, 0.0, 5.960_464_5e-8, -0.099_975_586];
    let store = store(file(&[f32s("a", &[6], &numbers)])).unwrap();
    let mut loaded = store.load(&Device::flex(), DType::F16).unwrap();
    assert_eq!(values(loaded.take("a", [6]).unwrap()), expected);
}

#[test]
fn a_kernel_comes_with_its_input_channels_last() {
    let numbers: Vec<f32> = (0..2 * 3 * 2 * 2).map(|i| i as f32).collect();
    for (dtype, tensor) in [
        (DType::F32, f32s("k", &[2, 3, 2, 2], &numbers)),
        (DType::F16, f16s("k", &[2, 3, 2, 2], &numbers)),
        (DType::BF16, bf16s("k", &[2, 3, 2, 2], &numbers)),
    ] {
        let store = store(file(&[tensor])).unwrap();
        let kernel = store.load(&Device::flex(), dtype).unwrap().take_conv("k", [2, 3, 2, 2]);
        let kernel = kernel.unwrap();
        assert_eq!(kernel.dims(), [2, 2, 2, 3]);
        // out channel 0: place (0, 0) of inputs 0, 1, 2, then place (0, 1), ..
        let first = [0.0, 4.0, 8.0, 1.0, 5.0, 9.0, 2.0, 6.0, 10.0, 3.0, 7.0, 11.0];
        assert_eq!(values(kernel)[..12], first);
    }
}

#[test]
fn a_tensor_of_rank_four_taken_plainly_has_the_files_layout() {
    let numbers: Vec<f32> = (0..2 * 3 * 2 * 2).map(|i| i as f32).collect();
    let store = store(file(&[f32s("k", &[2, 3, 2, 2], &numbers)])).unwrap();
    let mut loaded = store.load(&Device::flex(), DType::F32).unwrap();
    assert_eq!(values(loaded.take("k", [2, 3, 2, 2]).unwrap()), numbers);
}

#[test]
fn a_large_kernel_is_permuted_as_burn_permutes_it() {
    let shape = [5, 700, 3, 3];
    let numbers: Vec<f32> = (0..5 * 700 * 9).map(|i| (i % 251) as f32 - 125.0).collect();
    let store = store(file(&[f16s("k", &shape, &numbers)])).unwrap();
    let mut loaded = store.load(&Device::flex(), DType::F32).unwrap();
    let expected = Tensor::<1>::from_floats(&numbers[..], &Device::flex());
    let expected = expected.reshape(shape).permute([0, 2, 3, 1]);
    assert_eq!(values(loaded.take_conv("k", shape).unwrap()), values(expected));
}

#[test]
fn a_linear_weight_may_be_a_matrix_or_a_convolution_of_one_pixel() {
    let numbers = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    for shape in [&[2, 3][..], &[2, 3, 1, 1]] {
        let store = store(file(&[f32s("w", shape, &numbers)])).unwrap();
        let mut loaded = store.load(&Device::flex(), DType::F32).unwrap();
        assert_eq!(values(loaded.take_linear("w", [2, 3]).unwrap()), numbers);
    }
    let store = store(file(&[f32s("w", &[2, 1, 3, 1], &numbers)])).unwrap();
    let mut loaded = store.load(&Device::flex(), DType::F32).unwrap();
    let error = loaded.take_linear("w", [2, 3]).unwrap_err();
    assert!(matches!(error, WeightsError::Shape { .. }), "{error}");
}

#[test]
fn a_missing_a_misshapen_a_second_and_an_unused_take_are_refused_by_name() {
    let store = store(file(&[f32s("a", &[2], &[1.0, 2.0]), f32s("b", &[1], &[3.0])])).unwrap();
    let mut loaded = store.load(&Device::flex(), DType::F32).unwrap();
    let error = loaded.take("c", [2]).unwrap_err();
    assert!(matches!(&error, WeightsError::Missing { key, .. } if key == "c"), "{error}");
    let error = loaded.take("a", [1, 2]).unwrap_err();
    assert!(
        matches!(&error, WeightsError::Shape { key, file, expected, found }
            if key == "a" && file.ends_with("model.safetensors")
                && *expected == [1, 2] && *found == [2]),
        "{error}"
    );
    assert!(loaded.contains("a"));
    loaded.take("a", [2]).unwrap();
    assert!(!loaded.contains("a"));
    let error = loaded.take("a", [2]).unwrap_err();
    assert!(matches!(&error, WeightsError::Taken { key, .. } if key == "a"), "{error}");
    let error = loaded.finish().unwrap_err();
    assert!(matches!(&error, WeightsError::Unused { keys, count: 1, .. } if *keys == ["b"]), "{error}");
}

#[test]
fn many_unused_tensors_are_counted_and_the_first_eight_named() {
    let names: Vec<String> = (10..30).map(|i| format!("t{i}")).collect();
    let tensors: Vec<Plain> = names.iter().map(|name| f32s(name, &[1], &[1.0])).collect();
    let loaded = store(file(&tensors)).unwrap().load(&Device::flex(), DType::F32).unwrap();
    let error = loaded.finish().unwrap_err();
    assert!(matches!(&error, WeightsError::Unused { keys, count: 20, .. } if *keys == names[..8]), "{error}");
}

#[test]
fn a_value_that_is_not_finite_is_refused_with_its_place() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for make in [f32s, f16s, bf16s] {
            for dtype in FLOATS {
                let mut numbers = vec![1.0; 5000];
                numbers[4321] = value;
                let store = store(file(&[make("w", &[5000], &numbers)])).unwrap();
                let error = store.load(&Device::flex(), dtype).unwrap_err();
                assert!(
                    matches!(&error, WeightsError::NonFinite { key, index: 4321, value: found, .. }
                        if key == "w" && found.is_nan() == value.is_nan()),
                    "{error}"
                );
            }
        }
    }
}

#[test]
fn a_value_that_the_type_asked_for_cannot_hold_is_refused_with_its_place() {
    for (value, dtype, name) in
        [(1e6, DType::F16, "F16"), (65_520.0, DType::F16, "F16"), (f32::MAX, DType::BF16, "BF16")]
    {
        let mut numbers = vec![-1.0; 36];
        numbers[17] = value;
        let store = store(file(&[f32s("w", &[2, 2, 3, 3], &numbers)])).unwrap();
        let error = store.load(&Device::flex(), dtype).unwrap_err();
        assert!(
            matches!(&error, WeightsError::Overflow { key, index: 17, value: found, dtype, .. }
                if key == "w" && *found == value && *dtype == name),
            "{error}"
        );
        store.load(&Device::flex(), DType::F32).unwrap();
    }
}

#[test]
fn of_several_bad_tensors_the_first_in_the_file_is_named() {
    // the first bad one takes long, so that another thread meets the second before
    let mut large = vec![1.0; 1 << 20];
    large[(1 << 20) - 1] = f32::NAN;
    let tensors = [
        f32s("fine", &[1], &[1.0]),
        f32s("first", &[1 << 20], &large),
        f32s("second", &[1], &[f32::NAN]),
        f32s("third", &[1], &[f32::NAN]),
    ];
    let store = store(file(&tensors)).unwrap();
    for _ in 0..20 {
        let error = store.load(&Device::flex(), DType::F32).unwrap_err();
        assert!(matches!(&error, WeightsError::NonFinite { key, .. } if key == "first"), "{error}");
    }
}

#[test]
fn types_that_are_no_weights_are_refused_by_name_unless_ignored() {
    for (dtype, width) in [("I64", 8), ("I32", 4), ("U8", 1), ("F8_E4M3", 1), ("F64", 8), ("BOOL", 1)] {
        let odd = Plain { key: "odd".into(), dtype, shape: vec![2], bytes: vec![0; 2 * width] };
        let mut store = store(file(&[f32s("a", &[1], &[1.0]), odd])).unwrap();
        let error = store.load(&Device::flex(), DType::F32).unwrap_err();
        assert!(
            matches!(&error, WeightsError::SourceDtype { key, found, .. } if key == "odd" && found == dtype),
            "{error}"
        );
        assert_eq!(store.ignore(&["odd"]).unwrap(), 1);
        store.load(&Device::flex(), DType::F32).unwrap();
    }
}

#[test]
fn a_type_that_is_no_float_is_not_loaded_to() {
    let store = store(file(&[f32s("a", &[1], &[1.0])])).unwrap();
    let error = store.load(&Device::flex(), DType::I32).unwrap_err();
    assert!(matches!(&error, WeightsError::TargetDtype { found } if found == "I32"), "{error}");
}

#[test]
fn a_tensor_without_values_is_refused() {
    let store = store(file(&[f32s("a", &[0, 3], &[])])).unwrap();
    let error = store.load(&Device::flex(), DType::F32).unwrap_err();
    assert!(matches!(&error, WeightsError::Empty { shape, .. } if *shape == [0, 3]), "{error}");
}

#[test]
fn data_that_are_not_aligned_load_alike() {
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    for spaces in 0..8 {
        let header = format!("{header}{}", " ".repeat(spaces));
        let data: Vec<u8> = [1.5_f32, -2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let store = store(raw(&header, &data)).unwrap();
        let mut loaded = store.load(&Device::flex(), DType::F32).unwrap();
        assert_eq!(values(loaded.take("a", [2]).unwrap()), [1.5, -2.0]);
    }
}

#[test]
fn the_digest_follows_names_shapes_types_and_values_and_nothing_else() {
    let digest = |tensors: &[Plain], dtype| {
        let loaded = store(file(tensors)).unwrap().load(&Device::flex(), dtype).unwrap();
        loaded.digest().to_string()
    };
    let (a, b) = (f32s("a", &[4], &[1.0, 2.0, 3.0, 4.0]), f16s("b", &[1, 2, 2, 1], &[1.0; 4]));
    let first = digest(&[a.clone(), b.clone()], DType::F32);
    assert_eq!(first.len(), 64);
    assert_eq!(first, digest(&[b.clone(), a.clone()], DType::F16));
    for other in [
        f32s("c", &[4], &[1.0, 2.0, 3.0, 4.0]),
        f32s("a", &[2, 2], &[1.0, 2.0, 3.0, 4.0]),
        f32s("a", &[4], &[1.0, 2.0, 3.0, 5.0]),
        f16s("a", &[4], &[1.0, 2.0, 3.0, 4.0]),
    ] {
        assert_ne!(first, digest(&[other, b.clone()], DType::F32));
    }
    let shards = sharded(&[("1", &[a][..]), ("2", &[b][..])], |_| {});
    let loaded = open(&shards).unwrap().load(&Device::flex(), DType::F32).unwrap();
    assert_eq!(first, loaded.digest());
}
