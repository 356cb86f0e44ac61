//! One control group over all hierarchies: made, opened, entered, listed, removed.
//!
//! A group is a directory of the same path in each v1 hierarchy and in the v2 tree. Where a
//! directory may not be made (rootless, read-only), the refusal is remembered and only becomes an
//! error when a limit of that hierarchy is asked for.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::controller::{Controller, ControllerSet};
use crate::file::{self, FileError};
use crate::layout::{Hierarchy, Layout};
use crate::path::CgroupPath;
use crate::{delegate, parse};

/// How long [`Cgroup::delete`] waits for dying processes to leave a group.
const DELETE_PATIENCE: Duration = Duration::from_secs(5);

/// A control group. Holds paths, no descriptors: cheap to keep, safe to move over fork.
#[derive(Clone, Debug)]
pub struct Cgroup {
    pub(crate) path: CgroupPath,
    pub(crate) v1: Vec<Node>,
    pub(crate) v2: Option<Node>,
    refused: Vec<Refusal>,
}

/// The group's directory in one hierarchy.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) mount: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) controllers: ControllerSet,
}

/// A hierarchy in which the group could not be made, and why.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// What that hierarchy controls.
    pub controllers: ControllerSet,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// What the kernel said.
    pub errno: Errno,
}

/// Why a group could not be made or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The kernel refused for another reason than missing permission.
    #[error(transparent)]
    File(#[from] FileError),
    /// No hierarchy has a group of this path.
    #[error("there is no control group {path}; it was removed or never made")]
    Missing {
        /// The path asked for.
        path: CgroupPath,
    },
}

/// Why a process could not be put into a group.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The kernel refused.
    #[error("process {pid} cannot enter the control group")]
    File {
        /// The process.
        pid: i32,
        /// Which file and what the kernel said.
        source: FileError,
    },
    /// cgroup v2 allows processes only in leaves.
    #[error(
        "process {pid} cannot enter {}: it has child groups with controllers enabled, and cgroup \
         v2 keeps processes in leaves only; use a child of it instead", dir.display()
    )]
    NotALeaf {
        /// The process.
        pid: i32,
        /// The inner group.
        dir: PathBuf,
    },
    /// The group is in a threaded subtree and not threaded itself.
    #[error(
        "process {pid} cannot enter {}: its parent is threaded, so it must be made threaded too \
         (write \"threaded\" to its cgroup.type) or live elsewhere", dir.display()
    )]
    InvalidDomain {
        /// The process.
        pid: i32,
        /// The group.
        dir: PathBuf,
    },
}

/// Why a group could not be removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeleteError {
    /// The kernel refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// Processes are still in it.
    #[error(
        "the control group {} still holds processes ({pids:?}) after {} s; kill them first",
        dir.display(), DELETE_PATIENCE.as_secs()
    )]
    Busy {
        /// Its directory.
        dir: PathBuf,
        /// Some of them.
        pids: Vec<i32>,
    },
}

impl Cgroup {
    /// Makes the group, and its parents, in every hierarchy of `layout`. An existing one is taken
    /// as it is. Hierarchies that may not be written are remembered in [`Cgroup::refused`].
    ///
    /// # Errors
    /// [`CreateError::File`] for anything but missing permission; nothing is left behind then.
    pub fn create(layout: &Layout, path: &CgroupPath) -> Result<Cgroup, CreateError> {
        let mut group = Cgroup {
            path: path.clone(),
            v1: Vec::new(),
            v2: None,
            refused: Vec::new(),
        };
        let mut made = Vec::new();
        for (hierarchy, is_v2) in hierarchies(layout) {
            let node = Node::new(hierarchy, path);
            match node.make(is_v2) {
                Ok(is_new) => {
                    made.extend(is_new.then(|| node.dir.clone()));
                    if is_v2 {
                        group.v2 = Some(node);
                    } else {
                        group.v1.push(node);
                    }
                }
                Err(error) => match error.errno() {
                    Some(errno @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) => {
                        group.refused.push(Refusal {
                            controllers: hierarchy.controllers,
                            mount: hierarchy.mount.clone(),
                            errno,
                        });
                    }
                    _ => {
                        for dir in &made {
                            let _ = rustix::fs::rmdir(dir);
                        }
                        return Err(error.into());
                    }
                },
            }
        }
        Ok(group)
    }

