//! What can be wrong with a weight file.

use super::{files::FilesError, key_map::KeyMapError};

/// Weights could not be loaded exactly as they were asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// A file of the checkpoint could not be had.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A folder holds no weight file under any name that is read.
    #[error("{folder}: no weights found; expected one of {expected:?}")]
    NoWeights {
        /// The folder.
        folder: String,
        /// The file names looked for.
        expected: Vec<String>,
    },
    /// A folder holds weights in another format only.
    #[error(
        "{file}: a pickle file, which is not read since it can run code; expected `{expected}` (convert it to safetensors)"
    )]
    NotSafetensors {
        /// The file found.
        file: String,
        /// The file name looked for.
        expected: String,
    },
    /// A file ends before its data do.
    #[error("{file}: cut short: expected at least {expected} bytes, found {found}")]
    Truncated {
        /// The file.
        file: String,
        /// The bytes that its header, or the format, asks for.
        expected: u64,
        /// The bytes that it has.
        found: u64,
    },
    /// The length written before the header reaches past the file's end.
    #[error("{file}: the header claims {header} bytes, and the file has {found}")]
    HeaderPastEnd {
        /// The file.
        file: String,
        /// The claimed length of the header.
        header: u64,
        /// The bytes of the whole file.
        found: u64,
    },
    /// The header is larger than any real one.
    #[error("{file}: expected a header of at most {cap} bytes, found {found}")]
    HeaderTooLarge {
        /// The file.
        file: String,
        /// The limit in bytes.
        cap: u64,
        /// The claimed length of the header.
        found: u64,
    },
    /// The header is not the JSON that the format asks for.
    #[error("{file}: invalid header: {reason}")]
    InvalidHeader {
        /// The file.
        file: String,
        /// The fault, with line and column.
        reason: String,
    },
    /// The header names a tensor twice.
    #[error("{file}: the tensor `{key}` stands twice in the header")]
    DuplicateKey {
        /// The file.
        file: String,
        /// The tensor.
        key: String,
    },
    /// The header gives a tensor a data type that the format does not have.
    #[error("{file}: tensor `{key}`: unknown data type `{found}`")]
    UnknownDtype {
        /// The file.
        file: String,
        /// The tensor.
        key: String,
        /// The name found.
        found: String,
    },
    /// A tensor has more dimensions than any weight.
    #[error("{file}: tensor `{key}`: expected at most {cap} dimensions, found {found}")]
    Rank {
        /// The file.
        file: String,
        /// The tensor.
        key: String,
        /// The limit.
        cap: usize,
        /// The dimensions found.
        found: usize,
    },
    /// A tensor's place in the file is not a range.
    #[error("{file}: tensor `{key}`: offsets {begin}..{end} run backwards")]
    Offsets {
        /// The file.
        file: String,
        /// The tensor.
        key: String,
        /// First byte, after the header.
        begin: u64,
        /// One past the last byte.
        end: u64,
    },
    /// The size of a tensor does not fit in memory's address range.
    #[error("{file}: tensor `{key}`: {dtype} {shape:?} is absurdly large")]
    TooLarge {
        /// The file.
        file: String,
        /// The tensor.
        key: String,
        /// Its data type.
        dtype: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// A tensor's shape and data type do not give the bytes that it occupies.
    #[error("{file}: tensor `{key}`: {dtype} {shape:?} needs {expected} bytes, its offsets hold {found}")]
    Size {
        /// The file.
        file: String,
        /// The tensor.
        key: String,
        /// Its data type.
        dtype: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Bytes by shape and data type.
        expected: u64,
        /// Bytes by the offsets.
        found: u64,
    },
    /// Two tensors share bytes.
    #[error("{file}: the tensors `{first}` and `{second}` overlap")]
    Overlap {
        /// The file.
        file: String,
        /// The tensor that begins first.
        first: String,
        /// The other.
        second: String,
    },
    /// Bytes of the file belong to no tensor.
    #[error("{file}: the bytes {begin}..{end} after the header belong to no tensor")]
    Uncovered {
        /// The file.
        file: String,
        /// First byte, after the header.
        begin: u64,
        /// One past the last byte.
        end: u64,
    },
    /// The index of a sharded checkpoint is not what the format asks for.
    #[error("{file}: invalid index: {reason}")]
    InvalidIndex {
        /// The index.
        file: String,
        /// The fault.
        reason: String,
    },
    /// The index names a shard that is not there.
    #[error("{index}: the shard `{shard}` is missing")]
    MissingShard {
        /// The index.
        index: String,
        /// The shard's file name.
        shard: String,
    },
    /// The index places a tensor in a shard that does not have it.
    #[error("{index}: the tensor `{key}` should be in `{shard}`, and is not")]
    NotInShard {
        /// The index.
        index: String,
        /// The shard's file name.
        shard: String,
        /// The tensor.
        key: String,
    },
    /// A shard holds a tensor that the index does not name.
    #[error("{index}: the tensor `{key}` is in `{shard}` and not in the index")]
    NotInIndex {
        /// The index.
        index: String,
        /// The shard's file name.
        shard: String,
        /// The tensor.
        key: String,
    },
    /// Two shards hold the same tensor.
    #[error("the tensor `{key}` is in both `{first}` and `{second}`")]
    InTwoShards {
        /// The tensor.
        key: String,
        /// One shard.
        first: String,
        /// The other.
        second: String,
    },
    /// A row of a rename table or an ignore pattern cannot be read.
    #[error(transparent)]
    KeyMap(#[from] KeyMapError),
    /// Two tensors would get the same name.
    #[error("{file}: the tensors `{first}` and `{second}` would both be named `{key}`")]
    Collision {
        /// The file of the second.
        file: String,
        /// The common name.
        key: String,
        /// A tensor's name in its file.
        first: String,
        /// The other's.
        second: String,
    },
    /// A tensor's data type is not one that weights are read from.
    #[error("{file}: tensor `{key}`: expected data type F32, F16 or BF16, found {found}")]
    SourceDtype {
        /// The file.
        file: String,
        /// The tensor.
        key: String,
        /// The data type found.
        found: String,
    },
    /// The data type asked for is not one that weights are loaded to.
    #[error("weights load as F32, F16 or BF16, not as {found}")]
    TargetDtype {
        /// The data type asked for.
        found: String,
    },
    /// A tensor has no values.
    #[error("{file}: tensor `{key}`: expected values, found the shape {shape:?}")]
    Empty {
        /// The file.
        file: String,
        /// The tensor.
        key: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A value is infinite or not a number.
    #[error("{file}: tensor `{key}`: value {index} is {value}; expected finite weights")]
    NonFinite {
        /// The file.
        file: String,
        /// The tensor.
        key: String,
        /// The value's place, counted in the file's order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A finite value is infinite in the data type asked for.
    #[error(
        "{file}: tensor `{key}`: value {index} is {value}, which {dtype} cannot hold; load as F32 or BF16"
    )]
    Overflow {
        /// The file.
        file: String,
        /// The tensor.
        key: String,
        /// The value's place, counted in the file's order.
        index: usize,
        /// The value.
        value: f32,
        /// The data type asked for.
        dtype: &'static str,
    },
    /// Memory for a tensor could not be had.
    #[error("{file}: tensor `{key}`: no memory for its {bytes} bytes")]
    Memory {
        /// The file.
        file: String,
        /// The tensor.
        key: String,
        /// The bytes asked for.
        bytes: usize,
    },
    /// A network asks for a tensor that the files do not have.
    #[error("{files}: the tensor `{key}` is missing")]
    Missing {
        /// The tensor.
        key: String,
        /// The files searched.
        files: String,
    },
    /// A tensor was taken twice.
    #[error("{file}: the tensor `{key}` was already taken")]
    Taken {
        /// The file.
        file: String,
        /// The tensor.
        key: String,
    },
    /// A tensor has another shape than the configuration gives it.
    #[error("{file}: tensor `{key}`: expected the shape {expected:?}, found {found:?}")]
    Shape {
        /// The tensor.
        key: String,
        /// The file.
        file: String,
        /// The shape by the configuration.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// The files hold tensors that the network does not have.
    #[error("{files}: {count} tensors belong to no part of the network: {keys:?}{}", if keys.len() < *count { " and more" } else { "" })]
    Unused {
        /// The first of them.
        keys: Vec<String>,
        /// How many there are.
        count: usize,
        /// The files they are in.
        files: String,
    },
}
