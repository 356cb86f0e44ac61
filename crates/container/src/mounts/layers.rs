//! Giving an overlay its layers, in the way that the kernel at hand understands.
//!
//! | Linux | |
//! |---|---|
//! | 6.13 | each by its descriptor |
//! | 6.7 | each by a path: the descriptor's link in /proc |
//! | before | all lower ones as one string, which may have 255 bytes |
//!
//! For the last, the paths have to be as short as they get: in `/proc/self/fd`, the descriptor's number.
//!
//! Before Linux 6.15 layers must also be mounts of the caller's own namespace (`clone_private_mount`, `fs/namespace.c`): [`with_attached`] makes them so, in one that is
//! left again at once, so that the host never has them.
//!
//! Used by `rootfs` alone. Source: `fs/overlayfs/params.c`, `fs/fsopen.c`.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, fsconfig_set_fd, fsconfig_set_string, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::fs;
use crate::error::{Context, Failure, Step};

/// Longest value of an option of a file system (`fsconfig(2)`), without the final zero.
const MAX_VALUE: usize = 255;

/// Names that must stay good until the overlay is made: when dropped, the caller is where it was.
pub(super) struct Names(Option<OwnedFd>);

impl Drop for Names {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // It was left through this descriptor, and nobody can take it away.
            let _ = rustix::process::fchdir(before);
        }
    }
}

/// Gives the overlay its lower layers, topmost first, and upper and work directory.
pub(super) fn give(
    context: &OwnedFd,
    lower: &[OwnedFd],
    upper_and_work: Option<&[OwnedFd; 2]>,
) -> Step<Names> {
    for (place, layer) in lower.iter().enumerate() {
        match one(context, "lowerdir+", layer) {
            Err(Errno::INVAL | Errno::OPNOTSUPP) if place == 0 => {
                return by_numbers(context, lower, upper_and_work);
            }
            other => other.map_err(|errno| fs::explain("overlay", Some(context), errno))?,
        }
    }
    for (key, layer) in ["upperdir", "workdir"]
        .iter()
        .zip(upper_and_work.into_iter().flatten())
    {
        one(context, key, layer).map_err(|errno| fs::explain("overlay", Some(context), errno))?;
    }
    Ok(Names(None))
}

/// By descriptor, or by its link.
fn one(context: &OwnedFd, key: &str, layer: &OwnedFd) -> Result<(), Errno> {
    match fsconfig_set_fd(context, key, layer) {
        Err(Errno::INVAL) => {
            let link = OsString::from(format!("/proc/self/fd/{}", layer.as_raw_fd()));
            fsconfig_set_string(context, key, link.as_os_str())
        }
        other => other,
    }
}

fn by_numbers(
    context: &OwnedFd,
    lower: &[OwnedFd],
    upper_and_work: Option<&[OwnedFd; 2]>,
) -> Step<Names> {
    let numbers: Vec<String> = lower
        .iter()
        .map(|layer| layer.as_raw_fd().to_string())
        .collect();
    let all = numbers.join(":");
    if all.len() > MAX_VALUE {
        return Err(Failure::new(
            "cannot make the overlay root",
            format!(
                "it has {} lower layers, more than this kernel takes at once; Linux 6.7 takes 500",
                lower.len()
            ),
        ));
    }
    let names = enter()?;
    let set = |key: &str, value: &str| {
        fsconfig_set_string(context, key, value)
            .map_err(|errno| fs::explain("overlay", Some(context), errno))
    };
    set("lowerdir", &all)?;
    for (key, layer) in ["upperdir", "workdir"]
        .iter()
        .zip(upper_and_work.into_iter().flatten())
    {
        set(key, &layer.as_raw_fd().to_string())?;
    }
    Ok(names)
}

/// Whether a refusal may mean that the layers are mounts of no namespace.
pub(super) fn may_be_detached(failure: &Failure) -> bool {
    failure.source.raw_os_error() == Some(Errno::INVAL.raw_os_error())
}

/// Does `work` while the detached mounts are attached: in a mount namespace that only the calling thread
/// is in, and leaves afterwards.
pub(super) fn with_attached<'a, T>(
    mounts: impl Iterator<Item = &'a OwnedFd>,
    work: impl FnOnce() -> Step<T>,
) -> Step<T> {
    let apart = Apart::leave()?;
    let done = attach_all(mounts).and_then(|()| work());
    apart.come_back()?;
    done
}

