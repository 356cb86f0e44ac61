//! Watches over a machine's process, starts it again after a reset, and records its end.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    thread,
    time::{Duration, Instant},
};

use cpu::{Backend, soft::Tier};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal,
        set_parent_process_death_signal, waitpid,
    },
    thread::{LinkNameSpaceType, UnshareFlags},
};

use super::{Ended, Options, run};
use crate::{
    ExitRecord, StopReason, VmConfig,
    config::Stdio,
    exit::RecordError,
    resources::{Listeners, ResourceError},
};

/// A report is a reason with a message of bounded length, and limits of a few devices.
const MAX_REPORT: u64 = 64 << 10;
/// A guest that resets itself at once is not booted more often than this.
const SHORTEST_BOOT: Duration = Duration::from_secs(1);

/// Why a machine could not be watched over.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// Its sockets cannot be made.
    #[error("the machine cannot be started")]
    Sockets(#[from] ResourceError),
    /// The kernel refused.
    #[error("{what}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Its end cannot be recorded.
    #[error("the machine ended ({reason:?}), which cannot be recorded")]
    Record {
        /// Why it ended.
        reason: StopReason,
        /// Why that is not on disk.
        source: RecordError,
    },
}

/// How machines are supervised.
#[derive(Debug, Clone, Copy)]
pub struct Supervision {
    /// What executes the vCPUs.
    pub backend: Backend,
    /// Whether the machine's process locks itself up.
    pub jail: bool,
    /// Whether to say on standard error what happens.
    pub verbose: bool,
    /// When this process was started.
    pub since: Instant,
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> SuperviseError {
    move |error| SuperviseError::System {
        what,
        source: error.into(),
    }
}

/// Runs a machine, over resets, to its end. `attached` is at its console over all of them and is let
/// go of at the end. The calling process has one thread.
///
/// # Errors
/// When there was no machine to begin with, or its end could not be recorded.
pub fn supervise(
    config: &VmConfig,
    how: Supervision,
    attached: Option<UnixStream>,
) -> Result<StopReason, SuperviseError> {
    let listeners = Listeners::bind(config)?;
    let signals = Signals::new().map_err(failed("wait for signals"))?;
    let mut config = config.clone();
    let mut boots = 0;
    let reason = loop {
        boots += 1;
        let began = Instant::now();
        let ended = match Child::start(&config, &listeners, how, attached.as_ref(), boots) {
            Ok(child) => child.wait(&signals),
            Err(error) => Err(error),
        };
        match ended {
            // A program that is over cannot go on after a reset.
            Ok(ended)
                if ended.reason == StopReason::Reset
                    && !matches!(config.stdio, Stdio::Program(_)) =>
            {
                config.set_limits(&ended.limits);
                thread::sleep(SHORTEST_BOOT.saturating_sub(began.elapsed()));
            }
            Ok(ended) => break ended.reason,
            Err(error) => break StopReason::error(&error),
        }
    };
    if let Some(path) = &config.exit_record {
        let record = ExitRecord::now(reason.clone(), boots);
        if let Err(source) = record.write(path) {
            return Err(SuperviseError::Record { reason, source });
        }
    }
    Ok(reason)
}

/// The process of one boot.
struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    report: File,
}

impl Child {
    fn start(
        config: &VmConfig,
        listeners: &Listeners,
        how: Supervision,
        attached: Option<&UnixStream>,
        boots: u32,
    ) -> Result<Self, SuperviseError> {
        let attached = attached.map(UnixStream::try_clone).transpose();
        let attached = attached.map_err(failed("copy a socket"))?;
        let (report, reporter) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(failed("make a pipe"))?;
        if how.jail {
            prepare_pid_namespace().map_err(failed("make a PID namespace"))?;
        }
        // SAFETY: this process has one thread, so that the child can go on as the parent could.
        match unsafe { libc::fork() } {
            0 => {
                drop(report);
                let options = Options {
                    tier: Tier::default(),
                    backend: how.backend,
                    jail: how.jail,
                    attached,
                    boots,
                    since: if boots == 1 {
                        how.since
                    } else {
                        Instant::now()
                    },
                    verbose: how.verbose,
                    supervisor: Some(reporter.into()),
                };
                in_child(config, listeners, options)
            }
            pid => {
                let pid = Pid::from_raw(pid).filter(|_| pid > 0);
                let pid = pid.ok_or_else(io::Error::last_os_error);
                let pid = pid.map_err(failed("start the machine's process"))?;
                let pidfd = pidfd_open(pid, PidfdFlags::empty());
                Ok(Self {
                    pid,
                    pidfd: pidfd.map_err(failed("watch the machine's process"))?,
                    report: report.into(),
                })
            }
        }
    }

