//! `create`: the parent's side of making a container.
//!
//! ```text
//!  claim the id ─ record ─ control group ─ plan (all that can fail early) ─ clone3
//!     │                                                                      │
//!     │   on any failure: kill the child, remove the group, free the id      ├─ maps, groups, record
//!     └──────────────────────────────────────────────────────────────────────┴─ Ready ─ limits ─ Go
//! ```
//!
//! One clone (two to make namespaces in a user namespace that exists: the child joins it, and makes its
//! successor there), no helper processes, nothing mounted on the host. The caller becomes the parent of the
//! container's first process and reaps it; this module reaps only a child it could not hand over.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use cgroup::{Cgroup, Layout};
use rustix::process::{Signal, WaitId, WaitIdOptions};

use crate::channel::{Channel, Heard, Word};
use crate::container::Container;
use crate::error::{Context, Failure, Step};
use crate::init::{self, Init};
use crate::mounts::Rootfs;
use crate::process::Program;
use crate::spec::{NamespaceKind, OCI_VERSION, Spec, State, Status};
use crate::state::{Dir, Record, StateError};
use crate::tail::Detachment;
use crate::validate::Invalid;
use crate::{bundle, cgroups, hooks, idmap, limits, mounts, namespaces, seccomp_filter, sys};

/// What to create.
#[derive(Debug)]
pub struct CreateRequest {
    /// Id, unique below the runtime root.
    pub id: String,
    /// Absolute path of the bundle; relative paths of the configuration start here.
    pub bundle: PathBuf,
    /// The configuration, as [`bundle::load`] returns it or built in memory.
    pub spec: Spec,
    /// Where the root comes from.
    pub rootfs: Rootfs,
    /// Standard streams of a process without a terminal.
    pub stdio: Stdio,
    /// When the program runs.
    pub launch: Launch,
    /// How many descriptors from 3 on the program inherits.
    pub preserve_fds: u32,
    /// Written before `create` returns: the process id as text.
    pub pid_file: Option<PathBuf>,
    /// Moves the root instead of pivoting, for hosts that run from their initramfs.
    pub no_pivot: bool,
    /// Keeps the caller's session keyring.
    pub no_new_keyring: bool,
    /// The kernel kills the container's first process when the calling thread dies. For a caller
    /// that stays the container's parent for life.
    pub die_with_parent: bool,
    /// How the container's first process lets go of this program's file, as [`crate::guard::protect_from`]
    /// returned it.
    pub detachment: Option<Detachment>,
}

impl CreateRequest {
    /// A request with the usual choices: the bundle's root, the caller's streams, run on `start`.
    pub fn new(id: impl Into<String>, bundle: impl Into<PathBuf>, spec: Spec) -> CreateRequest {
        CreateRequest {
            id: id.into(),
            bundle: bundle.into(),
            spec,
            rootfs: Rootfs::Bundle,
            stdio: Stdio::Inherit,
            launch: Launch::OnStart,
            preserve_fds: 0,
            pid_file: None,
            no_pivot: false,
            no_new_keyring: false,
            die_with_parent: false,
            detachment: None,
        }
    }
}

/// Standard streams of a process. One with `terminal: true` gets a pty instead, whose master is
/// returned.
#[derive(Debug, Default)]
pub enum Stdio {
    /// Those of the caller.
    #[default]
    Inherit,
    /// These: input, output, errors.
    Fds([OwnedFd; 3]),
}

/// When a created container's program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Launch {
    /// When [`Container::start`] is called, by this or any other process.
    #[default]
    OnStart,
    /// At once; `create` returns when it runs.
    Now,
}

/// A container just made. The caller is the parent of its process and has to reap it.
#[derive(Debug)]
pub struct Created {
    /// The container.
    pub container: Container,
    /// Process id of its first process.
    pub pid: i32,
    /// Descriptor of that process: readable when it has exited.
    pub pidfd: OwnedFd,
    /// Master of its terminal, if it has one.
    pub console: Option<OwnedFd>,
    /// What the user should know: limits that were lowered, names that were ignored.
    pub warnings: Vec<String>,
}

