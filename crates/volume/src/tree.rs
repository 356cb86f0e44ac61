//! Walking directory trees that guests or images made: measuring, removing, copying.
//!
//! Every step opens one name below an open directory and never follows a link, so no tree can
//! lead out of itself. Depth never costs stack or descriptors in proportion, except where a limit
//! says how much.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, RawMode, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::Usage;

/// Deepest tree that is copied or measured. Below it, measuring stops and copying refuses.
const DEPTH_MAX: usize = 256;

/// Most entries that are copied out of an image into a volume.
const COPY_MAX: u64 = 2_000_000;

/// Unit of `st_blocks`.
const BLOCK: u64 = 512;

/// Largest extended attribute (the kernel's `XATTR_SIZE_MAX`) and list of their names.
const XATTR_MAX: usize = 65_536;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens directory `name` of `parent`, never through a link.
pub(crate) fn open_directory<P: rustix::path::Arg>(
    parent: BorrowedFd<'_>,
    name: P,
) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())
}

/// The names in a directory, `.` and `..` left out.
fn names(directory: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

fn stat(directory: BorrowedFd<'_>, name: &CStr) -> Result<Stat, Errno> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
}

fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode as RawMode)
}

/// Whether the directory has no entries.
pub(crate) fn is_empty(directory: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(names(directory)?.is_empty())
}

