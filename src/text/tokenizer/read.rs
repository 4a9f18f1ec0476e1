//! A tokenizer's files: vocabulary and merges in either form, and the special tokens.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use tokenizers::{
    AddedToken,
    models::bpe::{Merges, Vocab},
};

use super::{END_OF_WORD, TokenizerError};
use crate::weights::Files;

/// No real vocabulary has a larger id.
const ID_CAP: u64 = 1 << 24;
/// No real text encoder takes more tokens.
const LENGTH_CAP: u64 = 1 << 16;
/// The special tokens in the order in which transformers adds them.
const ROLES: &[&str] =
    &["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// What the first four stand for where no file says.
const DEFAULTS: &[(&str, &str)] = &[
    ("bos_token", "<|startoftext|>"),
    ("eos_token", "<|endoftext|>"),
    ("unk_token", "<|endoftext|>"),
    ("pad_token", "<|endoftext|>"),
];

/// Where a tokenizer's files are.
pub(super) struct Source<'f> {
    pub(super) files: &'f Files,
    pub(super) folder: &'f str,
}

/// Vocabulary and merges, checked against each other.
pub(super) struct Words {
    /// How errors name the file with the vocabulary.
    pub(super) file: String,
    pub(super) vocab: Vocab,
    pub(super) merges: Merges,
    /// `added_tokens` of a `tokenizer.json`.
    added: Vec<Added>,
}

/// A token that is found in a prompt before the prompt is split into words.
#[derive(Debug, Clone)]
pub(super) struct Added {
    pub(super) token: AddedToken,
    /// The id that a file gives it.
    pub(super) id: Option<u32>,
}

/// The special tokens and the length.
pub(super) struct Special {
    /// How errors name the file that most of it is from.
    file: String,
    pub(super) bos: String,
    pub(super) eos: String,
    pub(super) unk: String,
    pub(super) pad: String,
    pub(super) max_length: usize,
    /// In the order of their ids; those without one after.
    pub(super) added: Vec<Added>,
}

