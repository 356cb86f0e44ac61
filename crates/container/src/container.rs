//! A container that exists: what can be asked of it and done to it.
//!
//! Everything here works from the recorded state, from any process, in any order; nothing is
//! kept open. What a call needs of the process it checks through a pidfd, so that a reused pid is
//! never signalled.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use cgroup::{Cgroup, Layout};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::channel::{Channel, Heard, Word};
use crate::error::{Context, Failure, Step, chain};
use crate::spec::{Resources, State, Status};
use crate::state::{Dir, Record, StateError};
use crate::{cgroups, hooks, init, seccomp_filter};

/// A container of a [`crate::Runtime`].
#[derive(Debug)]
pub struct Container {
    root: PathBuf,
    pub(crate) dir: Dir,
    pub(crate) record: Record,
    /// Its control group, where this process made it itself.
    group: Option<Cgroup>,
}

/// Why an operation on a container failed.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// The state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The container is in a state in which this cannot be done.
    #[error("cannot {operation} container {id}: it is {}; {hint}", status.as_str())]
    Status {
        /// What was asked.
        operation: &'static str,
        /// The container.
        id: String,
        /// Where it is in its life.
        status: Status,
        /// What to do.
        hint: &'static str,
    },
    /// A step failed.
    #[error("cannot {operation} container {id}")]
    Step {
        /// What was asked.
        operation: &'static str,
        /// The container.
        id: String,
        /// Which step and why.
        source: Failure,
    },
}

/// How much of a container [`Container::delete`] may remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delete {
    /// Only a stopped one.
    Stopped,
    /// Any, killing what runs; also what a killed creator left behind.
    Force,
}

impl Container {
    pub(crate) fn new(root: &Path, dir: Dir, record: Record) -> Container {
        Container {
            root: root.into(),
            dir,
            record,
            group: None,
        }
    }

