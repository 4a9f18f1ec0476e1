//! Where a checkpoint's files come from: a folder, or bytes compiled into the program.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, Read},
    ops::Range,
    path::{Component, Path, PathBuf},
};

use memmap2::Mmap;
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

use super::json;

/// The most bytes that a JSON or text file may have: CLIP's vocabulary has 1 MB.
pub const TEXT_CAP: u64 = 64 << 20;

/// A file of a checkpoint could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// The checkpoint's own directory does not exist.
    #[error("{}: no such directory; expected a checkpoint in diffusers layout", path.display())]
    NoFolder {
        /// The directory asked for.
        path: PathBuf,
    },
    /// The checkpoint's path names a file.
    #[error("{}: expected a directory in diffusers layout, found a file", path.display())]
    NotAFolder {
        /// The path asked for.
        path: PathBuf,
    },
    /// The checkpoint is there, and one of its parts (`unet`, `vae`, ..) is not.
    #[error("{root}: expected a folder `{folder}`, found none")]
    NoPart {
        /// The checkpoint.
        root: String,
        /// The missing folder, relative to the checkpoint.
        folder: String,
    },
    /// The folder is there, and the file is not.
    #[error("{file}: no such file")]
    NoFile {
        /// The missing file.
        file: String,
    },
    /// A directory, a pipe or a device stands where a file should.
    #[error("{file}: expected a regular file")]
    NotAFile {
        /// The path.
        file: String,
    },
    /// The operating system refused to read a file.
    #[error("{file}: cannot be read: {source}")]
    Unreadable {
        /// The file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A text file is larger than any real one.
    #[error("{file}: expected at most {cap} bytes, found {found}")]
    TooLarge {
        /// The file.
        file: String,
        /// The limit in bytes.
        cap: u64,
        /// The size found, in bytes.
        found: u64,
    },
    /// A text file is not UTF-8.
    #[error("{file}: expected UTF-8 text, found another byte at offset {offset}")]
    NotUtf8 {
        /// The file.
        file: String,
        /// Where the first wrong byte stands.
        offset: usize,
    },
    /// A file is not valid JSON, or an object in it has the same key twice.
    #[error("{file}: invalid JSON: {reason}")]
    InvalidJson {
        /// The file.
        file: String,
        /// The fault, with line and column.
        reason: String,
    },
    /// A path named inside a checkpoint leads out of it.
    #[error("{file}: the path `{path}` leads out of the checkpoint; expected a plain relative path")]
    Escapes {
        /// The file or folder that names the path.
        file: String,
        /// The path.
        path: String,
    },
}

/// The files of a checkpoint in diffusers layout.
///
/// Weight files are mapped into memory while they load: a weight file must not be
/// changed or cut by another process before loading has finished.
#[derive(Debug, Clone)]
pub enum Files {
    /// A directory.
    Folder(PathBuf),
    /// Files compiled into the program: `(path relative to the checkpoint, bytes)`.
    Embedded(&'static [(&'static str, &'static [u8])]),
}

impl Files {
    /// The checkpoint in a directory, which must exist.
    pub fn folder(path: impl Into<PathBuf>) -> Result<Self, FilesError> {
        let path = path.into();
        if path.is_dir() {
            Ok(Self::Folder(path))
        } else if path.exists() {
            Err(FilesError::NotAFolder { path })
        } else {
            Err(FilesError::NoFolder { path })
        }
    }

    /// Whether there is a file at `path`, relative to the checkpoint.
    pub fn exists(&self, path: &str) -> bool {
        match self {
            Self::Folder(root) => is_plain(path) && root.join(path).is_file(),
            Self::Embedded(files) => files.iter().any(|(name, _)| *name == path),
        }
    }