    /// Opens a group made before; hierarchies that do not have it are left out.
    ///
    /// # Errors
    /// [`CreateError::Missing`] if none has it.
    pub fn open(layout: &Layout, path: &CgroupPath) -> Result<Cgroup, CreateError> {
        let mut group = Cgroup {
            path: path.clone(),
            v1: Vec::new(),
            v2: None,
            refused: Vec::new(),
        };
        for (hierarchy, is_v2) in hierarchies(layout) {
            let node = Node::new(hierarchy, path);
            match rustix::fs::access(&node.dir, rustix::fs::Access::EXISTS) {
                Ok(()) if is_v2 => group.v2 = Some(node),
                Ok(()) => group.v1.push(node),
                Err(errno) => group.refused.push(Refusal {
                    controllers: hierarchy.controllers,
                    mount: hierarchy.mount.clone(),
                    errno,
                }),
            }
        }
        if group.nodes().next().is_none() {
            return Err(CreateError::Missing { path: path.clone() });
        }
        Ok(group)
    }

    /// The group's path below the roots.
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// The hierarchies that have no such group, and why.
    pub fn refused(&self) -> &[Refusal] {
        &self.refused
    }

    /// The controllers this group has.
    pub fn controllers(&self) -> ControllerSet {
        self.nodes()
            .fold(ControllerSet::EMPTY, |set, node| set.or(node.controllers))
    }

    /// The group's directories, v1 first: for bind mounts of `/sys/fs/cgroup` into a container and
    /// for state files. Pairs of (mount point of the hierarchy, directory of the group).
    pub fn directories(&self) -> impl Iterator<Item = (&Path, &Path)> {
        self.nodes()
            .map(|node| (node.mount.as_path(), node.dir.as_path()))
    }

    /// The group's directory in the v2 tree.
    pub fn v2_dir(&self) -> Option<&Path> {
        self.v2.as_ref().map(|node| node.dir.as_path())
    }

