//! The header of a safetensors file, checked before anything is read by it.

use std::{collections::BTreeMap, fmt};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error, IntoDeserializer, MapAccess, Visitor, value};

use super::error::WeightsError;

/// The largest header, as in the format's reference implementation.
const HEADER_CAP: u64 = 100_000_000;
/// The bytes before the header: its length.
const PREFIX: usize = 8;
const RANK_CAP: usize = 8;

/// A tensor's entry, its name and its bytes' place in the whole file.
#[derive(Debug, Clone)]
pub(super) struct HeaderEntry {
    pub(super) key: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) begin: usize,
    pub(super) end: usize,
}

/// Reads and checks the header of `bytes`, a whole file; errors call it `file`.
/// The entries come in the order of their bytes.
pub(super) fn read_header(file: &str, bytes: &[u8]) -> Result<Vec<HeaderEntry>, WeightsError> {
    let (header, data) = split(file, bytes)?;
    let raw: RawHeader = serde_json::from_slice(header)
        .map_err(|error| WeightsError::InvalidHeader { file: file.to_string(), reason: error.to_string() })?;
    refuse_duplicates(file, &raw.tensors)?;
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (key, raw) in raw.tensors {
        let info = check_tensor(file, &key, raw)?;
        tensors.push((key, info));
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    check_layout(file, &tensors, PREFIX + header.len(), data.len())?;
    // The reference implementation has the last word.
    Metadata::new(None, tensors.clone())
        .map_err(|error| WeightsError::InvalidHeader { file: file.to_string(), reason: error.to_string() })?;
    let base = PREFIX + header.len();
    let entry = |(key, info): (String, TensorInfo)| HeaderEntry {
        key,
        dtype: info.dtype,
        shape: info.shape,
        begin: base + info.data_offsets.0,
        end: base + info.data_offsets.1,
    };
    Ok(tensors.into_iter().map(entry).collect())
}

/// The header's JSON and the data after it.
fn split<'b>(file: &str, bytes: &'b [u8]) -> Result<(&'b [u8], &'b [u8]), WeightsError> {
    let found = bytes.len() as u64;
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else {
        return Err(WeightsError::Truncated { file: file.to_string(), expected: PREFIX as u64, found });
    };
    let header = u64::from_le_bytes(*prefix);
    if header > HEADER_CAP {
        return Err(WeightsError::HeaderTooLarge { file: file.to_string(), cap: HEADER_CAP, found: header });
    }
    usize::try_from(header)
        .ok()
        .and_then(|length| rest.split_at_checked(length))
        .ok_or_else(|| WeightsError::HeaderPastEnd { file: file.to_string(), header, found })
}

fn refuse_duplicates(file: &str, tensors: &[(String, RawTensor)]) -> Result<(), WeightsError> {
    let mut keys: Vec<&str> = tensors.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    for pair in keys.windows(2) {
        if let [first, second] = pair
            && first == second
        {
            return Err(WeightsError::DuplicateKey { file: file.to_string(), key: (*first).to_string() });
        }
    }
    Ok(())
}

/// Checks one entry by itself: its data type, its rank, and that its bytes are as many as its
/// shape says.
fn check_tensor(file: &str, key: &str, raw: RawTensor) -> Result<TensorInfo, WeightsError> {
    let (file, key) = (file.to_string(), key.to_string());
    let RawTensor { dtype: name, shape, data_offsets: (begin, end) } = raw;
    let deserializer: value::StrDeserializer<'_, value::Error> = name.as_str().into_deserializer();
    let Ok(dtype) = Dtype::deserialize(deserializer) else {
        return Err(WeightsError::UnknownDtype { file, key, found: name });
    };
    if shape.len() > RANK_CAP {
        return Err(WeightsError::Rank { file, key, cap: RANK_CAP, found: shape.len() });
    }
    let Some(found) = end.checked_sub(begin) else {
        return Err(WeightsError::Offsets { file, key, begin, end });
    };
    let bits = shape
        .iter()
        .try_fold(1u64, |count, &side| count.checked_mul(side))
        .and_then(|count| count.checked_mul(dtype.bitsize() as u64));
    let sides: Option<Vec<usize>> = shape.iter().map(|&side| usize::try_from(side).ok()).collect();
    let offsets = usize::try_from(begin).ok().zip(usize::try_from(end).ok());
    let (Some(bits), Some(sides), Some(data_offsets)) = (bits, sides, offsets) else {
        return Err(WeightsError::TooLarge { file, key, dtype: name, shape });
    };
    let expected = bits.div_ceil(8);
    if expected != found || bits % 8 != 0 {
        return Err(WeightsError::Size { file, key, dtype: name, shape, expected, found });
    }
    Ok(TensorInfo { dtype, shape: sides, data_offsets })
}

/// Checks that the tensors, sorted by offset, cover the data without a gap or an overlap.
fn check_layout(
    file: &str,
    tensors: &[(String, TensorInfo)],
    base: usize,
    data: usize,
) -> Result<(), WeightsError> {
    let mut covered = 0;
    let mut previous = "";
    for (key, info) in tensors {
        let (begin, end) = info.data_offsets;
        if begin < covered {
            return Err(WeightsError::Overlap {
                file: file.to_string(),
                first: previous.to_string(),
                second: key.clone(),
            });
        }
        if begin > covered {
            return Err(uncovered(file, covered, begin));
        }
        covered = end;
        previous = key;
    }
    if covered > data {
        return Err(WeightsError::Truncated {
            file: file.to_string(),
            expected: (base as u64).saturating_add(covered as u64),
            found: (base as u64).saturating_add(data as u64),
        });
    }
    if covered < data {
        return Err(uncovered(file, covered, data));
    }
    Ok(())
}

fn uncovered(file: &str, begin: usize, end: usize) -> WeightsError {
    WeightsError::Uncovered { file: file.to_string(), begin: begin as u64, end: end as u64 }
}

/// The header as it stands, duplicates included.
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
}

#[derive(serde::Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut tensors = Vec::new();
        let mut metadata = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == "__metadata__" {
                if std::mem::replace(&mut metadata, true) {
                    return Err(A::Error::custom("`__metadata__` stands twice"));
                }
                map.next_value::<Option<BTreeMap<String, String>>>()?;
                continue;
            }
            let tensor =
                map.next_value().map_err(|error| A::Error::custom(format!("tensor `{key}`: {error}")))?;
            tensors.push((key, tensor));
        }
        Ok(RawHeader { tensors })
    }
}
