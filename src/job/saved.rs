//! A job as bytes: a checksummed header before a safetensors file.
//!
//! ```text
//! 0   8   "AQUAJOB\0"
//! 8   4   version, little endian: 2; bytes of any other are refused
//! 12  8   length of the body, little endian
//! 20  16  XXH3 (128 bits) of the body, little endian
//! 36      the body: tensors, and `Head` as JSON under the metadata key `job`
//! ```

use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_128;

use super::applied::Applied;
use crate::request::Guidance;

const MAGIC: [u8; 8] = *b"AQUAJOB\0";
const VERSION: u32 = 2;
const HEADER: usize = 36;
/// The metadata key of [`Head`].
const HEAD: &str = "job";

/// Why bytes are not taken as a saved job.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SavedJobError {
    /// Fewer bytes than a header has.
    #[error("expected a header of {expected} bytes, found {found} bytes")]
    TooShort {
        /// Bytes of a header.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// The bytes begin with something else than a saved job does.
    #[error("expected {expected:?} at the start, found {found:?}")]
    NotASavedJob {
        /// What a saved job begins with.
        expected: [u8; 8],
        /// What these bytes begin with.
        found: [u8; 8],
    },
    /// A layout that this version of the crate does not read.
    #[error("expected version {expected}, found version {found}")]
    Version {
        /// The version that is read.
        expected: u32,
        /// The version of the bytes.
        found: u32,
    },
    /// Bytes are missing at the end, or there are more than the header says.
    #[error("expected {expected} bytes after the header, found {found}")]
    Length {
        /// What the header says.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// The bytes are not those that were written.
    #[error("checksum: expected {expected:032x}, found {found:032x}")]
    Checksum {
        /// What the header says.
        expected: u128,
        /// That of the body.
        found: u128,
    },
    /// The body is whole, and says something that no job can be.
    #[error("{what}: expected {expected}, found {found}")]
    Content {
        /// The part of the job.
        what: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The job was made with other weights, another config, or compiles to another schedule here.
    #[error("the job's {what} are others: expected {expected}, found {found}")]
    OtherModel {
        /// What differs.
        what: &'static str,
        /// This pipeline's.
        expected: String,
        /// The job's.
        found: String,
    },
    /// The job ran on another device, in another precision or with other kernels, where the same bits cannot
    /// be promised. `Resume::Inexact` takes it all the same.
    #[error("the job ran elsewhere: expected {expected}, found {found}")]
    OtherMachine {
        /// This pipeline's fingerprint.
        expected: String,
        /// The job's.
        found: String,
    },
}

/// An error about one part of a body.
pub(crate) fn content(
    what: impl Into<String>,
    expected: impl ToString,
    found: impl ToString,
) -> SavedJobError {
    SavedJobError::Content { what: what.into(), expected: expected.to_string(), found: found.to_string() }
}

/// All of a job but its tensors.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Head {
    /// Digest of the weights.
    pub(crate) weights: String,
    /// Digest of the configs.
    pub(crate) configs: String,
    /// Digest of the compiled sampler.
    pub(crate) schedule: String,
    /// Device, precision and kernels.
    pub(crate) fingerprint: String,
    pub(crate) request: SavedRequest,
    /// Model evaluations done.
    pub(crate) step: usize,
    pub(crate) rows: Vec<SavedRow>,
    pub(crate) notes: Vec<String>,
    pub(crate) applied: Option<Applied>,
    /// Microseconds since the start, and of encoding and denoising.
    pub(crate) elapsed: u64,
    pub(crate) encoding: u64,
    pub(crate) denoising: u64,
}

/// A request, its guidance and size settled; an input picture is a tensor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedRequest {
    pub(crate) prompt: String,
    pub(crate) strength: Option<f32>,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) steps: usize,
    pub(crate) guidance: Guidance,
    pub(crate) sampler: Option<String>,
    pub(crate) sigmas: Option<String>,
    pub(crate) seed: u64,
    pub(crate) count: Option<u32>,
    pub(crate) clip_skip: Option<usize>,
    pub(crate) keep_raw: bool,
}

/// A picture's random-number generator; its 624 words are a tensor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedRow {
    pub(crate) seed: u64,
    pub(crate) position: usize,
    pub(crate) spare: Option<u64>,
}

/// A tensor's values.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Values {
    F32(Vec<f32>),
    U32(Vec<u32>),
    U8(Vec<u8>),
}

impl Values {
    fn bytes(&self) -> (Dtype, &[u8]) {
        match self {
            Self::F32(values) => (Dtype::F32, bytemuck::cast_slice(values)),
            Self::U32(values) => (Dtype::U32, bytemuck::cast_slice(values)),
            Self::U8(values) => (Dtype::U8, values),
        }
    }

    fn read(name: &str, view: &TensorView) -> Result<Self, SavedJobError> {
        let words = || view.data().as_chunks::<4>().0.iter();
        match view.dtype() {
            Dtype::F32 => Ok(Self::F32(words().map(|word| f32::from_le_bytes(*word)).collect())),
            Dtype::U32 => Ok(Self::U32(words().map(|word| u32::from_le_bytes(*word)).collect())),
            Dtype::U8 => Ok(Self::U8(view.data().to_vec())),
            other => Err(content(name, "F32, U32 or U8", format!("{other:?}"))),
        }
    }
}

