//! Configurations: every key asked for, or refused.

use aquatint::weights::{ConfigError, ConfigReader};
use serde_json::{Value, json};

fn config(value: Value) -> ConfigReader {
    ConfigReader::new("config.json", value).unwrap()
}

#[test]
fn keys_are_read_by_their_kind_and_absent_ones_by_default() {
    let mut config = config(json!({
        "_class_name": "UNet", "count": 4, "zero": 0, "eps": 1e-5, "flag": true, "name": "silu",
        "levels": [1, 2, 4], "depth": 2, "list": [320, 640], "types": ["A", "B"], "none": null,
        "off": -1, "per": [1, 2],
    }));
    assert_eq!(config.count("count", 9).unwrap(), 4);
    assert_eq!(config.count("other", 9).unwrap(), 9);
    assert_eq!(config.required_count("count").unwrap(), 4);
    assert_eq!(config.usize("zero", 9).unwrap(), 0);
    assert_eq!(config.i64("off", 0).unwrap(), -1);
    assert_eq!(config.f32("eps", 1.0).unwrap(), 1e-5);
    assert_eq!(config.f32_in("eps", 1.0, 0.0..=1.0).unwrap(), 1e-5);
    assert_eq!(config.f64("eps", 1.0).unwrap(), 1e-5);
    assert_eq!(config.f32("count", 1.0).unwrap(), 4.0);
    assert!(config.bool("flag", false).unwrap());
    assert_eq!(config.str("name", "relu").unwrap(), "silu");
    assert_eq!(config.choice("name", 0, &[("relu", 1), ("silu", 2)]).unwrap(), 2);
    assert_eq!(config.counts("list", &[1]).unwrap(), [320, 640]);
    assert_eq!(config.strs("types", &[]).unwrap(), ["A", "B"]);
    assert_eq!(config.one_or_many("levels", 3, 1).unwrap(), [1, 2, 4]);
    assert_eq!(config.one_or_many("depth", 3, 1).unwrap(), [2, 2, 2]);
    assert_eq!(config.one_or_many("absent", 3, 1).unwrap(), [1, 1, 1]);
    assert_eq!(config.optional_one_or_many("per", 2).unwrap(), Some(vec![1, 2]));
    assert_eq!(config.optional_count("none").unwrap(), None);
    assert_eq!(config.optional_str("absent").unwrap(), None);
    config.finish().unwrap();
}

#[test]
fn a_value_of_another_kind_or_size_is_refused_with_what_was_expected() {
    for value in [
        json!(0),
        json!(-3),
        json!(1.5),
        json!(4.0),
        json!(1e18),
        json!(1_u64 << 40),
        json!("4"),
        json!([4]),
        json!(null),
        json!(true),
    ] {
        let shown = value.to_string();
        let error = config(json!({"n": value})).count("n", 1).unwrap_err();
        assert!(
            matches!(&error, ConfigError::Invalid { file, key, expected, found }
                if file == "config.json" && key == "n" && expected == "a positive integer"
                    && *found == shown),
            "{error}"
        );
    }
    let refused = |result: Result<(), ConfigError>| {
        let error = result.unwrap_err();
        assert!(matches!(&error, ConfigError::Invalid { key, .. } if key == "n"), "{error}");
    };
    refused(config(json!({"n": -1})).usize("n", 1).map(drop));
    refused(config(json!({"n": 1e18})).f32("n", 1.0).map(drop));
    refused(config(json!({"n": 1.5})).f32_in("n", 1.0, 0.0..=1.0).map(drop));
    refused(config(json!({"n": "x"})).f64("n", 1.0).map(drop));
    refused(config(json!({"n": 1})).bool("n", true).map(drop));
    refused(config(json!({"n": 1})).str("n", "").map(drop));
    refused(config(json!({"n": []})).counts("n", &[1]).map(drop));
    refused(config(json!({"n": [1, 0]})).counts("n", &[1]).map(drop));
    refused(config(json!({"n": [1, [2]]})).one_or_many("n", 2, 1).map(drop));
    refused(config(json!({"n": [1, 2]})).one_or_many("n", 3, 1).map(drop));
    refused(config(json!({"n": 0})).optional_count("n").map(drop));
    refused(config(json!({"n": -9_000_000_000_000_i64})).i64("n", 0).map(drop));
}

#[test]
fn a_long_value_is_shown_in_short() {
    let error = config(json!({"n": "é".repeat(1000)})).count("n", 1).unwrap_err();
    assert!(error.to_string().len() < 300, "{error}");
}

#[test]
fn a_key_that_must_be_there_is_missed_by_name() {
    let error = config(json!({})).required_count("n").unwrap_err();
    assert!(matches!(&error, ConfigError::Missing { key, .. } if key == "n"), "{error}");
}

#[test]
fn a_switch_that_is_not_supported_is_refused_with_what_is() {
    let mut config = config(json!({"a": null, "b": 1.0, "c": "linear", "d": false, "e": [1]}));
    config.require_default("a", Value::Null).unwrap();
    config.require_default("b", 1).unwrap();
    config.require_default("absent", true).unwrap();
    config.require_one_of("c", &[json!("cosine"), json!("linear")]).unwrap();
    config.require_default("e", json!([1.0])).unwrap();
    let error = config.require_default("d", true).unwrap_err();
    assert!(
        matches!(&error, ConfigError::Unsupported { key, expected, found, .. }
            if key == "d" && expected == "true" && found == "false"),
        "{error}"
    );
    let error = config.choice("c", 0, &[("cosine", 1)]).unwrap_err();
    assert!(
        matches!(&error, ConfigError::Unsupported { expected, .. } if expected == "\"cosine\""),
        "{error}"
    );
    config.finish().unwrap();
}

#[test]
fn keys_never_asked_for_are_refused_together() {
    let mut config = config(json!({"_note": 1, "b": 1, "a": 1, "known": 1, "quiet": 1}));
    config.count("known", 1).unwrap();
    config.ignore(&["quiet", "absent"]);
    let error = config.finish().unwrap_err();
    assert!(matches!(&error, ConfigError::Unknown { keys, .. } if *keys == ["a", "b"]), "{error}");
}

#[test]
fn a_configuration_that_is_no_object_is_refused() {
    let error = ConfigReader::new("c", json!([1])).unwrap_err();
    assert!(matches!(&error, ConfigError::NotAnObject { found, .. } if found == "[1]"), "{error}");
}