/// Why a container could not be made. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The id cannot be had, or the state cannot be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The configuration is against the specification.
    #[error("cannot create container {id}")]
    Invalid {
        /// The id.
        id: String,
        /// Which field and why.
        source: Invalid,
    },
    /// A step failed.
    #[error("cannot create container {id}")]
    Step {
        /// The id.
        id: String,
        /// Which step and why.
        source: Failure,
    },
}

impl From<(&str, Failure)> for CreateError {
    fn from((id, source): (&str, Failure)) -> Self {
        CreateError::Step {
            id: id.into(),
            source,
        }
    }
}

/// Makes a container below `root`. See [`crate::Runtime::create`].
pub(crate) fn create(root: &Path, request: CreateRequest) -> Result<Created, CreateError> {
    let id = request.id.clone();
    crate::validate::spec(&request.spec).map_err(|source| CreateError::Invalid {
        id: id.clone(),
        source,
    })?;
    let cgroup_path =
        cgroups::path(&request.spec.linux.cgroups_path, &id).map_err(|f| (&*id, f))?;
    let dir = Dir::claim(root, &id)?;
    let record = Record::new(&id, &request.bundle, &request.spec, cgroup_path);
    let mut making = Making {
        dir,
        record,
        cgroup: None,
        child: None,
        warnings: Vec::new(),
    };
    let made = making
        .dir
        .write_first(&making.record)
        .map_err(CreateError::from);
    let made = made.and_then(|()| making.make(request));
    match made {
        Ok(console) => Ok(making.hand_over(root, console)),
        Err(error) => {
            making.undo();
            Err(error)
        }
    }
}

/// A container on its way, and what to undo if it does not arrive.
struct Making {
    dir: Dir,
    record: Record,
    cgroup: Option<Cgroup>,
    child: Option<sys::Child>,
    warnings: Vec<String>,
}

impl Making {
    fn make(&mut self, request: CreateRequest) -> Result<Option<OwnedFd>, CreateError> {
        let id = request.id.clone();
        let at = |failure: Failure| CreateError::Step {
            id: id.clone(),
            source: failure,
        };
        let CreateRequest {
            spec,
            bundle,
            rootfs,
            launch,
            pid_file,
            ..
        } = &request;
        self.make_cgroup(spec).map_err(at)?;
        let filter = self.compile_filter(spec).map_err(at)?;
        if let Some(filter) = &filter {
            self.dir.write_filter(filter)?;
        }
        let listener = match launch {
            Launch::OnStart => Some(listen(&self.dir).map_err(at)?),
            Launch::Now => None,
        };
        let unattended = runs_unattended(&request).map_err(at)?;
        let mut init = self.plan(&request, filter, listener).map_err(at)?;
        if unattended && let Some(program) = &mut init.program {
            program.limits_itself = true;
        }
        let late = late_sources(&init.mounts, spec);
        let channel = self.spawn(init).map_err(at)?;
        self.serve_userns(spec, bundle, rootfs, late, &channel)
            .map_err(at)?;
        self.record.start_ticks =
            crate::state::process_start(self.record.pid).map_or(0, |(t, _)| t);
        self.dir.write(&self.record)?;
        if unattended {
            // Said ahead: the child finds the word waiting, and neither process waits for the other.
            self.rate(spec).map_err(at)?;
            channel.say(Word::Go).map_err(at)?;
        }
        let console = self.attend(spec, &channel).map_err(at)?;
        if !unattended {
            self.limit(spec).map_err(at)?;
            self.rate(spec).map_err(at)?;
        }
        if let Some(path) = pid_file {
            crate::pid_file::write(path, self.record.pid).map_err(at)?;
        }
        if !unattended {
            channel.say(Word::Go).map_err(at)?;
        }
        if *launch == Launch::Now {
            self.watch_launch(&channel).map_err(at)?;
        }
        Ok(console)
    }