impl Source<'_> {
    fn path(&self, name: &str) -> String {
        if self.folder.is_empty() { name.to_string() } else { format!("{}/{name}", self.folder) }
    }

    fn name(&self, name: &str) -> String {
        self.files.name(&self.path(name))
    }

    fn has(&self, name: &str) -> bool {
        self.files.exists(&self.path(name))
    }

    fn object(&self, name: &str) -> Result<Map<String, Value>, TokenizerError> {
        match self.files.json(&self.path(name))? {
            Value::Object(object) => Ok(object),
            other => Err(invalid(&self.name(name), "the whole file", "an object", &other)),
        }
    }

    fn object_if_there(&self, name: &str) -> Result<Map<String, Value>, TokenizerError> {
        if self.has(name) { self.object(name) } else { Ok(Map::new()) }
    }

    /// Vocabulary and merges, from `tokenizer.json` if there is one.
    pub(super) fn words(&self) -> Result<Words, TokenizerError> {
        if self.has("tokenizer.json") {
            return self.words_of_tokenizer_json();
        }
        if !self.has("vocab.json") && !self.has("merges.txt") {
            // a missing folder is named as such
            self.files.list(self.folder)?;
            return Err(TokenizerError::NoVocabulary { folder: self.files.name(self.folder) });
        }
        let file = self.name("vocab.json");
        let vocab = vocabulary(&file, &self.object("vocab.json")?)?;
        let text = self.files.text(&self.path("merges.txt"))?;
        let merges_file = self.name("merges.txt");
        let mut merges = Merges::new();
        // the first line is a comment, and a merge may itself begin with `#`
        for line in text.lines().filter(|line| !line.starts_with("#version")) {
            merges.push(merge(&merges_file, merges.len() + 1, line)?);
        }
        check_merges(&merges_file, &vocab, &merges)?;
        Ok(Words { file, vocab, merges, added: Vec::new() })
    }

    fn words_of_tokenizer_json(&self) -> Result<Words, TokenizerError> {
        let file = self.name("tokenizer.json");
        let root = self.object("tokenizer.json")?;
        let Some(Value::Object(model)) = root.get("model") else {
            let found = root.get("model").unwrap_or(&Value::Null);
            return Err(invalid(&file, "model", "an object", found));
        };
        require(&file, "model.type", model.get("type"), &["BPE".into()])?;
        let suffix = END_OF_WORD.into();
        require(&file, "model.end_of_word_suffix", model.get("end_of_word_suffix"), &[suffix])?;
        let prefix = model.get("continuing_subword_prefix");
        require(&file, "model.continuing_subword_prefix", prefix, &["".into(), Value::Null])?;
        for key in ["byte_fallback", "ignore_merges"] {
            require(&file, &format!("model.{key}"), model.get(key), &[false.into()])?;
        }
        // of the saved padding and truncation, transformers follows the side alone
        for key in ["padding", "truncation"] {
            let side = root.get(key).and_then(|saved| saved.get("direction"));
            require(&file, &format!("{key}.direction"), side, &["Right".into()])?;
        }
        let Some(Value::Object(vocab)) = model.get("vocab") else {
            let found = model.get("vocab").unwrap_or(&Value::Null);
            return Err(invalid(&file, "model.vocab", "an object", found));
        };
        let vocab = vocabulary(&file, vocab)?;
        let Some(Value::Array(rows)) = model.get("merges") else {
            let found = model.get("merges").unwrap_or(&Value::Null);
            return Err(invalid(&file, "model.merges", "a list", found));
        };
        let mut merges = Merges::with_capacity(rows.len());
        for (place, row) in rows.iter().enumerate() {
            merges.push(merge_of_json(&file, place + 1, row)?);
        }
        check_merges(&file, &vocab, &merges)?;
        let added = match root.get("added_tokens") {
            None => Vec::new(),
            Some(Value::Array(tokens)) => {
                tokens.iter().map(|token| added_of_json(&file, token)).collect::<Result<_, _>>()?
            }
            Some(other) => return Err(invalid(&file, "added_tokens", "a list", other)),
        };
        Ok(Words { file, vocab, merges, added })
    }

    /// The special tokens, as transformers gathers them from up to four files.
    pub(super) fn special(&self, words: &Words) -> Result<Special, TokenizerError> {
        let file = self.name("tokenizer_config.json");
        let mut config = self.object("tokenizer_config.json")?;
        check_settings(&file, &config)?;
        let max_length = max_length(&file, &config)?;
        let legacy = !config.contains_key("added_tokens_decoder");
        let mut special = BTreeSet::new();
        if legacy {
            let map = self.object_if_there("special_tokens_map.json")?;
            special.extend(map.keys().cloned());
            config.extend(map);
        }
        let mut named = Vec::new();
        for role in roles(&config) {
            let default = DEFAULTS.iter().find(|(name, _)| *name == role).map(|(_, token)| *token);
            let token = match (config.get(&role), default) {
                (None, None) => continue,
                (None, Some(token)) => AddedToken::from(token, true),
                (Some(Value::Null), None) => continue,
                (Some(value), _) => token_of_json(&file, &role, value, special.contains(&role))?,
            };
            named.push((role, token));
        }
        let mut added = if legacy {
            self.legacy_added(words, &named)?
        } else {
            decoder(&file, config.get("added_tokens_decoder"))?
        };
        added.sort_by_key(|added| added.id);
        for (role, token) in &named {
            match added.iter_mut().find(|added| added.token.content == token.content) {
                Some(known) => known.token.special = true,
                None if words.vocab.contains_key(&token.content) => {
                    added.push(Added { token: token.clone().special(true), id: None });
                }
                None => return Err(missing(&file, role, &token.content)),
            }
        }
        add_extra(&file, &config, words, &mut added)?;
        let of = |role: &str| {
            let token = named.iter().find(|(name, _)| name == role);
            token.map(|(_, token)| token.content.clone()).unwrap_or_default()
        };
        let [bos, eos, unk, pad] = ["bos_token", "eos_token", "unk_token", "pad_token"].map(of);
        Ok(Special { file, bos, eos, unk, pad, max_length, added })
    }

    /// `added_tokens.json` and the added tokens of `tokenizer.json`, of which the latter wins.
    fn legacy_added(
        &self,
        words: &Words,
        named: &[(String, AddedToken)],
    ) -> Result<Vec<Added>, TokenizerError> {
        let file = self.name("added_tokens.json");
        let mut by_id = BTreeMap::new();
        for (content, value) in self.object_if_there("added_tokens.json")? {
            let id = id(&file, &content, &value)?;
            let special = named.iter().any(|(_, token)| token.content == content);
            let token = AddedToken::from(content, special);
            by_id.insert(id, Added { token, id: Some(id) });
        }
        for added in &words.added {
            if let Some(id) = added.id {
                by_id.insert(id, added.clone());
            }
        }
        Ok(by_id.into_values().collect())
    }
}