fn attach_all<'a>(mounts: impl Iterator<Item = &'a OwnedFd>) -> Step<()> {
    // Nothing done here may reach the host's namespace.
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .ctx("cannot make the mounts of a namespace private")?;
    let root = open_here("/")?;
    for mount in mounts {
        // One over the other: each is known by its descriptor.
        fs::attach(mount, &root).ctx("cannot attach a layer of the overlay root")?;
    }
    Ok(())
}

/// The way back to where the calling thread was.
struct Apart {
    namespace: OwnedFd,
    root: OwnedFd,
    here: OwnedFd,
}

impl Apart {
    fn leave() -> Step<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = rustix::fs::open("/proc/thread-self/ns/mnt", flags, Mode::empty())
            .ctx("cannot open the mount namespace")?;
        let (root, here) = (open_here("/")?, open_here(".")?);
        // SAFETY: the thread has mounts, a current directory and a umask of its own from now on;
        // descriptors and memory stay shared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }
            .ctx("cannot make a mount namespace")?;
        Ok(Self {
            namespace,
            root,
            here,
        })
    }

    fn come_back(self) -> Step<()> {
        use rustix::process::{chroot, fchdir};
        use std::os::fd::AsFd as _;
        move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::Mount))
            .and_then(|()| fchdir(&self.root))
            .and_then(|()| chroot("."))
            .and_then(|()| fchdir(&self.here))
            .ctx("cannot come back to the host's mount namespace")
    }
}

fn open_here(path: &str) -> Step<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).with(|| format!("cannot open {path}"))
}

/// Enters the directory whose names are the descriptors' numbers: for the calling thread alone.
fn enter() -> Step<Names> {
    // SAFETY: from now on this thread has a current directory and a umask of its own; descriptors and
    // memory stay shared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }
        .ctx("cannot have a current directory of one's own")?;
    let before = open_here(".")?;
    rustix::process::chdir("/proc/thread-self/fd").ctx("cannot enter /proc/thread-self/fd")?;
    Ok(Names(Some(before)))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::path::Path;

    use rustix::mount::{FsOpenFlags, fsopen};

    use super::*;
    use crate::sys::MountAttr;

    fn open(path: &Path) -> OwnedFd {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).unwrap()
    }

    fn read(root: &OwnedFd, name: &str) -> String {
        let fd = rustix::fs::openat(root, name, OFlags::RDONLY, Mode::empty()).unwrap();
        let mut text = String::new();
        std::fs::File::from(fd).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn layers_given_by_their_numbers_lie_in_the_same_order() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP layers_given_by_their_numbers: needs root");
            return;
        }
        // Not in a tmpfs, which has been no upper layer for long.
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let directory = |name: &str| {
            let path = place.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("who"), name).unwrap();
            std::fs::write(path.join(name), name).unwrap();
            path
        };
        let lower: Vec<OwnedFd> = ["top", "bottom"].map(|name| open(&directory(name))).into();
        let (upper, work) = (directory("upper"), place.path().join("work"));
        std::fs::create_dir(&work).unwrap();
        std::fs::remove_file(upper.join("who")).unwrap();
        let both = [open(&upper), open(&work)];
        let before = std::env::current_dir().unwrap();
        let namespace = || std::fs::read_link("/proc/thread-self/ns/mnt").unwrap();
        let ours = namespace();
        for give in [give, by_numbers] {
            let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
            let names = give(&context, &lower, Some(&both)).unwrap();
            let root = fs::finish("overlay", &context, &MountAttr::default()).unwrap();
            drop(names);
            assert_eq!(std::env::current_dir().unwrap(), before);
            assert_eq!(read(&root, "who"), "top");
            assert_eq!(read(&root, "bottom"), "bottom");
            assert_eq!(read(&root, "upper"), "upper");
        }
        // Attached where nobody else is.
        let trees = ["top", "bottom"]
            .map(|name| fs::clone_tree(CWD, &place.path().join(name), false).unwrap());
        let root = with_attached(trees.iter(), || {
            assert_ne!(namespace(), ours);
            let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
            let _names = by_numbers(&context, &trees, None)?;
            fs::finish("overlay", &context, &MountAttr::default())
        });
        assert_eq!(read(&root.unwrap(), "who"), "top");
        assert_eq!(namespace(), ours);
        assert_eq!(std::env::current_dir().unwrap(), before);
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(place.path().to_str().unwrap()), "{mounts}");
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        let many: Vec<OwnedFd> = (0..200).map(|_| lower[0].try_clone().unwrap()).collect();
        let refused = by_numbers(&context, &many, None).err().unwrap();
        assert!(
            refused.to_string().contains("200 lower layers")
                || format!("{refused:?}").contains("200 lower layers")
        );
    }
}