    fn make_cgroup(&mut self, spec: &Spec) -> Step<()> {
        let fail = |what: &'static str, error: &dyn std::error::Error| {
            Failure::new(what, crate::error::chain(error))
        };
        let layout =
            Layout::detect().map_err(|error| fail("cannot find the control groups", &error))?;
        let group = Cgroup::create(&layout, &self.record.cgroup)
            .map_err(|error| fail("cannot make the control group", &error))?;
        let group = self.cgroup.insert(group);
        if let Some((uid, gid)) = cgroups::delegated_to(spec) {
            group
                .delegate(uid, gid)
                .map_err(|error| fail("cannot hand over the control group", &error))?;
        }
        let Some(resources) = &spec.linux.resources else {
            return Ok(());
        };
        let mut wanted = cgroups::resources(resources, true)?;
        // Without any group of ours (rootless) device rules, which only ever narrow, are left out:
        // the kernel's own permissions are in force.
        if group.directories().next().is_none() {
            wanted.devices = None;
        }
        group
            .apply(&wanted)
            .map_err(|error| fail("cannot apply linux.resources", &error))
    }

    fn compile_filter(&mut self, spec: &Spec) -> Step<Option<seccomp::Program>> {
        let Some(policy) = &spec.linux.seccomp else {
            return Ok(None);
        };
        seccomp_filter::compile(policy).map(Some)
    }

    fn plan<'a>(
        &mut self,
        request: &'a CreateRequest,
        filter: Option<seccomp::Program>,
        listener: Option<OwnedFd>,
    ) -> Step<Init<'a>> {
        let spec = &request.spec;
        check_preserved(request.preserve_fds)?;
        if !spec.linux.has(NamespaceKind::Mount) && !spec.mounts.is_empty() {
            self.warnings.push(
                "there is no namespace of type \"mount\": no mounts are made, since they would appear on the host"
                    .into(),
            );
        }
        let mounts = mounts::plan(spec, &request.bundle, &request.rootfs)?;
        let program = spec
            .process
            .as_ref()
            .map(|process| {
                Program::prepare(
                    process,
                    filter,
                    request.preserve_fds,
                    !request.no_new_keyring,
                )
            })
            .transpose()?;
        let streams = match &request.stdio {
            Stdio::Inherit => None,
            Stdio::Fds(fds) => {
                let copy = |fd: &OwnedFd| {
                    rustix::io::fcntl_dupfd_cloexec(fd, 3).ctx("cannot duplicate a standard stream")
                };
                Some([copy(&fds[0])?, copy(&fds[1])?, copy(&fds[2])?])
            }
        };
        Ok(Init {
            spec,
            namespaces: namespaces::plan(&spec.linux)?,
            mounts,
            program: program.map(|(mut program, warnings)| {
                self.warnings.extend(warnings);
                program.die_with_parent = request.die_with_parent;
                program.detachment = request.detachment.as_ref();
                program
            }),
            die_with_parent: request.die_with_parent,
            cgroup: self.cgroup.clone(),
            streams,
            no_pivot: request.no_pivot,
            listener,
            state: State {
                oci_version: OCI_VERSION.into(),
                id: request.id.clone(),
                status: Status::Creating,
                pid: 0,
                bundle: request.bundle.clone(),
                annotations: spec.annotations.clone(),
            },
        })
    }

    /// Clones. The child never comes back from here.
    fn spawn(&mut self, init: Init<'_>) -> Step<Channel> {
        let (ours, theirs) = Channel::pair()?;
        let into = match &self.cgroup {
            Some(group) => group.clone_into_fd().map_err(|error| {
                Failure::new("cannot open the control group", crate::error::chain(&error))
            })?,
            None => None,
        };
        let flags = init.namespaces.clone_flags;
        let succeeded = init.namespaces.inner_flags != 0;
        let left = init.namespaces.enter_before()?;
        let mask = sys::set_signal_mask(!0).ctx("cannot block signals")?;
        // SAFETY: `create` asks its callers to be single-threaded (see `Runtime::create`).
        let cloned = unsafe { sys::clone3(flags, into.as_ref().map(|fd| fd.as_fd())) };
        if let Ok(None) = cloned {
            drop(ours);
            init::run(init, theirs);
        }
        let restored = sys::set_signal_mask(mask).ctx("cannot restore the signal mask");
        let returned = left.come_back();
        let child = cloned.map_err(explain_clone)?;
        self.record.pid = child.as_ref().map_or(0, |child| child.pid);
        self.child = child;
        restored.and(returned)?;
        if succeeded {
            self.take_successor(&ours)?;
        }
        Ok(ours)
    }

    /// Waits until the child has made its successor, which is the child from then on.
    fn take_successor(&mut self, channel: &Channel) -> Step<()> {
        let heard = channel.hear()?;
        let Heard::Word(Word::Successor, fds) = heard else {
            return Err(init::unexpected(heard));
        };
        let missing = || Failure::new("cannot take over the container", "no process came along");
        let pidfd = fds.into_iter().next().ok_or_else(missing)?;
        let pid = pid_of(&pidfd)?;
        let child = sys::Child { pid, pidfd };
        self.record.pid = child.pid;
        if let Some(first) = self.child.replace(child) {
            rustix::io::retry_on_intr(|| {
                rustix::process::waitid(WaitId::PidFd(first.pidfd.as_fd()), WaitIdOptions::EXITED)
            })
            .ctx("cannot reap the container's first process")?;
        }
        Ok(())
    }

    /// Gives the child what it cannot take itself: its ids, and what only they make possible.
    fn serve_userns(
        &self,
        spec: &Spec,
        bundle: &Path,
        rootfs: &Rootfs,
        late: bool,
        channel: &Channel,
    ) -> Step<()> {
        if !spec.linux.is_new(NamespaceKind::User) {
            return Ok(());
        }
        let pid = self.record.pid;
        idmap::write_maps(pid, &spec.linux.uid_mappings, &spec.linux.gid_mappings)?;
        let mut opened = Vec::new();
        if late {
            let namespace = idmap::namespace_of(pid)?;
            let shift = mounts::Shift {
                userns: namespace.as_fd(),
                root: (
                    idmap::outside(&spec.linux.uid_mappings, 0).unwrap_or(0),
                    idmap::outside(&spec.linux.gid_mappings, 0).unwrap_or(0),
                ),
            };
            opened = mounts::open_late(spec, bundle, rootfs, shift)?;
        }
        let borrowed: Vec<_> = opened.iter().map(|fd| fd.as_fd()).collect();
        channel.say_with(Word::Mapped, &borrowed)
    }

    /// Listens to the child until it is ready; runs hooks, collects its terminal.
    fn attend(&mut self, spec: &Spec, channel: &Channel) -> Step<Option<OwnedFd>> {
        let mut console = None;
        loop {
            match channel.hear()? {
                Heard::Word(Word::Ready, _) => return Ok(console),
                Heard::Word(Word::Console, fds) => console = fds.into_iter().next(),
                Heard::Word(Word::Mounted, _) => {
                    // What every runtime tells these old hooks, and they have come to expect.
                    let old = self.record.state(Status::Created);
                    hooks::run("prestart", &spec.hooks.prestart, &old)?;
                    let state = self.record.state(Status::Creating);
                    hooks::run("createRuntime", &spec.hooks.create_runtime, &state)?;
                    channel.say(Word::Hooked)?;
                }
                other => return Err(init::unexpected(other)),
            }
        }
    }

    /// Puts the resource limits on the child, which could not always set itself up under them.
    fn limit(&mut self, spec: &Spec) -> Step<()> {
        let Some(process) = &spec.process else {
            return Ok(());
        };
        let warnings = &mut self.warnings;
        limits::apply_rlimits(self.record.pid, &process.rlimits, &mut |text| {
            warnings.push(text);
        })
    }

    /// Tells the kernel how to rate the child when memory runs out.
    fn rate(&mut self, spec: &Spec) -> Step<()> {
        let process = spec.process.as_ref();
        if let Some(score) = process.and_then(|process| process.oom_score_adj) {
            self.warnings
                .extend(limits::set_oom_score(self.record.pid, score)?);
        }
        Ok(())
    }

    /// Waits until the program runs.
    fn watch_launch(&mut self, channel: &Channel) -> Step<()> {
        loop {
            match channel.hear()? {
                Heard::End => return Ok(()),
                Heard::Word(Word::Listener, fds) => {
                    crate::container::pass_listener(&self.record, self.record.pid, fds)?;
                }
                other => return Err(init::unexpected(other)),
            }
        }
    }

    fn hand_over(self, root: &Path, console: Option<OwnedFd>) -> Created {
        let child = self.child.expect("make() cloned before it succeeded");
        Created {
            container: Container::new(root, self.dir, self.record).with_group(self.cgroup),
            pid: child.pid,
            pidfd: child.pidfd,
            console,
            warnings: self.warnings,
        }
    }

    /// Leaves nothing behind. What cannot be undone stays recorded for `delete --force`.
    fn undo(self) {
        if let Some(child) = &self.child {
            let _ = rustix::process::pidfd_send_signal(&child.pidfd, Signal::KILL);
            let _ = rustix::io::retry_on_intr(|| {
                rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)
            });
        }
        let removed = self
            .cgroup
            .as_ref()
            .is_none_or(|group| group.delete().is_ok());
        if removed {
            let _ = self.dir.remove();
        }
    }
}

