//! Detached mounts: a new file system, a clone of a tree, attached by descriptor.
//!
//! Everything goes through the descriptor-based mount API (fsopen(2), open_tree(2), move_mount(2),
//! mount_setattr(2)), so that no path is looked up after it was checked, and a driver's own words
//! explain a refusal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::options::attr;
use crate::error::{Failure, Step};
use crate::sys::{self, MountAttr};

/// Makes a detached mount of a new (or shared, as the driver decides) file system.
///
/// # Errors
/// What the driver says, or the kernel's errno.
pub(crate) fn create(
    kind: &str,
    source: Option<&Path>,
    data: &[(String, Option<String>)],
    attributes: &MountAttr,
) -> Step<OwnedFd> {
    let fs =
        fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| explain(kind, None, errno))?;
    if let Some(source) = source.filter(|source| !source.as_os_str().is_empty()) {
        fsconfig_set_string(&fs, "source", source).map_err(|e| explain(kind, Some(&fs), e))?;
    }
    for (key, value) in data {
        match value {
            Some(value) => fsconfig_set_string(&fs, key.as_str(), value.as_str()),
            None => fsconfig_set_flag(&fs, key.as_str()),
        }
        .map_err(|e| explain(kind, Some(&fs), e))?;
    }
    finish(kind, &fs, attributes)
}

/// Turns a configured file system context into a detached mount.
pub(crate) fn finish(kind: &str, fs: &OwnedFd, attributes: &MountAttr) -> Step<OwnedFd> {
    fsconfig_create(fs).map_err(|e| explain(kind, Some(fs), e))?;
    // The bits of MOUNT_ATTR_* are the same for fsmount and mount_setattr.
    let flags = MountAttrFlags::from_bits_retain((attributes.set & !attr::IDMAP) as u32);
    fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(|e| explain(kind, Some(fs), e))
}

/// A refusal in the driver's own words where it has some.
pub(crate) fn explain(kind: &str, fs: Option<&OwnedFd>, errno: Errno) -> Failure {
    let mut what = format!("cannot make a file system of type {kind}");
    let mut words = [0u8; 512];
    while let Some(len) = fs
        .and_then(|fs| rustix::io::read(fs, &mut words).ok())
        .filter(|n| *n > 0)
    {
        let text = String::from_utf8_lossy(&words[..len]);
        let text = text.trim().trim_start_matches(['e', 'w', 'i']).trim_start();
        what.push_str(&format!(" ({text})"));
    }
    Failure {
        what: what.into(),
        source: errno.into(),
        program: false,
    }
}

/// A detached copy of the mounts at `path` below `dir` (of `dir` itself for an empty path).
pub(crate) fn clone_tree(dir: impl AsFd, path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    open_tree(dir, path, flags)
}

/// Puts a detached mount on `target`.
pub(crate) fn attach(tree: impl AsFd, target: impl AsFd) -> Result<(), Errno> {
    move_mount(
        tree,
        "",
        target,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// Changes a mount's attributes; nothing is asked of the kernel if nothing is to change.
pub(crate) fn set_attributes(
    tree: BorrowedFd<'_>,
    attributes: &MountAttr,
    recursive: bool,
) -> Result<(), Errno> {
    if *attributes == MountAttr::default() {
        return Ok(());
    }
    sys::mount_setattr(tree, c"", recursive, attributes)
}

/// Sets the propagation type.
pub(crate) fn set_propagation(
    tree: BorrowedFd<'_>,
    propagation: u64,
    recursive: bool,
) -> Result<(), Errno> {
    sys::mount_setattr(
        tree,
        c"",
        recursive,
        &MountAttr {
            propagation,
            ..MountAttr::default()
        },
    )
}
