//! `tmpcopyup`: a new tmpfs starts with what the mount point held.
//!
//! Works on descriptors only, follows no link, copies regular files, directories, links and their owners
//! and modes. Devices, sockets and pipes are left out. What is copied comes from the image, so
//! depth and number are bounded.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use crate::error::{Context, Failure, Step};

const MAX_DEPTH: usize = 64;
const MAX_ENTRIES: usize = 100_000;

/// Copies the contents of directory `from` into directory `to`.
pub(crate) fn copy(from: &OwnedFd, to: &OwnedFd) -> Step<()> {
    let mut budget = MAX_ENTRIES;
    let stat = rustix::fs::fstat(from).ctx("cannot examine what tmpcopyup should copy")?;
    set_owner(to, c".", &stat).ctx("cannot set the owner of the tmpfs")?;
    copy_dir(from, to, 0, &mut budget)
}

fn copy_dir(from: &OwnedFd, to: &OwnedFd, depth: usize, budget: &mut usize) -> Step<()> {
    const WHAT: &str = "cannot copy the mount point's contents for tmpcopyup";
    if depth > MAX_DEPTH {
        return Err(Failure::new(
            WHAT,
            format!("it is nested deeper than {MAX_DEPTH} directories"),
        ));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let readable = rustix::fs::openat(from, ".", flags, Mode::empty()).ctx(WHAT)?;
    for entry in Dir::new(readable).ctx(WHAT)? {
        let entry = entry.ctx(WHAT)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        *budget = budget
            .checked_sub(1)
            .ok_or_else(|| Failure::new(WHAT, format!("it has more than {MAX_ENTRIES} entries")))?;
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).ctx(WHAT)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let child = copy_directory(from, to, name, &stat).ctx(WHAT)?;
                copy_dir(&child.0, &child.1, depth + 1, budget)?;
            }
            FileType::RegularFile => copy_file(from, to, name, &stat).ctx(WHAT)?,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new()).ctx(WHAT)?;
                rustix::fs::symlinkat(target.as_c_str(), to, name).ctx(WHAT)?;
                set_owner(to, name, &stat).ctx(WHAT)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn copy_directory(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &CStr,
    stat: &Stat,
) -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = rustix::fs::openat(from, name, flags, Mode::empty())?;
    let target = rustix::fs::openat(to, name, flags, Mode::empty())?;
    set_owner(to, name, stat)?;
    Ok((source, target))
}

fn copy_file(from: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = rustix::fs::openat(from, name, read, Mode::empty())?;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let target = rustix::fs::openat(to, name, write, Mode::from_raw_mode(0o600))?;
    let mut left = stat.st_size as u64;
    while left > 0 {
        match rustix::fs::sendfile(&target, &source, None, left.min(1 << 30) as usize)? {
            0 => break,
            sent => left -= sent as u64,
        }
    }
    set_owner(to, name, stat)
}

/// Owner first: changing it clears the set-id bits that the mode then restores.
fn set_owner(dir: impl AsFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    match rustix::fs::chownat(&dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
        // An owner that the user namespace does not map stays ours.
        Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::OVERFLOW) => {}
        Err(errno) => return Err(errno),
    }
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Ok(());
    }
    rustix::fs::chmodat(
        &dir,
        name,
        Mode::from_raw_mode(stat.st_mode & 0o7777),
        AtFlags::empty(),
    )
}
