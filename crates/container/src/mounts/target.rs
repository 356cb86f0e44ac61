//! Finding and making paths inside a container's root without ever leaving it.
//!
//! Every path of an image is resolved by the kernel with `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`
//! (openat2(2)): absolute links and `..` stay inside, and links such as `/proc/self/fd/5`, which
//! could lead to a descriptor of ours, are refused. What is missing is made step by step on
//! descriptors, so that nothing is looked up twice.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

use crate::error::{Context, Failure, Step};

/// What to make where a mount point is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Opens `path` below `root` as the kernel would after a chroot, but for magic links.
pub(crate) fn open(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    open_with(root, path, flags, ResolveFlags::empty())
}

/// As [`open`], with more restrictions.
pub(crate) fn open_with(
    root: impl AsFd,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd> {
    // Concurrent renames anywhere on the host can make the kernel give up: it says so by EAGAIN.
    let mut tries = 0;
    loop {
        let result = rustix::fs::openat2(
            &root,
            inside(path),
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            INSIDE | resolve,
        );
        match result {
            Err(Errno::AGAIN) if tries < 32 => tries += 1,
            other => return other,
        }
    }
}

/// Opens the mount point at `path`, made if it is missing.
pub(crate) fn ensure(root: impl AsFd, path: &Path, kind: Kind) -> Step<OwnedFd> {
    match open(&root, path, OFlags::PATH) {
        Err(Errno::NOENT) => create(&root, path, kind),
        other => other.with(|| format!("cannot open {} in the container's root", path.display())),
    }
}

/// Opens the directory that holds `path`, made if missing, and the name in it.
pub(crate) fn ensure_parent(root: impl AsFd, path: &Path) -> Step<(OwnedFd, &OsStr)> {
    let name = path.file_name().ok_or_else(|| {
        Failure::new(
            format!("cannot make {} in the container's root", path.display()),
            "it has no name",
        )
    })?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    Ok((ensure(root, parent, Kind::Directory)?, name))
}

/// Makes the missing part of `path`, directories first.
fn create(root: impl AsFd, path: &Path, kind: Kind) -> Step<OwnedFd> {
    let what = || format!("cannot make {} in the container's root", path.display());
    let parts: Vec<&OsStr> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(Failure::new(
            what(),
            "it does not exist and contains \"..\"",
        ));
    }
    let mut dir = open(&root, Path::new("/"), OFlags::PATH | OFlags::DIRECTORY).with(what)?;
    let mut walked = PathBuf::from("/");
    for (i, name) in parts.iter().enumerate() {
        walked.push(name);
        let last = i + 1 == parts.len();
        dir = match open(&root, &walked, OFlags::PATH) {
            Ok(fd) => fd,
            Err(Errno::NOENT) if last && kind == Kind::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(
                    &dir,
                    *name,
                    flags | OFlags::WRONLY,
                    Mode::from_raw_mode(0o644),
                )
                .with(what)?
            }
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&dir, *name, Mode::from_raw_mode(0o755)).with(what)?;
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(&dir, *name, flags, Mode::empty()).with(what)?
            }
            Err(errno) => return Err(errno).with(what),
        };
    }
    Ok(dir)
}

/// An empty path means the root itself.
fn inside(path: &Path) -> &Path {
    if path.as_os_str().is_empty() {
        Path::new("/")
    } else {
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_and_dots_of_an_image_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("abs")).unwrap();
        symlink("../../../../etc", dir.path().join("up")).unwrap();
        symlink("/proc/self/cwd", dir.path().join("magic")).unwrap();
        let root = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        ensure(&root, Path::new("/plain/a/b"), Kind::Directory).unwrap();
        ensure(&root, Path::new("/plain/file"), Kind::File).unwrap();
        assert!(dir.path().join("plain/file").is_file());
        // A dangling link is not followed into creation anywhere.
        assert!(ensure(&root, Path::new("/abs/x"), Kind::Directory).is_err());
        assert!(ensure(&root, Path::new("/up/x"), Kind::Directory).is_err());
        assert!(ensure(&root, Path::new("/a/../../x"), Kind::File).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        // Even with a real proc in reach, magic links are refused.
        let host = rustix::fs::open("/", OFlags::PATH, Mode::empty()).unwrap();
        let magic = open(&host, Path::new("/proc/self/cwd"), OFlags::PATH);
        assert_eq!(magic.unwrap_err(), Errno::LOOP);
    }
}
