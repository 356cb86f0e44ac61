//! The exit record: how a container ended and what it used, kept durably before anybody is told who did
//! not ask to know at once.
//!
//! Written once by the shim; read by the daemon, which bills from it. A crash of either loses
//! nothing: the record is there, or the container counts as killed with its shim.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::clock::Timestamp;
use super::durable::{self, FileError};
use super::protocol::Exited;

/// The version of the format written here.
pub const EXIT_VERSION: u32 = 1;
const MAX_BYTES: u64 = 64 << 10;

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// [`EXIT_VERSION`].
    pub version: u32,
    /// The instance.
    pub instance: String,
    /// The generation of its spec.
    pub generation: u64,
    /// Exit code; 128 + signal for one that was killed.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// Whether the kernel killed some process of it for want of memory.
    pub oom_killed: bool,
    /// When its program started; `None` if it never did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
    /// What it used, for billing.
    pub usage: Usage,
}

/// What a container used over its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time, in ns.
    pub cpu_ns: u64,
    /// The most memory at once, in bytes; `None` where the kernel does not say.
    pub memory_peak_bytes: Option<u64>,
    /// Bytes read from block devices.
    pub io_read_bytes: u64,
    /// Bytes written to block devices.
    pub io_write_bytes: u64,
}

/// Why an exit record cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExitError {
    /// It cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not what it should be.
    #[error("the exit record {} cannot be understood", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
}

impl ExitRecord {
    /// Writes the record durably.
    ///
    /// # Errors
    /// [`ExitError::File`].
    pub fn save(&self, path: &Path) -> Result<(), ExitError> {
        let json = |source| ExitError::Json {
            path: path.to_owned(),
            source,
        };
        let bytes = serde_json::to_vec(self).map_err(json)?;
        Ok(durable::write(path, &bytes)?)
    }

    /// Reads a record; `None` if there is none yet.
    ///
    /// # Errors
    /// [`ExitError`].
    pub fn load(path: &Path) -> Result<Option<ExitRecord>, ExitError> {
        let bytes = match durable::read(path, MAX_BYTES) {
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let json = |source| ExitError::Json {
            path: path.to_owned(),
            source,
        };
        serde_json::from_slice(&bytes).map(Some).map_err(json)
    }

    /// The part that clients are told.
    pub fn exited(&self) -> Exited {
        Exited {
            code: self.code,
            signal: self.signal,
            oom_killed: self.oom_killed,
            at: self.finished_at,
        }
    }
}

impl Usage {
    /// The account of a group.
    pub fn from_stats(stats: &cgroup::Stats) -> Usage {
        let sum = |bytes: fn(&cgroup::IoStats) -> u64| {
            stats.io.iter().map(bytes).fold(0, u64::saturating_add)
        };
        Usage {
            cpu_ns: stats.cpu.as_ref().map_or(0, |cpu| cpu.usage_ns),
            memory_peak_bytes: stats.memory.as_ref().and_then(|memory| memory.peak_bytes),
            io_read_bytes: sum(|io| io.read_bytes),
            io_write_bytes: sum(|io| io.write_bytes),
        }
    }
}
