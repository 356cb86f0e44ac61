//! Device nodes and the standard links of `/dev` (config-linux.md, "Default Devices").
//!
//! With rights over devices they are made with mknod(2). In a user namespace the kernel forbids that, so
//! the parent opens the host's nodes beforehand ([`borrow`]) and the child mounts them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Gid, Mode, Uid};
use rustix::io::Errno;

use super::{fs, target};
use crate::error::{Context, Failure, Step};
use crate::spec::Device;

/// The nodes every container has, by name in `/dev`, all character devices with mode 0666.
const STANDARD: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// One node to make, with the host's node where it cannot be made.
#[derive(Debug)]
pub(crate) struct Node {
    path: PathBuf,
    kind: FileType,
    device: u64,
    mode: u32,
    owner: (u32, u32),
    host: Option<OwnedFd>,
}

/// The nodes of a container: the standard ones and those of its configuration, which win.
pub(crate) fn plan(devices: &[Device]) -> Vec<Node> {
    let mut nodes: Vec<Node> = STANDARD
        .iter()
        .map(|(name, major, minor)| Node {
            path: Path::new("/dev").join(name),
            kind: FileType::CharacterDevice,
            device: rustix::fs::makedev(*major, *minor),
            mode: 0o666,
            owner: (0, 0),
            host: None,
        })
        .collect();
    for device in devices {
        nodes.retain(|node| node.path != device.path);
        nodes.push(Node {
            path: device.path.clone(),
            kind: match device.kind.as_str() {
                "b" => FileType::BlockDevice,
                "p" => FileType::Fifo,
                _ => FileType::CharacterDevice,
            },
            device: rustix::fs::makedev(device.major as u32, device.minor as u32),
            mode: device.file_mode.unwrap_or(0o666) & 0o7777,
            owner: (device.uid.unwrap_or(0), device.gid.unwrap_or(0)),
            host: None,
        });
    }
    nodes
}

/// Opens the host's nodes, for a child that may not make its own.
pub(crate) fn borrow(nodes: &mut [Node]) -> Step<()> {
    for node in nodes.iter_mut().filter(|node| node.kind != FileType::Fifo) {
        let what = || format!("cannot use the host's device {}", node.path.display());
        let tree = fs::clone_tree(CWD, &node.path, false).with(what)?;
        let stat = rustix::fs::fstat(&tree).with(what)?;
        if stat.st_rdev != node.device || FileType::from_raw_mode(stat.st_mode) != node.kind {
            return Err(Failure::new(
                what(),
                "in a user namespace devices are mounted from the host, and there the path is another device",
            ));
        }
        node.host = Some(tree);
    }
    Ok(())
}

/// Makes the nodes and links. The caller's umask must be 0.
pub(crate) fn create(root: impl AsFd, nodes: &[Node]) -> Step<()> {
    let dev = target::ensure(&root, Path::new("/dev"), target::Kind::Directory)?;
    for node in nodes {
        if node.path.parent() == Some(Path::new("/dev")) {
            let name = node.path.file_name().unwrap_or_default();
            node.create(&dev, name)?;
        } else {
            let (parent, name) = target::ensure_parent(&root, &node.path)?;
            node.create(&parent, name)?;
        }
    }
    for (to, name) in LINKS {
        match rustix::fs::symlinkat(to, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).with(|| format!("cannot make the link /dev/{name}")),
        }
    }
    Ok(())
}

impl Node {
    fn create(&self, dir: &OwnedFd, name: &std::ffi::OsStr) -> Step<()> {
        let what = || format!("cannot make the device {}", self.path.display());
        if let Some(host) = &self.host {
            return self.mount(host, dir, name).with(what);
        }
        match rustix::fs::mknodat(
            dir,
            name,
            self.kind,
            Mode::from_raw_mode(self.mode),
            self.device,
        ) {
            Ok(()) => {}
            Err(Errno::EXIST) => return self.accept(dir, name).with(what),
            Err(errno) => return Err(errno).with(what),
        }
        if self.owner != (0, 0) {
            let (uid, gid) = (Uid::from_raw(self.owner.0), Gid::from_raw(self.owner.1));
            rustix::fs::chownat(
                dir,
                name,
                Some(uid),
                Some(gid),
                rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
            )
            .with(what)?;
        }
        Ok(())
    }

    /// What the image has already may stay if it is the same device.
    fn accept(&self, dir: &OwnedFd, name: &std::ffi::OsStr) -> Result<(), Errno> {
        let stat = rustix::fs::statat(dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        let same = FileType::from_raw_mode(stat.st_mode) == self.kind
            && (self.kind == FileType::Fifo || stat.st_rdev == self.device);
        if same { Ok(()) } else { Err(Errno::EXIST) }
    }

    fn mount(&self, host: &OwnedFd, dir: &OwnedFd, name: &std::ffi::OsStr) -> Result<(), Errno> {
        use rustix::fs::OFlags;
        let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let place =
            match rustix::fs::openat(dir, name, flags | OFlags::EXCL, Mode::from_raw_mode(0o644)) {
                Err(Errno::EXIST) => rustix::fs::openat(
                    dir,
                    name,
                    OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )?,
                other => other?,
            };
        fs::attach(host, &place)
    }
}
