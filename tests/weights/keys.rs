//! Renames and entries that are no weights.

use aquatint::weights::{KeyMap, KeyMapError, NON_WEIGHTS, OLD_ATTENTION, WeightsError};
use burn::tensor::{DType, Device};
use proptest::prelude::*;

use crate::{Plain, f32s, file, store, values};

#[test]
fn old_attention_names_become_the_present_ones() {
    let map = KeyMap::table(OLD_ATTENTION).unwrap();
    for (from, to) in [
        ("encoder.mid_block.attentions.0.query.weight", "encoder.mid_block.attentions.0.to_q.weight"),
        ("encoder.mid_block.attentions.0.key.bias", "encoder.mid_block.attentions.0.to_k.bias"),
        ("decoder.mid_block.attentions.0.value.bias", "decoder.mid_block.attentions.0.to_v.bias"),
        ("decoder.mid_block.attentions.0.proj_attn.weight", "decoder.mid_block.attentions.0.to_out.0.weight"),
        (
            "decoder.mid_block.attentions.0.group_norm.weight",
            "decoder.mid_block.attentions.0.group_norm.weight",
        ),
        ("query.weight", "query.weight"),
    ] {
        assert_eq!(map.apply(from), to);
    }
}

#[test]
fn wildcards_carry_what_they_matched_and_the_first_row_wins() {
    let map = KeyMap::new([("a.*.x.**", "b.*.y.**"), ("a.**", "rest.**")]).unwrap();
    assert_eq!(map.apply("a.1.x"), "b.1.y");
    assert_eq!(map.apply("a.1.x.2.3"), "b.1.y.2.3");
    assert_eq!(map.apply("a.1.z"), "rest.1.z");
    assert_eq!(map.apply("c"), "c");
}

#[test]
fn a_row_that_cannot_be_read_is_refused() {
    let error = KeyMap::new([("a.*", "a")]).unwrap_err();
    assert!(matches!(error, KeyMapError::Wildcards { .. }), "{error}");
    let error = KeyMap::new([("a.*.**", "a.**.*")]).unwrap_err();
    assert!(matches!(error, KeyMapError::Wildcards { .. }), "{error}");
    let error = KeyMap::new([("a..b", "c")]).unwrap_err();
    assert!(matches!(error, KeyMapError::EmptySegment { .. }), "{error}");
    let error = KeyMap::new([("**.a.**.b.**", "**.**.**")]).unwrap_err();
    assert!(matches!(error, KeyMapError::TooManyWildcards { .. }), "{error}");
}

#[test]
fn renamed_tensors_are_taken_by_their_present_name() {
    let plain = file(&[f32s("x.attentions.0.query.bias", &[1], &[7.0])]);
    let mut store = store(plain).unwrap();
    store.rename(&KeyMap::table(OLD_ATTENTION).unwrap()).unwrap();
    assert!(store.contains("x.attentions.0.to_q.bias"));
    let mut loaded = store.load(&Device::flex(), DType::F32).unwrap();
    assert_eq!(values(loaded.take("x.attentions.0.to_q.bias", [1]).unwrap()), [7.0]);
}

#[test]
fn a_rename_that_collides_is_refused_with_both_names() {
    let mut store = store(file(&[f32s("a.x", &[1], &[1.0]), f32s("b.x", &[1], &[2.0])])).unwrap();
    let error = store.rename(&KeyMap::table(&[("a.*", "b.*")]).unwrap()).unwrap_err();
    assert!(
        matches!(&error, WeightsError::Collision { key, first, second, .. }
            if key == "b.x" && first == "a.x" && second == "b.x"),
        "{error}"
    );
    assert!(store.contains("a.x"), "a refused rename changes nothing");
}

#[test]
fn position_ids_are_no_weights() {
    let ids = |key: &str| Plain { key: key.into(), dtype: "I64", shape: vec![1], bytes: vec![0; 8] };
    let mut store = store(file(&[
        ids("text_model.embeddings.position_ids"),
        ids("embeddings.position_ids"),
        f32s("text_model.embeddings.position_embedding.weight", &[1], &[1.0]),
    ]))
    .unwrap();
    assert_eq!(store.ignore(NON_WEIGHTS).unwrap(), 2);
    assert_eq!(store.keys().count(), 1);
    assert_eq!(store.parameters(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_rename_pattern_is_refused_or_applied(pattern in "[a*.]{0,12}", key in "[a.]{0,12}") {
        if let Ok(map) = KeyMap::new([(&pattern, &pattern)]) {
            // a pattern renamed to itself changes nothing
            prop_assert_eq!(map.apply(&key), key.as_str());
        }
    }
}
