//! A container's mounts: planned by the parent, made by the child in its own mount namespace.
//!
//! ```text
//!  parent                                   child
//!   plan(): options parsed,                  attach_root(): the tree becomes a mount of the namespace
//!           bind sources and the root ──►    make(): file systems and binds, in the order given
//!           opened as detached trees         protect: masked and read-only paths
//!                                            rootfs::pivot(): the old root is gone
//! ```
//!
//! With a user namespace bind sources are opened by the parent: it sees the host's paths with the
//! caller's rights, which the child then has not. From then on only descriptors count. Never mounts anything in
//! the host's namespace.

mod cgroupfs;
mod copy_up;
pub(crate) mod devices;
pub(crate) mod fs;
mod layers;
pub(crate) mod options;
pub(crate) mod protect;
pub(crate) mod rootfs;
pub(crate) mod target;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Context, Failure, Step};
use crate::idmap::Namespaces;
use crate::spec::{Mount, NamespaceKind, Spec};
use crate::sys::MountAttr;
use options::{Options, attr};
pub(crate) use rootfs::Shift;
use rootfs::Userns;
pub use rootfs::{MAX_LAYERS, Overlay, Rootfs};

pub(crate) use cgroupfs::View as CgroupView;

/// One mount to make.
#[derive(Debug)]
pub(crate) struct Planned<'a> {
    pub mount: &'a Mount,
    pub options: Options,
    /// For binds: the source, detached.
    pub tree: Option<OwnedFd>,
}

/// All mounts of a container.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// The detached root; `None` while it waits for the user namespace.
    pub root: Option<OwnedFd>,
    /// Where relative sources start.
    pub bundle: PathBuf,
    /// Where the root is attached before it becomes "/": a path hooks may know.
    pub root_path: PathBuf,
    pub mounts: Vec<Planned<'a>>,
    /// Nodes to make; none if `/dev` is the host's.
    pub devices: Vec<devices::Node>,
    /// Mount propagation of the whole namespace: kind, recursive.
    pub propagation: (u64, bool),
    /// A new user namespace is made.
    pub userns: bool,
    /// The parent may not clone mounts (rootless): the child opens everything, as root of its user
    /// namespace and with the same user's view of the files.
    unprivileged: bool,
}

/// Plans the mounts of `spec` and opens everything that does not need the user namespace.
pub(crate) fn plan<'a>(spec: &'a Spec, bundle: &Path, rootfs: &Rootfs) -> Step<Plan<'a>> {
    let userns = spec.linux.is_new(NamespaceKind::User);
    let propagation = root_propagation(&spec.linux.rootfs_propagation);
    let root_config = spec
        .root
        .as_ref()
        .map(|root| root.path.as_path())
        .unwrap_or(Path::new("rootfs"));
    let mut plan = Plan {
        root: None,
        bundle: bundle.to_owned(),
        root_path: bundle.join(root_config),
        mounts: Vec::with_capacity(spec.mounts.len()),
        devices: devices::plan(&spec.linux.devices),
        propagation,
        userns,
        unprivileged: userns && !crate::caps::is_admin()?,
    };
    if plan.unprivileged {
        if rootfs.needs_userns()
            || spec
                .mounts
                .iter()
                .any(|mount| !mount.uid_mappings.is_empty())
        {
            return Err(Failure::new(
                "cannot map the ids of mounts",
                "that needs root on the host",
            ));
        }
        for mount in &spec.mounts {
            plan.mounts.push(Planned {
                mount,
                options: parse_options(mount)?,
                tree: None,
            });
        }
        plan.keep_host_devices();
        return Ok(plan);
    }
    if !(userns && rootfs.needs_userns()) {
        plan.root = Some(cut(
            rootfs.open(bundle, root_config, None)?,
            libc::MS_SLAVE,
        )?);
    }
    let mut namespaces = Namespaces::default();
    for mount in &spec.mounts {
        let mut planned = Planned {
            mount,
            options: parse_options(mount)?,
            tree: None,
        };
        // Opened now only where the child could not: the list of mounts inside then has the order of
        // the configuration, since the kernel sorts it by when a mount was first made.
        let now = spec.linux.has(NamespaceKind::User)
            || spec.linux.joined(NamespaceKind::Mount).is_some()
            || !mount.uid_mappings.is_empty();
        if now && planned.is_bind() && mount.kind != "cgroup" {
            let own_map = !mount.uid_mappings.is_empty();
            if planned.options.idmap.is_none() || own_map {
                planned.tree =
                    Some(planned.open_source(bundle, propagation.0, None, &mut namespaces)?);
            }
        }
        plan.mounts.push(planned);
    }
    plan.keep_host_devices();
    if spec.linux.has(NamespaceKind::User) {
        devices::borrow(&mut plan.devices)?;
    }
    Ok(plan)
}