    /// The names of the files directly in `folder`, sorted; `""` is the checkpoint itself.
    pub fn list(&self, folder: &str) -> Result<Vec<String>, FilesError> {
        let mut names = Vec::new();
        match self {
            Self::Folder(root) => {
                if !folder.is_empty() {
                    self.require_plain(folder)?;
                }
                let entries = match std::fs::read_dir(root.join(folder)) {
                    Ok(entries) => entries,
                    Err(source) => return Err(self.fault(folder, source, true)),
                };
                for entry in entries {
                    let entry = entry.map_err(|source| self.unreadable(folder, source))?;
                    if entry.path().is_file() {
                        names.push(entry.file_name().to_string_lossy().into_owned());
                    }
                }
            }
            Self::Embedded(files) => {
                let inside = |name: &&str| {
                    let rest = match folder {
                        "" => name,
                        folder => name.strip_prefix(folder)?.strip_prefix('/')?,
                    };
                    (!rest.contains('/')).then(|| rest.to_string())
                };
                names.extend(files.iter().filter_map(|(name, _)| inside(name)));
                if names.is_empty() {
                    return Err(self.no_part(folder));
                }
            }
        }
        names.sort();
        Ok(names)
    }

    /// Reads a UTF-8 text file of at most [`TEXT_CAP`] bytes.
    pub fn text(&self, path: &str) -> Result<Cow<'static, str>, FilesError> {
        let not_utf8 = |error: std::str::Utf8Error| FilesError::NotUtf8 {
            file: self.name(path),
            offset: error.valid_up_to(),
        };
        match self.read(path)? {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(not_utf8),
            Cow::Owned(bytes) => {
                String::from_utf8(bytes).map(Cow::Owned).map_err(|error| not_utf8(error.utf8_error()))
            }
        }
    }

    /// Reads a JSON file of at most [`TEXT_CAP`] bytes. An object with the same key twice is refused.
    pub fn json(&self, path: &str) -> Result<Value, FilesError> {
        self.json_after(path, |text| text.to_owned())
    }

    /// [`Self::json`] of the text after `edit`, for files in a dialect of JSON.
    pub fn json_after(&self, path: &str, edit: impl FnOnce(&str) -> String) -> Result<Value, FilesError> {
        json::parse(&edit(&self.text(path)?))
            .map_err(|error| FilesError::InvalidJson { file: self.name(path), reason: error.to_string() })
    }

    /// A digest of small files (XXH3, 128 bits, in hexadecimal).
    pub(crate) fn digest(&self, paths: &[&str]) -> Result<String, FilesError> {
        let mut hasher = Xxh3::new();
        for path in paths {
            let text = self.text(path)?;
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        Ok(format!("{:032x}", hasher.digest128()))
    }

    /// How errors name the file at `path`.
    pub fn name(&self, path: &str) -> String {
        match self {
            Self::Folder(root) => root.join(path).display().to_string(),
            Self::Embedded(_) => format!("embedded:{path}"),
        }
    }

    /// The bytes of the file at `path`, mapped rather than read.
    pub(super) fn map(&self, path: &str) -> Result<Mapped, FilesError> {
        match self {
            Self::Embedded(_) => self.embedded(path).map(Mapped::Static),
            Self::Folder(_) => {
                let (file, _) = self.open(path)?;
                map_file(&file).map(Mapped::File).map_err(|source| self.unreadable(path, source))
            }
        }
    }

    fn read(&self, path: &str) -> Result<Cow<'static, [u8]>, FilesError> {
        let too_large = |found| FilesError::TooLarge { file: self.name(path), cap: TEXT_CAP, found };
        if let Self::Embedded(_) = self {
            return self.embedded(path).map(Cow::Borrowed);
        }
        let (file, len) = self.open(path)?;
        if len > TEXT_CAP {
            return Err(too_large(len));
        }
        let mut bytes = Vec::new();
        // the limit again: the file may grow, or its size may be a lie (as in /proc)
        file.take(TEXT_CAP + 1).read_to_end(&mut bytes).map_err(|source| self.unreadable(path, source))?;
        if bytes.len() as u64 > TEXT_CAP {
            return Err(too_large(bytes.len() as u64));
        }
        Ok(Cow::Owned(bytes))
    }

