//! Which hierarchies the host has and where they are mounted.
//!
//! Detection is on the path of every `berth-oci` command, so the usual places are asked first
//! (one directory listing and a `statfs` per entry, about 20 µs); `/proc/self/mountinfo` is only
//! read when they do not answer. Never mounts anything.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode as FileMode, OFlags};

use crate::controller::{Controller, ControllerSet};
use crate::file::{self, FileError};
use crate::parse;

const USUAL: &str = "/sys/fs/cgroup";
const CGROUP_V1_MAGIC: u64 = 0x0027_e0eb;
const CGROUP_V2_MAGIC: u64 = 0x6367_7270;

/// What kind of host this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Version 2 only.
    Unified,
    /// Version 1 only.
    Legacy,
    /// Version 1 controllers beside a version 2 tree.
    Hybrid,
    /// No control groups are mounted.
    None,
}

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// What it controls; empty for a named v1 hierarchy such as `name=systemd`.
    pub controllers: ControllerSet,
}

/// The hierarchies of a host. Cheap to clone, valid until somebody remounts `/sys/fs/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub(crate) v1: Vec<Hierarchy>,
    pub(crate) v2: Option<Hierarchy>,
}

/// Why the hierarchies could not be found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Layout {
    /// Finds the hierarchies of this mount namespace. A host without any gives [`Mode::None`].
    ///
    /// # Errors
    /// When neither the usual places nor `/proc/self/mountinfo` can be read.
    pub fn detect() -> Result<Layout, LayoutError> {
        if let Some(layout) = usual_places(Path::new(USUAL)) {
            return Ok(layout);
        }
        let text = file::read(Path::new("/proc/self/mountinfo"))?;
        let mut layout = parse::mountinfo(&text);
        if let Some(v2) = &mut layout.v2 {
            v2.controllers = v2_controllers(&v2.mount);
        }
        Ok(layout)
    }

    /// The version 2 tree alone, for groups that limit nothing and only hold processes.
    #[must_use]
    pub fn only_v2(self) -> Layout {
        Layout {
            v1: Vec::new(),
            v2: self.v2,
        }
    }

    /// A layout with a version 2 tree only, mounted at `mount`; the controllers are read from its
    /// `cgroup.controllers`. For callers that mounted a tree themselves, and for tests.
    pub fn unified(mount: impl Into<PathBuf>) -> Layout {
        let mount = mount.into();
        let controllers = v2_controllers(&mount);
        Layout {
            v1: Vec::new(),
            v2: Some(Hierarchy { mount, controllers }),
        }
    }

    /// A layout from parts. For callers that know better, and for tests.
    pub fn from_parts(v1: Vec<Hierarchy>, v2: Option<Hierarchy>) -> Layout {
        Layout { v1, v2 }
    }

    /// The kind of host.
    pub fn mode(&self) -> Mode {
        match (self.v1.is_empty(), self.v2.is_some()) {
            (true, true) => Mode::Unified,
            (false, true) => Mode::Hybrid,
            (false, false) => Mode::Legacy,
            (true, false) => Mode::None,
        }
    }

    /// The version 1 hierarchies.
    pub fn v1(&self) -> &[Hierarchy] {
        &self.v1
    }

    /// The version 2 tree.
    pub fn v2(&self) -> Option<&Hierarchy> {
        self.v2.as_ref()
    }

    /// Everything the host can control, in either version.
    pub fn controllers(&self) -> ControllerSet {
        let v1 = self
            .v1
            .iter()
            .fold(ControllerSet::EMPTY, |set, h| set.or(h.controllers));
        v1.or(self
            .v2
            .as_ref()
            .map_or(ControllerSet::EMPTY, |v2| v2.controllers))
    }
}

/// Reads the root's `cgroup.controllers`, and adds what the version 2 core always has.
fn v2_controllers(mount: &Path) -> ControllerSet {
    let text = file::read(&mount.join("cgroup.controllers")).unwrap_or_default();
    ControllerSet::parse(&text, ' ').without(ControllerSet::of(&[Controller::Freezer]))
}

fn magic(path: &Path) -> Option<u64> {
    rustix::fs::statfs(path)
        .ok()
        .map(|s| s.f_type as u64 & 0xffff_ffff)
}

/// The layout as every distribution mounts it, or `None` if `root` looks otherwise.
fn usual_places(root: &Path) -> Option<Layout> {
    if magic(root)? == CGROUP_V2_MAGIC {
        return Some(Layout::unified(root));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(root, flags, FileMode::empty()).ok()?;
    let mut layout = Layout {
        v1: Vec::new(),
        v2: None,
    };
    for entry in Dir::new(dir).ok()? {
        let entry = entry.ok()?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        // Links (`cpu` -> `cpu,cpuacct`) repeat a hierarchy that has an entry of its own.
        if name.as_bytes().starts_with(b".") || !is_dir(&entry, root, name) {
            continue;
        }
        let mount = root.join(name);
        match magic(&mount) {
            Some(CGROUP_V2_MAGIC) if layout.v2.is_none() => {
                let controllers = v2_controllers(&mount);
                layout.v2 = Some(Hierarchy { mount, controllers });
            }
            Some(CGROUP_V1_MAGIC) => {
                let controllers = ControllerSet::parse(name.to_str()?, ',');
                layout.v1.push(Hierarchy { mount, controllers });
            }
            _ => {}
        }
    }
    // A v1 directory under an unknown name might hold any controller: let mountinfo tell.
    let odd = |h: &Hierarchy| h.controllers.is_empty() && !h.mount.ends_with("systemd");
    if layout.mode() == Mode::None || layout.v1.iter().any(odd) {
        return None;
    }
    layout.v1.sort_by(|a, b| a.mount.cmp(&b.mount));
    Some(layout)
}

fn is_dir(entry: &rustix::fs::DirEntry, root: &Path, name: &OsStr) -> bool {
    match entry.file_type() {
        FileType::Directory => true,
        FileType::Unknown => {
            let stat =
                rustix::fs::statat(rustix::fs::CWD, root.join(name), AtFlags::SYMLINK_NOFOLLOW);
            stat.is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_way_and_mountinfo_agree_on_this_host() {
        let Some(fast) = usual_places(Path::new(USUAL)) else {
            return eprintln!("SKIP: no control groups in the usual places");
        };
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut slow = parse::mountinfo(&text);
        if let Some(v2) = &mut slow.v2 {
            v2.controllers = v2_controllers(&v2.mount);
        }
        slow.v1.sort_by(|a, b| a.mount.cmp(&b.mount));
        assert_eq!(fast, slow);
        assert!(!fast.controllers().is_empty());
    }
}