/// The number of a process that lives, by its descriptor (pidfd_open(2)).
fn pid_of(pidfd: &OwnedFd) -> Step<i32> {
    let what = "cannot find the number of the container's process";
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(path).ctx(what)?;
    let mut lines = text.lines();
    let pid = lines.find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    pid.ok_or_else(|| Failure::new(what, "it is not in its descriptor's information"))
}

/// Whether the child can go all the way to its program without its parent: nothing is left to a
/// `start`, no hook is run outside, and every resource limit is one that any process may set.
fn runs_unattended(request: &CreateRequest) -> Step<bool> {
    let spec = &request.spec;
    if request.launch == Launch::OnStart || init::needs_parent_hooks(spec) {
        return Ok(false);
    }
    match &spec.process {
        Some(process) => limits::within_own(&process.rlimits),
        None => Ok(false),
    }
}

/// Whether the child waits for mounts that only its user namespace makes possible.
fn late_sources(plan: &mounts::Plan<'_>, spec: &Spec) -> bool {
    spec.linux.is_new(NamespaceKind::User) && plan.has_late()
}

pub(crate) fn explain_clone(errno: rustix::io::Errno) -> Failure {
    let what = match errno {
        rustix::io::Errno::PERM => {
            "cannot make the container's namespaces (without root, add a namespace of type \"user\")"
        }
        rustix::io::Errno::NOSPC => {
            "cannot make the container's namespaces (a limit of /proc/sys/user is reached)"
        }
        rustix::io::Errno::NOSYS => {
            "cannot make the container's namespaces (Linux 5.15 or newer is needed)"
        }
        _ => "cannot make the container's namespaces",
    };
    Failure {
        what: what.into(),
        source: errno.into(),
        program: false,
    }
}

