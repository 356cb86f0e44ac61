//! One directory of the guest that is written to: new files under a name of their own, then moved
//! over what was there, so that nobody inside sees half of one.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use image::tar::Entry;
use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, StatxAttributes, StatxFlags, Timespec, Timestamps,
        Uid,
    },
    io::Errno,
};

use super::{FilesError, attributes, ids::Ids};

/// What an entry finds under its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Former {
    /// Nothing.
    Nothing,
    /// A directory.
    Directory,
    /// A file that something mounted there shows: it can be written, not replaced.
    Mounted,
    /// Anything else.
    Other,
}

/// What is under a name, no link followed.
pub(super) fn former(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Former, Errno> {
    let found = rustix::fs::statx(
        parent,
        name,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::BASIC_STATS,
    );
    let found = match found {
        Ok(found) => found,
        Err(Errno::NOENT) => return Ok(Former::Nothing),
        Err(errno) => return Err(errno),
    };
    Ok(match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::Directory => Former::Directory,
        FileType::RegularFile if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) => {
            Former::Mounted
        }
        _ => Former::Other,
    })
}

/// A name nobody asked for, taken back unless it is given its place.
pub(super) struct Temporary<'a> {
    parent: BorrowedFd<'a>,
    name: String,
    placed: bool,
}

impl<'a> Temporary<'a> {
    /// Makes something under a name that is free.
    pub(super) fn make<T>(
        parent: BorrowedFd<'a>,
        make: impl Fn(&str) -> Result<T, Errno>,
    ) -> Result<(Self, T), Errno> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        for _ in 0..1000 {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!(".berth-cp-{}-{number}", std::process::id());
            match make(&name) {
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
                Ok(made) => {
                    let placed = false;
                    let temporary = Self {
                        parent,
                        name,
                        placed,
                    };
                    return Ok((temporary, made));
                }
            }
        }
        Err(Errno::EXIST)
    }

    /// Gives it its place, over whatever is there.
    pub(super) fn place(mut self, name: &[u8]) -> Result<(), Errno> {
        rustix::fs::renameat(self.parent, self.name.as_str(), self.parent, name)?;
        // A second name of the same file is left where it was: dropping takes it away.
        self.placed =
            rustix::fs::statat(self.parent, self.name.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_err();
        Ok(())
    }

    /// Its name for now.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.placed {
            // What cannot be taken away now stays: there is nobody to tell.
            let _ = rustix::fs::unlinkat(self.parent, self.name.as_str(), AtFlags::empty());
        }
    }
}

/// Makes a file to write under a name that is free.
pub(super) fn create(parent: BorrowedFd<'_>) -> Result<(Temporary<'_>, OwnedFd), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    Temporary::make(parent, |name| rustix::fs::openat(parent, name, flags, mode))
}

/// Gives a file of the guest another name.
pub(super) fn link<'a>(
    parent: BorrowedFd<'a>,
    file: &OwnedFd,
) -> Result<(Temporary<'a>, ()), Errno> {
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    Temporary::make(parent, |name| {
        let follow = AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(rustix::fs::CWD, source.as_str(), parent, name, follow)
    })
}

/// Opens a directory that is there, through no link.
pub(super) fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// An entry's owner on the host.
pub(super) fn owner(entry: &Entry, ids: Ids) -> Result<(Uid, Gid), FilesError> {
    let (Some(uid), Some(gid)) = (ids.outside(entry.uid), ids.outside(entry.gid)) else {
        let reason = "its owner is outside the range of ids that exist inside";
        return Err(FilesError::entry(&entry.path, reason));
    };
    Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
}

/// Gives an open file or directory the owner, permissions and attributes of its entry, in the
/// order in which none undoes another. Its time comes last, and from elsewhere.
pub(super) fn dress(file: BorrowedFd<'_>, entry: &mut Entry, ids: Ids) -> Result<(), FilesError> {
    let (uid, gid) = owner(entry, ids)?;
    let failed = |action| {
        let path = entry.path.clone();
        move |errno| FilesError::io(action, &path, errno)
    };
    rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(failed("give an owner to"))?;
    let mode = Mode::from_raw_mode(entry.mode);
    rustix::fs::fchmod(file, mode).map_err(failed("set the permissions of"))?;
    let set = attributes::write(file.as_fd(), std::mem::take(&mut entry.xattrs), ids);
    set.map_err(failed("set the attributes of"))
}

/// A time for what is changed: last read and last written.
pub(super) fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
