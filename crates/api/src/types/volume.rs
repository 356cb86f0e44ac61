//! Volumes.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Body of a create request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VolumeCreate {
    /// Name.
    pub name: String,
    /// Most it may hold, such as `10G`; no limit when absent.
    pub size: Option<String>,
    /// The user's own marks.
    pub labels: BTreeMap<String, String>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Volume {
    /// Name.
    pub name: String,
    /// Its directory on the host.
    pub path: String,
    /// Most it may hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// What it holds; absent in a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// `enforced`, `unsupported` (the file system has no quota: the size is only a note) or
    /// `none`.
    pub quota: String,
    /// Instances that mount it.
    pub instances: Vec<String>,
    /// The user's own marks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When it was made (RFC 3339).
    pub created_at: String,
}
