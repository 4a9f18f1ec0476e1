//! The tokenizer beside transformers' `CLIPTokenizer`, and on files that do not fit together.
//!
//! The expected ids are from `fixtures/make_tokenizer.py`.

#![allow(clippy::unwrap_used, reason = "a test may fail by a panic")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aquatint::{
    text::tokenizer::{Tokenizer, TokenizerError},
    weights::{Files, FilesError},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers")
}

fn seed() -> PathBuf {
    fixtures().join("seed")
}

/// A checkpoint whose `tokenizer` folder has the named files of `from`.
fn copy(from: &Path, names: &[&str]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("tokenizer")).unwrap();
    for name in names {
        fs::copy(from.join(name), root.path().join("tokenizer").join(name)).unwrap();
    }
    root
}

const PLAIN: &[&str] = &["vocab.json", "merges.txt", "tokenizer_config.json"];
const SAVED: &[&str] = &["tokenizer.json", "tokenizer_config.json"];
const PAD_SIGN: &[&str] = &["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"];

fn load(root: &Path) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::load(&Files::folder(root).unwrap(), "tokenizer")
}

fn edit(root: &TempDir, name: &str, change: impl FnOnce(&mut Value)) {
    let path = root.path().join("tokenizer").join(name);
    let mut value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn sources() -> Vec<(&'static str, TempDir)> {
    vec![
        ("seed", copy(&seed(), SAVED)),
        ("seed, vocab and merges", copy(&seed(), PLAIN)),
        ("pad_sign", copy(&fixtures().join("pad_sign"), PAD_SIGN)),
        ("truncating", copy(&fixtures().join("truncating"), SAVED)),
        ("embedded", copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/tokenizer"), SAVED)),
    ]
}

fn expected() -> Value {
    serde_json::from_str(&fs::read_to_string(fixtures().join("expected.json")).unwrap()).unwrap()
}

#[test]
fn every_prompt_gets_the_ids_and_the_cut_text_of_transformers() {
    let expected = expected();
    let mut compared = 0;
    for (name, root) in sources() {
        let tokenizer = load(root.path()).unwrap();
        assert_eq!(json!(tokenizer.max_length()), expected[name]["max_length"]);
        for case in expected[name]["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let repeat = case["repeat"].as_u64().unwrap() as usize;
            let encoded = tokenizer.encode(&text.repeat(repeat)).unwrap();
            assert_eq!(json!(encoded.ids), case["ids"], "{name}: {}", case["name"]);
            let cut = encoded.truncated.map(|cut| cut.text);
            let cut = match repeat {
                1 => cut,
                // the file holds the beginning
                _ => cut.map(|cut| cut.chars().take(64).collect()),
            };
            assert_eq!(json!(cut), case["cut"], "{name}: {}", case["name"]);
            compared += 1;
        }
    }
    assert_eq!(compared, 5 * 32);
}

#[test]
fn every_character_of_unicode_gets_the_ids_of_transformers() {
    let expected = expected();
    let signs: Vec<char> = ('\0'..=char::MAX).collect();
    let (name, root) = sources().swap_remove(2);
    edit(&root, "tokenizer_config.json", |config| config["model_max_length"] = json!(600));
    let tokenizer = load(root.path()).unwrap();
    let mut mark = 0xcbf2_9ce4_8422_2325_u64;
    for row in signs.chunks(32) {
        let prompt: String = row.iter().flat_map(|sign| [*sign, 'a', ' ']).collect();
        let encoded = tokenizer.encode(&prompt).unwrap();
        assert_eq!(encoded.truncated, None);
        for id in &encoded.ids[..encoded.tokens + 2] {
            mark = (mark ^ u64::from(*id)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    assert_eq!(json!(format!("{mark:016x}")), expected[name]["sweep"]);
}

#[test]
fn ids_are_begin_prompt_end_and_padding_and_say_how_many_are_the_prompts() {
    let tokenizer = load(sources()[2].1.path()).unwrap();
    let encoded = tokenizer.encode("!").unwrap();
    assert_eq!(encoded.tokens, 1);
    assert_eq!(encoded.ids.len(), 16);
    assert_eq!(encoded.ids[0], tokenizer.bos());
    assert_eq!(encoded.ids[2], tokenizer.eos());
    assert_eq!((tokenizer.pad(), &encoded.ids[3..]), (0, &[0; 13][..]));
    assert_eq!(tokenizer.vocabulary(), tokenizer.eos() as usize + 1);
}

#[test]
fn a_prompt_that_just_fits_is_not_cut_and_one_token_more_is() {
    let tokenizer = load(sources()[2].1.path()).unwrap();
    let fits = tokenizer.encode(&"x ".repeat(14)).unwrap();
    assert_eq!((fits.tokens, fits.truncated), (14, None));
    let cut = tokenizer.encode(&"x ".repeat(15)).unwrap();
    assert_eq!(cut.tokens, 14);
    let truncated = cut.truncated.unwrap();
    assert_eq!((truncated.tokens, truncated.text.as_str()), (1, "x"));
    assert_eq!(cut.ids.last(), Some(&tokenizer.eos()));
}

#[test]
fn a_megabyte_of_prompt_takes_seconds_at_most() {
    let tokenizer = load(sources()[0].1.path()).unwrap();
    for text in ["x".repeat(1 << 20), "a b".repeat(1 << 18), "\u{301}".repeat(1 << 19)] {
        let start = Instant::now();
        tokenizer.encode(&text).unwrap();
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
}

#[test]
fn an_embedded_tokenizer_gives_the_same_ids_as_a_folder() {
    let leak = |name: &str| -> &'static [u8] { fs::read(seed().join(name)).unwrap().leak() };
    let files: &'static [(&'static str, &'static [u8])] = vec![
        ("tokenizer/tokenizer.json", leak("tokenizer.json")),
        ("tokenizer/tokenizer_config.json", leak("tokenizer_config.json")),
    ]
    .leak();
    let embedded = Tokenizer::load(&Files::Embedded(files), "tokenizer").unwrap();
    let folder = load(sources()[0].1.path()).unwrap();
    let prompt = "a panda and a red apple";
    assert_eq!(embedded.encode(prompt).unwrap(), folder.encode(prompt).unwrap());
}

#[test]
fn a_missing_folder_is_told_from_a_folder_without_a_vocabulary() {
    let root = tempfile::tempdir().unwrap();
    let error = load(root.path()).unwrap_err();
    assert!(
        matches!(&error, TokenizerError::Files(FilesError::NoPart { folder, .. }) if folder == "tokenizer"),
        "{error}"
    );
    fs::create_dir(root.path().join("tokenizer")).unwrap();
    let error = load(root.path()).unwrap_err();
    assert!(matches!(error, TokenizerError::NoVocabulary { .. }), "{error}");
}

#[test]
fn a_vocabulary_without_merges_or_without_settings_names_the_missing_file() {
    for missing in ["merges.txt", "vocab.json", "tokenizer_config.json"] {
        let root = copy(&seed(), PLAIN);
        fs::remove_file(root.path().join("tokenizer").join(missing)).unwrap();
        let error = load(root.path()).unwrap_err();
        assert!(
            matches!(&error, TokenizerError::Files(FilesError::NoFile { file }) if file.ends_with(missing)),
            "{error}"
        );
    }
}

#[test]
fn a_special_token_outside_the_vocabulary_is_refused_by_its_role() {
    let root = copy(&seed(), PLAIN);
    edit(&root, "tokenizer_config.json", |config| config["pad_token"] = json!("<pad>"));
    let error = load(root.path()).unwrap_err();
    assert!(
        matches!(&error, TokenizerError::MissingSpecialToken { role, token, .. }
            if role == "pad_token" && token == "<pad>"),
        "{error}"
    );
}

#[test]
fn a_merge_of_or_into_an_unknown_token_is_refused_by_number() {
    for (line, unknown) in [("zzz b", "zzz"), ("b zzz", "zzz"), ("q q", "qq")] {
        let root = copy(&seed(), PLAIN);
        let path = root.path().join("tokenizer/merges.txt");
        let text = fs::read_to_string(&path).unwrap();
        let count = text.lines().count();
        fs::write(&path, format!("{text}{line}\n")).unwrap();
        let error = load(root.path()).unwrap_err();
        assert!(
            matches!(&error, TokenizerError::UnknownMerge { number, token, .. }
                if *number == count && token == unknown),
            "{error}"
        );
    }
}

#[test]
fn a_line_of_merges_that_is_not_two_pieces_is_refused() {
    for line in ["", "a", "a b c", " b", "a  b"] {
        let root = copy(&seed(), PLAIN);
        let path = root.path().join("tokenizer/merges.txt");
        fs::write(&path, format!("#version: 0.2\n{line}\nb a\n")).unwrap();
        let error = load(root.path()).unwrap_err();
        assert!(matches!(error, TokenizerError::InvalidMerge { number: 1, .. }), "{error}");
    }
}

#[test]
fn merges_in_json_may_be_texts_or_pairs_and_nothing_else() {
    let prompt = "a panda and a red apple";
    let before = load(sources()[0].1.path()).unwrap().encode(prompt).unwrap();
    let root = copy(&seed(), SAVED);
    edit(&root, "tokenizer.json", |file| {
        for row in file["model"]["merges"].as_array_mut().unwrap() {
            *row = match &*row {
                Value::String(text) => json!(text.split(' ').collect::<Vec<_>>()),
                pair => json!(format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())),
            };
        }
    });
    assert_eq!(load(root.path()).unwrap().encode(prompt).unwrap(), before);
    edit(&root, "tokenizer.json", |file| file["model"]["merges"][3] = json!(["a", "b", "c"]));
    let error = load(root.path()).unwrap_err();
    assert!(matches!(error, TokenizerError::InvalidMerge { number: 4, .. }), "{error}");
}

#[test]
fn two_tokens_with_one_id_are_refused() {
    let root = copy(&seed(), PLAIN);
    edit(&root, "vocab.json", |vocab| vocab["\""] = json!(0));
    let error = load(root.path()).unwrap_err();
    assert!(matches!(error, TokenizerError::DuplicateId { id: 0, .. }), "{error}");
}

#[test]
fn an_id_that_is_no_id_is_refused() {
    for id in [json!(-1), json!(1.5), json!("7"), json!(null), json!(4_000_000_000_u64)] {
        let root = copy(&seed(), PLAIN);
        edit(&root, "vocab.json", |vocab| vocab["!"] = id.clone());
        let shown = id.to_string();
        let error = load(root.path()).unwrap_err();
        assert!(
            matches!(&error, TokenizerError::Invalid { key, found, .. } if key == "!" && *found == shown),
            "{error}"
        );
    }
}

#[test]
fn a_key_that_stands_twice_in_the_vocabulary_is_refused() {
    let root = copy(&seed(), PLAIN);
    fs::write(root.path().join("tokenizer/vocab.json"), r#"{"a": 1, "a": 2}"#).unwrap();
    let error = load(root.path()).unwrap_err();
    assert!(matches!(error, TokenizerError::Files(FilesError::InvalidJson { .. })), "{error}");
}

#[test]
fn an_added_token_with_another_id_than_the_vocabulary_gives_is_refused() {
    let root = copy(&fixtures().join("truncating"), SAVED);
    edit(&root, "tokenizer_config.json", |config| {
        let decoder = config["added_tokens_decoder"].as_object_mut().unwrap();
        let last = decoder.keys().next_back().unwrap().clone();
        let token = decoder.remove(&last).unwrap();
        decoder.insert("9000".into(), token);
    });
    let error = load(root.path()).unwrap_err();
    assert!(matches!(error, TokenizerError::AddedTokenId { expected: 9000, .. }), "{error}");
}

#[test]
fn a_length_that_no_encoder_has_is_refused() {
    for length in [json!(0), json!(2), json!(-5), json!(1e30), json!("77"), json!(null)] {
        let root = copy(&seed(), PLAIN);
        edit(&root, "tokenizer_config.json", |config| config["model_max_length"] = length.clone());
        let error = load(root.path()).unwrap_err();
        assert!(
            matches!(&error, TokenizerError::Invalid { key, .. } if key == "model_max_length"),
            "{error}"
        );
    }
}

#[test]
fn settings_that_are_not_followed_are_refused_by_name() {
    for (key, value) in
        [("padding_side", "left"), ("truncation_side", "left"), ("tokenizer_class", "T5Tokenizer")]
    {
        let root = copy(&seed(), PLAIN);
        edit(&root, "tokenizer_config.json", |config| config[key] = json!(value));
        let error = load(root.path()).unwrap_err();
        assert!(
            matches!(&error, TokenizerError::Unsupported { key: named, found, .. }
                if named == key && *found == format!("\"{value}\"")),
            "{error}"
        );
    }
}

#[test]
fn a_tokenizer_of_another_kind_is_refused() {
    for (key, value) in [
        ("type", json!("Unigram")),
        ("end_of_word_suffix", json!("")),
        ("continuing_subword_prefix", json!("##")),
        ("byte_fallback", json!(true)),
        ("ignore_merges", json!(true)),
    ] {
        let root = copy(&seed(), SAVED);
        edit(&root, "tokenizer.json", |file| file["model"][key] = value);
        let error = load(root.path()).unwrap_err();
        assert!(
            matches!(&error, TokenizerError::Unsupported { key: named, .. } if *named == format!("model.{key}")),
            "{error}"
        );
    }
}

#[test]
fn a_saved_padding_or_truncation_on_the_left_is_refused() {
    for key in ["padding", "truncation"] {
        let root = copy(&fixtures().join("truncating"), SAVED);
        edit(&root, "tokenizer.json", |file| file[key]["direction"] = json!("Left"));
        let error = load(root.path()).unwrap_err();
        assert!(
            matches!(&error, TokenizerError::Unsupported { key: named, .. } if *named == format!("{key}.direction")),
            "{error}"
        );
    }
}

#[test]
fn a_vocabulary_without_bytes_reads_them_as_the_unknown_token() {
    let root = copy(&seed(), PLAIN);
    fs::write(root.path().join("tokenizer/merges.txt"), "#version: 0.2\n").unwrap();
    fs::write(
        root.path().join("tokenizer/vocab.json"),
        r#"{"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}"#,
    )
    .unwrap();
    let encoded = load(root.path()).unwrap().encode("a é").unwrap();
    assert_eq!(encoded.ids[..5], [1, 0, 2, 2, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_gets_a_row_of_the_tokenizers_length(text in "\\PC{0,200}|[\\x00-\\x7f]{0,200}") {
        let tokenizer = load(sources()[3].1.path()).unwrap();
        let encoded = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(encoded.ids.len(), 32);
        prop_assert!(encoded.ids.iter().all(|id| (*id as usize) < tokenizer.vocabulary()));
    }

    #[test]
    fn a_damaged_file_is_refused_or_read_and_never_a_panic(
        source in 0..4_usize, file in 0..4_usize, at in 0.0..1.0_f64, byte: u8, cut: bool,
    ) {
        let (_, root) = sources().swap_remove(source);
        let mut names: Vec<_> = fs::read_dir(root.path().join("tokenizer")).unwrap()
            .map(|entry| entry.unwrap().path()).collect();
        names.sort();
        let path = &names[file % names.len()];
        let mut bytes = fs::read(path).unwrap();
        let place = (at * bytes.len() as f64) as usize;
        if cut { bytes.truncate(place) } else { bytes[place] = byte }
        fs::write(path, bytes).unwrap();
        if let Ok(tokenizer) = load(root.path()) {
            let _ = tokenizer.encode("a panda, 🍎 <|endoftext|> naïve");
        }
    }
}
