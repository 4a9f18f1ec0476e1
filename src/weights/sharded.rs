//! A checkpoint in several files, with an index that says which tensor is in which.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    error::WeightsError,
    files::{Files, FilesError, is_plain},
    store::Entry,
};

/// The index: tensor → file name of its shard, beside the index.
pub(super) struct Index {
    /// How errors name the index.
    name: String,
    map: BTreeMap<String, String>,
}

impl Index {
    pub(super) fn read(files: &Files, path: &str) -> Result<Self, WeightsError> {
        let name = files.name(path);
        let invalid = |reason: &str| WeightsError::InvalidIndex { file: name.clone(), reason: reason.into() };
        let Value::Object(mut root) = files.json(path)? else {
            return Err(invalid("expected an object"));
        };
        let Some(Value::Object(rows)) = root.remove("weight_map") else {
            return Err(invalid("expected an object `weight_map`"));
        };
        let mut map = BTreeMap::new();
        for (key, shard) in rows {
            let Value::String(shard) = shard else {
                return Err(invalid(&format!("expected a file name for `{key}`, found {shard}")));
            };
            if !is_plain(&shard) {
                return Err(FilesError::Escapes { file: name, path: shard }.into());
            }
            map.insert(key, shard);
        }
        if map.is_empty() {
            return Err(invalid("`weight_map` is empty"));
        }
        Ok(Self { name, map })
    }

    /// The shards' file names, each once, sorted.
    pub(super) fn shards(&self) -> BTreeSet<&str> {
        self.map.values().map(String::as_str).collect()
    }

    pub(super) fn missing(&self, shard: &str) -> WeightsError {
        WeightsError::MissingShard { index: self.name.clone(), shard: shard.to_string() }
    }

    /// Checks that index and shards name the same tensors in the same places.
    /// `shards` are the file names, by an entry's `file`.
    pub(super) fn check(&self, entries: &[Entry], shards: &[String]) -> Result<(), WeightsError> {
        let mut places: BTreeMap<&str, &str> = BTreeMap::new();
        for entry in entries {
            let shard = shards.get(entry.file).map_or("", String::as_str);
            if let Some(first) = places.insert(&entry.key, shard) {
                return Err(WeightsError::InTwoShards {
                    key: entry.key.clone(),
                    first: first.to_string(),
                    second: shard.to_string(),
                });
            }
        }
        for (key, shard) in &self.map {
            if places.get(key.as_str()) != Some(&shard.as_str()) {
                return Err(WeightsError::NotInShard {
                    index: self.name.clone(),
                    shard: shard.clone(),
                    key: key.clone(),
                });
            }
        }
        for (key, shard) in places {
            if !self.map.contains_key(key) {
                return Err(WeightsError::NotInIndex {
                    index: self.name.clone(),
                    shard: shard.to_string(),
                    key: key.to_string(),
                });
            }
        }
        Ok(())
    }
}
