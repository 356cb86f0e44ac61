//! Volumes: storage with a name and a life of its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::units::ByteSize;

/// What a user asks of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Most it may hold, where the pool can hold it to that.
    #[serde(default)]
    pub size: Option<ByteSize>,
    /// The user's own marks.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}
