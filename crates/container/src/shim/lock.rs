//! Who serves a directory: a record lock on `DIR/lock`, held by the shim's process itself.
//!
//! A POSIX record lock belongs to the process and is not inherited by its children, so it goes
//! exactly when the shim does, whatever copies of its descriptors a child holds just then.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::durable::FileError;

const LOCK_FILE: &str = "lock";

/// Takes the lock; `None` if another process has it. Held until the file is dropped.
pub(crate) fn take(dir: &Path) -> Result<Option<File>, FileError> {
    let path = dir.join(LOCK_FILE);
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let file = file.map_err(|e| FileError::new("open", &path, e))?;
    match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(None),
        Err(errno) => Err(FileError::new("lock", &path, errno.into())),
    }
}

/// The process id of the shim that serves `dir`; `None` if none lives.
///
/// # Errors
/// When the lock file is there and cannot be examined.
pub fn holder(dir: &Path) -> Result<Option<i32>, FileError> {
    let path = dir.join(LOCK_FILE);
    let file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| FileError::new("open", &path, e))?,
    };
    // SAFETY: `flock` is a plain structure of integers, for which zero is valid.
    let mut query: libc::flock = unsafe { std::mem::zeroed() };
    query.l_type = libc::F_WRLCK as libc::c_short;
    query.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: F_GETLK reads and writes the structure, which lives over the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut query) };
    if result < 0 {
        return Err(FileError::new(
            "examine",
            &path,
            std::io::Error::last_os_error(),
        ));
    }
    Ok((i32::from(query.l_type) != libc::F_UNLCK).then_some(query.l_pid))
}
