//! Standing in for a program in the foreground: its signals, its terminal, its exit status.
//!
//! Signals are blocked before the program is made and then waited for, so that none is lost, the
//! child's death included. Without a terminal that is one system call at a time; with one, the bytes of
//! both sides are copied too.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus};
use rustix::termios::{OptionalActions, Termios};

use super::{Exit, Result};
use crate::sys;

/// All signals but those that cannot or must not wait (synchronous faults).
const WAITED: u64 = !(bit(libc::SIGSEGV)
    | bit(libc::SIGBUS)
    | bit(libc::SIGFPE)
    | bit(libc::SIGILL)
    | bit(libc::SIGTRAP)
    | bit(libc::SIGKILL)
    | bit(libc::SIGSTOP));

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// The foreground, taken.
#[derive(Debug)]
pub(super) struct Foreground {
    before: u64,
}

impl Foreground {
    /// Blocks signals. Call before the program is made.
    pub fn begin() -> Result<Foreground> {
        Ok(Foreground {
            before: sys::set_signal_mask(WAITED)?,
        })
    }

    /// Passes everything on until the program ends.
    pub fn wait(&self, pidfd: &OwnedFd, console: Option<OwnedFd>) -> Result<WaitIdStatus> {
        let status = match console {
            Some(master) => Terminal::new(&master).serve(pidfd),
            None => wait_plainly(pidfd),
        };
        sys::set_signal_mask(self.before)?;
        status
    }
}

/// The status a shell would give the program.
pub(super) fn exit_code(status: WaitIdStatus) -> Exit {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    };
    Exit(code as u8)
}

fn wait_plainly(pidfd: &OwnedFd) -> Result<WaitIdStatus> {
    loop {
        match sys::wait_signal(WAITED) {
            Ok(libc::SIGCHLD) => {
                if let Some(status) = reap(pidfd)? {
                    return Ok(status);
                }
            }
            Ok(signal) => pass_on(pidfd, signal),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn reap(pidfd: &OwnedFd) -> Result<Option<WaitIdStatus>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    Ok(rustix::process::waitid(
        WaitId::PidFd(pidfd.as_fd()),
        options,
    )?)
}

fn pass_on(pidfd: &OwnedFd, signal: i32) {
    // Sent to the whole foreground group by the terminal; the program is not in it.
    // SAFETY: pidfd_send_signal with a null siginfo takes integers only.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
}

/// The caller's terminal on one side, the container's on the other.
struct Terminal<'a> {
    master: &'a OwnedFd,
    before: Option<Termios>,
}

impl<'a> Terminal<'a> {
    fn new(master: &'a OwnedFd) -> Terminal<'a> {
        let stdin = rustix::stdio::stdin();
        let before = rustix::termios::tcgetattr(stdin).ok();
        if let Some(settings) = &before {
            let mut raw = settings.clone();
            raw.make_raw();
            let _ = rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw);
        }
        let terminal = Terminal { master, before };
        terminal.resize();
        terminal
    }

    fn resize(&self) {
        if self.before.is_some()
            && let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin())
        {
            let _ = rustix::termios::tcsetwinsize(self.master, size);
        }
    }

    /// Copies bytes and passes signals on until the program has ended and its output is drained.
    fn serve(&self, pidfd: &OwnedFd) -> Result<WaitIdStatus> {
        let signals = signal_fd()?;
        let mut input_open = true;
        let mut output_open = true;
        loop {
            let stdin = rustix::stdio::stdin();
            let mut fds = vec![PollFd::new(&signals, PollFlags::IN)];
            if output_open {
                fds.push(PollFd::new(self.master, PollFlags::IN));
            }
            if input_open {
                fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let ready =
                |i: usize, on: bool| on && fds.get(i).is_some_and(|fd| !fd.revents().is_empty());
            let output_ready = ready(1, output_open);
            let input_ready = ready(1 + usize::from(output_open), input_open);
            let signal_ready = ready(0, true);
            if output_ready {
                output_open = copy(self.master.as_fd(), rustix::stdio::stdout());
            }
            if input_ready {
                input_open = copy(stdin, self.master.as_fd());
                if !input_open {
                    // End of input: what typing ^D at the start of a line does.
                    let _ = rustix::io::write(self.master, &[4]);
                }
            }
            if signal_ready && let Some(status) = self.hear(&signals, pidfd)? {
                while output_open && self.pending() {
                    output_open = copy(self.master.as_fd(), rustix::stdio::stdout());
                }
                return Ok(status);
            }
        }
    }

    fn pending(&self) -> bool {
        let mut fds = [PollFd::new(self.master, PollFlags::IN)];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(poll(&mut fds, Some(&now)), Ok(1)) && fds[0].revents().contains(PollFlags::IN)
    }

    fn hear(&self, signals: &OwnedFd, pidfd: &OwnedFd) -> Result<Option<WaitIdStatus>> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        if rustix::io::read(signals, &mut info)? < 4 {
            return Ok(None);
        }
        match i32::from_ne_bytes([info[0], info[1], info[2], info[3]]) {
            libc::SIGCHLD => reap(pidfd),
            libc::SIGWINCH => {
                self.resize();
                Ok(None)
            }
            signal => {
                pass_on(pidfd, signal);
                Ok(None)
            }
        }
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        if let Some(settings) = &self.before {
            let _ =
                rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, settings);
        }
    }
}

/// Copies what is there; false at the end of `from` or when nobody takes it.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut buffer = [0u8; 8192];
    let len = match rustix::io::read(from, &mut buffer) {
        Ok(0) => return false,
        Ok(len) => len,
        Err(Errno::INTR | Errno::AGAIN) => return true,
        // A terminal whose other end is closed.
        Err(_) => return false,
    };
    let mut rest = &buffer[..len];
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => return false,
        }
    }
    true
}

fn signal_fd() -> Result<OwnedFd> {
    // SAFETY: the mask is 8 bytes as the size says; the result is a new descriptor or an error.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_signalfd4,
            -1,
            &raw const WAITED_MASK,
            8,
            libc::SFD_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

static WAITED_MASK: u64 = WAITED;
