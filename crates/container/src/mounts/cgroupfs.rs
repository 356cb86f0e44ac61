//! `/sys/fs/cgroup` inside a container, on hosts of either version.
//!
//! With a cgroup namespace the hierarchies are mounted anew and show the container's group as their
//! root. Without one, the container's own directory of each hierarchy is bind-mounted, which shows the
//! same. On v1 and hybrid hosts the hierarchies lie in a small tmpfs, as every tool expects.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode};

use super::fs;
use super::options::attr;
use crate::error::{Context, Step};
use crate::sys::MountAttr;

/// What the container may see of the control groups.
#[derive(Debug)]
pub(crate) struct View<'a> {
    /// The container's group; `None` if it has none of its own.
    pub cgroup: Option<&'a cgroup::Cgroup>,
    /// It has a cgroup namespace of its own.
    pub namespaced: bool,
}

/// Mounts the hierarchies at `place` and returns the topmost mount.
pub(crate) fn make(place: &OwnedFd, attributes: &MountAttr, view: &View<'_>) -> Step<OwnedFd> {
    let hierarchies: Vec<(&Path, &Path)> = view
        .cgroup
        .map(|group| group.directories().collect())
        .unwrap_or_default();
    let v2 = view.cgroup.and_then(|group| group.v2_dir());
    if let ([(_, dir)], Some(v2)) = (hierarchies.as_slice(), v2)
        && *dir == v2
    {
        let tree = hierarchy(dir, "cgroup2", &[], attributes, view)?;
        fs::attach(&tree, place).ctx("cannot attach it")?;
        return Ok(tree);
    }
    if hierarchies.is_empty() {
        // No group of our own (rootless): the host's view, as far as it lets itself be shown.
        let tree = fs::clone_tree(CWD, Path::new("/sys/fs/cgroup"), true)
            .ctx("cannot show the host's control groups")?;
        fs::set_attributes(tree.as_fd(), attributes, true).ctx("cannot set its options")?;
        fs::attach(&tree, place).ctx("cannot attach it")?;
        return Ok(tree);
    }
    let mut top = *attributes;
    top.set &= !attr::RDONLY;
    let data = [("mode".to_owned(), Some("755".to_owned()))];
    let tmpfs = fs::create("tmpfs", Some(Path::new("tmpfs")), &data, &top)?;
    fs::attach(&tmpfs, place).ctx("cannot attach it")?;
    for (mount, dir) in hierarchies {
        let name = mount.file_name().unwrap_or_default();
        let what = || format!("cannot mount the hierarchy {}", mount.display());
        rustix::fs::mkdirat(&tmpfs, name, Mode::from_raw_mode(0o755)).with(what)?;
        let tree = if v2 == Some(dir) {
            hierarchy(dir, "cgroup2", &[], attributes, view)?
        } else {
            hierarchy(
                dir,
                "cgroup",
                &v1_data(&name.to_string_lossy()),
                attributes,
                view,
            )?
        };
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let spot = rustix::fs::openat(&tmpfs, name, flags, Mode::empty()).with(what)?;
        fs::attach(&tree, &spot).with(what)?;
        links(&tmpfs, &name.to_string_lossy());
    }
    if attributes.set & attr::RDONLY != 0 {
        let readonly = MountAttr {
            set: attr::RDONLY,
            ..MountAttr::default()
        };
        fs::set_attributes(tmpfs.as_fd(), &readonly, false).ctx("cannot make it read-only")?;
    }
    Ok(tmpfs)
}

/// One hierarchy as the container sees it.
fn hierarchy(
    dir: &Path,
    kind: &str,
    data: &[(String, Option<String>)],
    attributes: &MountAttr,
    view: &View<'_>,
) -> Step<OwnedFd> {
    if view.namespaced
        && let Ok(tree) = fs::create(kind, Some(Path::new("cgroup")), data, attributes)
    {
        return Ok(tree);
    }
    let tree = fs::clone_tree(CWD, dir, false).with(|| format!("cannot show {}", dir.display()))?;
    fs::set_attributes(tree.as_fd(), attributes, false).ctx("cannot set its options")?;
    Ok(tree)
}

/// Mount data of a v1 hierarchy from the name of its directory.
fn v1_data(name: &str) -> Vec<(String, Option<String>)> {
    let known = |part: &str| cgroup::Controller::from_name(part).is_some();
    if name.split(',').all(known) {
        return name
            .split(',')
            .map(|part| (part.to_owned(), None))
            .collect();
    }
    vec![
        ("none".to_owned(), None),
        ("name".to_owned(), Some(name.to_owned())),
    ]
}

/// `cpu -> cpu,cpuacct` for hierarchies with several controllers. They only help old tools: not having
/// one is no failure.
fn links(tmpfs: &OwnedFd, name: &str) {
    if name.contains(',') {
        for part in name.split(',') {
            let _ = rustix::fs::symlinkat(name, tmpfs, part);
        }
    }
}