impl Words {
    /// The id of a special token, in the vocabulary or among the added tokens.
    pub(super) fn special_id(
        &self,
        role: &str,
        token: &str,
        special: &Special,
    ) -> Result<u32, TokenizerError> {
        let added = || {
            let added = special.added.iter().find(|added| added.token.content == token);
            added.and_then(|added| added.id)
        };
        let id = self.vocab.get(token).copied().or_else(added);
        id.ok_or_else(|| missing(&special.file, role, token))
    }
}

/// The standard roles, then every other key that names a token.
fn roles(config: &Map<String, Value>) -> Vec<String> {
    let own = config.iter().filter(|(key, value)| {
        key.ends_with("_token") && value.is_string() && !ROLES.contains(&key.as_str())
    });
    ROLES.iter().map(ToString::to_string).chain(own.map(|(key, _)| key.clone())).collect()
}

fn max_length(file: &str, config: &Map<String, Value>) -> Result<usize, TokenizerError> {
    let found = config.get("model_max_length").unwrap_or(&Value::Null);
    found
        .as_u64()
        .filter(|length| (3..=LENGTH_CAP).contains(length))
        .and_then(|length| usize::try_from(length).ok())
        .ok_or_else(|| invalid(file, "model_max_length", &format!("an integer in 3..={LENGTH_CAP}"), found))
}

/// The settings that would change ids in a way that is not followed here.
fn check_settings(file: &str, config: &Map<String, Value>) -> Result<(), TokenizerError> {
    let right: &[Value] = &["right".into()];
    require(file, "padding_side", config.get("padding_side"), right)?;
    require(file, "truncation_side", config.get("truncation_side"), right)?;
    require(file, "split_special_tokens", config.get("split_special_tokens"), &[false.into()])?;
    let classes: &[Value] = &["CLIPTokenizer".into(), "CLIPTokenizerFast".into()];
    require(file, "tokenizer_class", config.get("tokenizer_class"), classes)
}

fn require(file: &str, key: &str, found: Option<&Value>, allowed: &[Value]) -> Result<(), TokenizerError> {
    match found {
        Some(found) if !allowed.contains(found) => {
            let expected: Vec<_> = allowed.iter().map(ToString::to_string).collect();
            Err(TokenizerError::Unsupported {
                file: file.to_string(),
                key: key.to_string(),
                expected: expected.join(" or "),
                found: show(found),
            })
        }
        _ => Ok(()),
    }
}

fn vocabulary(file: &str, words: &Map<String, Value>) -> Result<Vocab, TokenizerError> {
    let mut vocab = Vocab::default();
    let mut tokens: BTreeMap<u32, &str> = BTreeMap::new();
    for (token, value) in words {
        let id = id(file, token, value)?;
        if let Some(first) = tokens.insert(id, token) {
            return Err(TokenizerError::DuplicateId {
                file: file.to_string(),
                id,
                first: first.to_string(),
                second: token.clone(),
            });
        }
        vocab.insert(token.clone(), id);
    }
    Ok(vocab)
}

fn id(file: &str, token: &str, value: &Value) -> Result<u32, TokenizerError> {
    value
        .as_u64()
        .filter(|id| *id < ID_CAP)
        .and_then(|id| u32::try_from(id).ok())
        .ok_or_else(|| invalid(file, token, &format!("an id below {ID_CAP}"), value))
}

fn merge(file: &str, number: usize, line: &str) -> Result<(String, String), TokenizerError> {
    match line.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
            Ok((left.to_string(), right.to_string()))
        }
        _ => {
            let found = show(&Value::from(line));
            Err(TokenizerError::InvalidMerge { file: file.to_string(), number, found })
        }
    }
}

/// A merge as one text, or as a pair.
fn merge_of_json(file: &str, number: usize, row: &Value) -> Result<(String, String), TokenizerError> {
    match row {
        Value::String(line) => merge(file, number, line),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(left), Value::String(right)] => Ok((left.clone(), right.clone())),
            _ => Err(TokenizerError::InvalidMerge { file: file.to_string(), number, found: show(row) }),
        },
        _ => Err(TokenizerError::InvalidMerge { file: file.to_string(), number, found: show(row) }),
    }
}

