//! Folders of the host that the guest sees: opened before the process locks itself up, and what all of
//! them together may make it hold.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use devices::virtio::fs::{Descriptors, Folder, FolderLimits};
use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::OpenTreeFlags,
    process::{Resource, getrlimit},
};

use crate::{
    config::ShareConfig,
    resources::{At, ResourceError},
};

/// The process's own descriptors.
const OWN: &str = "/proc/self/fd";
/// Most files of all folders that a guest may know: some 200 bytes of this process each.
const NODES: usize = 1 << 18;
/// Descriptors that are left for everything else.
const OTHER_FILES: usize = 1024;

/// Opened folders.
#[derive(Debug, Default)]
pub struct Shares {
    folders: Vec<(ShareConfig, OwnedFd)>,
    own: Option<OwnedFd>,
}

impl Shares {
    /// Opens them. With `detached`, which needs the right to mount, each is a copy of what is mounted
    /// there that is attached nowhere: nothing is above it.
    ///
    /// # Errors
    /// With the first that cannot be opened.
    pub fn open(configs: &[ShareConfig], detached: bool) -> Result<Self, ResourceError> {
        if configs.is_empty() {
            return Ok(Self::default());
        }
        let folders = configs.iter().map(|config| {
            let opened = open(&config.path, detached).at("open the folder", &config.path);
            Ok((config.clone(), opened?))
        });
        let own = Path::new(OWN);
        Ok(Self {
            folders: folders.collect::<Result<_, _>>()?,
            own: Some(open(own, detached).at("open the process's files in", own)?),
        })
    }

    /// Whether there are any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.folders.is_empty()
    }

    /// The folders, and whether they are only read.
    pub fn folders(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        self.folders
            .iter()
            .map(|(config, folder)| (folder.as_fd(), config.read_only))
    }

    /// Gives them what serves them, in order. After the process is locked up: what
    /// each may hold depends on its limits, and whom it may act for on its rights.
    ///
    /// # Errors
    /// When a folder cannot be looked at.
    pub fn serve(self) -> io::Result<Vec<(ShareConfig, Folder)>> {
        let limits = limits(self.folders.len());
        let Some(own) = self.own else {
            return Ok(Vec::new());
        };
        let folders = self.folders.into_iter().map(|(config, folder)| {
            let own = Descriptors::new(own.try_clone()?);
            let folder = Folder::new(folder, own, config.read_only, &limits)?;
            Ok((config, folder))
        });
        folders.collect()
    }
}

fn open(path: &Path, detached: bool) -> rustix::io::Result<OwnedFd> {
    if detached {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        return rustix::mount::open_tree(CWD, path, flags);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// What each of so many folders may hold.
fn limits(folders: usize) -> FolderLimits {
    let most = getrlimit(Resource::Nofile).current;
    let most = most.map_or(usize::MAX, |it| usize::try_from(it).unwrap_or(usize::MAX));
    let spare = most.saturating_sub(OTHER_FILES).max(most / 2);
    let each = spare.min(NODES) / folders.max(1);
    FolderLimits {
        nodes: NODES / folders.max(1),
        cached_files: each / 3,
        open_files: each / 3 * 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_folders_together_leave_descriptors_for_the_rest() {
        for folders in 1..=16 {
            let limits = limits(folders);
            let all = (limits.cached_files + limits.open_files) * folders;
            let most = getrlimit(Resource::Nofile)
                .current
                .map_or(usize::MAX, |it| it as usize);
            assert!(all < most && limits.cached_files > 2 && limits.open_files > 2);
        }
    }
}
