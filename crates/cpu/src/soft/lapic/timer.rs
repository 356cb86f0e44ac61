//! A POSIX timer that sets a vCPU's attention word.

use std::{
    io,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// The signal, real-time and of no meaning to anybody else. Threads of vCPUs must not block it.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

/// A timer bound to the thread that made it.
pub(super) struct Timer {
    id: libc::timer_t,
    thread: std::thread::ThreadId,
}

// SAFETY: the id names a timer of the process; any of its threads may use it.
unsafe impl Send for Timer {}

impl Timer {
    /// One that sets `attention` and interrupts what the calling thread waits for.
    pub fn new(attention: &'static AtomicU32) -> io::Result<Self> {
        install_handler()?;
        // SAFETY: all zeros are a valid sigevent; what matters is set below.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        event.sigev_value.sival_ptr = std::ptr::from_ref(attention).cast_mut().cast();
        event.sigev_notify_thread_id = rustix::thread::gettid().as_raw_nonzero().get();
        let mut id: libc::timer_t = std::ptr::null_mut();
        // SAFETY: both pointers are to locals of the right types. The value that is handed to the
        // signal's handler lives as long as the process.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut id) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            id,
            thread: std::thread::current().id(),
        })
    }

    /// Whether it is bound to the calling thread.
    pub fn is_ours(&self) -> bool {
        self.thread == std::thread::current().id()
    }

    /// Makes it go off once, in `nanos` from now; never, when that is zero.
    pub fn arm(&self, nanos: u64) {
        let when = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: libc::timespec {
                tv_sec: (nanos / NANOS_PER_SECOND) as libc::time_t,
                tv_nsec: (nanos % NANOS_PER_SECOND) as libc::c_long,
            },
        };
        // SAFETY: the timer exists as long as this does. It cannot fail: the time is well-formed.
        unsafe { libc::timer_settime(self.id, 0, &when, std::ptr::null_mut()) };
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer exists, and nobody uses its id after this.
        unsafe { libc::timer_delete(self.id) };
    }
}

/// Makes the signal harmless, once in a process.
fn install_handler() -> io::Result<()> {
    static RESULT: OnceLock<Result<(), i32>> = OnceLock::new();
    let result = RESULT.get_or_init(|| {
        // SAFETY: all zeros are a valid sigaction; what matters is set below.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_timer;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
        // SAFETY: the handler is safe to run at any point of any thread: see there.
        match unsafe { libc::sigaction(signal(), &action, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        }
    });
    result.map_err(io::Error::from_raw_os_error)
}

/// Sets the attention word that the timer was made with.
extern "C" fn on_timer(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo. Only timers of this process have the code
    // SI_TIMER, only this module makes timers with this signal, and all of them with the address
    // of a word that lives as long as the process.
    unsafe {
        if (*info).si_code == libc::SI_TIMER {
            let attention = (*info).si_value().sival_ptr.cast::<AtomicU32>();
            (*attention).store(1, Ordering::SeqCst);
        }
    }
}
