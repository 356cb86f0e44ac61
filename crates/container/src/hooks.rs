//! Hooks: programs of the bundle run at points of the life cycle, with the state on standard input.
//!
//! Run by the parent in the runtime's namespaces and by the child in the container's. Each gets only
//! its own environment (of those without one, `startContainer` hooks get the program's), and a time limit if it asked for one. (config.md, "POSIX-platform Hooks")

use std::ffi::CString;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Signal, WaitId, WaitIdOptions};

use crate::error::{Context, Failure, Step};
use crate::process::{CStrings, cstring};
use crate::spec::{Hook, State};
use crate::sys;

/// Runs hooks in order until one fails.
///
/// # Errors
/// Names the hook and says how it ended.
pub(crate) fn run(point: &str, hooks: &[Hook], state: &State) -> Step<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let json = serde_json::to_vec(state)
        .map_err(|error| Failure::new("cannot describe the state to hooks", error.to_string()))?;
    hooks
        .iter()
        .try_for_each(|hook| run_one(point, hook, &json))
}

fn run_one(point: &str, hook: &Hook, state: &[u8]) -> Step<()> {
    let what = || format!("the {point} hook {} failed", hook.path.display());
    let path: CString = cstring(hook.path.as_os_str().as_encoded_bytes())?;
    let name = [hook.path.to_string_lossy().into_owned()];
    let argv = CStrings::new(if hook.args.is_empty() {
        &name
    } else {
        &hook.args
    })?;
    let envp = CStrings::new(&hook.env)?;
    // A file in memory rather than a pipe: a hook that never reads cannot block us.
    let memory = rustix::fs::memfd_create("state", MemfdFlags::CLOEXEC).with(what)?;
    let mut input = std::fs::File::from(memory);
    input.write_all(state).with(what)?;
    rustix::fs::seek(&input, rustix::fs::SeekFrom::Start(0)).with(what)?;
    // SAFETY: callers of this crate are single-threaded; the child only duplicates a descriptor and execs.
    let child = unsafe { sys::clone3(0, None) }.with(what)?;
    let Some(child) = child else {
        let errno = match rustix::stdio::dup2_stdin(&input) {
            Ok(()) => {
                let _ = sys::cloexec_from(3);
                sys::reset_signals();
                let _ = sys::set_signal_mask(0);
                sys::execve(&path, argv.pointers(), envp.pointers())
            }
            Err(errno) => errno,
        };
        sys::exit_now(if errno == rustix::io::Errno::NOENT {
            127
        } else {
            126
        });
    };
    let limit = hook
        .timeout
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map(Duration::from_secs);
    let in_time = wait_readable(&child.pidfd, limit).with(what)?;
    if !in_time {
        let _ = rustix::process::pidfd_send_signal(&child.pidfd, Signal::KILL);
    }
    let status = rustix::io::retry_on_intr(|| {
        rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)
    })
    .with(what)?;
    let why = match status.as_ref().and_then(|s| s.exit_status()) {
        _ if !in_time => format!(
            "it took longer than its timeout of {} s",
            hook.timeout.unwrap_or(0)
        ),
        Some(0) => return Ok(()),
        Some(126) => "it cannot be executed, or exited with status 126".to_owned(),
        Some(127) => "it does not exist, or exited with status 127".to_owned(),
        Some(code) => format!("it exited with status {code}"),
        None => format!(
            "it was killed by signal {}",
            status
                .as_ref()
                .and_then(|s| s.terminating_signal())
                .unwrap_or(0)
        ),
    };
    Err(Failure::new(what(), why))
}

/// Waits until `fd` is readable (a process: has ended); false if that took longer than `limit`.
pub(crate) fn wait_readable(
    fd: impl AsFd,
    limit: Option<Duration>,
) -> Result<bool, rustix::io::Errno> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
