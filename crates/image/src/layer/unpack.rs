//! What the entries of a layer mean (OCI image specification, layer.md).
//!
//! Owns: normalization of names, whiteouts, which extended attributes pass, limits on counts. Device
//! nodes are created as they are, as containerd does: layers lie below a directory only root can
//! enter, and a container's device policy decides what opens. Names are only handed to [`Tree`].

use std::{collections::HashMap, io, io::BufRead, os::fd::AsFd, path::Path};

use rustix::fs::{FileType, Mode, OFlags, makedev};

use super::tree::{self, Attributes, Former, Tree};
use crate::{
    job::Job,
    limits::Limits,
    tar::{Entry, Kind, Reader, TarError, display},
};

/// Prefix of a removed name.
pub(super) const WHITEOUT: &[u8] = b".wh.";
/// The entry that makes its directory opaque.
pub(super) const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// Prefix of AUFS's own files, which mean nothing here.
const AUFS: &[u8] = b".wh..wh.";

/// What an unpacked layer holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Entries of the tar.
    pub entries: u64,
    /// Data of regular files in bytes.
    pub bytes: u64,
}

/// Unpacks a layer's tar into `root`, an empty directory, and reads the stream to its end.
pub(crate) fn unpack(
    input: impl BufRead,
    root: &Path,
    limits: &Limits,
    job: &Job,
) -> Result<Unpacked, TarError> {
    let opened = Tree::open(root);
    let tree = opened.map_err(|source| write_error("open", &display(b"/"), source))?;
    let mut unpacker = Unpacker {
        tree,
        limits,
        directories: HashMap::new(),
        totals: Unpacked::default(),
    };
    let mut reader = Reader::new(input, limits);
    while let Some(entry) = reader.next_entry()? {
        job.check()?;
        unpacker.totals.entries += 1;
        if unpacker.totals.entries > limits.entries {
            let entry = display(&entry.path);
            return Err(TarError::Limit {
                entry,
                what: "entries in one layer",
                limit: limits.entries,
            });
        }
        unpacker.entry(&mut reader, entry)?;
    }
    reader.drain()?;
    unpacker.finish()
}

/// Unpacks what an image's layers show together into a new directory.
pub(crate) fn unpack_merged(
    input: impl BufRead,
    root: &Path,
    limits: &Limits,
    job: &Job,
) -> Result<Unpacked, TarError> {
    let created = tree::create_root(root);
    created.map_err(|source| write_error("create", &display(b"/"), source))?;
    unpack(input, root, limits, job)
}

struct Unpacker<'a> {
    tree: Tree,
    limits: &'a Limits,
    /// Times of directories, set last because filling a directory changes its time.
    directories: HashMap<Vec<u8>, (i64, u32)>,
    totals: Unpacked,
}

