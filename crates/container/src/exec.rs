//! `exec`: one more process in a running container.
//!
//! The parent joins the pid namespace (it takes effect for children), clones, and comes back; the child
//! enters the control groups, joins everything else by one setns(2) on the container's pidfd, and
//! ends as `create` does.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Signal, WaitId, WaitIdOptions};
use rustix::thread::ThreadNameSpaceType;

use crate::channel::{Channel, Heard, Word};
use crate::container::Container;
use crate::create::Stdio;
use crate::error::{Context, Failure, Step, chain};
use crate::process::{Labels, Program};
use crate::spec::{NamespaceKind, Personality, Process, Status};
use crate::state::StateError;
use crate::{init, limits, namespaces, pid_file, sys, terminal};

/// What to run in a container.
#[derive(Debug)]
pub struct ExecRequest {
    /// The process; [`Container::process`] gives one to start from.
    pub process: Process,
    /// Its standard streams if it has no terminal.
    pub stdio: Stdio,
    /// How many descriptors from 3 on it inherits.
    pub preserve_fds: u32,
    /// Written before the program runs: the process id as text.
    pub pid_file: Option<PathBuf>,
    /// A group below the container's own, which must exist, to put it into.
    pub cgroup: Option<String>,
    /// Keeps the caller's session keyring.
    pub no_new_keyring: bool,
    /// In a paused container waits until that is resumed, instead of refusing.
    pub ignore_paused: bool,
}

impl ExecRequest {
    /// A request with the usual choices.
    pub fn new(process: Process) -> ExecRequest {
        ExecRequest {
            process,
            stdio: Stdio::Inherit,
            preserve_fds: 0,
            pid_file: None,
            cgroup: None,
            no_new_keyring: false,
            ignore_paused: false,
        }
    }
}

/// A process that runs in a container. The caller is its parent and has to reap it.
#[derive(Debug)]
pub struct Executed {
    /// Process id as the caller sees it.
    pub pid: i32,
    /// Descriptor of the process: readable when it has exited.
    pub pidfd: OwnedFd,
    /// Master of its terminal, if it has one.
    pub console: Option<OwnedFd>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Why nothing could be run in a container.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The container does not run.
    #[error("cannot exec in container {id}: it is {}; {hint}", status.as_str())]
    Status {
        /// The container.
        id: String,
        /// Where it is in its life.
        status: Status,
        /// What to do.
        hint: &'static str,
    },
    /// The process description cannot be used.
    #[error("cannot exec in container {id}")]
    Invalid {
        /// The container.
        id: String,
        /// Which field and why.
        source: crate::validate::Invalid,
    },
    /// A step failed.
    #[error("cannot exec in container {id}")]
    Step {
        /// The container.
        id: String,
        /// Which step and why.
        source: Failure,
    },
}

impl Container {
    /// A process like the container's own, for `exec` to change: same user, environment, rights.
    /// It has no arguments and no terminal.
    pub fn process(&self) -> Process {
        let mut process = self.record.process.clone().unwrap_or_default();
        process.args.clear();
        process.terminal = false;
        process.console_size = None;
        if process.cwd.as_os_str().is_empty() {
            process.cwd = "/".into();
        }
        process
    }

    /// Runs one more process; returns when its program runs. The calling process must have a single
    /// thread.
    ///
    /// # Errors
    /// When the container does not run, or the program cannot be executed.
    pub fn exec(&self, request: ExecRequest) -> Result<Executed, ExecError> {
        let id = self.id().to_owned();
        crate::validate::process(&request.process, "process.").map_err(|source| {
            ExecError::Invalid {
                id: id.clone(),
                source,
            }
        })?;
        let status = self.status();
        let hint = match status {
            Status::Running | Status::Created => "",
            Status::Paused if request.ignore_paused => "",
            Status::Paused => "resume it first",
            _ => "start it first",
        };
        let (true, Some(target)) = (hint.is_empty(), self.pidfd()) else {
            return Err(ExecError::Status { id, status, hint });
        };
        let filter = if self.record.filtered {
            Some(self.dir.read_filter(&self.record)?)
        } else {
            None
        };
        let mut child = None;
        let made = self.run_in(&request, filter, &target, &mut child);
        match (made, child) {
            (Ok((console, warnings)), Some(sys::Child { pid, pidfd })) => Ok(Executed {
                pid,
                pidfd,
                console,
                warnings,
            }),
            (Err(source), child) => {
                reap(child);
                Err(ExecError::Step { id, source })
            }
            (Ok(_), None) => Err(ExecError::Step {
                id,
                source: Failure::new("cannot exec", "there is no process"),
            }),
        }
    }

