//! The v2 tree's own rules: controllers are enabled from the top down through
//! `cgroup.subtree_control`, processes live in leaves, subtrees can be handed to somebody else or
//! be threaded. Source: Documentation/admin-guide/cgroup-v2.rst of the kernel.

use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;

use crate::controller::{Controller, ControllerSet};
use crate::file::{self, FileError};
use crate::group::{Cgroup, Node};

/// What every container's group should have where the host can give it.
const ACCOUNTING: ControllerSet = ControllerSet::of(&[
    Controller::Cpu,
    Controller::Cpuset,
    Controller::Memory,
    Controller::Io,
    Controller::Pids,
]);

/// Why controllers could not be enabled for a v2 group.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubtreeError {
    /// A parent holds processes, so it may not enable controllers for its children.
    #[error(
        "the controller {controller} cannot be enabled below {}: that group holds processes \
         itself, and cgroup v2 keeps processes in leaves; move them into a child group first",
        dir.display()
    )]
    InternalProcesses {
        /// The controller.
        controller: Controller,
        /// The parent with processes.
        dir: PathBuf,
    },
    /// A parent does not have it.
    #[error(
        "the controller {controller} is not available below {}: it was not delegated to this \
         subtree", dir.display()
    )]
    NotDelegated {
        /// The controller.
        controller: Controller,
        /// The parent.
        dir: PathBuf,
    },
    /// The kernel refused otherwise.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Why a group could not be handed over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DelegateError {
    /// The kernel refused.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Cgroup {
    /// Lets the user `uid` manage the group's inside: owns the directory and the files that the
    /// kernel lists as safe to hand over. In v1 only the named hierarchies (systemd's) are safe.
    /// A system container with an init of its own needs this.
    ///
    /// # Errors
    /// When ownership cannot be changed.
    pub fn delegate(&self, uid: u32, gid: u32) -> Result<(), DelegateError> {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let chown = |path: &Path| match rustix::fs::chown(path, Some(uid), Some(gid)) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(FileError::new("change the owner of", path, errno)),
        };
        let named = self.v1.iter().filter(|node| node.controllers.is_empty());
        for node in named {
            chown(&node.dir)?;
            for file in ["cgroup.procs", "tasks"] {
                chown(&node.dir.join(file))?;
            }
        }
        if let Some(node) = &self.v2 {
            chown(&node.dir)?;
            let list = std::fs::read_to_string("/sys/kernel/cgroup/delegate");
            let usual = "cgroup.procs\ncgroup.threads\ncgroup.subtree_control\n";
            let list = list.as_deref().unwrap_or(usual);
            for file in list
                .lines()
                .filter(|file| !file.is_empty() && !file.contains('/'))
            {
                chown(&node.dir.join(file))?;
            }
        }
        Ok(())
    }

    /// Makes a v2 group threaded: its threads may be spread over child groups, and it may live in
    /// a threaded subtree. Only `cpu`, `cpuset`, `perf_event` and `pids` work there.
    ///
    /// # Errors
    /// When the kernel refuses (for instance because a domain controller is enabled).
    pub fn make_threaded(&self) -> Result<(), SubtreeError> {
        match &self.v2 {
            Some(node) => Ok(file::write(&node.dir.join("cgroup.type"), "threaded")?),
            None => Ok(()),
        }
    }
}

/// Enables what is wanted for accounting, as far as possible and without complaint: a limit that
/// needs a missing controller complains later, by name.
pub(crate) fn enable_for_accounting(node: &Node) {
    let wanted = node.controllers.and(ACCOUNTING);
    if wanted.is_empty() {
        return;
    }
    let have = file::read(&node.dir.join("cgroup.controllers")).unwrap_or_default();
    let missing = wanted.without(ControllerSet::parse(&have, ' '));
    if missing.is_empty() {
        return;
    }
    for parent in parents(node) {
        let all: Vec<String> = missing.iter().map(|c| format!("+{c}")).collect();
        let control = parent.join("cgroup.subtree_control");
        if file::write(&control, &all.join(" ")).is_err() {
            // All or nothing in one write: try them one by one.
            for one in &all {
                let _ = file::write(&control, one);
            }
        }
    }
}

/// Enables one controller for `node`, from the root of the tree down.
pub(crate) fn enable(node: &Node, controller: Controller) -> Result<(), SubtreeError> {
    for dir in parents(node) {
        let control = dir.join("cgroup.subtree_control");
        let on = file::read(&control)?;
        if ControllerSet::parse(&on, ' ').contains(controller) {
            continue;
        }
        file::write(&control, &format!("+{controller}")).map_err(|error| match error.errno() {
            Some(Errno::BUSY) => SubtreeError::InternalProcesses {
                controller,
                dir: dir.clone(),
            },
            Some(Errno::NOENT) => SubtreeError::NotDelegated {
                controller,
                dir: dir.clone(),
            },
            _ => SubtreeError::File(error),
        })?;
    }
    Ok(())
}

/// The directories above `node`, from the mount point down to its parent.
fn parents(node: &Node) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = node
        .dir
        .ancestors()
        .skip(1)
        .take_while(|dir| dir.starts_with(&node.mount))
        .map(Path::to_owned)
        .collect();
    dirs.reverse();
    dirs
}
