//! System calls on files that are known by descriptor, and acting as another user.
//!
//! Every name is looked up in a directory that is open, one name at a time, and links are never
//! followed: the guest does that. So nothing above the folder is reachable, whoever renames what
//! meanwhile.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags},
    io::Errno,
};

/// How names are resolved.
const WITHIN: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// What is asked of `statx`: what `stat` tells, and when the file was made.
const STAT: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// What an entry of a directory is. Links are not followed.
pub(super) fn stat_at(directory: &OwnedFd, name: &CStr) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(directory, name, flags, STAT)
}

/// What an open file is.
pub(super) fn stat(file: &OwnedFd) -> Result<Statx, Errno> {
    rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, STAT)
}

/// Its type.
pub(super) fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

/// Opens an entry of a directory as a place, not for its content.
pub(super) fn open_path(directory: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(directory, name, flags, Mode::empty(), WITHIN)
}

/// Opens a directory that is known as a place for what is in it.
pub(super) fn open_directory(directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(directory, c".", flags, Mode::empty(), WITHIN)
}

/// Makes a file, or opens the one that is there. Never waits, as opening a pipe could.
pub(super) fn create(
    directory: &OwnedFd,
    name: &CStr,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CREATE | OFlags::NOFOLLOW | COMMON;
    rustix::fs::openat2(directory, name, flags, mode, WITHIN)
}

const COMMON: OFlags = OFlags::CLOEXEC
    .union(OFlags::NOCTTY)
    .union(OFlags::NONBLOCK);

/// The process's own descriptors as a directory (`/proc/self/fd`): the way from a place to the file
/// itself, whatever its name is by now.
#[derive(Debug)]
pub struct Descriptors(OwnedFd);

impl Descriptors {
    /// `directory` is `/proc/self/fd`.
    #[must_use]
    pub fn new(directory: OwnedFd) -> Self {
        Self(directory)
    }

    /// Opens it, for a process that is not locked up.
    ///
    /// # Errors
    /// Where `/proc` is missing.
    pub fn open() -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open("/proc/self/fd", flags, Mode::empty());
        Ok(Self(opened?))
    }

    /// Opens a file that is known as a place for its content. Only of a regular file or a
    /// directory: others do things when they are opened.
    pub(super) fn reopen(&self, place: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        match kind(&stat(place)?) {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::OPNOTSUPP),
        }
        let free = ResolveFlags::empty();
        self.with(place, |own, number| {
            rustix::fs::openat2(own, number, flags | COMMON, Mode::empty(), free)
        })
    }

    /// Calls with a directory and a name in it that lead to the file of `place`.
    pub(super) fn with<T>(
        &self,
        place: &OwnedFd,
        call: impl FnOnce(BorrowedFd<'_>, &str) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        call(self.0.as_fd(), &place.as_raw_fd().to_string())
    }
}

/// Lets this thread and those it starts act as other users without losing capabilities on the way.
/// To be called before a device is made; only who may (`CAP_SETPCAP`) can make files for other users
/// in directories that are not theirs.
///
/// # Errors
/// When it may not.
pub fn keep_capabilities() -> io::Result<()> {
    use rustix::thread::{
        CapabilitiesSecureBits, capabilities_secure_bits, set_capabilities_secure_bits,
    };
    let bits = capabilities_secure_bits()? | CapabilitiesSecureBits::NO_SETUID_FIXUP;
    Ok(set_capabilities_secure_bits(bits)?)
}

/// As whom a thread uses files (`setfsuid(2)`, credentials(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct User {
    uid: u32,
    gid: u32,
    /// Whether it could be another.
    privileged: bool,
}

/// Until dropped, new files are another user's.
#[derive(Debug)]
pub(super) struct Acting {
    back_to: Option<User>,
}

impl User {
    /// Of this thread.
    pub(super) fn own() -> Self {
        use rustix::thread::{CapabilitySet, capabilities};
        let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            privileged: capabilities(None).is_ok_and(|it| it.effective.contains(needed)),
        }
    }

    /// Acts as another user of the guest. Without the right to, it stays who it is.
    ///
    /// # Errors
    /// `EINVAL` for a user that there is not in this user namespace, as `chown(2)` has it.
    pub(super) fn act_as(self, uid: u32, gid: u32) -> Result<Acting, Errno> {
        if !self.privileged || (uid, gid) == (self.uid, self.gid) {
            return Ok(Acting { back_to: None });
        }
        let acting = Acting {
            back_to: Some(self),
        };
        let other = Self { uid, gid, ..self };
        other.assume().then_some(acting).ok_or(Errno::INVAL)
    }

    /// The group first: changing it is the right of who the thread was. The calls tell who it was
    /// before, and of an invalid id nothing else.
    fn assume(self) -> bool {
        let set = |call: libc::c_long, id: u32| {
            // SAFETY: numbers in, a number out.
            unsafe { libc::syscall(call, id) };
            // SAFETY: as above; of an invalid id nothing changes.
            let now = unsafe { libc::syscall(call, u32::MAX) };
            now == libc::c_long::from(id)
        };
        set(libc::SYS_setfsgid, self.gid) & set(libc::SYS_setfsuid, self.uid)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        if let Some(user) = self.back_to {
            assert!(user.assume(), "a thread can be who it is");
        }
    }
}
