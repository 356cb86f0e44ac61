//! Removing what a shim that was killed has left: processes, control group, runtime state, socket.
//!
//! A library function for the daemon, to be called when [`holder`](super::holder) says that nobody
//! serves the directory any more. Does nothing the second time.

use std::path::{Path, PathBuf};

use super::config::{ConfigError, ShimConfig};
use super::durable::FileError;
use super::{SOCKET_FILE, lock};
use crate::{Delete, OperationError, Runtime, StateError};

/// Why leftovers could not be removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CleanupError {
    /// A shim lives; ask it to end the container instead.
    #[error("the shim {pid} still serves {}; stop the container instead", dir.display())]
    Alive {
        /// Its process id.
        pid: i32,
        /// Its directory.
        dir: PathBuf,
    },
    /// `shim.json` is gone or damaged, so it is not known what to remove.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The runtime's state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The runtime could not remove the container.
    #[error(transparent)]
    Delete(#[from] OperationError),
}

/// Removes what is left of the container of `dir`, also when it never was completely made. Keeps
/// `shim.json`, the log and the exit record.
///
/// # Errors
/// [`CleanupError::Alive`] while a shim serves it.
pub fn cleanup(dir: &Path) -> Result<(), CleanupError> {
    if let Some(pid) = lock::holder(dir)? {
        return Err(CleanupError::Alive {
            pid,
            dir: dir.to_owned(),
        });
    }
    let config = match ShimConfig::load(dir) {
        Err(ConfigError::File(error)) if error.source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(());
        }
        other => other?,
    };
    let runtime = Runtime::new(&config.state_root);
    match runtime.open(&config.instance) {
        Ok(container) => drop(container.delete(Delete::Force)?),
        Err(StateError::NotFound { .. }) => {}
        Err(StateError::Creating { .. }) => runtime.clear_remains(&config.instance)?,
        Err(error) => return Err(error.into()),
    }
    let socket = dir.join(SOCKET_FILE);
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(FileError::new("remove", &socket, error).into())
        }
        _ => Ok(()),
    }
}
