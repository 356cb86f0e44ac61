//! Namespaces: which are made by the clone, which are made later, which are joined.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::error::{Context, Step};
use crate::spec::{Linux, NamespaceKind, TimeOffset};

/// The clone flag of a kind.
pub(crate) fn flag(kind: NamespaceKind) -> i32 {
    match kind {
        NamespaceKind::Pid => libc::CLONE_NEWPID,
        NamespaceKind::Network => libc::CLONE_NEWNET,
        NamespaceKind::Mount => libc::CLONE_NEWNS,
        NamespaceKind::Ipc => libc::CLONE_NEWIPC,
        NamespaceKind::Uts => libc::CLONE_NEWUTS,
        NamespaceKind::User => libc::CLONE_NEWUSER,
        NamespaceKind::Cgroup => libc::CLONE_NEWCGROUP,
        NamespaceKind::Time => libc::CLONE_NEWTIME,
    }
}

/// The name of a kind in /proc/PID/ns.
pub(crate) fn file_name(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Pid => "pid",
        NamespaceKind::Network => "net",
        NamespaceKind::Mount => "mnt",
        NamespaceKind::Ipc => "ipc",
        NamespaceKind::Uts => "uts",
        NamespaceKind::User => "user",
        NamespaceKind::Cgroup => "cgroup",
        NamespaceKind::Time => "time",
    }
}

/// A namespace to join.
#[derive(Debug)]
pub(crate) struct Join {
    pub kind: NamespaceKind,
    pub path: PathBuf,
    pub fd: OwnedFd,
}

impl Join {
    fn enter(&self) -> Result<(), Errno> {
        let kind = match self.kind {
            NamespaceKind::Pid => LinkNameSpaceType::ProcessID,
            NamespaceKind::Network => LinkNameSpaceType::Network,
            NamespaceKind::Mount => LinkNameSpaceType::Mount,
            NamespaceKind::Ipc => LinkNameSpaceType::InterProcessCommunication,
            NamespaceKind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
            NamespaceKind::User => LinkNameSpaceType::User,
            NamespaceKind::Cgroup => LinkNameSpaceType::ControlGroup,
            NamespaceKind::Time => LinkNameSpaceType::Time,
        };
        rustix::thread::move_into_link_name_space(self.fd.as_fd(), Some(kind))
    }

    fn describe(&self) -> String {
        format!(
            "cannot join the {:?} namespace {}",
            self.kind,
            self.path.display()
        )
        .to_lowercase()
    }
}

/// The namespaces of a container.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Flags for the clone.
    pub clone_flags: u64,
    /// Flags for a second clone, by the child once it has joined: new namespaces belong to the user
    /// namespace they are made in, and here that is one of those joined.
    pub inner_flags: u64,
    /// Namespaces joined by the child. The pid namespace is not among them.
    pub joins: Vec<Join>,
    /// The pid namespace to join: takes effect for children, so the parent joins it.
    pub pid: Option<Join>,
    /// Namespaces that must be joined by the parent, with its rights, because the child starts in a
    /// user namespace that has none over them.
    pub before: Vec<Join>,
    /// Made by the child once it is in its control group.
    pub new_cgroup: bool,
    /// Made by the child, which sets its clocks first.
    pub new_time: bool,
}