    /// A descriptor of the v2 directory for `CLONE_INTO_CGROUP`, which saves a migration; follow
    /// the clone by [`Cgroup::add_v1`]. `None` without a v2 tree.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn clone_into_fd(&self) -> Result<Option<OwnedFd>, FileError> {
        let Some(node) = &self.v2 else {
            return Ok(None);
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&node.dir, flags, Mode::empty())
            .map(Some)
            .map_err(|errno| FileError::new("open", &node.dir, errno))
    }

    /// Puts a process (all its threads) into the group in every hierarchy. `pid` 0 is the caller;
    /// one with a single thread had better use [`Cgroup::enter_v1`].
    ///
    /// # Errors
    /// [`JoinError`]; the process may then be in the group in some hierarchies.
    pub fn add(&self, pid: i32) -> Result<(), JoinError> {
        if let Some(node) = &self.v2 {
            node.add(pid, true)?;
        }
        self.add_v1(pid)
    }

    /// As [`Cgroup::add`], but for the v2 tree, where `CLONE_INTO_CGROUP` put the process already.
    ///
    /// # Errors
    /// As [`Cgroup::add`].
    pub fn add_v1(&self, pid: i32) -> Result<(), JoinError> {
        self.v1.iter().try_for_each(|node| node.add(pid, false))
    }

    /// As [`Cgroup::add_v1`] for the calling process, which must have a single thread: only the calling
    /// thread moves.
    ///
    /// Through `tasks` and as "0": the kernel moves a thread that asks for itself without its global
    /// lock over forks, whose writer waits for an RCU grace period. Measured on an idle host: 0.2 ms for
    /// nine hierarchies, where the first write to `cgroup.procs`, by whomever, takes 6 to 13 ms.
    ///
    /// # Errors
    /// As [`Cgroup::add`].
    pub fn enter_v1(&self) -> Result<(), JoinError> {
        self.v1.iter().try_for_each(|node| match node.enter() {
            Ok(()) => Ok(()),
            // The slow way knows what to do about an empty cpuset, and explains refusals.
            Err(_) => node.add(0, false),
        })
    }

    /// The processes of the group and of the groups below it, ascending, each once.
    ///
    /// # Errors
    /// When the kernel's list cannot be read.
    pub fn pids(&self) -> Result<Vec<i32>, FileError> {
        let mut all = Vec::new();
        if let Some(node) = self.census() {
            walk(&node.dir, &mut |dir| {
                if let Some(text) = read_procs(dir)? {
                    all.extend(parse::pids(&text));
                }
                Ok(())
            })?;
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// Removes the group and the groups below it, in all hierarchies. Waits for dying processes
    /// (a killed one leaves its groups only when it is reaped by the kernel) for up to 5 s.
    /// A group that is gone already is no error.
    ///
    /// # Errors
    /// [`DeleteError::Busy`] if processes stay.
    pub fn delete(&self) -> Result<(), DeleteError> {
        self.nodes().try_for_each(|node| remove(&node.dir))
    }

    /// All directories, v1 first.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.v1.iter().chain(&self.v2)
    }

    /// The directory that has `controller`; v1 wins, since in a hybrid the v2 tree has only what
    /// v1 has not.
    pub(crate) fn node(&self, controller: Controller) -> Option<(&Node, Version)> {
        let v1 = self
            .v1
            .iter()
            .find(|node| node.controllers.contains(controller));
        let v2 = self
            .v2
            .as_ref()
            .filter(|node| node.controllers.contains(controller));
        v1.map(|node| (node, Version::V1))
            .or(v2.map(|node| (node, Version::V2)))
    }

    /// The directory to count processes in: one that nothing leaves unnoticed.
    fn census(&self) -> Option<&Node> {
        [Controller::Freezer, Controller::Devices, Controller::Pids]
            .into_iter()
            .find_map(|controller| self.v1.iter().find(|n| n.controllers.contains(controller)))
            .or(self.v2.as_ref())
            .or(self.v1.first())
    }
}

/// Which kernel interface a directory speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

fn hierarchies(layout: &Layout) -> impl Iterator<Item = (&Hierarchy, bool)> {
    layout
        .v1
        .iter()
        .map(|h| (h, false))
        .chain(layout.v2.iter().map(|h| (h, true)))
}

impl Node {
    fn new(hierarchy: &Hierarchy, path: &CgroupPath) -> Node {
        Node {
            mount: hierarchy.mount.clone(),
            dir: path.below(&hierarchy.mount),
            controllers: hierarchy.controllers,
        }
    }

    /// Makes the directory, and parents only when it turns out that they are missing. Whether it
    /// is new.
    fn make(&self, is_v2: bool) -> Result<bool, FileError> {
        let is_new = match file::make_dir(&self.dir) {
            Err(error) if error.errno() == Some(Errno::NOENT) => {
                self.make_parents()?;
                file::make_dir(&self.dir)?
            }
            other => other?,
        };
        if is_v2 {
            delegate::enable_for_accounting(self);
        }
        Ok(is_new)
    }

    fn make_parents(&self) -> Result<(), FileError> {
        let below = self.dir.strip_prefix(&self.mount).unwrap_or(&self.dir);
        let mut dir = self.mount.clone();
        for part in below.parent().into_iter().flat_map(Path::components) {
            dir.push(part);
            let made = file::make_dir(&dir)?;
            if made && self.controllers.contains(Controller::Cpuset) && dir.join("tasks").exists() {
                // Children then start with the parent's CPUs and nodes, at no cost per container.
                fill_cpuset(&dir)?;
                file::write(&dir.join("cgroup.clone_children"), "1")?;
            }
        }
        Ok(())
    }

