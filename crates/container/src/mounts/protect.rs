//! Masked and read-only paths (config-linux.md). Runs in the child, below its new root.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, OFlags};
use rustix::io::Errno;

use super::options::attr;
use super::{fs, target};
use crate::error::{Context, Failure, Step};
use crate::sys::MountAttr;

const READONLY: MountAttr = MountAttr {
    set: attr::RDONLY,
    clear: 0,
    propagation: 0,
    userns_fd: 0,
};

/// Hides each path: files behind `/dev/null`, directories behind one empty read-only tmpfs that all
/// of them share. What does not exist needs no hiding.
pub(crate) fn mask(root: impl AsFd, paths: &[PathBuf]) -> Step<()> {
    if paths.is_empty() {
        return Ok(());
    }
    // The host's node, not the container's: an image cannot choose what hides its secrets.
    let null = rustix::fs::open(
        "/dev/null",
        OFlags::PATH | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .ctx("cannot open /dev/null")?;
    let stat = rustix::fs::fstat(&null).ctx("cannot examine /dev/null")?;
    if stat.st_rdev != rustix::fs::makedev(1, 3) {
        return Err(Failure::new(
            "cannot mask paths",
            "/dev/null of the host is not the null device",
        ));
    }
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let what = || format!("cannot mask {}", path.display());
        let Some((victim, kind)) = find(&root, path).with(what)? else {
            continue;
        };
        let cover = if kind == FileType::Directory {
            match &empty {
                Some(first) => fs::clone_tree(first, Path::new(""), false).with(what)?,
                None => {
                    let data = [
                        ("size".to_owned(), Some("0".to_owned())),
                        ("mode".to_owned(), Some("555".to_owned())),
                    ];
                    let first = fs::create("tmpfs", Some(Path::new("tmpfs")), &data, &READONLY)?;
                    fs::attach(&first, &victim).with(what)?;
                    empty = Some(first);
                    continue;
                }
            }
        } else {
            fs::clone_tree(CWD, Path::new("/dev/null"), false).with(what)?
        };
        fs::attach(&cover, &victim).with(what)?;
    }
    Ok(())
}

/// Makes each path read-only, with everything mounted below it.
pub(crate) fn make_readonly(root: impl AsFd, paths: &[PathBuf]) -> Step<()> {
    for path in paths {
        let what = || format!("cannot make {} read-only", path.display());
        let Some((place, _)) = find(&root, path).with(what)? else {
            continue;
        };
        let tree = fs::clone_tree(&place, Path::new(""), true).with(what)?;
        fs::set_attributes(tree.as_fd(), &READONLY, true).with(what)?;
        fs::attach(&tree, &place).with(what)?;
    }
    Ok(())
}

fn find(root: impl AsFd, path: &Path) -> Result<Option<(OwnedFd, FileType)>, Errno> {
    match target::open(root, path, OFlags::PATH) {
        Ok(fd) => {
            let stat = rustix::fs::fstat(&fd)?;
            Ok(Some((fd, FileType::from_raw_mode(stat.st_mode))))
        }
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
        Err(errno) => Err(errno),
    }
}