impl Unpacker<'_> {
    fn entry<R: BufRead>(&mut self, reader: &mut Reader<R>, entry: Entry) -> Result<(), TarError> {
        let shown = display(&entry.path);
        let path = self.normalize(&entry.path, &shown)?;
        let fail = |action, source| write_error(action, &shown, source);
        let attributes = Attributes {
            uid: entry.uid,
            gid: entry.gid,
            mode: entry.mode,
            mtime: entry.mtime,
        };
        if path.is_empty() {
            return match entry.kind {
                Kind::Directory => self
                    .root(&entry, &attributes)
                    .map_err(|e| fail("create", e)),
                _ => Err(TarError::Unsafe {
                    entry: shown,
                    reason: "its path is the root itself",
                }),
            };
        }
        let cut = path.iter().rposition(|&b| b == b'/');
        let (dir, name) = cut.map_or((&[][..], &path[..]), |i| (&path[..i], &path[i + 1..]));
        let mut parts = path.split(|&b| b == b'/');
        if parts.any(|part| part.starts_with(AUFS) && part != OPAQUE_MARKER) {
            return Ok(());
        }
        if dir
            .split(|&b| b == b'/')
            .any(|part| part.starts_with(WHITEOUT))
        {
            let reason = "it lies inside a whiteout";
            return Err(TarError::Unsafe {
                entry: shown,
                reason,
            });
        }
        let directories = &mut self.directories;
        let mut created = |path: &[u8]| {
            directories.entry(path.to_vec()).or_insert((0, 0));
        };
        let parent = self
            .tree
            .parent(dir, &mut created)
            .map_err(|e| fail("create the parent of", e))?;
        let parent = parent.as_fd();

        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(parent, name, hidden, &shown);
        }
        match entry.kind {
            Kind::File => return self.file(reader, parent, name, &entry, &attributes),
            Kind::Directory => {
                self.directory(parent, name, &entry, &attributes)
                    .map_err(|e| fail("create", e))?;
                self.directories.insert(path, entry.mtime);
            }
            Kind::HardLink => {
                let target = self.normalize(&entry.link, &shown)?;
                self.hard_link(&target, parent, name, &shown)?;
            }
            Kind::Symlink if entry.link.is_empty() || entry.link.contains(&0) => {
                let reason = "its target is empty or contains a NUL";
                return Err(TarError::Unsafe {
                    entry: shown,
                    reason,
                });
            }
            Kind::Symlink | Kind::Char | Kind::Block | Kind::Fifo => {
                self.special(parent, name, &entry, &attributes)
                    .map_err(|e| fail("create", e))?;
            }
        }
        Ok(())
    }

    /// A relative path without `.`, empty and dangerous components.
    fn normalize(&self, path: &[u8], shown: &str) -> Result<Vec<u8>, TarError> {
        let refuse = |reason| {
            Err(TarError::Unsafe {
                entry: shown.to_owned(),
                reason,
            })
        };
        let mut normal = Vec::with_capacity(path.len());
        let mut depth = 0;
        for part in path.split(|&b| b == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return refuse("its path or link target contains `..`"),
                _ if part.contains(&0) => return refuse("its path contains a NUL"),
                _ => {}
            }
            depth += 1;
            if !normal.is_empty() {
                normal.push(b'/');
            }
            normal.extend_from_slice(part);
        }
        if depth > self.limits.depth {
            let limit = self.limits.depth as u64;
            return Err(TarError::Limit {
                entry: shown.to_owned(),
                what: "path components",
                limit,
            });
        }
        Ok(normal)
    }

    /// The entry `./`: attributes of the root directory.
    fn root(&mut self, entry: &Entry, attributes: &Attributes) -> io::Result<()> {
        let root = self.tree.parent(&[], &mut |_| {})?;
        tree::set_attributes(root.as_fd(), attributes)?;
        set_xattrs(root.as_fd(), entry)?;
        self.directories.insert(Vec::new(), entry.mtime);
        Ok(())
    }

    fn whiteout(
        &mut self,
        parent: std::os::fd::BorrowedFd<'_>,
        name: &[u8],
        hidden: &[u8],
        shown: &str,
    ) -> Result<(), TarError> {
        if name == OPAQUE_MARKER {
            return tree::set_opaque(parent)
                .map_err(|e| write_error("make opaque the directory of", shown, e));
        }
        if matches!(hidden, b"" | b"." | b"..") {
            let reason = "it is a whiteout of no name";
            return Err(TarError::Unsafe {
                entry: shown.to_owned(),
                reason,
            });
        }
        let place = || -> io::Result<()> {
            match tree::former(parent, hidden)? {
                // A whiteout hides what is below, never what this layer brings itself.
                Former::Directory => tree::set_opaque(tree::open_here(parent, hidden)?.as_fd()),
                Former::Whiteout | Former::Other => Ok(()),
                Former::Nothing => Ok(tree::node(parent, hidden, FileType::CharacterDevice, 0)?),
            }
        };
        place().map_err(|e| write_error("create", shown, e))
    }

    fn directory(
        &mut self,
        parent: std::os::fd::BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        attributes: &Attributes,
    ) -> io::Result<()> {
        self.tree.directory(parent, name)?;
        let dir = tree::open_here(parent, name)?;
        tree::set_attributes(dir.as_fd(), attributes)?;
        set_xattrs(dir.as_fd(), entry)
    }

    fn file<R: BufRead>(
        &mut self,
        reader: &mut Reader<R>,
        parent: std::os::fd::BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        attributes: &Attributes,
    ) -> Result<(), TarError> {
        let shown = reader.current().to_owned();
        let fail = |action| {
            let shown = shown.clone();
            move |source: io::Error| write_error(action, &shown, source)
        };
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600));
        let file = self
            .tree
            .replace(parent, name, open)
            .map_err(fail("create"))?;
        let mut file = std::fs::File::from(file);
        match &entry.sparse {
            None => reader.copy_data(|data| io::Write::write_all(&mut file, data))?,
            Some(map) => {
                let mut segments = map.iter().filter(|segment| segment.length > 0);
                let mut segment = segments.next().copied();
                reader.copy_data(|mut data| {
                    use std::os::unix::fs::FileExt;
                    while let Some(part) = segment.as_mut().filter(|_| !data.is_empty()) {
                        let fits =
                            usize::try_from(part.length).map_or(data.len(), |n| n.min(data.len()));
                        file.write_all_at(&data[..fits], part.offset)?;
                        (part.offset, part.length) =
                            (part.offset + fits as u64, part.length - fits as u64);
                        data = &data[fits..];
                        if part.length == 0 {
                            segment = segments.next().copied();
                        }
                    }
                    Ok(())
                })?;
                file.set_len(entry.size).map_err(fail("size"))?;
            }
        }
        let stored = entry
            .sparse
            .as_ref()
            .map_or(entry.size, |map| map.iter().map(|s| s.length).sum());
        self.totals.bytes += stored;
        set_xattrs_and(file.as_fd(), entry, attributes).map_err(fail("set the attributes of"))
    }

    fn hard_link(
        &mut self,
        target: &[u8],
        parent: std::os::fd::BorrowedFd<'_>,
        name: &[u8],
        shown: &str,
    ) -> Result<(), TarError> {
        let refuse = |reason| TarError::Unsafe {
            entry: shown.to_owned(),
            reason,
        };
        if target.is_empty() {
            return Err(refuse("it is a hard link to the root"));
        }
        self.tree
            .hard_link(target, parent, name)
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                    refuse("it is a hard link to something this layer does not contain")
                }
                io::ErrorKind::PermissionDenied => refuse("it is a hard link to a directory"),
                _ => write_error("link", shown, source),
            })
    }

    fn special(
        &mut self,
        parent: std::os::fd::BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        attributes: &Attributes,
    ) -> io::Result<()> {
        let device = || makedev(entry.device.0, entry.device.1);
        match entry.kind {
            Kind::Symlink => {
                let link = entry.link.as_slice();
                self.tree
                    .replace(parent, name, || rustix::fs::symlinkat(link, parent, name))?;
            }
            Kind::Char if entry.device == (0, 0) => {
                // Not a device but overlayfs' own whiteout, as some tools pack it.
                let create = || tree::node(parent, name, FileType::CharacterDevice, 0);
                return self.tree.replace(parent, name, create);
            }
            kind => {
                let (kind, device) = match kind {
                    Kind::Char => (FileType::CharacterDevice, device()),
                    Kind::Block => (FileType::BlockDevice, device()),
                    _ => (FileType::Fifo, 0),
                };
                self.tree
                    .replace(parent, name, || tree::node(parent, name, kind, device))?;
            }
        }
        for (key, value) in entry.xattrs.iter().filter(|(key, _)| passes(key)) {
            tree::set_xattr_at(parent, name, key, value)?;
        }
        tree::set_attributes_at(parent, name, attributes, entry.kind == Kind::Symlink)
    }

    fn finish(self) -> Result<Unpacked, TarError> {
        for (path, mtime) in &self.directories {
            let set = self.tree.set_directory_time(path, *mtime);
            set.map_err(|source| write_error("set the time of", &display(path), source))?;
        }
        Ok(self.totals)
    }
}