/// Opens in the parent what had to wait for the user namespace, in an order both sides know: the root,
/// then the mounts.
pub(crate) fn open_late(
    spec: &Spec,
    bundle: &Path,
    rootfs: &Rootfs,
    shift: Shift<'_>,
) -> Step<Vec<OwnedFd>> {
    let (propagation, _) = root_propagation(&spec.linux.rootfs_propagation);
    let mut late = Vec::new();
    if rootfs.needs_userns() {
        let root = spec
            .root
            .as_ref()
            .map(|root| root.path.as_path())
            .unwrap_or(Path::new("rootfs"));
        late.push(cut(
            rootfs.open(bundle, root, Some(shift))?,
            libc::MS_SLAVE,
        )?);
    }
    let mut namespaces = Namespaces::default();
    for mount in &spec.mounts {
        let planned = Planned {
            mount,
            options: parse_options(mount)?,
            tree: None,
        };
        if planned.is_late() {
            late.push(planned.open_source(bundle, propagation, Some(shift), &mut namespaces)?);
        }
    }
    Ok(late)
}

fn parse_options(mount: &Mount) -> Step<Options> {
    options::parse(mount)
        .map_err(|why| Failure::new(format!("cannot mount {}", mount.destination.display()), why))
}

/// Cuts a tree taken from the host off from the host's propagation, as a slave mount namespace would
/// be: what the container mounts must not appear outside.
fn cut(tree: OwnedFd, propagation: u64) -> Step<OwnedFd> {
    if propagation != libc::MS_SHARED {
        fs::set_propagation(tree.as_fd(), libc::MS_SLAVE, true)
            .ctx("cannot detach a mount from the host's propagation")?;
    }
    Ok(tree)
}

impl Plan<'_> {
    /// Takes what [`open_late`] opened, in the child.
    pub(crate) fn accept_late(&mut self, late: Vec<OwnedFd>) -> Step<()> {
        if self.unprivileged {
            return Ok(());
        }
        let mut late = late.into_iter();
        let missing = || Failure::new("cannot use the mounts of the runtime", "one is missing");
        if self.root.is_none() {
            self.root = Some(late.next().ok_or_else(missing)?);
        }
        for planned in self.mounts.iter_mut().filter(|planned| planned.is_late()) {
            planned.tree = Some(late.next().ok_or_else(missing)?);
        }
        Ok(())
    }

    /// Opens in the child what an unprivileged parent could not.
    pub(crate) fn open_unprivileged(&mut self) -> Step<()> {
        if self.unprivileged {
            let root = Rootfs::Bundle.open(&self.bundle, &self.root_path, None)?;
            self.root = Some(cut(root, libc::MS_SLAVE)?);
            devices::borrow(&mut self.devices)?;
        }
        Ok(())
    }

    /// Nothing is made in a `/dev` that is the host's.
    fn keep_host_devices(&mut self) {
        let is_host = |planned: &Planned<'_>| {
            planned.is_bind() && planned.mount.destination == Path::new("/dev")
        };
        if self.mounts.iter().any(is_host) {
            self.devices.clear();
        }
    }

    /// Whether anything waits for the user namespace.
    pub(crate) fn has_late(&self) -> bool {
        !self.unprivileged && self.has_gaps()
    }

    fn has_gaps(&self) -> bool {
        self.root.is_none() || self.mounts.iter().any(Planned::is_late)
    }

    /// Attaches the root inside the new mount namespace and returns it. The umask becomes 0.
    pub(crate) fn attach_root(&self) -> Step<BorrowedFd<'_>> {
        let root = self
            .root
            .as_ref()
            .ok_or_else(|| Failure::new("cannot attach the root", "there is none"))?;
        let slave = MountAttr {
            propagation: libc::MS_SLAVE,
            ..MountAttr::default()
        };
        crate::sys::mount_setattr(CWD, c"/", true, &slave)
            .ctx("cannot set the propagation of the mount namespace")?;
        // The path a hook knows, if it can be reached with the rights of the container's root.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = rustix::fs::open(&self.root_path, flags, rustix::fs::Mode::empty())
            .or_else(|_| rustix::fs::open("/", flags, rustix::fs::Mode::empty()))
            .ctx("cannot find a place for the root")?;
        fs::attach(root, &place).ctx("cannot attach the root")?;
        rustix::process::umask(rustix::fs::Mode::empty());
        Ok(root.as_fd())
    }

    /// Makes the mounts in order. Returns the read-only ones among the file systems, which stay
    /// writable until everything inside them is made: [`finish`] ends that.
    pub(crate) fn make(&mut self, view: &CgroupView<'_>) -> Step<Vec<(OwnedFd, PathBuf)>> {
        let mut readonly = Vec::new();
        let root = self
            .root
            .take()
            .ok_or_else(|| Failure::new("cannot mount", "there is no root"))?;
        for planned in &mut self.mounts {
            let destination = planned.mount.destination.clone();
            let made = planned
                .make(
                    root.as_fd(),
                    &self.bundle,
                    (self.userns, self.propagation.0),
                    view,
                )
                .map_err(|failure| locate(failure, &destination))?;
            readonly.extend(made.map(|tree| (tree, destination)));
        }
        self.root = Some(root);
        Ok(readonly)
    }
}