/// Adds up a tree by walking it. What vanishes meanwhile does not count.
pub(crate) fn measure(root: BorrowedFd<'_>) -> Result<Usage, Errno> {
    let top = rustix::fs::fstat(root)?;
    let mut usage = Usage {
        bytes: top.st_blocks.cast_unsigned() * BLOCK,
        inodes: 1,
    };
    let mut seen = HashSet::new();
    let mut stack: Vec<(OwnedFd, Vec<CString>)> = Vec::new();
    stack.push((
        root.try_clone_to_owned().map_err(|_| Errno::MFILE)?,
        names(root)?,
    ));
    while let Some((directory, remaining)) = stack.last_mut() {
        let Some(name) = remaining.pop() else {
            stack.pop();
            continue;
        };
        let Ok(stat) = stat(directory.as_fd(), &name) else {
            continue;
        };
        let directory_like = file_type(&stat) == FileType::Directory;
        if !directory_like && stat.st_nlink > 1 && !seen.insert((stat.st_dev, stat.st_ino)) {
            continue;
        }
        usage.bytes += stat.st_blocks.cast_unsigned() * BLOCK;
        usage.inodes += 1;
        // Another file system mounted below is not the volume's content.
        if directory_like && stat.st_dev == top.st_dev && stack.len() < DEPTH_MAX {
            let (parent, _) = stack.last().expect("the loop's head saw it");
            match open_directory(parent.as_fd(), name.as_c_str()) {
                Ok(child) => {
                    let inside = names(child.as_fd())?;
                    stack.push((child, inside));
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(usage)
}

/// Removes `name` of `trash` and all below it, however deep: a directory that is not empty is
/// first moved up to `trash` itself, so two descriptors suffice for any depth. `fresh` gives
/// names not yet in use there.
pub(crate) fn remove(
    trash: BorrowedFd<'_>,
    name: CString,
    fresh: &mut dyn FnMut() -> CString,
) -> Result<(), Errno> {
    let mut doomed = vec![name];
    while let Some(name) = doomed.pop() {
        match rustix::fs::unlinkat(trash, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
        let directory = open_directory(trash, name.as_c_str())?;
        for entry in names(directory.as_fd())? {
            match rustix::fs::unlinkat(&directory, &entry, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR | Errno::PERM) => {}
                Err(errno) => return Err(errno),
            }
            match rustix::fs::unlinkat(&directory, &entry, AtFlags::REMOVEDIR) {
                Ok(()) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    let moved = fresh();
                    rustix::fs::renameat(&directory, &entry, trash, &moved)?;
                    doomed.push(moved);
                }
                Err(errno) => return Err(errno),
            }
        }
        rustix::fs::unlinkat(trash, &name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

/// Why a copy ended early.
#[derive(Debug)]
pub(crate) enum CopyError {
    /// A limit.
    Refused { path: PathBuf, reason: &'static str },
    /// The system.
    Failed { path: PathBuf, errno: Errno },
}

/// Copies what is in directory `source`, and its owner, mode and times, into the empty directory
/// `target`. Keeps owners, modes, times, hard links and extended attributes; leaves devices out.
/// Gives the number of entries copied.
pub(crate) fn copy(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<u64, CopyError> {
    let mut copier = Copier {
        target,
        links: HashMap::new(),
        copied: 0,
    };
    copier.directory(source, target, Path::new(""), 0)?;
    Ok(copier.copied)
}

struct Copier<'a> {
    target: BorrowedFd<'a>,
    /// Where a file with several names was first copied to.
    links: HashMap<(u64, u64), PathBuf>,
    copied: u64,
}

impl Copier<'_> {
    fn directory(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        path: &Path,
        depth: usize,
    ) -> Result<(), CopyError> {
        let failed = |errno| CopyError::Failed {
            path: path.to_owned(),
            errno,
        };
        if depth > DEPTH_MAX {
            let reason = "directories are nested more than 256 deep";
            return Err(CopyError::Refused {
                path: path.to_owned(),
                reason,
            });
        }
        for name in names(source).map_err(failed)? {
            let path = path.join(std::ffi::OsStr::from_bytes(name.as_bytes()));
            if self.copied >= COPY_MAX {
                let reason = "there are more than 2,000,000 entries";
                return Err(CopyError::Refused { path, reason });
            }
            let failed = |errno| CopyError::Failed {
                path: path.clone(),
                errno,
            };
            let stat = stat(source, &name).map_err(failed)?;
            if file_type(&stat) == FileType::Directory {
                rustix::fs::mkdirat(target, &name, Mode::RWXU).map_err(failed)?;
                let inner = open_directory(source, name.as_c_str()).map_err(failed)?;
                let outer = open_directory(target, name.as_c_str()).map_err(failed)?;
                self.directory(inner.as_fd(), outer.as_fd(), &path, depth + 1)?;
            } else {
                self.leaf(source, target, &name, &path, &stat)
                    .map_err(failed)?;
            }
            self.copied += 1;
        }
        copy_attributes(source, target).map_err(failed)
    }

    fn leaf(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
        path: &Path,
        stat: &Stat,
    ) -> Result<(), Errno> {
        if stat.st_nlink > 1 {
            let file = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&file) {
                let flags = AtFlags::empty();
                return rustix::fs::linkat(self.target, first, target, name, flags);
            }
            if matches!(file_type(stat), FileType::RegularFile | FileType::Symlink) {
                self.links.insert(file, path.to_owned());
            }
        }
        match file_type(stat) {
            FileType::RegularFile => copy_file(source, target, name),
            FileType::Symlink => {
                let goal = rustix::fs::readlinkat(source, name, Vec::new())?;
                rustix::fs::symlinkat(goal, target, name)?;
                own(target, name, stat)
            }
            FileType::Fifo => {
                let mode = Mode::from_raw_mode(stat.st_mode as RawMode & 0o7777);
                rustix::fs::mknodat(target, name, FileType::Fifo, mode, 0)?;
                own(target, name, stat)
            }
            // Devices and sockets mean nothing in a volume, and a device could mean harm.
            _ => Ok(()),
        }
    }
}

fn own(directory: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(directory, name, Some(uid), Some(gid), flags)
}

fn copy_file(source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    // Not blocking, in case the name has become a FIFO since it was looked at.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let from = rustix::fs::openat(source, name, flags, Mode::empty())?;
    if file_type(&rustix::fs::fstat(&from)?) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = rustix::fs::openat(target, name, flags, Mode::RUSR | Mode::WUSR)?;
    let (mut from, mut to) = (File::from(from), File::from(to));
    std::io::copy(&mut from, &mut to)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    copy_attributes(from.as_fd(), to.as_fd())
}

/// Owner first, since changing it clears set-user-id bits and capabilities; times last.
fn copy_attributes(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(source)?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(target, Some(uid), Some(gid))?;
    rustix::fs::fchmod(
        target,
        Mode::from_raw_mode(stat.st_mode as RawMode & 0o7777),
    )?;
    copy_xattrs(source, target)?;
    let at = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    let times = Timestamps {
        last_access: at(stat.st_atime, stat.st_atime_nsec),
        last_modification: at(stat.st_mtime, stat.st_mtime_nsec),
    };
    rustix::fs::futimens(target, &times)
}

fn copy_xattrs(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut list = vec![0_u8; XATTR_MAX];
    let length = match rustix::fs::flistxattr(source, &mut list[..]) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
        Ok(length) => length,
        Err(errno) => return Err(errno),
    };
    let mut value = vec![0_u8; XATTR_MAX];
    for name in list[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let bytes = name.to_bytes();
        let wanted = bytes.starts_with(b"user.")
            || bytes.starts_with(b"system.posix_acl_")
            || bytes == b"security.capability";
        if !wanted {
            continue;
        }
        let length = rustix::fs::fgetxattr(source, name, &mut value[..])?;
        match rustix::fs::fsetxattr(target, name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
