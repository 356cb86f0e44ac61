//! The supervisor as a child of this process.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::{
    StopReason, VmConfig,
    config::Stdio,
    process::{SuperviseError, Supervision, supervise},
};

/// A report is a reason with a message of bounded length.
const MAX_REPORT: u64 = 64 << 10;

/// The supervisor's process.
#[derive(Clone)]
pub(super) struct Child {
    pid: Pid,
    report: Arc<File>,
}

impl Child {
    /// Starts it; gives our end of its console too, if that is what our input and output are.
    pub(super) fn start(
        config: &VmConfig,
        how: Supervision,
    ) -> Result<(Self, Option<UnixStream>), SuperviseError> {
        let failed = |what| move |source: io::Error| SuperviseError::System { what, source };
        let console = (config.stdio == Stdio::Console).then(UnixStream::pair);
        let console = console.transpose().map_err(failed("make a socket"))?;
        let (console, attached) = console.unzip();
        let (report, reporter) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(io::Error::from)
            .map_err(failed("make a pipe"))?;
        // SAFETY: this process has one thread, so that the child can go on as the parent could.
        match unsafe { libc::fork() } {
            0 => {
                drop((report, console));
                let reason = supervise(config, how, attached);
                let reason = reason.unwrap_or_else(|error| StopReason::error(&error));
                let json = serde_json::to_vec(&reason).expect("a reason is JSON");
                // Whoever is gone does not want to know.
                let _gone = File::from(reporter).write_all(&json);
                // SAFETY: ends the process; what the parent does at its end is not for this one.
                unsafe { libc::_exit(i32::from(reason.status())) }
            }
            pid => {
                let pid = Pid::from_raw(pid).filter(|_| pid > 0);
                let pid = pid
                    .ok_or_else(io::Error::last_os_error)
                    .map_err(failed("start the supervisor"))?;
                let report = Arc::new(report.into());
                Ok((Self { pid, report }, console))
            }
        }
    }

    /// Waits for its end, and for those of processes that lost theirs; says why the machine is no
    /// longer.
    pub(super) fn wait(&self) -> StopReason {
        let mut json = Vec::new();
        // Ends with the supervisor, which holds the other end alone.
        let read = (&*self.report).take(MAX_REPORT).read_to_end(&mut json);
        let signal = loop {
            match waitpid(None, WaitOptions::empty()) {
                Ok(Some((pid, status))) if pid == self.pid => break status.terminating_signal(),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => break None,
            }
        };
        let report = read.ok().and_then(|_| serde_json::from_slice(&json).ok());
        match (report, signal) {
            (Some(reason), _) => reason,
            (None, Some(signal)) => StopReason::Crashed { signal },
            (None, None) => StopReason::Error {
                message: "its supervisor ended and did not say why".into(),
            },
        }
    }

    /// Ends the machine by force.
    pub(super) fn end(&self) {
        // One that has ended just now is what was wanted.
        let _ended = kill_process(self.pid, Signal::TERM);
    }
}
