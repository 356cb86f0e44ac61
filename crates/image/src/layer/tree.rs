//! The target directory: every system call that creates something in a layer.
//!
//! Paths are resolved by the kernel inside the root (openat2 with RESOLVE_IN_ROOT), as a chroot would
//! resolve them, so neither `..` nor a symbolic link planted by an earlier entry leads out; the last
//! component is never followed. Parents are kept open, which makes a file cost one openat.
//!
//! Overlay form (kernel Documentation/filesystems/overlayfs.rst): a removed name is a character device
//! 0/0, a directory that hides the one below has `trusted.overlay.opaque=y`.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    rc::Rc,
};

use rustix::{
    fs::{
        AtFlags, CWD, Dev, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid,
        XattrFlags,
    },
    io::Errno,
};

/// Marks a directory that hides what is below it.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// Parents kept open.
const CACHED_DIRS: usize = 128;

/// What was in an entry's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Former {
    Nothing,
    Directory,
    Whiteout,
    Other,
}

/// Owner, permissions and time of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub mtime: (i64, u32),
}

impl Attributes {
    /// What a directory gets that a layer uses without describing it. A fixed time, because the same
    /// layer must unpack to the same tree.
    pub(super) const IMPLIED: Self = Self {
        uid: 0,
        gid: 0,
        mode: 0o755,
        mtime: (0, 0),
    };
}

/// A directory being filled.
pub(super) struct Tree {
    root: Rc<OwnedFd>,
    parents: HashMap<Vec<u8>, Rc<OwnedFd>>,
}

impl Tree {
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty())?;
        Ok(Self {
            root: Rc::new(root),
            parents: HashMap::new(),
        })
    }

    /// Opens the directory at a normalized relative path, links in it resolved inside the root. Missing
    /// ones are created; each is passed to `created`.
    pub(super) fn parent(
        &mut self,
        path: &[u8],
        created: &mut dyn FnMut(&[u8]),
    ) -> io::Result<Rc<OwnedFd>> {
        if path.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        if let Some(dir) = self.parents.get(path) {
            return Ok(Rc::clone(dir));
        }
        let dir = match self.open_dir(path) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                self.create_path(path, created)?;
                self.open_dir(path)?
            }
            Err(errno) => return Err(errno.into()),
        };
        let dir = Rc::new(dir);
        if self.parents.len() >= CACHED_DIRS {
            self.parents.clear();
        }
        self.parents.insert(path.to_vec(), Rc::clone(&dir));
        Ok(dir)
    }

    fn open_dir(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        resolve(self.root.as_fd(), path, flags)
    }

    /// Creates what is missing of a path, from the top.
    fn create_path(&mut self, path: &[u8], created: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let ends = path
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'/')
            .map(|(i, _)| i);
        let mut dir = Rc::clone(&self.root);
        let mut start = 0;
        for end in ends.chain([path.len()]) {
            let so_far = &path[..end];
            dir = match self.open_dir(so_far) {
                Ok(next) => Rc::new(next),
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    let name = &path[start..end];
                    if former(dir.as_fd(), name)? == Former::Other {
                        // A file, or a link to nothing: a directory here would hide it.
                        return Err(Errno::NOTDIR.into());
                    }
                    self.directory(dir.as_fd(), name)?;
                    let next = self.open_dir(so_far)?;
                    set_attributes(next.as_fd(), &Attributes::IMPLIED)?;
                    created(so_far);
                    Rc::new(next)
                }
                Err(errno) => return Err(errno.into()),
            };
            start = end + 1;
        }
        Ok(())
    }

    /// Makes sure a directory is there, replacing anything else. A whiteout it replaces keeps its
    /// meaning: the new directory hides the one below.
    pub(super) fn directory(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let former = former(parent, name)?;
        if former == Former::Directory {
            return Ok(());
        }
        // A link here may be on the way to a cached parent.
        self.parents.clear();
        rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
        if former == Former::Whiteout {
            set_opaque(open_here(parent, name)?.as_fd())?;
        }
        Ok(())
    }

    /// Makes room for an entry that is not a directory.
    pub(super) fn clear(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        match former(parent, name)? {
            Former::Nothing => Ok(()),
            Former::Directory => {
                self.parents.clear();
                // The parent is held open, so nothing on this path can be exchanged for a link.
                fs::remove_dir_all(here(parent, name))
            }
            Former::Whiteout | Former::Other => {
                self.parents.clear();
                Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?)
            }
        }
    }

    /// Tries `create`; when something is in the way, removes it and tries again.
    pub(super) fn replace<T>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        create: impl Fn() -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        match create() {
            Err(Errno::EXIST) => {
                self.clear(parent, name)?;
                Ok(create()?)
            }
            result => Ok(result?),
        }
    }

    /// Hard-links an existing file of the tree.
    pub(super) fn hard_link(
        &mut self,
        target: &[u8],
        parent: BorrowedFd<'_>,
        name: &[u8],
    ) -> io::Result<()> {
        let cut = target.iter().rposition(|&b| b == b'/');
        let (dir, base) = cut.map_or((&[][..], target), |i| (&target[..i], &target[i + 1..]));
        let dir = if dir.is_empty() {
            Rc::clone(&self.root)
        } else {
            Rc::new(self.open_dir(dir)?)
        };
        let link = || rustix::fs::linkat(&*dir, base, parent, name, AtFlags::empty());
        match link() {
            Err(Errno::EXIST) => {
                let stat = |dir, name| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
                let (old, new) = (stat(dir.as_fd(), base)?, stat(parent, name)?);
                if (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino) {
                    // Linked to itself: clearing the way would remove the target.
                    return Ok(());
                }
                self.clear(parent, name)?;
                Ok(link()?)
            }
            result => Ok(result?),
        }
    }

    /// Sets the time of a directory by path; one replaced meanwhile is left alone.
    pub(super) fn set_directory_time(&self, path: &[u8], mtime: (i64, u32)) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let dir = if path.is_empty() {
            Ok(None)
        } else {
            resolve(self.root.as_fd(), path, flags).map(Some)
        };
        match dir {
            Ok(dir) => {
                let dir = dir.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
                Ok(rustix::fs::futimens(dir, &times(mtime))?)
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Opens a path as if `root` were the root of the file system.
fn resolve(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // EAGAIN: something on the machine was renamed meanwhile, and the kernel could not rule out an escape.
    for _ in 0..1000 {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => std::thread::yield_now(),
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// What a name is, without following it.
pub(super) fn former(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<Former> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Former::Directory,
            FileType::CharacterDevice if stat.st_rdev == 0 => Former::Whiteout,
            _ => Former::Other,
        }),
        Err(Errno::NOENT) => Ok(Former::Nothing),
        Err(errno) => Err(errno.into()),
    }
}

/// Opens a directory that is known to be one.
pub(super) fn open_here(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// Marks a directory as hiding what is below.
pub(super) fn set_opaque(dir: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(
        dir,
        OPAQUE,
        b"y",
        XattrFlags::empty(),
    )?)
}

/// Creates a device, a FIFO or a whiteout.
pub(super) fn node(
    parent: BorrowedFd<'_>,
    name: &[u8],
    kind: FileType,
    device: Dev,
) -> rustix::io::Result<()> {
    rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device)
}

