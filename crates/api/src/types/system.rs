//! The daemon itself.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a daemon is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Info {
    /// Version of Berth.
    pub version: String,
    /// Version of the API.
    pub api_version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Where everything durable is.
    pub root: String,
    /// Where everything that ends with the host's run is.
    pub run_dir: String,
    /// Prefix of its network interfaces and rules.
    pub prefix: String,
    /// Host name.
    pub hostname: String,
    /// Kernel release.
    pub kernel: String,
    /// `v2`, `v1` or `hybrid`.
    pub cgroups: String,
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// Instances by status.
    pub instances: BTreeMap<String, u64>,
    /// When the daemon started (RFC 3339).
    pub started_at: String,
    /// What a newcomer should know of this host: missing controllers, no quota, and the like.
    pub warnings: Vec<String>,
}

/// How a check of the host came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All is there.
    Ok,
    /// It works, but not as well as it could.
    Limited,
    /// What needs it does not work.
    Missing,
}

/// Something this host can or cannot do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What that means, and what to change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// Something that happened. Streamed as one JSON document a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Rises by one with each event of this daemon's run.
    pub sequence: u64,
    /// When (RFC 3339).
    pub at: String,
    /// What, such as `instance.started`, `operation.failed`, `image.removed`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it is about, such as `instances/web`.
    pub resource: String,
    /// For people.
    pub message: String,
    /// More, such as `exit_code`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}
