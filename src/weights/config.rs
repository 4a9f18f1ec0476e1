//! Strict reading of a `config.json`: every key is asked for, or refused.

use std::{collections::BTreeSet, ops::RangeInclusive};

use serde_json::{Map, Value};

use super::files::{Files, FilesError};

/// No side, count, index or step number of a real configuration is larger.
const INTEGER_CAP: u64 = 1 << 32;
/// No list of a real configuration is longer.
const LIST_CAP: usize = 1 << 16;
/// No number of a real configuration has a larger magnitude.
const FLOAT_CAP: f64 = 1e9;

/// A configuration is not one that this crate can follow.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be had.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The file holds something other than an object.
    #[error("{file}: expected an object, found {found}")]
    NotAnObject {
        /// The file.
        file: String,
        /// What it holds.
        found: String,
    },
    /// A key that has no default is absent.
    #[error("{file}: `{key}` is missing; expected {expected}")]
    Missing {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What it should hold.
        expected: String,
    },
    /// A value is of another kind, or outside what can be.
    #[error("{file}: `{key}`: expected {expected}, found {found}")]
    Invalid {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// A switch is set to something that this crate does not do.
    #[error("{file}: `{key}`: only {expected} is supported, found {found}")]
    Unsupported {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What is supported.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The configuration has keys that this crate does not know.
    #[error("{file}: unknown keys {keys:?}; they may change the pictures and are not ignored")]
    Unknown {
        /// The file.
        file: String,
        /// The keys.
        keys: Vec<String>,
    },
}

/// Reads a JSON object key by key. Keys that begin with `_` are notes and skipped.
///
/// An integer key may be `0..=2^32` and a number at most 1e9 in magnitude, whatever its meaning;
/// `null` is a value of its own, which only the `optional_` getters take.
#[derive(Debug)]
pub struct ConfigReader {
    file: String,
    values: Map<String, Value>,
    asked: BTreeSet<String>,
}

impl ConfigReader {
    /// Reads the object in the file at `path`, relative to the checkpoint.
    pub fn open(files: &Files, path: &str) -> Result<Self, ConfigError> {
        Self::new(files.name(path), files.json(path)?)
    }

    /// Reads an object that is already parsed; errors call it `file`.
    pub fn new(file: impl Into<String>, value: Value) -> Result<Self, ConfigError> {
        let file = file.into();
        match value {
            Value::Object(values) => Ok(Self { file, values, asked: BTreeSet::new() }),
            other => Err(ConfigError::NotAnObject { file, found: show(&other) }),
        }
    }

    /// The file, as errors name it.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Whether the key is there, `null` included. Does not count as asking for it.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// An integer, zero included.
    pub fn usize(&mut self, key: &str, default: usize) -> Result<usize, ConfigError> {
        self.get(key, "a non-negative integer", as_usize).map(|value| value.unwrap_or(default))
    }

    /// An integer, zero included, or nothing where the key is absent or `null`.
    pub fn optional_usize(&mut self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.optional(key, "a non-negative integer or null", as_usize)
    }

    /// A number of things: a positive integer.
    pub fn count(&mut self, key: &str, default: usize) -> Result<usize, ConfigError> {
        self.get(key, COUNT, as_count).map(|value| value.unwrap_or(default))
    }

    /// A positive integer, which must be there.
    pub fn required_count(&mut self, key: &str) -> Result<usize, ConfigError> {
        let value = self.get(key, COUNT, as_count)?;
        value.ok_or_else(|| self.missing(key, COUNT))
    }

    /// A positive integer, or nothing where the key is absent or `null`.
    pub fn optional_count(&mut self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.optional(key, "a positive integer or null", as_count)
    }

    /// An integer, negative ones included.
    pub fn i64(&mut self, key: &str, default: i64) -> Result<i64, ConfigError> {
        self.get(key, "an integer", as_i64).map(|value| value.unwrap_or(default))
    }

    /// A number.
    pub fn f32(&mut self, key: &str, default: f32) -> Result<f32, ConfigError> {
        self.get(key, "a number", as_f32).map(|value| value.unwrap_or(default))
    }

    /// A number, or nothing where the key is absent or `null`.
    pub fn optional_f32(&mut self, key: &str) -> Result<Option<f32>, ConfigError> {
        self.optional(key, "a number or null", as_f32)
    }

    /// A number with all its digits: for what is computed with in f64, such as betas.
    pub fn f64(&mut self, key: &str, default: f64) -> Result<f64, ConfigError> {
        self.get(key, "a number", as_f64).map(|value| value.unwrap_or(default))
    }

    /// A number in a range.
    pub fn f32_in(
        &mut self,
        key: &str,
        default: f32,
        range: RangeInclusive<f32>,
    ) -> Result<f32, ConfigError> {
        let expected = format!("a number in {range:?}");
        let read = |value: &Value| as_f32(value).filter(|value| range.contains(value));
        self.get(key, &expected, read).map(|value| value.unwrap_or(default))
    }

    /// `true` or `false`.
    pub fn bool(&mut self, key: &str, default: bool) -> Result<bool, ConfigError> {
        self.get(key, "true or false", Value::as_bool).map(|value| value.unwrap_or(default))
    }

    /// A text.
    pub fn str(&mut self, key: &str, default: &str) -> Result<String, ConfigError> {
        self.get(key, "a text", as_string).map(|value| value.unwrap_or_else(|| default.to_string()))
    }

    /// A text, or nothing where the key is absent or `null`.
    pub fn optional_str(&mut self, key: &str) -> Result<Option<String>, ConfigError> {
        self.optional(key, "a text or null", as_string)
    }

    /// One of several named alternatives; another name is refused as unsupported.
    pub fn choice<T: Clone>(
        &mut self,
        key: &str,
        default: T,
        alternatives: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        let Some(found) = self.get(key, "a text", as_string)? else {
            return Ok(default);
        };
        let chosen = alternatives.iter().find(|(name, _)| *name == found);
        chosen.map(|(_, value)| value.clone()).ok_or_else(|| {
            let names: Vec<_> = alternatives.iter().map(|(name, _)| format!("\"{name}\"")).collect();
            self.unsupported(key, names.join(" or "), &Value::String(found))
        })
    }

    /// A list of positive integers, not empty.
    pub fn counts(&mut self, key: &str, default: &[usize]) -> Result<Vec<usize>, ConfigError> {
        self.list(key, "a list of positive integers", default, as_count)
    }

    /// A list of numbers, not empty.
    pub fn f32s(&mut self, key: &str, default: &[f32]) -> Result<Vec<f32>, ConfigError> {
        self.list(key, "a list of numbers", default, as_f32)
    }

    /// A list of numbers, or nothing where the key is absent or `null`.
    pub fn optional_f32s(&mut self, key: &str) -> Result<Option<Vec<f32>>, ConfigError> {
        self.optional(key, "a list of numbers or null", |value| as_list(value, as_f32))
    }

    /// A list of texts, not empty.
    pub fn strs(&mut self, key: &str, default: &[&str]) -> Result<Vec<String>, ConfigError> {
        let default: Vec<_> = default.iter().map(ToString::to_string).collect();
        self.list(key, "a list of texts", &default, as_string)
    }

    /// A list of `true` and `false`, one a level, or one value for all `n` levels.
    pub fn one_or_many_bools(
        &mut self,
        key: &str,
        n: usize,
        default: bool,
    ) -> Result<Vec<bool>, ConfigError> {
        self.levels(key, n, default, "true or false", Value::as_bool)
    }

    /// A positive integer for each of `n` levels, written as one for all or as a list of `n`.
    pub fn one_or_many(&mut self, key: &str, n: usize, default: usize) -> Result<Vec<usize>, ConfigError> {
        self.levels(key, n, default, COUNT, as_count)
    }

    /// [`Self::one_or_many`], or nothing where the key is absent or `null`.
    pub fn optional_one_or_many(&mut self, key: &str, n: usize) -> Result<Option<Vec<usize>>, ConfigError> {
        let expected = format!("a positive integer, {n} of them, or null");
        self.optional(key, &expected, |value| spread(value, n, as_count))
    }

    /// A switch of which this crate does one setting: absent or `allowed` is fine, anything else
    /// is refused by name.
    pub fn require_default(&mut self, key: &str, allowed: impl Into<Value>) -> Result<(), ConfigError> {
        self.require_one_of(key, &[allowed.into()])
    }

    /// A switch of which this crate does some settings alike: absent or one of `allowed` is fine.
    pub fn require_one_of(&mut self, key: &str, allowed: &[Value]) -> Result<(), ConfigError> {
        self.asked.insert(key.to_string());
        match self.values.get(key) {
            Some(found) if !allowed.iter().any(|allowed| same(allowed, found)) => {
                let expected: Vec<_> = allowed.iter().map(show).collect();
                Err(self.unsupported(key, expected.join(" or "), found))
            }
            _ => Ok(()),
        }
    }

    /// Keys that do not change a number.
    pub fn ignore(&mut self, keys: &[&str]) {
        self.asked.extend(keys.iter().map(ToString::to_string));
    }

    /// Checks that every key was asked for.
    pub fn finish(self) -> Result<(), ConfigError> {
        let unknown: Vec<String> = self
            .values
            .into_iter()
            .map(|(key, _)| key)
            .filter(|key| !key.starts_with('_') && !self.asked.contains(key))
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(ConfigError::Unknown { file: self.file, keys: unknown })
    }

    /// An error that says that this value is not supported: for a rule that spans several keys.
    pub fn refuse(&self, key: &str, expected: impl Into<String>) -> ConfigError {
        self.unsupported(key, expected.into(), self.values.get(key).unwrap_or(&Value::Null))
    }

    fn get<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        self.asked.insert(key.to_string());
        let Some(value) = self.values.get(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(ConfigError::Invalid {
                file: self.file.clone(),
                key: key.to_string(),
                expected: expected.to_string(),
                found: show(value),
            }),
        }
    }

    fn optional<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        if self.values.get(key) == Some(&Value::Null) {
            self.asked.insert(key.to_string());
            return Ok(None);
        }
        self.get(key, expected, read)
    }

    fn list<T: Clone>(
        &mut self,
        key: &str,
        expected: &str,
        default: &[T],
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<T>, ConfigError> {
        let list = self.get(key, expected, |value| as_list(value, read))?;
        Ok(list.unwrap_or_else(|| default.to_vec()))
    }

    fn levels<T: Clone>(
        &mut self,
        key: &str,
        n: usize,
        default: T,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<T>, ConfigError> {
        let expected = format!("{expected}, or a list of {n} of them");
        let levels = self.get(key, &expected, |value| spread(value, n, read))?;
        Ok(levels.unwrap_or_else(|| vec![default; n]))
    }

    fn missing(&self, key: &str, expected: &str) -> ConfigError {
        ConfigError::Missing { file: self.file.clone(), key: key.to_string(), expected: expected.to_string() }
    }

    fn unsupported(&self, key: &str, expected: String, found: &Value) -> ConfigError {
        ConfigError::Unsupported {
            file: self.file.clone(),
            key: key.to_string(),
            expected,
            found: show(found),
        }
    }
}

const COUNT: &str = "a positive integer";

fn as_usize(value: &Value) -> Option<usize> {
    value.as_u64().filter(|value| *value <= INTEGER_CAP).and_then(|value| value.try_into().ok())
}

fn as_count(value: &Value) -> Option<usize> {
    as_usize(value).filter(|value| *value > 0)
}

fn as_i64(value: &Value) -> Option<i64> {
    value.as_i64().filter(|value| value.unsigned_abs() <= INTEGER_CAP)
}

fn as_f64(value: &Value) -> Option<f64> {
    value.as_f64().filter(|value| value.abs() <= FLOAT_CAP)
}

fn as_f32(value: &Value) -> Option<f32> {
    as_f64(value).map(|value| value as f32)
}

fn as_string(value: &Value) -> Option<String> {
    value.as_str().map(ToString::to_string)
}

fn as_list<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    let list = value.as_array()?;
    (1..=LIST_CAP).contains(&list.len()).then(|| list.iter().map(read).collect())?
}

/// A list of `n`, or one value `n` times.
fn spread<T: Clone>(value: &Value, n: usize, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    match value {
        Value::Array(_) => as_list(value, read).filter(|list| list.len() == n),
        one => read(one).map(|one| vec![one; n]),
    }
}

/// Equal, `1` and `1.0` included.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ => a == b,
    }
}

/// A value for an error: short, whatever the file holds.
fn show(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}..", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
