//! The container's root: a directory of the bundle, or an overlay that exists nowhere else.
//!
//! The tree is made detached by the parent, which may read directories the container's root may not,
//! and becomes the root of the child's own mount namespace. On the host nothing is ever mounted, so
//! nothing can be left behind by a crash at any point.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, UnmountFlags, fsconfig_set_string, fsopen};

use super::options::attr;
use super::{fs, layers};
use crate::error::{Context, Failure, Step};
use crate::sys::MountAttr;

/// Most layers of an overlay, the kernel's own limit.
pub const MAX_LAYERS: usize = 500;

/// Where a container's root comes from.
#[derive(Clone, Debug, Default)]
pub enum Rootfs {
    /// `root.path` of the configuration.
    #[default]
    Bundle,
    /// An overlay of read-only layers and one writable directory, in place of `root.path`.
    Overlay(Overlay),
}

/// An overlay made for one container and visible only inside it (overlayfs of the kernel).
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    /// Read-only layers, topmost first, at least one.
    pub lower: Vec<PathBuf>,
    /// Directory that receives the changes; `None` makes the root read-only.
    pub upper: Option<PathBuf>,
    /// Empty directory on the file system of `upper`, for the kernel.
    pub work: Option<PathBuf>,
    /// With a user namespace: maps ids of the layers' files, so that they are stored with the ids the
    /// container sees (0 to 65535) and one layer serves containers with any mapping.
    pub idmap: bool,
    /// More overlay options, such as `volatile` or `metacopy=on`.
    pub options: Vec<String>,
}

/// How the ids of files are shifted: by the user namespace that holds the mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shift<'a> {
    /// The namespace.
    pub userns: BorrowedFd<'a>,
    /// User and group outside that are root inside.
    pub root: (u32, u32),
}

/// No shift, or one.
pub(crate) type Userns<'a> = Option<Shift<'a>>;

impl Rootfs {
    /// Makes the detached root. `userns` is the container's user namespace, if it has a new one.
    pub(crate) fn open(&self, bundle: &Path, root: &Path, userns: Userns<'_>) -> Step<OwnedFd> {
        match self {
            Rootfs::Bundle => {
                let path = bundle.join(root);
                fs::clone_tree(CWD, &path, true)
                    .with(|| format!("cannot use root.path {}", path.display()))
            }
            Rootfs::Overlay(overlay) => overlay.mount(userns),
        }
    }

    /// Whether making it needs the container's user namespace.
    pub(crate) fn needs_userns(&self) -> bool {
        matches!(self, Rootfs::Overlay(overlay) if overlay.idmap)
    }
}

impl Overlay {
    /// Makes the overlay for the caller alone, who need not be single-threaded: a detached mount
    /// that is in no mount table and goes with its last descriptor. Ids are those on disk. Without
    /// `upper` it can only be read, also while others do; with it, no second mount may have the
    /// same `upper` at the same time.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn open_detached(&self) -> Result<OwnedFd, Failure> {
        self.mount(None)
    }

    fn mount(&self, userns: Userns<'_>) -> Step<OwnedFd> {
        if self.lower.is_empty() || self.lower.len() > MAX_LAYERS {
            return Err(Failure::new(
                "cannot make the overlay root",
                format!(
                    "it has {} lower layers; 1 to {MAX_LAYERS} are possible",
                    self.lower.len()
                ),
            ));
        }
        let shift = if self.idmap { userns } else { None };
        // The kernel clones each mount when the overlay is made: until then none may be let go.
        let mut trees = Vec::with_capacity(self.lower.len());
        for layer in &self.lower {
            trees.push(layer_tree(layer, shift, true)?);
        }
        let upper = match (&self.upper, &self.work) {
            (Some(upper), Some(work)) => {
                // Both must be reached through one mount, or the kernel refuses.
                let parent = common_parent(upper, work);
                let tree = layer_tree(&parent, shift, false)?;
                let both = [below(&tree, &parent, upper)?, below(&tree, &parent, work)?];
                Some((tree, both))
            }
            _ => None,
        };
        let both = upper.as_ref().map(|(_, both)| both);
        match self.make(&trees, both, shift) {
            Err(failure) if layers::may_be_detached(&failure) => {
                let writable = upper.as_ref().map(|(tree, _)| tree);
                layers::with_attached(trees.iter().chain(writable), || {
                    self.make(&trees, both, shift)
                })
            }
            made => made,
        }
    }

    /// Makes it of its layers, opened, and its upper and work directory.
    fn make(
        &self,
        lower: &[OwnedFd],
        upper_and_work: Option<&[OwnedFd; 2]>,
        shift: Userns<'_>,
    ) -> Step<OwnedFd> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|errno| fs::explain("overlay", None, errno))?;
        let names = layers::give(&context, lower, upper_and_work)?;
        for option in &self.options {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            match value {
                "" => rustix::mount::fsconfig_set_flag(&context, key),
                value => fsconfig_set_string(&context, key, value),
            }
            .map_err(|errno| fs::explain("overlay", Some(&context), errno))?;
        }
        // The kernel keeps the ids of whoever makes an overlay and works on the upper directory with
        // them: they must exist in the mapping, so the container's root makes it.
        let acting = shift
            .map(|shift| crate::caps::ActAs::files_of(shift.root))
            .transpose()?;
        let made = fs::finish("overlay", &context, &MountAttr::default());
        drop((acting, names));
        made
    }
}

