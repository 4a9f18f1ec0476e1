//! Headers that lie.

use aquatint::weights::WeightsError;
use serde_json::json;

use crate::{f32s, file, raw, store};

fn header_error(header: &str, data: usize) -> WeightsError {
    store(raw(header, &vec![0; data])).unwrap_err()
}

#[test]
fn a_file_shorter_than_its_first_number_is_cut_short() {
    for bytes in 0..8 {
        let error = store(vec![0; bytes]).unwrap_err();
        assert!(
            matches!(&error, WeightsError::Truncated { expected: 8, found, .. } if *found == bytes as u64),
            "{error}"
        );
    }
}

#[test]
fn a_file_cut_inside_its_data_says_how_much_is_missing() {
    let whole = file(&[f32s("a", &[4], &[1.0; 4]), f32s("b", &[4], &[1.0; 4])]);
    for cut in 1..32 {
        let error = store(whole[..whole.len() - cut].to_vec()).unwrap_err();
        assert!(
            matches!(&error, WeightsError::Truncated { expected, found, .. }
                if *expected == whole.len() as u64 && *found == (whole.len() - cut) as u64),
            "{error}"
        );
    }
}

#[test]
fn a_header_that_reaches_past_the_file_is_refused() {
    let mut bytes = file(&[f32s("a", &[1], &[1.0])]);
    bytes[..8].copy_from_slice(&90_000_000_u64.to_le_bytes());
    let error = store(bytes).unwrap_err();
    assert!(matches!(error, WeightsError::HeaderPastEnd { header: 90_000_000, .. }), "{error}");
}

#[test]
fn an_absurd_header_length_is_refused() {
    for length in [100_000_001, u64::MAX] {
        let mut bytes = file(&[f32s("a", &[1], &[1.0])]);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        let error = store(bytes).unwrap_err();
        assert!(matches!(&error, WeightsError::HeaderTooLarge { found, .. } if *found == length), "{error}");
    }
}

#[test]
fn a_header_that_is_not_the_formats_json_is_refused() {
    let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    for header in [
        "".to_string(),
        "{".into(),
        "[]".into(),
        "null".into(),
        r#"{"a":1}"#.into(),
        r#"{"a":{"dtype":"F32","shape":[1]}}"#.into(),
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#.into(),
        r#"{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}"#.into(),
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#.into(),
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999999999999]}}"#.into(),
        format!(r#"{{"__metadata__":{{"a":1}},"a":{entry}}}"#),
        format!(r#"{{"__metadata__":{{}},"__metadata__":{{}},"a":{entry}}}"#),
        format!(r#"{{"a":{entry}}} x"#),
        "[".repeat(100_000),
    ] {
        let error = header_error(&header, 4);
        assert!(matches!(error, WeightsError::InvalidHeader { .. }), "{header:.80}: {error}");
    }
    let error = store(raw("", b"")).unwrap_err();
    assert!(matches!(error, WeightsError::InvalidHeader { .. }), "{error}");
}

#[test]
fn a_header_that_is_not_utf8_is_refused() {
    let mut bytes = file(&[f32s("a", &[1], &[1.0])]);
    bytes[9] = 0xff;
    let error = store(bytes).unwrap_err();
    assert!(matches!(error, WeightsError::InvalidHeader { .. }), "{error}");
}

#[test]
fn a_tensor_that_stands_twice_is_refused() {
    let entry = r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let error = header_error(&format!("{{{entry},{entry}}}"), 4);
    assert!(matches!(&error, WeightsError::DuplicateKey { key, .. } if key == "a"), "{error}");
}

#[test]
fn an_unknown_type_is_refused_by_name() {
    let error = header_error(r#"{"a":{"dtype":"F12","shape":[1],"data_offsets":[0,4]}}"#, 4);
    assert!(
        matches!(&error, WeightsError::UnknownDtype { key, found, .. } if key == "a" && found == "F12"),
        "{error}"
    );
}

#[test]
fn a_tensor_of_absurd_rank_is_refused() {
    let header = json!({"a": {"dtype": "F32", "shape": vec![1; 9], "data_offsets": [0, 4]}});
    let error = header_error(&header.to_string(), 4);
    assert!(matches!(error, WeightsError::Rank { found: 9, .. }), "{error}");
}

#[test]
fn offsets_that_run_backwards_are_refused() {
    let error = header_error(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4);
    assert!(matches!(error, WeightsError::Offsets { begin: 4, end: 0, .. }), "{error}");
}

#[test]
fn a_shape_whose_size_overflows_is_refused() {
    for shape in ["[4294967296,4294967296]", "[18446744073709551615]", "[2305843009213693952,4]"] {
        let error =
            header_error(&format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,4]}}}}"#), 4);
        assert!(matches!(error, WeightsError::TooLarge { .. }), "{error}");
    }
}

#[test]
fn a_shape_that_does_not_fit_its_bytes_is_refused() {
    let error = header_error(r#"{"a":{"dtype":"F16","shape":[3],"data_offsets":[0,4]}}"#, 4);
    assert!(matches!(error, WeightsError::Size { expected: 6, found: 4, .. }), "{error}");
    let error = header_error(r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#, 2);
    assert!(matches!(error, WeightsError::Size { .. }), "{error}");
}

#[test]
fn tensors_that_overlap_are_refused_by_both_names() {
    let entry = |begin: usize| json!({"dtype": "F32", "shape": [2], "data_offsets": [begin, begin + 8]});
    let error = header_error(&json!({"a": entry(0), "b": entry(4)}).to_string(), 12);
    assert!(
        matches!(&error, WeightsError::Overlap { first, second, .. } if first == "a" && second == "b"),
        "{error}"
    );
}

#[test]
fn bytes_that_belong_to_no_tensor_are_refused() {
    let entry = |begin: usize| json!({"dtype": "F32", "shape": [1], "data_offsets": [begin, begin + 4]});
    for (header, begin, end) in [
        (json!({"a": entry(4)}), 0, 4),
        (json!({"a": entry(0), "b": entry(8)}), 4, 8),
        (json!({"a": entry(0), "b": entry(4)}), 8, 12),
        (json!({}), 0, 12),
    ] {
        let error = header_error(&header.to_string(), 12);
        assert!(
            matches!(&error, WeightsError::Uncovered { begin: b, end: e, .. } if (*b, *e) == (begin, end)),
            "{error}"
        );
    }
}