/// Checks that both pieces of each merge, and what it makes, are in the vocabulary. The
/// `tokenizers` crate panics where what it makes is longer than every token.
fn check_merges(file: &str, vocab: &Vocab, merges: &Merges) -> Result<(), TokenizerError> {
    for (place, (left, right)) in merges.iter().enumerate() {
        let made = format!("{left}{right}");
        for token in [left, right, &made] {
            if !vocab.contains_key(token) {
                return Err(TokenizerError::UnknownMerge {
                    file: file.to_string(),
                    number: place + 1,
                    token: token.clone(),
                });
            }
        }
    }
    Ok(())
}

/// A token as a text, or as an object with its matching rules.
fn token_of_json(file: &str, key: &str, value: &Value, special: bool) -> Result<AddedToken, TokenizerError> {
    let object = match value {
        Value::String(content) => return Ok(AddedToken::from(content.clone(), true)),
        Value::Object(object) => object,
        other => return Err(invalid(file, key, "a token", other)),
    };
    let Some(Value::String(content)) = object.get("content") else {
        return Err(invalid(file, key, "a token with `content`", value));
    };
    let flag = |name: &str, default: bool| match object.get(name) {
        None => Ok(default),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(invalid(file, &format!("{key}.{name}"), "true or false", other)),
    };
    let special = special || flag("special", false)?;
    Ok(AddedToken {
        content: content.clone(),
        single_word: flag("single_word", false)?,
        lstrip: flag("lstrip", false)?,
        rstrip: flag("rstrip", false)?,
        normalized: flag("normalized", !special)?,
        special,
    })
}

fn added_of_json(file: &str, value: &Value) -> Result<Added, TokenizerError> {
    let token = token_of_json(file, "added_tokens", value, false)?;
    let found = value.get("id").unwrap_or(&Value::Null);
    let id = id(file, "added_tokens.id", found)?;
    Ok(Added { token, id: Some(id) })
}

/// `added_tokens_decoder`: id → token.
fn decoder(file: &str, value: Option<&Value>) -> Result<Vec<Added>, TokenizerError> {
    let key = "added_tokens_decoder";
    let Some(Value::Object(rows)) = value else {
        return Err(invalid(file, key, "an object", value.unwrap_or(&Value::Null)));
    };
    let row = |(number, value): (&String, &Value)| {
        let id = number.parse::<u32>().ok().filter(|id| u64::from(*id) < ID_CAP);
        let id = id.ok_or_else(|| invalid(file, key, "ids as keys", &Value::from(&**number)))?;
        Ok(Added { token: token_of_json(file, key, value, false)?, id: Some(id) })
    };
    rows.iter().map(row).collect()
}

/// `additional_special_tokens`, by either of its names.
fn add_extra(
    file: &str,
    config: &Map<String, Value>,
    words: &Words,
    added: &mut Vec<Added>,
) -> Result<(), TokenizerError> {
    for key in ["additional_special_tokens", "extra_special_tokens"] {
        let tokens = match config.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(tokens)) => tokens,
            Some(other) => return Err(invalid(file, key, "a list of tokens", other)),
        };
        for value in tokens {
            let token = token_of_json(file, key, value, true)?;
            if added.iter().any(|known| known.token.content == token.content) {
                continue;
            }
            if !words.vocab.contains_key(&token.content) {
                return Err(missing(file, key, &token.content));
            }
            added.push(Added { token, id: None });
        }
    }
    Ok(())
}

fn missing(file: &str, role: &str, token: &str) -> TokenizerError {
    TokenizerError::MissingSpecialToken {
        file: file.to_string(),
        role: role.to_string(),
        token: token.to_string(),
    }
}

fn invalid(file: &str, key: &str, expected: &str, found: &Value) -> TokenizerError {
    TokenizerError::Invalid {
        file: file.to_string(),
        key: key.to_string(),
        expected: expected.to_string(),
        found: show(found),
    }
}

/// A value for an error: short, whatever the file holds.
fn show(value: &Value) -> String {
    value.to_string().chars().take(80).collect()
}