/// Makes read-only what was kept writable for the set-up.
pub(crate) fn finish(readonly: &[(OwnedFd, PathBuf)]) -> Step<()> {
    let attributes = MountAttr {
        set: attr::RDONLY,
        ..MountAttr::default()
    };
    for (tree, path) in readonly {
        fs::set_attributes(tree.as_fd(), &attributes, false)
            .with(|| format!("cannot make {} read-only", path.display()))?;
    }
    Ok(())
}

/// Gives the root the propagation that was asked for. After the pivot, which refuses a shared root.
pub(crate) fn propagate_root(plan: &Plan<'_>) -> Step<()> {
    let (kind, recursive) = plan.propagation;
    if kind == libc::MS_SLAVE {
        return Ok(());
    }
    crate::sys::mount_setattr(
        CWD,
        c"/",
        recursive,
        &MountAttr {
            propagation: kind,
            ..MountAttr::default()
        },
    )
    .ctx("cannot set linux.rootfsPropagation")
}

/// Makes the whole root read-only (not what is mounted below it).
pub(crate) fn make_root_readonly(root: BorrowedFd<'_>) -> Step<()> {
    let attributes = MountAttr {
        set: attr::RDONLY,
        ..MountAttr::default()
    };
    fs::set_attributes(root, &attributes, false).ctx("cannot make the root read-only")
}

fn locate(failure: Failure, destination: &Path) -> Failure {
    let what = format!("cannot mount {}: {}", destination.display(), failure.what);
    Failure {
        what: what.into(),
        source: failure.source,
        program: false,
    }
}

impl<'a> Planned<'a> {
    fn is_bind(&self) -> bool {
        self.options.bind.is_some() && !self.options.remount
    }

    fn is_late(&self) -> bool {
        self.is_bind() && self.options.idmap.is_some() && self.mount.uid_mappings.is_empty()
    }

    /// Opens a bind's source as a detached tree with its ids mapped.
    fn open_source(
        &self,
        bundle: &Path,
        propagation: u64,
        userns: Userns<'_>,
        namespaces: &mut Namespaces<'a>,
    ) -> Step<OwnedFd> {
        let source = bundle.join(&self.mount.source);
        let recursive = self.options.bind == Some(true);
        let tree = fs::clone_tree(CWD, &source, recursive).with(|| {
            format!(
                "cannot bind {} to {}",
                source.display(),
                self.mount.destination.display()
            )
        })?;
        let tree = cut(tree, propagation)?;
        let Some(deep) = self.options.idmap else {
            return Ok(tree);
        };
        let userns = match userns {
            Some(shift) if self.mount.uid_mappings.is_empty() => shift.userns,
            _ if self.mount.uid_mappings.is_empty() => {
                return Err(Failure::new(
                    format!("cannot map the ids of {}", source.display()),
                    "idmap without uidMappings needs a new user namespace",
                ));
            }
            _ => namespaces.get(&self.mount.uid_mappings, &self.mount.gid_mappings)?,
        };
        let attributes = MountAttr {
            set: attr::IDMAP,
            userns_fd: userns.as_raw_fd() as u64,
            ..MountAttr::default()
        };
        fs::set_attributes(tree.as_fd(), &attributes, deep).with(|| {
            format!(
                "cannot map the ids of {}; its file system must support id-mapped mounts \
                 (ext4, xfs, btrfs, tmpfs do)",
                source.display()
            )
        })?;
        Ok(tree)
    }