/// A detached, possibly id-mapped clone of a layer's directory.
fn layer_tree(path: &Path, userns: Userns<'_>, readonly: bool) -> Step<OwnedFd> {
    let what = || format!("cannot open the layer {}", path.display());
    let tree = fs::clone_tree(CWD, path, false).with(what)?;
    let mut attributes = MountAttr::default();
    if readonly {
        attributes.set = attr::RDONLY;
    }
    if let Some(shift) = userns {
        attributes.set |= attr::IDMAP;
        attributes.userns_fd = shift.userns.as_raw_fd() as u64;
    }
    fs::set_attributes(tree.as_fd(), &attributes, false).with(|| {
        format!(
            "cannot map the ids of the layer {}; its file system must support id-mapped mounts \
             (ext4, xfs, btrfs, tmpfs do)",
            path.display()
        )
    })?;
    Ok(tree)
}

/// Opens a directory below a detached tree.
fn below(tree: &OwnedFd, parent: &Path, path: &Path) -> Step<OwnedFd> {
    let relative = path.strip_prefix(parent).unwrap_or(path);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(tree, relative, flags, Mode::empty())
        .with(|| format!("cannot open the overlay directory {}", path.display()))
}

fn common_parent(a: &Path, b: &Path) -> PathBuf {
    a.components()
        .zip(b.components())
        .take_while(|(x, y)| x == y)
        .map(|(x, _)| x)
        .collect()
}

/// Makes the attached mount at `root` the root of this process and its namespace, and lets go of the
/// old one.
pub(crate) fn pivot(root: BorrowedFd<'_>, no_pivot: bool) -> Step<()> {
    if no_pivot {
        return move_to_root(root);
    }
    let old = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ctx("cannot open the old root")?;
    rustix::process::fchdir(root).ctx("cannot enter the new root")?;
    rustix::process::pivot_root(".", ".").map_err(|errno| {
        let what = match errno {
            Errno::INVAL => {
                "cannot pivot to the new root (on a host that runs from its initramfs use --no-pivot)"
            }
            _ => "cannot pivot to the new root",
        };
        Failure { what: what.into(), source: errno.into(), program: false }
    })?;
    // The old root now lies on top of the new one; both are ".", the old one is on top.
    rustix::process::fchdir(&old).ctx("cannot enter the old root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).ctx("cannot let go of the old root")?;
    rustix::process::chdir("/").ctx("cannot enter the new root")
}

fn move_to_root(root: BorrowedFd<'_>) -> Step<()> {
    rustix::process::fchdir(root).ctx("cannot enter the new root")?;
    rustix::mount::mount_move(".", "/").ctx("cannot move the new root to /")?;
    chroot_here()
}

/// Makes the current directory the root of this process only.
pub(crate) fn chroot_here() -> Step<()> {
    rustix::process::chroot(".").ctx("cannot change the root")?;
    rustix::process::chdir("/").ctx("cannot enter the new root")
}