    /// Puts the calling thread into this v1 directory.
    fn enter(&self) -> Result<(), FileError> {
        file::write(&self.dir.join("tasks"), "0")
    }

    fn add(&self, pid: i32, is_v2: bool) -> Result<(), JoinError> {
        let procs = self.dir.join("cgroup.procs");
        let value = pid.to_string();
        let source = match file::write(&procs, &value) {
            Ok(()) => return Ok(()),
            // A v1 cpuset without CPUs or nodes holds nobody: give it its parent's.
            Err(error) if !is_v2 && error.errno() == Some(Errno::NOSPC) => {
                match fill_cpuset(&self.dir).and_then(|()| file::write(&procs, &value)) {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        Err(match source.errno() {
            Some(Errno::BUSY) if is_v2 => JoinError::NotALeaf {
                pid,
                dir: self.dir.clone(),
            },
            Some(Errno::OPNOTSUPP) if is_v2 => JoinError::InvalidDomain {
                pid,
                dir: self.dir.clone(),
            },
            _ => JoinError::File { pid, source },
        })
    }
}

/// Copies the CPUs and nodes of the nearest ancestors into a v1 cpuset that has none.
fn fill_cpuset(dir: &Path) -> Result<(), FileError> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let own = dir.join(name);
        if !file::read(&own)?.trim().is_empty() {
            continue;
        }
        let Some(parent) = dir.parent() else { continue };
        let mut value = file::read(&parent.join(name))?;
        if value.trim().is_empty() {
            fill_cpuset(parent)?;
            value = file::read(&parent.join(name))?;
        }
        file::write(&own, value.trim())?;
    }
    Ok(())
}

/// The text of `cgroup.procs`, or of `cgroup.threads` in a threaded group; `None` if it is gone.
pub(crate) fn read_procs(dir: &Path) -> Result<Option<String>, FileError> {
    match file::read_optional(&dir.join("cgroup.procs"))? {
        Some(text) => Ok(Some(text)),
        None => file::read_optional(&dir.join("cgroup.threads")),
    }
}

/// Visits a group and those below it, children first.
pub(crate) fn walk(
    dir: &Path,
    visit: &mut dyn FnMut(&Path) -> Result<(), FileError>,
) -> Result<(), FileError> {
    for child in children(dir)? {
        walk(&child, visit)?;
    }
    visit(dir)
}

/// The groups directly below `dir`; none if it is gone.
fn children(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let fail = |source: io::Error| FileError {
        action: "list".into(),
        path: dir.into(),
        source,
    };
    // A directory's link count tells whether it has children: the usual answer costs one call.
    match rustix::fs::stat(dir) {
        Ok(stat) if stat.st_nlink == 2 => return Ok(Vec::new()),
        Ok(_) => {}
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(fail(errno.into())),
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_type().map_err(fail)?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes a directory tree of groups, waiting while the kernel says busy.
fn remove(dir: &Path) -> Result<(), DeleteError> {
    let mut waited = Duration::ZERO;
    let mut pause = Duration::from_micros(50);
    loop {
        let errno = match rustix::fs::rmdir(dir) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(errno @ (Errno::BUSY | Errno::NOTEMPTY)) => errno,
            Err(errno) => return Err(FileError::new("remove", dir, errno).into()),
        };
        for child in children(dir)? {
            remove(&child)?;
        }
        if waited > DELETE_PATIENCE {
            let pids: Vec<i32> =
                read_procs(dir)?.map_or(vec![], |t| parse::pids(&t).take(8).collect());
            return Err(match pids.is_empty() {
                true => FileError::new("remove", dir, errno).into(),
                false => DeleteError::Busy {
                    dir: dir.to_owned(),
                    pids,
                },
            });
        }
        std::thread::sleep(pause);
        waited += pause;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}