    /// Makes this mount; returns it if it has to become read-only later.
    fn make(
        &mut self,
        root: BorrowedFd<'_>,
        bundle: &Path,
        (userns, propagation): (bool, u64),
        view: &CgroupView<'_>,
    ) -> Step<Option<OwnedFd>> {
        let destination = &self.mount.destination;
        if self.options.remount {
            return self.remount(root).map(|()| None);
        }
        if self.is_bind() && self.mount.kind != "cgroup" {
            let tree = match self.tree.take() {
                Some(tree) => tree,
                None => self.open_source(bundle, propagation, None, &mut Namespaces::default())?,
            };
            self.attach_bind(root, &tree)?;
            return Ok(None);
        }
        let place = match self.mount.kind.as_str() {
            // Files of these are trusted later: no link of the image may decide where they are.
            "proc" | "sysfs" => {
                target::ensure(root, destination, target::Kind::Directory)?;
                target::open_with(root, destination, OFlags::PATH, ResolveFlags::NO_SYMLINKS)
                    .ctx("its mount point must be a plain directory, not a link")?
            }
            _ => target::ensure(root, destination, target::Kind::Directory)?,
        };
        if self.mount.kind == "cgroup" || self.mount.kind == "cgroup2" {
            let tree = cgroupfs::make(&place, &self.options.attr, view)?;
            self.propagate(tree.as_fd())?;
            return Ok(None);
        }
        let mut attributes = self.options.attr;
        let late_readonly = self.mount.kind == "tmpfs" && attributes.set & attr::RDONLY != 0;
        if late_readonly {
            attributes.set &= !attr::RDONLY;
        }
        let tree = self.create(&attributes, userns)?;
        if self.options.copy_up {
            copy_up::copy(&place, &tree)?;
        }
        fs::attach(&tree, &place).ctx("cannot attach it")?;
        fs::set_attributes(tree.as_fd(), &self.options.recursive, true)
            .ctx("cannot set its options")?;
        self.propagate(tree.as_fd())?;
        Ok(late_readonly.then_some(tree))
    }

    fn create(&self, attributes: &MountAttr, userns: bool) -> Step<OwnedFd> {
        let Mount { kind, source, .. } = self.mount;
        let failure = match fs::create(kind, Some(source), &self.options.data, attributes) {
            Ok(tree) => return Ok(tree),
            Err(failure) => failure,
        };
        // A user namespace may mount proc and sysfs only if it owns the pid or network namespace: the
        // host's, read-only where asked, is what is left.
        let fallback = match (kind.as_str(), failure.errno()) {
            ("sysfs", Some(Errno::PERM | Errno::BUSY)) => "/sys",
            ("proc", Some(Errno::PERM | Errno::BUSY)) => "/proc",
            // The tty group has no id in a user namespace that maps only one.
            ("devpts", Some(Errno::INVAL)) if userns => {
                let data: Vec<_> = self
                    .options
                    .data
                    .iter()
                    .filter(|(key, _)| key != "gid")
                    .cloned()
                    .collect();
                return fs::create(kind, Some(source), &data, attributes);
            }
            _ => return Err(failure),
        };
        let tree = fs::clone_tree(CWD, Path::new(fallback), true).map_err(|_| failure)?;
        fs::set_attributes(tree.as_fd(), attributes, true).ctx("cannot set its options")?;
        Ok(tree)
    }

    fn attach_bind(&self, root: BorrowedFd<'_>, tree: &OwnedFd) -> Step<()> {
        let stat = rustix::fs::fstat(tree).ctx("cannot examine the source")?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => target::Kind::Directory,
            _ => target::Kind::File,
        };
        let place = target::ensure(root, &self.mount.destination, kind)?;
        fs::attach(tree, &place).ctx("cannot attach it")?;
        fs::set_attributes(tree.as_fd(), &self.options.attr, false)
            .ctx("cannot set its options")?;
        fs::set_attributes(tree.as_fd(), &self.options.recursive, true)
            .ctx("cannot set its recursive options")?;
        self.propagate(tree.as_fd())
    }

    fn remount(&self, root: BorrowedFd<'_>) -> Step<()> {
        let place = target::open(root, &self.mount.destination, OFlags::PATH)
            .ctx("cannot find what to remount")?;
        fs::set_attributes(place.as_fd(), &self.options.attr, false)
            .ctx("cannot set its options")?;
        fs::set_attributes(place.as_fd(), &self.options.recursive, true)
            .ctx("cannot set its recursive options")?;
        self.propagate(place.as_fd())
    }

    fn propagate(&self, tree: BorrowedFd<'_>) -> Step<()> {
        for (kind, recursive) in &self.options.propagation {
            fs::set_propagation(tree, *kind, *recursive).ctx("cannot set its propagation")?;
        }
        Ok(())
    }
}

/// `linux.rootfsPropagation` as a propagation type; slave where nothing is asked.
fn root_propagation(word: &str) -> (u64, bool) {
    match word {
        "shared" => (libc::MS_SHARED, false),
        "rshared" => (libc::MS_SHARED, true),
        "slave" => (libc::MS_SLAVE, false),
        "private" => (libc::MS_PRIVATE, false),
        "rprivate" => (libc::MS_PRIVATE, true),
        "unbindable" => (libc::MS_UNBINDABLE, false),
        "runbindable" => (libc::MS_UNBINDABLE, true),
        _ => (libc::MS_SLAVE, true),
    }
}