/// Which extended attributes an image may bring: those that mean something inside a container and
/// cannot steer the overlay it is mounted in.
pub(super) fn passes(name: &[u8]) -> bool {
    let is = |prefix: &[u8]| name.starts_with(prefix);
    let overlay = is(b"trusted.overlay.") || is(b"user.overlay.");
    let known =
        is(b"user.") || is(b"trusted.") || is(b"security.capability") || is(b"system.posix_acl_");
    known && !overlay
}

fn set_xattrs(file: std::os::fd::BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| passes(name)) {
        if !tree::set_xattr(file, name, value)? {
            tracing::warn!(
                entry = %crate::tar::display(&entry.path),
                attribute = %crate::tar::display(name),
                "the file system cannot hold an extended attribute of a layer"
            );
        }
    }
    Ok(())
}

/// Owner first (changing it clears capabilities), then attributes, so that the time is last.
fn set_xattrs_and(
    file: std::os::fd::BorrowedFd<'_>,
    entry: &Entry,
    attributes: &Attributes,
) -> io::Result<()> {
    tree::set_attributes(file, attributes)?;
    set_xattrs(file, entry)
}

fn write_error(action: &'static str, entry: &str, source: io::Error) -> TarError {
    TarError::Write {
        action,
        entry: entry.to_owned(),
        source,
    }
}
