//! Reading and writing the kernel's small control files, with errors that say which one.
//!
//! Three system calls each (open, read or write, close) and no more: this is on the path of a
//! container's start. Never creates a file.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// The most read from one control file. The kernel's largest (`cgroup.procs` of a fork bomb,
/// `io.stat` of a host with thousands of disks) fit; anything longer is an error, not memory.
const MAX_READ: usize = 16 << 20;

/// An operation on one control file or directory that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    /// What was tried, as a verb phrase: `read`, `write "5" to`, `create`, ….
    pub action: String,
    /// On which file.
    pub path: PathBuf,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

impl FileError {
    pub(crate) fn new(action: impl Into<String>, path: &Path, errno: Errno) -> FileError {
        FileError {
            action: action.into(),
            path: path.to_owned(),
            source: errno.into(),
        }
    }

    pub(crate) fn errno(&self) -> Option<Errno> {
        Errno::from_io_error(&self.source)
    }

    /// Whether the file or group is not there.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOENT | Errno::NODEV))
    }
}

/// Writes `value` in one `write(2)`, as the kernel wants its control files written.
pub(crate) fn write(path: &Path, value: &str) -> Result<(), FileError> {
    let fail = |errno| FileError::new(format!("write {value:?} to"), path, errno);
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(fail)?;
    write_all(&file, value).map_err(fail)
}

/// Writes `value` to an open control file in one call; a short write is an error.
pub(crate) fn write_all(file: impl std::os::fd::AsFd, value: &str) -> Result<(), Errno> {
    let n = rustix::io::retry_on_intr(|| rustix::io::write(&file, value.as_bytes()))?;
    if n == value.len() {
        Ok(())
    } else {
        Err(Errno::IO)
    }
}

/// Reads a whole control file as text.
pub(crate) fn read(path: &Path) -> Result<String, FileError> {
    let fail = |errno| FileError::new("read", path, errno);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(fail)?;
    let mut bytes = Vec::with_capacity(4096);
    loop {
        if bytes.len() > MAX_READ {
            return Err(fail(Errno::FBIG));
        }
        bytes.reserve(4096);
        let room = rustix::buffer::spare_capacity(&mut bytes);
        match rustix::io::read(&file, room) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(fail(errno)),
        }
    }
    String::from_utf8(bytes).map_err(|_| fail(Errno::ILSEQ))
}

/// Reads a control file; `None` if it does not exist (an old kernel, a missing controller).
pub(crate) fn read_optional(path: &Path) -> Result<Option<String>, FileError> {
    match read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.is_missing() => Ok(None),
        // Some files exist but cannot be read in this state (memory.peak of the root, PSI off).
        Err(error) if error.errno() == Some(Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a directory; `Ok(false)` if it was there.
pub(crate) fn make_dir(path: &Path) -> Result<bool, FileError> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(FileError::new("create the group", path, errno)),
    }
}