    /// Waits for its end; a signal to this process that asks for its end ends it.
    fn wait(self, signals: &Signals) -> Result<Ended, SuperviseError> {
        let mut asked = None;
        loop {
            let mut fds = [
                PollFd::new(&self.pidfd, PollFlags::IN),
                PollFd::new(&signals.0, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed("wait for the machine's process")(error)),
            }
            if !fds[0].revents().is_empty() {
                break;
            }
            if !fds[1].revents().is_empty() {
                asked = asked.or(signals.take());
                // It may have ended just now.
                let _ended = pidfd_send_signal(&self.pidfd, Signal::KILL);
            }
        }
        let status = waitpid(Some(self.pid), WaitOptions::empty())
            .map_err(failed("wait for the machine's process"))?;
        let signal = status.and_then(|(_, status)| status.terminating_signal());
        match (asked, signal) {
            (Some(signal), _) => Ok(StopReason::Terminated { signal }.into()),
            (_, Some(signal)) => Ok(StopReason::Crashed { signal }.into()),
            (_, None) => Ok(self.read_report()),
        }
    }

    fn read_report(&self) -> Ended {
        let mut json = Vec::new();
        let read = (&self.report).take(MAX_REPORT).read_to_end(&mut json);
        let report = read.ok().and_then(|_| serde_json::from_slice(&json).ok());
        report.unwrap_or_else(|| {
            let message = "the machine's process ended and did not say why".into();
            StopReason::Error { message }.into()
        })
    }
}

/// All that the machine's process does.
fn in_child(config: &VmConfig, listeners: &Listeners, options: Options) -> ! {
    let reporter = options.supervisor.as_ref().map(File::try_clone);
    let reason = match Signals::release().and_then(|()| reporter.transpose()) {
        Ok(Some(mut reporter)) => {
            let ended = run(config, listeners, options);
            let ended = ended.unwrap_or_else(|error| StopReason::error(&error).into());
            let json = serde_json::to_vec(&ended).expect("a reason is JSON");
            // A supervisor that is gone does not want to know.
            let _gone = reporter.write_all(&json);
            ended.reason
        }
        Ok(None) => StopReason::Killed,
        Err(error) => StopReason::error(&error),
    };
    // Not `exit`: what the supervisor will do at its end is not for this process to do.
    // SAFETY: ends the process.
    unsafe { libc::_exit(i32::from(reason.status())) }
}

/// Makes the kernel end this process when its supervisor ends, even if it just has. To be called
/// again after a change of user or capabilities, which undoes it (`PR_SET_PDEATHSIG(2const)`).
pub(super) fn die_with(supervisor: &File) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut fds = [PollFd::from_borrowed_fd(supervisor.as_fd(), PollFlags::OUT)];
    poll(&mut fds, Some(&rustix::event::Timespec::default()))?;
    if fds[0].revents().contains(PollFlags::ERR) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    Ok(())
}

/// Makes the next child the first process of a PID namespace of its own. What an earlier call made
/// is over with its child, and is to be left first.
fn prepare_pid_namespace() -> io::Result<()> {
    let own = File::open("/proc/self/ns/pid")?;
    rustix::thread::move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
    // SAFETY: this flag does not unshare the table of open files, which is what could be unsound.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }?;
    Ok(())
}

/// Signals that ask for an end, as a file.
struct Signals(File);

impl Signals {
    fn set() -> libc::sigset_t {
        // SAFETY: a set of bits, for which zero is a value.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
            // SAFETY: changes a set of ours.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        set
    }

    fn new() -> io::Result<Self> {
        use std::os::fd::FromRawFd;
        let set = Self::set();
        // SAFETY: reads a set of ours; the result is checked below.
        let fd = unsafe {
            libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that only we know.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// The first that is there, and the others with it, for one is as good as several.
    fn take(&self) -> Option<i32> {
        // Room for more than all of them; each begins with its number (`signalfd(2)`).
        let mut records = [0; 1024];
        let count = (&self.0).read(&mut records).ok()?;
        let number = records[..count].first_chunk()?;
        i32::try_from(u32::from_ne_bytes(*number)).ok()
    }

    /// In a child: lets signals do again what they do.
    fn release() -> io::Result<()> {
        let set = Self::set();
        // SAFETY: reads a set of ours.
        match unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) }
        {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
