//! Real files whole, and small ones damaged in every way.

use aquatint::weights::{Files, WeightStore, WeightsError};
use burn::tensor::{DType, Device};
use proptest::prelude::*;
use serde_json::json;

use crate::{Plain, bf16s, f16s, f32s, file, raw, store};

#[test]
fn the_weights_of_the_embedded_model_load_whole() {
    let files = Files::folder(concat!(env!("CARGO_MANIFEST_DIR"), "/weights")).unwrap();
    for (folder, stem) in
        [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")]
    {
        let store = WeightStore::open(&files, folder, stem).unwrap();
        let loaded = store.load(&Device::flex(), DType::F32).unwrap();
        assert_eq!(loaded.bytes(), store.parameters() * 4);
        assert!(store.parameters() > 100_000);
    }
}

/// Small, and with every kind of tensor.
fn specimen() -> (Vec<u8>, Vec<Plain>) {
    let tensors = vec![
        f32s("a.weight", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        f16s("b.weight", &[2, 2, 1, 2], &[0.5; 8]),
        bf16s("c", &[], &[2.0]),
        f32s("d", &[5], &[-1.0; 5]),
    ];
    (file(&tensors), tensors)
}

/// Opens and loads `bytes`; what loads must be what the file says.
fn check_damaged(bytes: Vec<u8>, header_intact: bool) -> Result<(), TestCaseError> {
    // the reference implementation is stricter nowhere
    let reference = safetensors::SafeTensors::deserialize(&bytes).map(|file| file.len());
    let result = store(bytes);
    prop_assert!(result.is_err() || reference.is_ok());
    let Ok(store) = result else { return Ok(()) };
    prop_assert_eq!(store.keys().count(), reference.unwrap());
    let Ok(mut loaded) = store.load(&Device::flex(), DType::F32) else { return Ok(()) };
    if header_intact {
        for tensor in specimen().1 {
            let shape = loaded.shape(&tensor.key).map(<[usize]>::to_vec);
            prop_assert_eq!(shape, Some(tensor.shape));
        }
        prop_assert!(loaded.take("a.weight", [2, 3]).is_ok());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_file_with_a_changed_byte_is_refused_or_read(at in 0.0..1.0_f64, byte: u8) {
        let mut bytes = specimen().0;
        let place = (at * bytes.len() as f64) as usize;
        let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[place] = byte;
        check_damaged(bytes, place >= data)?;
    }

    #[test]
    fn a_file_with_several_changed_bytes_is_refused_or_read(
        changes in prop::collection::vec((0.0..1.0_f64, any::<u8>()), 1..16),
    ) {
        let mut bytes = specimen().0;
        for (at, byte) in changes {
            let place = (at * bytes.len() as f64) as usize;
            bytes[place] = byte;
        }
        check_damaged(bytes, false)?;
    }

    #[test]
    fn a_file_that_is_cut_is_refused(at in 0.0..1.0_f64) {
        let mut bytes = specimen().0;
        bytes.truncate((at * bytes.len() as f64) as usize);
        prop_assert!(store(bytes).is_err());
    }

    #[test]
    fn a_file_with_more_bytes_is_refused(more in prop::collection::vec(any::<u8>(), 1..64)) {
        let (mut bytes, _) = specimen();
        bytes.extend(more);
        let error = store(bytes).unwrap_err();
        prop_assert!(matches!(error, WeightsError::Uncovered { .. }), "{}", error);
    }

    #[test]
    fn a_header_with_other_numbers_is_refused_or_read(
        shape in prop::collection::vec(prop_oneof![0..5_u64, any::<u64>()], 0..5),
        begin in prop_oneof![0..20_u64, any::<u64>()],
        end in prop_oneof![0..20_u64, any::<u64>()],
        dtype in prop::sample::select(vec!["F32", "F16", "F4", "F6_E2M3", "I64", "BOOL", "C64"]),
    ) {
        let header = json!({"x": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}});
        check_damaged(raw(&header.to_string(), &[0; 16]), false)?;
    }
}