    fn run_in(
        &self,
        request: &ExecRequest,
        filter: Option<seccomp::Program>,
        target: &OwnedFd,
        child: &mut Option<sys::Child>,
    ) -> Step<(Option<OwnedFd>, Vec<String>)> {
        let process = &request.process;
        let (program, mut warnings) = Program::prepare(
            process,
            filter,
            request.preserve_fds,
            !request.no_new_keyring,
        )?;
        let group = self.exec_group(request)?;
        let entry = Entry {
            program,
            target,
            flags: self.namespace_flags()?,
            group: group.as_ref(),
            personality: self.record.personality.as_ref(),
            streams: match &request.stdio {
                Stdio::Inherit => None,
                Stdio::Fds(fds) => Some(fds),
            },
        };
        let channel = spawn(entry, self.joins_pids(), child)?;
        let pid = child.as_ref().map_or(0, |child| child.pid);
        let mut console = None;
        loop {
            match channel.hear()? {
                Heard::Word(Word::Ready, _) => break,
                Heard::Word(Word::Console, fds) => console = fds.into_iter().next(),
                other => return Err(init::unexpected(other)),
            }
        }
        limits::apply_rlimits(pid, &process.rlimits, &mut |text| warnings.push(text))?;
        if let Some(score) = process.oom_score_adj {
            warnings.extend(limits::set_oom_score(pid, score)?);
        }
        if let Some(path) = &request.pid_file {
            pid_file::write(path, pid)?;
        }
        channel.say(Word::Go)?;
        loop {
            match channel.hear()? {
                Heard::End => return Ok((console, warnings)),
                Heard::Word(Word::Listener, fds) => {
                    crate::container::pass_listener(&self.record, pid, fds)?;
                }
                other => return Err(init::unexpected(other)),
            }
        }
    }

    fn exec_group(&self, request: &ExecRequest) -> Step<Option<cgroup::Cgroup>> {
        let fail = |error: &dyn std::error::Error| {
            Failure::new("cannot use the control group", chain(error))
        };
        let layout = cgroup::Layout::detect().map_err(|error| fail(&error))?;
        let path = match &request.cgroup {
            Some(below) => self
                .record
                .cgroup
                .join(below)
                .map_err(|error| fail(&error))?,
            None => self.record.cgroup.clone(),
        };
        match cgroup::Cgroup::open(&layout, &path) {
            Ok(group) => Ok(Some(group)),
            // A rootless container has none.
            Err(_) if request.cgroup.is_none() => Ok(None),
            Err(error) => Err(fail(&error)),
        }
    }

    fn joins_pids(&self) -> bool {
        self.record.namespaces.contains(&NamespaceKind::Pid)
    }

    /// Flags of the namespaces to join, as setns(2) takes them with a pidfd.
    fn namespace_flags(&self) -> Step<u32> {
        let mut flags = 0;
        for kind in &self.record.namespaces {
            // The kernel refuses to enter the user namespace one is in.
            if *kind == NamespaceKind::User && same_namespace(self.record.pid, *kind)? {
                continue;
            }
            flags |= namespaces::flag(*kind) as u32;
        }
        Ok(flags)
    }
}

fn same_namespace(pid: i32, kind: NamespaceKind) -> Step<bool> {
    let name = namespaces::file_name(kind);
    let what = "cannot examine the container's namespaces";
    let theirs = rustix::fs::stat(format!("/proc/{pid}/ns/{name}")).ctx(what)?;
    let ours = rustix::fs::stat(format!("/proc/self/ns/{name}")).ctx(what)?;
    Ok((theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino))
}

/// What the child needs.
struct Entry<'a> {
    program: Program<'a>,
    target: &'a OwnedFd,
    flags: u32,
    group: Option<&'a cgroup::Cgroup>,
    personality: Option<&'a Personality>,
    streams: Option<&'a [OwnedFd; 3]>,
}