/// Sorts the namespaces of a configuration and opens those to join.
pub(crate) fn plan(linux: &Linux) -> Step<Plan> {
    let mut plan = Plan {
        clone_flags: 0,
        inner_flags: 0,
        joins: Vec::new(),
        pid: None,
        before: Vec::new(),
        new_cgroup: linux.is_new(NamespaceKind::Cgroup),
        new_time: linux.is_new(NamespaceKind::Time),
    };
    let new_user = linux.is_new(NamespaceKind::User);
    for namespace in &linux.namespaces {
        let kind = namespace.kind;
        if namespace.path.as_os_str().is_empty() {
            if !matches!(kind, NamespaceKind::Cgroup | NamespaceKind::Time) {
                plan.clone_flags |= flag(kind) as u64;
            }
            continue;
        }
        let fd = rustix::fs::open(
            &namespace.path,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .with(|| format!("cannot open the namespace {}", namespace.path.display()))?;
        let join = Join {
            kind,
            path: namespace.path.clone(),
            fd,
        };
        match kind {
            NamespaceKind::Pid => plan.pid = Some(join),
            NamespaceKind::Mount | NamespaceKind::User => plan.joins.push(join),
            _ if new_user => plan.before.push(join),
            _ => plan.joins.push(join),
        }
    }
    if linux.has(NamespaceKind::User) && !new_user {
        plan.inner_flags = std::mem::take(&mut plan.clone_flags);
    }
    // The mount namespace last: it takes away the paths of the others.
    plan.joins
        .sort_by_key(|join| join.kind == NamespaceKind::Mount);
    Ok(plan)
}

/// Namespaces the parent left, to be entered again after the clone.
#[derive(Debug)]
pub(crate) struct Left(Vec<Join>);

impl Plan {
    /// Joins in the parent what only the parent can. Undone by [`Left::come_back`].
    pub(crate) fn enter_before(&self) -> Step<Left> {
        let mut left = Left(Vec::new());
        for join in self.before.iter().chain(&self.pid) {
            let path = PathBuf::from(format!("/proc/self/ns/{}", file_name(join.kind)));
            let fd = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .ctx("cannot open a namespace of the runtime")?;
            if let Err(errno) = join.enter() {
                left.come_back()?;
                return Err(errno).with(|| join.describe());
            }
            left.0.push(Join {
                kind: join.kind,
                path,
                fd,
            });
        }
        Ok(left)
    }

    /// Joins in the child what it can. With a user namespace among them, whatever the caller has
    /// rights over is joined before giving those up, and the rest with the rights found inside.
    pub(crate) fn enter_joins(&self) -> Step<()> {
        let user = self
            .joins
            .iter()
            .find(|join| join.kind == NamespaceKind::User);
        let mut later = Vec::new();
        for join in self
            .joins
            .iter()
            .filter(|join| join.kind != NamespaceKind::User)
        {
            match join.enter() {
                Err(Errno::PERM) if user.is_some() => later.push(join),
                other => other.with(|| join.describe())?,
            }
        }
        user.into_iter()
            .chain(later)
            .try_for_each(|join| join.enter().with(|| join.describe()))
    }
}

impl Left {
    /// Goes back to the parent's own namespaces.
    pub(crate) fn come_back(&self) -> Step<()> {
        self.0
            .iter()
            .try_for_each(|join| join.enter().with(|| join.describe()))
    }
}

/// Makes a new namespace for the calling process.
pub(crate) fn unshare_cgroup() -> Step<()> {
    // SAFETY: a cgroup namespace changes only what the process sees of its control groups.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }
        .ctx("cannot make a cgroup namespace")
}

/// Makes a time namespace, sets its clocks, and enters it. Reads /proc of the host.
pub(crate) fn unshare_time(offsets: &std::collections::BTreeMap<String, TimeOffset>) -> Step<()> {
    // SAFETY: a time namespace changes nothing for the caller until it is entered.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWTIME) }
        .ctx("cannot make a time namespace")?;
    let mut text = String::new();
    for (clock, offset) in offsets {
        text.push_str(&format!("{clock} {} {}\n", offset.secs, offset.nanosecs));
    }
    if !text.is_empty() {
        let file = rustix::fs::open(
            "/proc/self/timens_offsets",
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .ctx("cannot open the clock offsets")?;
        rustix::io::write(file, text.as_bytes()).ctx("cannot set linux.timeOffsets")?;
    }
    let path = "/proc/self/ns/time_for_children";
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .ctx("cannot open the new time namespace")?;
    Join {
        kind: NamespaceKind::Time,
        path: path.into(),
        fd,
    }
    .enter()
    .ctx("cannot enter the new time namespace")
}
