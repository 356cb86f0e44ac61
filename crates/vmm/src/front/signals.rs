//! The signals that are passed on, blocked and waited for: a first process is sent none that it does
//! not block or handle.

/// Signals of a process's own doing, or of no meaning to a guest.
const OURS: [i32; 8] = [
    libc::SIGCHLD,
    libc::SIGPIPE,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
];

/// A blocked set.
pub(super) struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks, in this thread and those it makes, every signal that asks something of a program.
    pub(super) fn block() -> Self {
        // SAFETY: a set is initialized before it is used, and every number is a signal's.
        let set = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigfillset(&raw mut set);
            for signal in OURS {
                libc::sigdelset(&raw mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            set
        };
        Self(set)
    }

    /// The next one.
    pub(super) fn wait(&self) -> i32 {
        let mut signal = 0;
        // SAFETY: the set was initialized, and the number's place is ours.
        unsafe { libc::sigwait(&raw const self.0, &raw mut signal) };
        signal
    }
}