/// Clones the child into the container's pid namespace.
fn spawn(entry: Entry<'_>, joins_pids: bool, child: &mut Option<sys::Child>) -> Step<Channel> {
    let (ours, theirs) = Channel::pair()?;
    let into = match entry.group {
        Some(group) => group
            .clone_into_fd()
            .map_err(|error| Failure::new("cannot open the control group", chain(&error)))?,
        None => None,
    };
    let own_pids = rustix::fs::open(
        "/proc/self/ns/pid",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ctx("cannot open the runtime's pid namespace")?;
    let enter = |fd: &OwnedFd| {
        rustix::thread::move_into_thread_name_spaces(fd.as_fd(), ThreadNameSpaceType::PROCESS_ID)
    };
    // The child appears among the container's processes: it must be closed to them from the start.
    let dumpable = sys::prctl(libc::PR_GET_DUMPABLE, 0, 0).unwrap_or(1);
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).ctx("cannot hide the runtime's memory")?;
    if joins_pids {
        enter(entry.target).ctx("cannot join the container's pid namespace")?;
    }
    let mask = sys::set_signal_mask(!0).ctx("cannot block signals")?;
    // SAFETY: `Container::exec` asks its callers to be single-threaded.
    let cloned = unsafe { sys::clone3(0, into.as_ref().map(|fd| fd.as_fd())) };
    if let Ok(None) = cloned {
        drop(ours);
        run(entry, theirs);
    }
    let restored = sys::set_signal_mask(mask).ctx("cannot restore the signal mask");
    let _ = sys::prctl(libc::PR_SET_DUMPABLE, dumpable as u64, 0);
    let returned = if joins_pids {
        rustix::thread::move_into_link_name_space(own_pids.as_fd(), None)
            .ctx("cannot return to the runtime's pid namespace")
    } else {
        Ok(())
    };
    *child = cloned.ctx("cannot make a process in the container")?;
    restored.and(returned)?;
    Ok(ours)
}

fn run(entry: Entry<'_>, channel: Channel) -> ! {
    let failure = match entry.set_up(&channel) {
        Ok((program, path, labels)) => program.execute(&path, labels, &channel),
        Err(failure) => failure,
    };
    channel.fail(&failure);
    sys::exit_now(1)
}

impl<'a> Entry<'a> {
    fn set_up(self, channel: &Channel) -> Step<(Program<'a>, std::ffi::CString, Labels)> {
        let Entry {
            program,
            target,
            flags,
            group,
            personality,
            streams,
        } = self;
        if let Some(personality) = personality {
            limits::set_personality(personality)?;
        }
        let affinity = program.process.exec_cpu_affinity.as_ref();
        if let Some(affinity) = affinity {
            limits::set_affinity(&affinity.initial)?;
        }
        if let Some(group) = group {
            crate::cgroups::enter_v1(group)?;
        }
        if let Some(affinity) = affinity {
            limits::set_affinity(&affinity.last)?;
        }
        rustix::process::setsid().ctx("cannot start a session")?;
        let labels = Labels::open(program.process)?;
        let others = flags & !(libc::CLONE_NEWPID as u32);
        if others != 0 {
            let kinds = ThreadNameSpaceType::from_bits_retain(others);
            rustix::thread::move_into_thread_name_spaces(target.as_fd(), kinds)
                .ctx("cannot join the container's namespaces")?;
        }
        if flags & libc::CLONE_NEWUSER as u32 != 0 {
            init::become_root()?;
        }
        if flags & libc::CLONE_NEWNS as u32 == 0 {
            return Err(Failure::new(
                "cannot exec",
                "the container has no mount namespace of its own",
            ));
        }
        sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).ctx("cannot hide the runtime's memory")?;
        if program.process.terminal {
            let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .ctx("cannot open the container's root")?;
            let slave = terminal::open(&root, program.process, channel)?;
            terminal::control(&slave)?;
        } else if let Some([stdin, stdout, stderr]) = streams {
            terminal::streams(stdin.as_fd(), stdout.as_fd(), stderr.as_fd())?;
        }
        sys::cloexec_from(3 + program.preserve_fds).ctx("cannot close descriptors of the host")?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let path = program.find()?;
        channel.say(Word::Ready)?;
        channel.expect(Word::Go)?;
        Ok((program, path, labels))
    }
}

/// Ends a child that could not be handed to the caller.
fn reap(child: Option<sys::Child>) {
    if let Some(child) = child {
        let _ = rustix::process::pidfd_send_signal(&child.pidfd, Signal::KILL);
        let _ = rustix::io::retry_on_intr(|| {
            rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)
        });
    }
}
