//! How a machine ended, kept for whoever asks later.
//!
//! The record is the only thing that outlives `berth-vmm`. It is there whole or not at all, also
//! after a power cut: a temporary name, fsync, rename, fsync of the directory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// The version of [`ExitRecord`] that this code writes.
pub const RECORD_VERSION: u32 = 1;
/// Longer messages are cut.
const MAX_MESSAGE: usize = 4096;

/// Why a machine is no longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum StopReason {
    /// The guest powered itself off.
    PowerOff,
    /// The guest reset itself, or was reset; `berth-vmm` boots it again.
    Reset,
    /// A triple fault: the guest's kernel is broken, or panicked without a console.
    TripleFault,
    /// It was told to, over its control socket.
    Killed,
    /// Somebody sent a signal to the process that watches over it.
    Terminated {
        /// Signal number.
        signal: i32,
    },
    /// It could not be started, or could not go on: no fault of the guest.
    Error {
        /// Every cause in one line.
        message: String,
    },
    /// The process that ran it was ended by a signal: by the system call filter (`SIGSYS`), for
    /// want of memory (`SIGKILL`), or by a mistake of ours.
    Crashed {
        /// Signal number.
        signal: i32,
    },
}

impl std::fmt::Display for StopReason {
    /// For people, after "the virtual machine ended: ".
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered itself off"),
            Self::Reset => f.write_str("the guest reset itself; its kernel may have panicked"),
            Self::TripleFault => f.write_str("triple fault: the guest's kernel is broken"),
            Self::Killed => f.write_str("it was told to end"),
            Self::Terminated { signal } => {
                write!(f, "its process was told to end by signal {signal}")
            }
            Self::Error { message } => f.write_str(message),
            Self::Crashed { signal } => {
                write!(f, "its process was ended by signal {signal}")
            }
        }
    }
}

impl StopReason {
    /// [`StopReason::Error`] with an error and its causes.
    #[must_use]
    pub fn error(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        let end = message.floor_char_boundary(MAX_MESSAGE);
        message.truncate(end);
        Self::Error { message }
    }

    /// The exit status of a process whose machine ended so: 0 for what the guest or the user
    /// wanted, for a signal what shells make of one (128 and its number), 1 otherwise.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Reset | Self::Killed => 0,
            Self::Terminated { signal } => 128_u8.wrapping_add(*signal as u8),
            Self::TripleFault | Self::Error { .. } | Self::Crashed { .. } => 1,
        }
    }
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// [`RECORD_VERSION`] of who wrote it.
    pub version: u32,
    /// Why.
    #[serde(flatten)]
    pub reason: StopReason,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// How often it was booted, 1 without a reset.
    pub boots: u32,
}

impl ExitRecord {
    /// For a machine that ends now.
    #[must_use]
    pub fn now(reason: StopReason, boots: u32) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            version: RECORD_VERSION,
            reason,
            at_ms: since.map_or(0, |it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX)),
            boots,
        }
    }

    /// Writes it, in place of an older one.
    ///
    /// # Errors
    /// When it cannot be made durable; an older one is then still there.
    pub fn write(&self, path: &Path) -> Result<(), RecordError> {
        let json = serde_json::to_vec(self).expect("a struct of texts and numbers is JSON");
        replace(path, &json).map_err(|source| RecordError {
            path: path.to_owned(),
            source,
        })
    }
}

/// The record of a machine's end could not be written.
#[derive(Debug, thiserror::Error)]
#[error("write {}", path.display())]
pub struct RecordError {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = PathBuf::from(name);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_record_is_written_whole_and_read_back_with_every_cause_of_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exit.json");
        let error = RecordError {
            path: "/x".into(),
            source: io::Error::other("the disk is gone"),
        };
        ExitRecord::now(StopReason::PowerOff, 1)
            .write(&path)
            .unwrap();
        let record = ExitRecord::now(StopReason::error(&error), 3);
        record.write(&path).unwrap();
        let json = fs::read_to_string(&path).unwrap();
        assert!(json.contains(r#""reason":"error","message":"write /x: the disk is gone""#));
        assert_eq!(serde_json::from_str::<ExitRecord>(&json).unwrap(), record);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
