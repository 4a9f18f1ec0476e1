//! Bytes of a file to values of the data type asked for: one pass that checks, hashes,
//! converts and, for a convolution, changes the layout.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use safetensors::tensor::Dtype;
use xxhash_rust::xxh3::Xxh3;

/// Values converted at a time: source, f32 and result fit the first cache together.
const CHUNK: usize = 2048;
/// Source bytes after which the pages behind are given back.
const RELEASE: usize = 4 << 20;

/// A floating-point type that weights are read from or loaded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Float {
    F32,
    F16,
    Bf16,
}

impl Float {
    pub(super) fn from_source(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    pub(super) fn width(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// Little-endian bytes to f32, exactly. `out` has one place a value.
    fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => {
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Self::F16 => {
                let mut aligned = [f16::ZERO; CHUNK];
                for (out, bytes) in out.chunks_mut(CHUNK).zip(bytes.chunks(2 * CHUNK)) {
                    for (value, bytes) in aligned.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *value = f16::from_le_bytes(*bytes);
                    }
                    if let Some(values) = aligned.get(..out.len()) {
                        values.convert_to_f32_slice(out);
                    }
                }
            }
            Self::Bf16 => {
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                }
            }
        }
    }
}

/// The values of one tensor, in the type asked for.
#[derive(Debug)]
pub(super) enum Buffer {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Buffer {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => values.len() * 4,
            Self::F16(values) => values.len() * 2,
            Self::Bf16(values) => values.len() * 2,
        }
    }
}

/// A converted tensor and the hash of its bytes in the file.
#[derive(Debug)]
pub(super) struct Converted {
    pub(super) buffer: Buffer,
    pub(super) hash: u128,
}

/// Why a tensor cannot be converted.
#[derive(Debug, PartialEq)]
pub(super) enum Fault {
    NonFinite { index: usize, value: f32 },
    Overflow { index: usize, value: f32 },
    Memory { bytes: usize },
}

/// What is converted, to what.
pub(super) struct Conversion<'b> {
    pub(super) bytes: &'b [u8],
    pub(super) source: Float,
    pub(super) target: Float,
    pub(super) shape: &'b [usize],
}

impl Conversion<'_> {
    /// Converts all values. `behind(n)` hears that the first `n` bytes have been read.
    ///
    /// A rank-4 tensor `[out, in, height, width]` comes out as `[out, height, width, in]`.
    pub(super) fn run(&self, behind: impl FnMut(usize)) -> Result<Converted, Fault> {
        let mut hash = Xxh3::new();
        let buffer = match self.target {
            Float::F32 => Buffer::F32(self.fill(&mut hash, behind)?),
            Float::F16 => Buffer::F16(self.fill(&mut hash, behind)?),
            Float::Bf16 => Buffer::Bf16(self.fill(&mut hash, behind)?),
        };
        Ok(Converted { buffer, hash: hash.digest128() })
    }

    fn fill<T: Encode>(&self, hash: &mut Xxh3, mut behind: impl FnMut(usize)) -> Result<Vec<T>, Fault> {
        let width = self.source.width();
        let mut out = reserve::<T>(self.bytes.len() / width)?;
        let (slab, area) = self.slab();
        let mut values = reserve::<f32>(slab)?;
        values.resize(slab, 0.0);
        let mut moved = reserve::<f32>(if area > 1 { slab } else { 0 })?;
        let mut encoded = Vec::new();
        let (mut done, mut released) = (0, 0);
        for piece in self.bytes.chunks(slab * width) {
            hash.update(piece);
            let Some(values) = values.get_mut(..piece.len() / width) else {
                break;
            };
            self.source.decode(piece, values);
            check::<T>(values, done / width)?;
            if area > 1 {
                channels_last(values, area, &mut moved);
                T::encode(&moved, &mut encoded, &mut out);
            } else {
                T::encode(values, &mut encoded, &mut out);
            }
            done += piece.len();
            if done - released >= RELEASE {
                behind(done);
                released = done;
            }
        }
        behind(done);
        Ok(out)
    }

    /// How many values to convert at a time, and how many places share an input channel:
    /// for a kernel that is one output channel, since the layout changes within it.
    fn slab(&self) -> (usize, usize) {
        match *self.shape {
            [_, input, height, width] if input > 1 && height * width > 1 => {
                (input * height * width, height * width)
            }
            _ => (CHUNK, 1),
        }
    }
}

/// Refuses values that are not finite, or not in `T`; `first` is the place of the first.
fn check<T: Encode>(values: &[f32], first: usize) -> Result<(), Fault> {
    let most = magnitude(values);
    if most < T::LIMIT.to_bits() {
        return Ok(());
    }
    let limit = if most < f32::INFINITY.to_bits() { T::LIMIT } else { f32::INFINITY };
    let bad = |value: &f32| magnitude(&[*value]) >= limit.to_bits();
    let at = values.iter().position(bad).unwrap_or_default();
    let (index, value) = (first + at, values.get(at).copied().unwrap_or_default());
    Err(if value.is_finite() { Fault::Overflow { index, value } } else { Fault::NonFinite { index, value } })
}

/// `[in, area]` to `[area, in]`.
fn channels_last(values: &[f32], area: usize, out: &mut Vec<f32>) {
    out.clear();
    for place in 0..area {
        out.extend(values.iter().skip(place).step_by(area));
    }
}

fn reserve<T>(count: usize) -> Result<Vec<T>, Fault> {
    let mut values = Vec::new();
    values
        .try_reserve_exact(count)
        .map_err(|_| Fault::Memory { bytes: count.saturating_mul(size_of::<T>()) })?;
    Ok(values)
}

/// The bits of the largest magnitude; those of what is not finite are the largest.
fn magnitude(values: &[f32]) -> u32 {
    values.iter().fold(0, |most, value| most.max(value.to_bits() & 0x7fff_ffff))
}

/// A type that finite f32 values are rounded to.
trait Encode: Copy {
    /// The magnitudes from here on round to infinity.
    const LIMIT: f32;

    /// Appends `values`; `scratch` is kept between calls.
    fn encode(values: &[f32], scratch: &mut Vec<Self>, out: &mut Vec<Self>);
}

impl Encode for f32 {
    const LIMIT: f32 = f32::INFINITY;

    fn encode(values: &[f32], _: &mut Vec<Self>, out: &mut Vec<Self>) {
        out.extend_from_slice(values);
    }
}

impl Encode for f16 {
    // halfway between the largest f16 and the power of two above it
    const LIMIT: f32 = 65_520.0;

    fn encode(values: &[f32], scratch: &mut Vec<Self>, out: &mut Vec<Self>) {
        scratch.resize(values.len(), f16::ZERO);
        scratch.convert_from_f32_slice(values);
        out.extend_from_slice(scratch);
    }
}

impl Encode for bf16 {
    // halfway between the largest bf16 and 2^128
    const LIMIT: f32 = f32::from_bits(0x7f7f_8000);

    fn encode(values: &[f32], _: &mut Vec<Self>, out: &mut Vec<Self>) {
        out.extend(values.iter().map(|value| bf16::from_f32(*value)));
    }
}