    /// Opens a regular file; the size comes with it.
    fn open(&self, path: &str) -> Result<(File, u64), FilesError> {
        self.require_plain(path)?;
        let Self::Folder(root) = self else {
            return Err(FilesError::NoFile { file: self.name(path) });
        };
        let full = root.join(path);
        // before `open`, which would wait on a pipe
        let meta = std::fs::metadata(&full).map_err(|source| self.fault(path, source, false))?;
        if !meta.is_file() {
            return Err(FilesError::NotAFile { file: self.name(path) });
        }
        let file = File::open(&full).map_err(|source| self.fault(path, source, false))?;
        Ok((file, meta.len()))
    }

    fn embedded(&self, path: &str) -> Result<&'static [u8], FilesError> {
        let Self::Embedded(files) = self else {
            return Err(FilesError::NoFile { file: self.name(path) });
        };
        if let Some((_, bytes)) = files.iter().find(|(name, _)| *name == path) {
            return Ok(bytes);
        }
        let inside = |folder: &str| {
            files.iter().any(|(name, _)| name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')))
        };
        match path.rsplit_once('/') {
            Some((folder, _)) if !inside(folder) => Err(self.no_part(folder)),
            _ => Err(FilesError::NoFile { file: self.name(path) }),
        }
    }

    /// Says which of root, part and file is the one that is missing.
    fn fault(&self, path: &str, source: io::Error, is_folder: bool) -> FilesError {
        if source.kind() != io::ErrorKind::NotFound {
            return self.unreadable(path, source);
        }
        if let Self::Folder(root) = self {
            if !root.exists() {
                return FilesError::NoFolder { path: root.clone() };
            }
            if !root.is_dir() {
                return FilesError::NotAFolder { path: root.clone() };
            }
            let folder = if is_folder { Some(path) } else { path.rsplit_once('/').map(|(f, _)| f) };
            if let Some(folder) = folder.filter(|folder| !root.join(folder).is_dir()) {
                return self.no_part(folder);
            }
        }
        FilesError::NoFile { file: self.name(path) }
    }

    fn require_plain(&self, path: &str) -> Result<(), FilesError> {
        if is_plain(path) {
            return Ok(());
        }
        Err(FilesError::Escapes { file: self.root(), path: path.to_string() })
    }

    fn root(&self) -> String {
        match self {
            Self::Folder(root) => root.display().to_string(),
            Self::Embedded(_) => "embedded".to_string(),
        }
    }

    fn no_part(&self, folder: &str) -> FilesError {
        FilesError::NoPart { root: self.root(), folder: folder.to_string() }
    }

    fn unreadable(&self, path: &str, source: io::Error) -> FilesError {
        FilesError::Unreadable { file: self.name(path), source }
    }
}

/// Whether a path stays below the folder that it is relative to, on every system.
pub(super) fn is_plain(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', '\0'])
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// A file's bytes, without a copy of them.
#[derive(Debug)]
pub(super) enum Mapped {
    Static(&'static [u8]),
    File(Mmap),
}

impl Mapped {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Static(bytes) => bytes,
            Self::File(map) => map,
        }
    }

    /// Tells the kernel that `range` is about to be read. A hint: a refusal is no error.
    pub(super) fn will_need(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Self::File(map) = self {
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Gives the pages of `range` back, so that they do not count as this process's memory.
    /// Reading them again is allowed and reads the file again.
    pub(super) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Self::File(map) = self
            && range.end <= map.len()
        {
            release_pages(map, range);
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

#[allow(unsafe_code, reason = "memmap2 leaves to the caller that nobody cuts the file")]
fn map_file(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is read-only, and `Files` documents that a weight file must stay
    // as it is while it loads; every access is by checked ranges of the mapped length.
    unsafe { Mmap::map(file) }
}

#[cfg(unix)]
#[allow(unsafe_code, reason = "memmap2 marks DONTNEED unsafe because of private writable maps")]
fn release_pages(map: &Mmap, range: Range<usize>) {
    // SAFETY: the map is shared, read-only and backed by a file, so that a dropped page
    // comes back from the file with the same bytes: a borrow of it sees no change.
    let _ =
        unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
}
