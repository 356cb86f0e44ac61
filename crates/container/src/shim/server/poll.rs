//! epoll, thinly: who is watched for what is stated anew after each round, and only changes are
//! told to the kernel.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

pub(super) use rustix::event::epoll::EventFlags as Flags;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// The listening socket.
    Listener,
    /// A child changed its state.
    Children,
    /// The connection of this number.
    Connection(usize),
    /// A stream of a session: session, and 0 input, 1 output, 2 error output.
    Stream(usize, usize),
}

impl Token {
    fn pack(self) -> u64 {
        match self {
            Token::Listener => 0,
            Token::Children => 1,
            Token::Connection(i) => 2 | (i as u64) << 8,
            Token::Stream(i, n) => 3 | (n as u64) << 4 | (i as u64) << 8,
        }
    }

    fn unpack(value: u64) -> Token {
        let i = (value >> 8) as usize;
        match value & 15 {
            0 => Token::Listener,
            1 => Token::Children,
            2 => Token::Connection(i),
            _ => Token::Stream(i, (value >> 4 & 15) as usize),
        }
    }
}

/// What a descriptor is watched for now.
#[derive(Debug, Default)]
pub(super) struct Watched(Flags);

/// An epoll instance.
#[derive(Debug)]
pub(super) struct Poller(OwnedFd);

impl Poller {
    pub(super) fn new() -> Result<Poller, Errno> {
        epoll::create(epoll::CreateFlags::CLOEXEC).map(Poller)
    }

    /// Watches `fd` for `wanted`; for nothing means not at all, since hang-ups would be told still.
    pub(super) fn watch(&self, fd: impl AsFd, token: Token, now: &mut Watched, wanted: Flags) {
        if now.0 == wanted {
            return;
        }
        let data = epoll::EventData::new_u64(token.pack());
        let done = match (now.0.is_empty(), wanted.is_empty()) {
            (true, _) => epoll::add(&self.0, fd, data, wanted),
            (false, true) => epoll::delete(&self.0, fd),
            (false, false) => epoll::modify(&self.0, fd, data, wanted),
        };
        // The descriptors are open and of kinds that epoll takes; for lack of memory it is tried
        // again after the next round.
        if done.is_ok() {
            now.0 = wanted;
        }
    }

    /// Waits for events, at most `timeout`.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> Vec<(Token, Flags)> {
        let timeout = timeout.map(|t| Timespec {
            tv_sec: t.as_secs() as i64,
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        let empty = epoll::Event {
            flags: Flags::empty(),
            data: epoll::EventData::new_u64(0),
        };
        let mut events = [empty; 32];
        let count = epoll::wait(&self.0, &mut events[..], timeout.as_ref()).unwrap_or(0);
        let about = |event: &epoll::Event| (Token::unpack(event.data.u64()), event.flags);
        events[..count].iter().map(about).collect()
    }
}

/// Signals that must not end a shim are ignored, and SIGCHLD becomes a descriptor.
pub(super) fn children() -> Result<OwnedFd, Errno> {
    let last = || Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL);
    for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        // SAFETY: sets a disposition; no handler runs. Children get the default back.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: a signal set is plain bytes, initialized by sigemptyset; the calls get valid pointers.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(last());
    }
    // SAFETY: signalfd just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes reads and writes of `fd` return at once.
pub(super) fn nonblocking(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)
}