/// Sets owner, permissions and time of an open file, in the order in which none undoes another.
pub(super) fn set_attributes(file: BorrowedFd<'_>, attributes: &Attributes) -> io::Result<()> {
    let Attributes {
        uid,
        gid,
        mode,
        mtime,
    } = *attributes;
    rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
    Ok(rustix::fs::futimens(file, &times(mtime))?)
}

/// The same for what cannot be opened: links (which have no permissions) and nodes.
pub(super) fn set_attributes_at(
    parent: BorrowedFd<'_>,
    name: &[u8],
    attributes: &Attributes,
    link: bool,
) -> io::Result<()> {
    let Attributes {
        uid,
        gid,
        mode,
        mtime,
    } = *attributes;
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(
        parent,
        name,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        nofollow,
    )?;
    if !link {
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    Ok(rustix::fs::utimensat(
        parent,
        name,
        &times(mtime),
        nofollow,
    )?)
}

/// Sets an extended attribute of an open file. `false` when the file system has none of this kind.
pub(super) fn set_xattr(file: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> io::Result<bool> {
    supported(rustix::fs::fsetxattr(
        file,
        name,
        value,
        XattrFlags::empty(),
    ))
}

/// The same for what cannot be opened.
pub(super) fn set_xattr_at(
    parent: BorrowedFd<'_>,
    file: &[u8],
    name: &[u8],
    value: &[u8],
) -> io::Result<bool> {
    supported(rustix::fs::lsetxattr(
        here(parent, file),
        name,
        value,
        XattrFlags::empty(),
    ))
}

fn supported(result: rustix::io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// A path to a name in an open directory, for calls that take only paths.
fn here(parent: BorrowedFd<'_>, name: &[u8]) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStrExt;
    Path::new(&format!("/proc/self/fd/{}", parent.as_raw_fd()))
        .join(std::ffi::OsStr::from_bytes(name))
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Creates an empty directory for a layer's files.
pub(super) fn create_root(path: &Path) -> io::Result<()> {
    rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o755))?;
    let dir = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    set_attributes(dir.as_fd(), &Attributes::IMPLIED)
}
