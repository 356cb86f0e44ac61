//! What is seen of an instance: written by the node that holds it, never by a user.

use serde::{Deserialize, Serialize};

use super::lifecycle::Phase;
use crate::Timestamp;

/// How the program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 plus the signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel ended a process for want of memory.
    pub oom_killed: bool,
    /// When.
    pub at: Timestamp,
}

/// What the health checks say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// No check has counted yet.
    Starting,
    /// The last check passed.
    Healthy,
    /// As many checks in a row failed as the spec allows.
    Unhealthy,
}

/// Resources used over all runs of the program; never falls. The basis of billing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Processor time.
    pub cpu_ns: u64,
    /// Bytes read from block devices.
    pub read_bytes: u64,
    /// Bytes written to block devices.
    pub write_bytes: u64,
    /// Most memory held at once in any run.
    pub memory_peak_bytes: u64,
}

impl Usage {
    /// The sum of two runs.
    #[must_use]
    pub fn plus(self, run: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns.saturating_add(run.cpu_ns),
            read_bytes: self.read_bytes.saturating_add(run.read_bytes),
            write_bytes: self.write_bytes.saturating_add(run.write_bytes),
            memory_peak_bytes: self.memory_peak_bytes.max(run.memory_peak_bytes),
        }
    }
}

/// What is seen of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Where it stands.
    pub phase: Phase,
    /// Generation of the spec that this describes.
    pub generation: u64,
    /// The program's process id on the host, while it runs.
    #[serde(default)]
    pub pid: Option<u32>,
    /// When the program was last started.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// How it last ended.
    #[serde(default)]
    pub exit: Option<Exit>,
    /// Its health, when checks are asked for.
    #[serde(default)]
    pub health: Option<Health>,
    /// Number of the run last begun ([`crate::record::InstanceRecord::run`]).
    #[serde(default)]
    pub run: u64,
    /// Whether that run has ended for good: only a user starts it again.
    #[serde(default)]
    pub run_over: bool,
    /// When the program was asked to end.
    #[serde(default)]
    pub stopping_since: Option<Timestamp>,
    /// Starts in a row after it ended by itself.
    #[serde(default)]
    pub restarts: u32,
    /// When it will be started again.
    #[serde(default)]
    pub restart_at: Option<Timestamp>,
    /// What went wrong last: what happened, why, what to do.
    #[serde(default)]
    pub message: Option<String>,
    /// Resources used by the runs that have ended.
    #[serde(default)]
    pub usage: Usage,
}

impl InstanceStatus {
    /// The status of an instance that is being made.
    #[must_use]
    pub fn new(generation: u64) -> Self {
        Self {
            phase: Phase::Creating,
            generation,
            pid: None,
            started_at: None,
            exit: None,
            health: None,
            run: 0,
            run_over: false,
            stopping_since: None,
            restarts: 0,
            restart_at: None,
            message: None,
            usage: Usage::default(),
        }
    }
}
