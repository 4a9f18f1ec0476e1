//! What was done instead of what was asked for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What was done instead of what was asked for, with the submitter's consent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Applied {
    /// What was asked for: "30 steps at 512×512".
    pub requested: String,
    /// What was done: "15 steps at 512×512".
    pub actual: String,
    /// Why.
    pub reason: DegradeReason,
}

/// Why a submission gets less than it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DegradeReason {
    /// Much is waiting.
    Load,
    /// What was asked for would be finished too late.
    Deadline,
    /// What was asked for needs more memory than there is.
    Memory,
}

impl fmt::Display for DegradeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Load => "much is waiting",
            Self::Deadline => "it would be finished too late",
            Self::Memory => "it needs more memory than there is",
        })
    }
}
