//! Which tensors a checkpoint's part has, and under which names.

use std::{collections::BTreeMap, sync::Arc};

use safetensors::tensor::Dtype;

use super::{
    error::WeightsError,
    files::{Files, FilesError, Mapped},
    key_map::{KeyMap, Pattern},
    safetensors::read_header,
    sharded::Index,
};

/// File extensions of pickled weights.
const PICKLES: &[&str] = &[".bin", ".ckpt", ".pt", ".pth"];

/// One mapped weight file.
#[derive(Debug)]
pub(super) struct Source {
    /// How errors name it.
    pub(super) name: Arc<str>,
    pub(super) map: Mapped,
}

/// One tensor: its name, and where its bytes are.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// The name after renames.
    pub(super) key: String,
    /// The name in the file.
    pub(super) original: String,
    /// The file, by its place in the store's list.
    pub(super) file: usize,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// The bytes' place in the file.
    pub(super) begin: usize,
    pub(super) end: usize,
}

/// The tensors of one part of a checkpoint: headers read and checked, values not yet.
#[derive(Debug)]
pub struct WeightStore {
    /// In the order of files and of bytes.
    pub(super) entries: Vec<Entry>,
    pub(super) sources: Vec<Source>,
}

impl WeightStore {
    /// Opens the weights in `folder` whose file name begins with `stem`: `unet` and
    /// `diffusion_pytorch_model`, say.
    ///
    /// Takes the first of `{stem}.safetensors`, `{stem}.safetensors.index.json` (sharded),
    /// `{stem}.fp16.safetensors` and `{stem}.safetensors.index.fp16.json`.
    pub fn open(files: &Files, folder: &str, stem: &str) -> Result<Self, WeightsError> {
        let names = [
            format!("{stem}.safetensors"),
            format!("{stem}.safetensors.index.json"),
            format!("{stem}.fp16.safetensors"),
            format!("{stem}.safetensors.index.fp16.json"),
        ];
        for name in &names {
            let path = join(folder, name);
            if !files.exists(&path) {
                continue;
            }
            return if name.ends_with(".json") {
                Self::open_sharded(files, folder, &path)
            } else {
                Self::open_file(files, &path)
            };
        }
        let present = files.list(folder)?;
        let pickle = |name: &&String| PICKLES.iter().any(|end| name.ends_with(end));
        let [expected, ..] = &names;
        Err(match present.iter().find(pickle) {
            Some(found) => WeightsError::NotSafetensors {
                file: files.name(&join(folder, found)),
                expected: expected.clone(),
            },
            None => WeightsError::NoWeights { folder: files.name(folder), expected: names.to_vec() },
        })
    }

    /// Opens one safetensors file, whatever its name.
    pub fn open_file(files: &Files, path: &str) -> Result<Self, WeightsError> {
        let mut store = Self { entries: Vec::new(), sources: Vec::new() };
        store.add_file(files, path)?;
        Ok(store)
    }

    fn open_sharded(files: &Files, folder: &str, path: &str) -> Result<Self, WeightsError> {
        let index = Index::read(files, path)?;
        let mut store = Self { entries: Vec::new(), sources: Vec::new() };
        let mut shards = Vec::new();
        for shard in index.shards() {
            match store.add_file(files, &join(folder, shard)) {
                Err(WeightsError::Files(FilesError::NoFile { .. } | FilesError::NoPart { .. })) => {
                    return Err(index.missing(shard));
                }
                result => result?,
            }
            shards.push(shard.to_string());
        }
        index.check(&store.entries, &shards)?;
        Ok(store)
    }

    fn add_file(&mut self, files: &Files, path: &str) -> Result<(), WeightsError> {
        let map = files.map(path)?;
        let name: Arc<str> = files.name(path).into();
        let file = self.sources.len();
        let entries = read_header(&name, map.bytes())?;
        self.entries.extend(entries.into_iter().map(|entry| Entry {
            original: entry.key.clone(),
            key: entry.key,
            file,
            dtype: entry.dtype,
            shape: entry.shape,
            begin: entry.begin,
            end: entry.end,
        }));
        self.sources.push(Source { name, map });
        Ok(())
    }

    /// Gives tensors the names that `map` says. Two tensors with one name are an error.
    pub fn rename(&mut self, map: &KeyMap) -> Result<(), WeightsError> {
        let mut renamed = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            renamed.push(Entry { key: map.apply(&entry.key).into_owned(), ..entry.clone() });
        }
        let mut taken: BTreeMap<&str, &Entry> = BTreeMap::new();
        for entry in &renamed {
            if let Some(first) = taken.insert(&entry.key, entry) {
                return Err(WeightsError::Collision {
                    file: self.file_name(entry).to_string(),
                    key: entry.key.clone(),
                    first: first.original.clone(),
                    second: entry.original.clone(),
                });
            }
        }
        self.entries = renamed;
        Ok(())
    }

    /// Leaves out the tensors whose present name matches one of `patterns` (see
    /// [`KeyMap`] for what a pattern is), and says how many that were.
    pub fn ignore(&mut self, patterns: &[&str]) -> Result<usize, WeightsError> {
        let patterns =
            patterns.iter().map(|pattern| Pattern::parse(pattern)).collect::<Result<Vec<_>, _>>()?;
        let before = self.entries.len();
        self.entries.retain(|entry| !patterns.iter().any(|pattern| pattern.matches(&entry.key)));
        Ok(before - self.entries.len())
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key)
    }

    /// The shape of a tensor as the file has it.
    pub fn shape(&self, key: &str) -> Option<&[usize]> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| entry.shape.as_slice())
    }

    /// The tensors' present names, in the order of the files.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.key.as_str())
    }

    /// The number of values of all tensors.
    pub fn parameters(&self) -> usize {
        self.entries.iter().map(|entry| entry.shape.iter().product::<usize>()).sum()
    }

    pub(super) fn file_name(&self, entry: &Entry) -> &str {
        self.sources.get(entry.file).map_or("", |source| &source.name)
    }
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_string() } else { format!("{folder}/{name}") }
}