    /// Spares later calls looking for the control group. One of no hierarchy is not worth knowing.
    pub(crate) fn with_group(mut self, group: Option<Cgroup>) -> Container {
        self.group = group.filter(|group| group.directories().next().is_some());
        self
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// What is recorded of it.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// A descriptor of its first process; `None` once that has exited.
    pub fn pidfd(&self) -> Option<OwnedFd> {
        self.record.pidfd()
    }

    /// Where it is in its life, asked of the kernel now.
    pub fn status(&self) -> Status {
        if self.record.pid == 0 {
            return Status::Creating;
        }
        if self.record.pidfd().is_none() {
            return Status::Stopped;
        }
        if self.dir.socket().symlink_metadata().is_ok() {
            return Status::Created;
        }
        match self.cgroup().map(|group| group.is_frozen()) {
            Ok(Ok(true)) => Status::Paused,
            _ => Status::Running,
        }
    }

    /// Its state as the specification has it.
    pub fn state(&self) -> State {
        self.record.state(self.status())
    }

    /// Its control group.
    ///
    /// # Errors
    /// When it is gone or the host's hierarchies cannot be found.
    pub fn cgroup(&self) -> Result<Cgroup, Failure> {
        if let Some(group) = &self.group {
            return Ok(group.clone());
        }
        let layout = Layout::detect()
            .map_err(|error| Failure::new("cannot find the control groups", chain(&error)))?;
        Cgroup::open(&layout, &self.record.cgroup)
            .map_err(|error| Failure::new("cannot open the control group", chain(&error)))
    }

    fn step(&self, operation: &'static str) -> impl Fn(Failure) -> OperationError + use<> {
        let id = self.record.id.clone();
        move |source| OperationError::Step {
            operation,
            id: id.clone(),
            source,
        }
    }

    fn refuse(
        &self,
        operation: &'static str,
        status: Status,
        hint: &'static str,
    ) -> OperationError {
        OperationError::Status {
            operation,
            id: self.record.id.clone(),
            status,
            hint,
        }
    }

    /// Lets the user's program run, and returns when it does. Runs the `startContainer` hooks (inside)
    /// before and `poststart` after. Returns what the hooks' failures are worth saying.
    ///
    /// # Errors
    /// When the container is not `created`, has no process, or its program cannot be executed.
    pub fn start(&self) -> Result<Vec<String>, OperationError> {
        let status = self.status();
        if status != Status::Created {
            return Err(self.refuse("start", status, "only a created container can be started"));
        }
        if self.record.process.is_none() {
            return Err(self.step("start")(Failure::new(
                "it has no process",
                "its config.json names none",
            )));
        }
        let step = self.step("start");
        let channel = self.call().map_err(&step)?;
        let _ = rustix::fs::unlink(self.dir.socket());
        loop {
            match channel.hear().map_err(&step)? {
                Heard::End => break,
                Heard::Word(Word::Listener, fds) => {
                    pass_listener(&self.record, self.record.pid, fds).map_err(&step)?
                }
                Heard::Failed(failure) => return Err(step(failure)),
                other => return Err(step(init::unexpected(other))),
            }
        }
        Ok(self.run_poststart())
    }

    /// Runs the `poststart` hooks; failures are returned as text, since the program runs already.
    pub(crate) fn run_poststart(&self) -> Vec<String> {
        let state = self.record.state(Status::Running);
        match hooks::run("poststart", &self.record.hooks.poststart, &state) {
            Ok(()) => Vec::new(),
            Err(failure) => vec![chain(&failure)],
        }
    }

    /// Connects to the waiting process.
    fn call(&self) -> Step<Channel> {
        let what = "cannot reach the container's waiting process";
        let short = short_path(&self.dir.socket())?;
        let address = SocketAddrUnix::new(short.path()).ctx(what)?;
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .ctx(what)?;
        match rustix::net::connect(&socket, &address) {
            // Nobody listens any more: somebody else started it, and died before saying so.
            Err(Errno::CONNREFUSED) => {
                let _ = rustix::fs::unlink(self.dir.socket());
                Err(Failure::new(what, "it was started already"))
            }
            other => other.ctx(what).map(|()| Channel(socket)),
        }
    }

    /// Sends a signal to the first process, or with `all` to every process of the container.
    ///
    /// # Errors
    /// When the container is neither created nor running (nor paused).
    pub fn kill(&self, signal: i32, all: bool) -> Result<(), OperationError> {
        let step = self.step("kill");
        let status = self.status();
        if all {
            return self.kill_all(signal).map_err(step);
        }
        let hint = "only a created or running container can be signalled";
        let Some(pidfd) = self.record.pidfd() else {
            return Err(self.refuse("kill", status, hint));
        };
        send_signal(&pidfd, signal)
            .ctx("cannot send the signal")
            .map_err(step)?;
        // A frozen process dies of SIGKILL only when it is thawed (v1).
        if signal == libc::SIGKILL && status == Status::Paused {
            let _ = self.cgroup().map(|group| group.thaw());
        }
        Ok(())
    }

    fn kill_all(&self, signal: i32) -> Step<()> {
        let group = self.cgroup()?;
        if signal == libc::SIGKILL {
            return group
                .kill()
                .map_err(|error| Failure::new("cannot kill the control group", chain(&error)));
        }
        let pids = group
            .pids()
            .map_err(|error| Failure::new("cannot list the control group", chain(&error)))?;
        for pid in pids {
            // SAFETY: kill takes integers; a process that just exited gives ESRCH, which is fine.
            unsafe { libc::kill(pid, signal) };
        }
        Ok(())
    }

    /// Removes the container: its processes if any are left, its group, its state; then runs the
    /// `poststop` hooks, whose failures are returned as text.
    ///
    /// # Errors
    /// Without [`Delete::Force`], when it is not stopped.
    pub fn delete(self, how: Delete) -> Result<Vec<String>, OperationError> {
        let step = self.step("delete");
        let status = self.status();
        let dead_creator = status == Status::Creating;
        if how == Delete::Stopped && status != Status::Stopped {
            return Err(self.refuse("delete", status, "stop it first, or delete it by force"));
        }
        if !dead_creator && let Some(pidfd) = self.record.pidfd() {
            send_signal(&pidfd, libc::SIGKILL)
                .ctx("cannot kill its process")
                .map_err(&step)?;
        }
        if let Some(group) = self.find_group().map_err(&step)? {
            if status == Status::Paused {
                let _ = group.thaw();
            }
            // With a pid namespace of its own all processes died with the first one.
            if status != Status::Stopped || !self.record.owns_pids() {
                group.kill().map_err(|error| {
                    step(Failure::new("cannot kill its processes", chain(&error)))
                })?;
            }
            group.delete().map_err(|error| {
                step(Failure::new(
                    "cannot remove its control group",
                    chain(&error),
                ))
            })?;
        }
        self.dir.remove()?;
        let state = self.record.state(Status::Stopped);
        Ok(
            match hooks::run("poststop", &self.record.hooks.poststop, &state) {
                Ok(()) => Vec::new(),
                Err(failure) => vec![chain(&failure)],
            },
        )
    }

    /// The control group, if there is one: what a killed `delete` left may have none.
    fn find_group(&self) -> Step<Option<Cgroup>> {
        if self.group.is_some() {
            return Ok(self.group.clone());
        }
        let layout = Layout::detect()
            .map_err(|error| Failure::new("cannot find the control groups", chain(&error)))?;
        Ok(Cgroup::open(&layout, &self.record.cgroup).ok())
    }

    /// Freezes all processes.
    ///
    /// # Errors
    /// When the container is not running, or the host has no freezer.
    pub fn pause(&self) -> Result<(), OperationError> {
        let status = self.status();
        if !matches!(status, Status::Running | Status::Created) {
            return Err(self.refuse("pause", status, "only a running container can be paused"));
        }
        let step = self.step("pause");
        self.cgroup()
            .and_then(|group| {
                group
                    .freeze()
                    .map_err(|error| Failure::new("cannot freeze it", chain(&error)))
            })
            .map_err(step)
    }

    /// Lets frozen processes go on.
    ///
    /// # Errors
    /// When the container is not paused.
    pub fn resume(&self) -> Result<(), OperationError> {
        let status = self.status();
        if status != Status::Paused {
            return Err(self.refuse("resume", status, "only a paused container can be resumed"));
        }
        let step = self.step("resume");
        self.cgroup()
            .and_then(|group| {
                group
                    .thaw()
                    .map_err(|error| Failure::new("cannot thaw it", chain(&error)))
            })
            .map_err(step)
    }

    /// Changes limits; what is absent stays as it is.
    ///
    /// # Errors
    /// Names the limit that cannot be set.
    pub fn update(&self, resources: &Resources) -> Result<(), OperationError> {
        let status = self.status();
        if matches!(status, Status::Stopped | Status::Creating) {
            return Err(self.refuse("update", status, "only an existing process has limits"));
        }
        let step = self.step("update");
        cgroups::resources(resources, true)
            .and_then(|wanted| {
                self.cgroup()?
                    .apply(&wanted)
                    .map_err(|error| Failure::new("cannot apply the limits", chain(&error)))
            })
            .map_err(step)
    }

    /// What the container has used.
    ///
    /// # Errors
    /// When the kernel's files cannot be read.
    pub fn stats(&self) -> Result<cgroup::Stats, OperationError> {
        self.cgroup()
            .and_then(|group| {
                group
                    .stats()
                    .map_err(|error| Failure::new("cannot read its usage", chain(&error)))
            })
            .map_err(self.step("measure"))
    }

    /// Process ids of everything that runs in it, as the caller sees them.
    ///
    /// # Errors
    /// When the kernel's list cannot be read.
    pub fn pids(&self) -> Result<Vec<i32>, OperationError> {
        self.cgroup()
            .and_then(|group| {
                group
                    .pids()
                    .map_err(|error| Failure::new("cannot list its processes", chain(&error)))
            })
            .map_err(self.step("inspect"))
    }

    /// The runtime root it lives in.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

/// Sends any signal number through a pidfd.
fn send_signal(pidfd: &OwnedFd, signal: i32) -> Result<(), Errno> {
    // SAFETY: pidfd_send_signal with a null siginfo takes integers only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}

/// Hands the seccomp listener of process `pid` to the socket the configuration named.
pub(crate) fn pass_listener(record: &Record, pid: i32, fds: Vec<OwnedFd>) -> Step<()> {
    match (&record.listener, fds.into_iter().next()) {
        (Some((path, metadata)), Some(listener)) => {
            let state = record.state(Status::Running);
            seccomp_filter::hand_over(path, metadata, &state, pid, &listener)
        }
        _ => Err(Failure::new(
            "cannot hand over the seccomp listener",
            "linux.seccomp.listenerPath is missing",
        )),
    }
}

/// A path that fits into a socket address (107 bytes), through a descriptor of its directory if needed.
pub(crate) struct ShortPath {
    path: PathBuf,
    _directory: Option<OwnedFd>,
}

impl ShortPath {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Shortens a socket's path.
pub(crate) fn short_path(path: &Path) -> Step<ShortPath> {
    if path.as_os_str().len() < 107 {
        return Ok(ShortPath {
            path: path.into(),
            _directory: None,
        });
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    let directory = rustix::fs::open(parent, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .with(|| format!("cannot open {}", parent.display()))?;
    let name = path.file_name().unwrap_or_default();
    let path = Path::new("/proc/self/fd")
        .join(directory.as_fd().as_raw_fd().to_string())
        .join(name);
    Ok(ShortPath {
        path,
        _directory: Some(directory),
    })
}