fn check_preserved(count: u32) -> Step<()> {
    for fd in 3..3u32.saturating_add(count) {
        // SAFETY: F_GETFD only asks whether the number is a descriptor; nothing is borrowed.
        if unsafe { libc::fcntl(fd as i32, libc::F_GETFD) } < 0 {
            return Err(Failure::new(
                "cannot preserve descriptors",
                format!("descriptor {fd} is not open, so there are fewer than {count}"),
            ));
        }
    }
    Ok(())
}

/// Makes the socket on which the child awaits `start`.
fn listen(dir: &Dir) -> Step<OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let what = "cannot make the socket for start";
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .ctx(what)?;
    let address =
        SocketAddrUnix::new(crate::container::short_path(&dir.socket())?.path()).ctx(what)?;
    rustix::net::bind(&socket, &address).ctx(what)?;
    rustix::net::listen(&socket, 8).ctx(what)?;
    Ok(socket)
}

/// Loads the bundle's configuration: a convenience for callers of `create`.
///
/// # Errors
/// As [`bundle::load`].
pub fn request_for_bundle(
    id: &str,
    bundle_dir: &Path,
) -> Result<CreateRequest, bundle::BundleError> {
    let (bundle, spec) = bundle::load(bundle_dir)?;
    Ok(CreateRequest::new(id, bundle, spec))
}
