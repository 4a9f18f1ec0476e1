//! A checkpoint's files: where they are, their configuration read strictly, and their weights
//! by name, each checked and loaded exactly once.
//!
//! ```text
//! let mut store = WeightStore::open(&files, "unet", "diffusion_pytorch_model")?;
//! store.rename(&KeyMap::table(OLD_ATTENTION)?)?;
//! let mut weights = store.load(&device, DType::F32)?;
//! let bias = weights.take("conv_in.bias", [320])?;
//! weights.finish()?;
//! ```

mod config;
mod convert;
mod error;
mod files;
mod json;
mod key_map;
mod load;
mod safetensors;
mod sharded;
mod store;

pub use config::{ConfigError, ConfigReader};
pub use error::WeightsError;
pub use files::{Files, FilesError, TEXT_CAP};
pub use key_map::{KeyMap, KeyMapError, NON_WEIGHTS, OLD_ATTENTION};
pub use load::Loaded;
pub use store::WeightStore;