/// A job's tensors by name, each taken once.
#[derive(Debug, Default)]
pub(crate) struct Tensors(BTreeMap<String, (Values, Vec<usize>)>);

impl Tensors {
    pub(crate) fn put(&mut self, name: impl Into<String>, values: Values, shape: &[usize]) {
        self.0.insert(name.into(), (values, shape.to_vec()));
    }

    fn take(&mut self, name: &str) -> Result<(Values, Vec<usize>), SavedJobError> {
        self.0.remove(name).ok_or_else(|| content(name, "a tensor", "none"))
    }

    /// Finite values of exactly this shape.
    pub(crate) fn take_f32<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Vec<f32>, SavedJobError> {
        match self.take(name)? {
            (Values::F32(values), found) if found == shape => {
                match values.iter().filter(|value| !value.is_finite()).count() {
                    0 => Ok(values),
                    count => Err(content(name, "finite values", format!("{count} that are not"))),
                }
            }
            (values, found) => Err(content(name, format!("F32 {shape:?}"), describe(&values, &found))),
        }
    }

    pub(crate) fn take_u32(&mut self, name: &str) -> Result<Vec<u32>, SavedJobError> {
        match self.take(name)? {
            (Values::U32(values), _) => Ok(values),
            (values, found) => Err(content(name, "U32", describe(&values, &found))),
        }
    }

    /// `[height, width, 3]`
    pub(crate) fn take_picture(&mut self, name: &str) -> Result<(Vec<u8>, u32, u32), SavedJobError> {
        let (values, shape) = self.take(name)?;
        let side = |side: usize| u32::try_from(side).ok();
        match (values, shape.as_slice()) {
            (Values::U8(pixels), &[height, width, 3]) => match (side(height), side(width)) {
                (Some(height), Some(width)) => Ok((pixels, width, height)),
                _ => Err(content(name, "sides below 2^32", format!("{shape:?}"))),
            },
            (values, _) => Err(content(name, "U8 [height, width, 3]", describe(&values, &shape))),
        }
    }

    /// Refuses tensors that nothing took.
    pub(crate) fn finish(self) -> Result<(), SavedJobError> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(content(name, "no such tensor", "one")),
        }
    }
}

fn describe(values: &Values, shape: &[usize]) -> String {
    format!("{:?} {shape:?}", values.bytes().0)
}

/// Header and body.
pub(crate) fn encode(head: &Head, tensors: &Tensors) -> Result<Vec<u8>, SavedJobError> {
    let unwritable =
        |error: &dyn std::fmt::Display| content("the job", "something that can be written", error);
    let json = serde_json::to_string(head).map_err(|error| unwritable(&error))?;
    let views = tensors.0.iter().map(|(name, (values, shape))| {
        let (dtype, bytes) = values.bytes();
        TensorView::new(dtype, shape.clone(), bytes).map(|view| (name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>().map_err(|error| unwritable(&error))?;
    let body = safetensors::serialize(views, Some(HashMap::from([(HEAD.to_owned(), json)])))
        .map_err(|error| unwritable(&error))?;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(xxh3_128(&body).to_le_bytes());
    bytes.extend(body);
    Ok(bytes)
}

/// What [`encode`] wrote; nothing of it is trusted before the checksum holds.
pub(crate) fn decode(bytes: &[u8]) -> Result<(Head, Tensors), SavedJobError> {
    let body = body(bytes)?;
    let broken = |error: &dyn std::fmt::Display| content("the body", "a safetensors file", error);
    let (_, metadata) = SafeTensors::read_metadata(body).map_err(|error| broken(&error))?;
    let json = metadata.metadata().as_ref().and_then(|metadata| metadata.get(HEAD));
    let json = json.ok_or_else(|| content("the body", format!("metadata `{HEAD}`"), "none"))?;
    let head =
        serde_json::from_str(json).map_err(|error| content(format!("metadata `{HEAD}`"), "a job", error))?;
    let file = SafeTensors::deserialize(body).map_err(|error| broken(&error))?;
    let mut tensors = Tensors::default();
    for (name, view) in file.iter() {
        tensors.put(name, Values::read(name, &view)?, view.shape());
    }
    Ok((head, tensors))
}

fn body(bytes: &[u8]) -> Result<&[u8], SavedJobError> {
    let too_short = SavedJobError::TooShort { expected: HEADER, found: bytes.len() };
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(too_short)?;
    if *magic != MAGIC {
        return Err(SavedJobError::NotASavedJob { expected: MAGIC, found: *magic });
    }
    let fields = rest.split_first_chunk::<4>().and_then(|(version, rest)| {
        let (length, rest) = rest.split_first_chunk::<8>()?;
        let (checksum, body) = rest.split_first_chunk::<16>()?;
        Some((
            u32::from_le_bytes(*version),
            u64::from_le_bytes(*length),
            u128::from_le_bytes(*checksum),
            body,
        ))
    });
    let Some((version, length, checksum, body)) = fields else {
        return Err(SavedJobError::TooShort { expected: HEADER, found: bytes.len() });
    };
    if version != VERSION {
        return Err(SavedJobError::Version { expected: VERSION, found: version });
    }
    if length != body.len() as u64 {
        return Err(SavedJobError::Length { expected: length, found: body.len() as u64 });
    }
    match xxh3_128(body) {
        found if found == checksum => Ok(body),
        found => Err(SavedJobError::Checksum { expected: checksum, found }),
    }
}
