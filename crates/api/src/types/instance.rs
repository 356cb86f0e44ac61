//! Instances as shown, and what may be asked of them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spec::{InstanceSpec, Kind, Port};

/// Body of a create request.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceCreate {
    /// Its name; one is made up when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Power state to bring it to: `running` (when absent), `prepared` (set up, waiting for an
    /// attach or a start) or `stopped`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<String>,
    /// What is asked for.
    pub spec: InstanceSpec,
}

/// How the program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Exit {
    /// Exit code; 128 plus the signal when a signal ended it.
    pub code: i32,
    /// Number of the signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether the kernel ended a process for want of memory.
    pub oom_killed: bool,
    /// When (RFC 3339).
    pub at: String,
}

/// An instance in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Instance {
    /// Identity; never used again.
    pub id: String,
    /// Name; can be given again after a delete.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Whether it is a virtual machine, with a kernel of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub machine: bool,
    /// The image, as the user wrote it.
    pub image: String,
    /// `creating`, `failed`, `stopped`, `prepared`, `running`, `paused`, `stopping`, `deleting`.
    pub status: String,
    /// Addresses it holds.
    pub addresses: Vec<String>,
    /// Published ports.
    pub ports: Vec<Port>,
    /// `starting`, `healthy` or `unhealthy`, when checks are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// How it last ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Starts in a row after it ended by itself.
    pub restarts: u32,
    /// When it was asked for (RFC 3339).
    pub created_at: String,
    /// When its program was last started (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The user's own marks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Resources used over all runs; never falls. The basis of billing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Processor time in nanoseconds.
    pub cpu_ns: u64,
    /// Bytes read from block devices.
    pub read_bytes: u64,
    /// Bytes written to block devices.
    pub write_bytes: u64,
    /// Most memory held at once.
    pub memory_peak_bytes: u64,
}

/// One instance, whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceDetail {
    /// As in a list.
    #[serde(flatten)]
    pub instance: Instance,
    /// What is asked for.
    pub spec: InstanceSpec,
    /// Power state asked for.
    pub desired: String,
    /// Raised at each change; send it back in `If-Match` to change only what you saw.
    pub generation: u64,
    /// Digest of the image's manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// Its program's process id on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its directory on the host: everything that defines it.
    pub directory: String,
    /// When it will be started again (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_at: Option<String>,
    /// Resources used by the runs that have ended.
    pub usage: Usage,
    /// What else the request made, such as the default network at its first use; for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Body of a stop or restart request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StopRequest {
    /// Ends the program at once.
    pub force: bool,
}

/// What a wait waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitFor {
    /// Created and at the power state asked for.
    Settled,
    /// The program runs.
    Running,
    /// Nothing runs.
    Stopped,
    /// Its health checks pass.
    Healthy,
    /// It is gone.
    Removed,
}

/// What an instance uses now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    /// Identity.
    pub id: String,
    /// Name.
    pub name: String,
    /// Milliseconds since the epoch at which this was read.
    pub at_ms: u64,
    /// Processor time of this run in nanoseconds.
    pub cpu_ns: u64,
    /// Time this run was held back by its processor limit, in nanoseconds.
    pub throttled_ns: u64,
    /// Processor limit, in CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit: Option<f64>,
    /// Memory held, page cache that can be dropped at once not counted.
    pub memory_bytes: u64,
    /// Most memory held in this run.
    pub memory_peak_bytes: u64,
    /// Memory limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// Swap used.
    pub swap_bytes: u64,
    /// Times the kernel ended a process for want of memory.
    pub oom_kills: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Their limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u64>,
    /// Bytes read from block devices in this run.
    pub read_bytes: u64,
    /// Bytes written to block devices in this run.
    pub write_bytes: u64,
    /// Bytes received over the network in this run.
    pub rx_bytes: u64,
    /// Bytes sent over the network in this run.
    pub tx_bytes: u64,
}

/// What the software CPU of a virtual machine did how often since the machine was last booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CpuStats {
    /// Identity.
    pub id: String,
    /// Name.
    pub name: String,
    /// How often what happened. What is counted depends on the version.
    pub counters: Vec<CpuCounter>,
    /// Instructions that are not translated, those met most first; not all of them.
    pub untranslated: Vec<Untranslated>,
}

/// How often something happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CpuCounter {
    /// Such as `translations`.
    pub name: String,
    /// What is counted, for people.
    pub meaning: String,
    /// The number for each vCPU.
    pub vcpus: Vec<u64>,
}

/// A form of instruction that the software CPU leaves to its interpreter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Untranslated {
    /// Its name, such as `Fxsave_m512byte`.
    pub form: String,
    /// How often it was met in blocks that were translated, by all vCPUs.
    pub count: u64,
}

/// One process inside an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TopRow {
    /// Process id on the host.
    pub pid: u32,
    /// Process id inside.
    pub inner_pid: u32,
    /// User id inside.
    pub uid: u32,
    /// Processor time in milliseconds.
    pub cpu_ms: u64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// State letter of `proc(5)`.
    pub state: String,
    /// Command line.
    pub command: String,
}

/// A program to run inside: the first message on an exec stream.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Process {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Added to the instance's environment.
    pub env: BTreeMap<String, String>,
    /// `user[:group]`; the instance's own when absent.
    pub user: Option<String>,
    /// Absolute path inside; the instance's own when absent.
    pub workdir: Option<String>,
    /// Whether the program gets a terminal.
    pub terminal: bool,
    /// Whether standard input is sent.
    pub stdin: bool,
    /// Size of the terminal: rows, columns.
    pub size: Option<(u16, u16)>,
}
