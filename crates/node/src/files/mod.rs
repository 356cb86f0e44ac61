//! Files in and out of an instance, as tar archives below its opened root.
//!
//! ```text
//!  RootView ─▶ Source::open(path) ─▶ write_to(output)     out: one path and all below it
//!           └▶ unpack(path, input)                        in: an archive below a directory
//! ```
//!
//! Both ends are hostile. The tree is the guest's, who changes it meanwhile: the path asked for is
//! resolved by the kernel inside the root, everything below it one name at a time by descriptor
//! and through no symbolic link. The archive is the client's: it is read with limits, and an entry
//! that would lead elsewhere is refused by name. Owners are mapped both ways, so that an archive
//! always has ids as they are inside. Memory is bounded however large files and trees are.
//!
//! Devices, pipes and sockets are left out of what is copied out and refused in what is copied in.
//! Of extended attributes, `user.*` and file capabilities are kept.
//!
//! Blocking: called by `control` from threads of their own. Knows nothing of records, and never
//! touches anything outside the view it is given.

mod attributes;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod hidden;
mod ids;
mod pack;
mod target;
#[cfg(test)]
mod tests;
mod unpack;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};

pub use error::FilesError;
pub use pack::Source;
pub use unpack::unpack;

/// Entries of one copy, in either direction.
const MAX_ENTRIES: u64 = 4_000_000;
/// Directories inside one another.
const MAX_DEPTH: usize = 256;
/// Bytes of a path.
const MAX_PATH: usize = 4096;
/// Bytes of data moved at once.
const PIECE: usize = 256 << 10;

/// Opens a path as the guest would, its links never leading out of `root`.
fn resolve(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, FilesError> {
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let opened = tried(|| rustix::fs::openat2(root, path, flags, Mode::empty(), how));
    opened.map_err(|errno| match errno {
        Errno::NOENT => FilesError::Missing { path: path.into() },
        Errno::NOTDIR => FilesError::NotADirectory { path: path.into() },
        errno => FilesError::io("open", path.as_bytes(), errno),
    })
}

/// Opens a path below a directory through no symbolic link at all.
fn beneath(directory: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    tried(|| rustix::fs::openat2(directory, path, flags, Mode::empty(), how))
}

/// Tries again what the kernel gave up because something was renamed meanwhile.
fn tried<T>(mut open: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..1000 {
        match open() {
            Err(Errno::AGAIN | Errno::INTR) => std::thread::yield_now(),
            result => return result,
        }
    }
    open()
}

/// Refuses a path that cannot be one of the guest's.
fn check_path(path: &str) -> Result<(), FilesError> {
    let reason = if !path.starts_with('/') {
        "it must begin with /"
    } else if path.len() > MAX_PATH {
        "it is longer than 4096 bytes"
    } else if path.contains('\0') {
        "it contains a NUL byte"
    } else {
        return Ok(());
    };
    let shown = image::tar::display(path.as_bytes());
    Err(FilesError::Path {
        path: shown,
        reason,
    })
}

/// The names of an absolute path without `.`, and `..` taken back: how it reads, not where links
/// lead.
fn names(path: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    names
}

/// Opens again what was opened as a path only: the same file whatever its name leads to now.
fn reopen(file: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    rustix::fs::open(link, flags | OFlags::CLOEXEC, Mode::empty())
}
