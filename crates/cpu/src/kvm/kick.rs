//! Bringing a thread back from `KVM_RUN`, without a moment in which a kick is lost.
//!
//! A signal interrupts the call. One that comes just before the call would not, so its handler also
//! sets `immediate_exit` of the vCPU the thread runs (`Documentation/virt/kvm/api.rst`, 5), which the
//! kernel looks at first.

use std::{
    cell::Cell,
    ptr,
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::Kick;

thread_local! {
    /// `immediate_exit` of the vCPU this thread runs; null while it runs none.
    static RUNNING: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

static INSTALL: Once = Once::new();

/// The signal: the first of the real-time ones that the C library leaves to programs.
fn signal() -> i32 {
    libc::SIGRTMIN()
}

extern "C" fn handle(_signal: i32) {
    RUNNING.with(|running| {
        let flag = running.get();
        if !flag.is_null() {
            // SAFETY: set by this thread for as long as the vCPU's page is mapped, see `Turn`.
            unsafe { flag.write_volatile(1) };
        }
    });
}

fn install() {
    INSTALL.call_once(|| {
        // SAFETY: the handler only touches a thread-local cell that is initialized at compile time
        // and a mapped byte, both of which a signal handler may; without SA_RESTART, so that calls
        // are interrupted.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            libc::sigaction(signal(), &raw const action, ptr::null_mut());
        }
    });
}

/// Kicks one vCPU.
#[derive(Debug, Default)]
pub(super) struct KvmKick {
    kicked: AtomicBool,
    /// The thread that is in [`crate::Vcpu::run`].
    thread: Mutex<Option<libc::pthread_t>>,
}

impl Kick for KvmKick {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = *thread {
            // SAFETY: a thread takes its handle out, under this lock, before it can end.
            unsafe { libc::pthread_kill(thread, signal()) };
        }
    }
}

impl KvmKick {
    /// Whether it was kicked since this was asked last.
    pub(super) fn take(&self) -> bool {
        self.kicked.swap(false, Ordering::SeqCst)
    }

    /// Begins a turn of the calling thread with the vCPU whose `immediate_exit` is given, which
    /// stays mapped for as long as the turn lasts.
    pub(super) fn begin(&self, immediate_exit: *mut u8) -> Turn<'_> {
        install();
        RUNNING.with(|running| running.set(immediate_exit));
        // SAFETY: asks for the calling thread's own handle.
        let own = unsafe { libc::pthread_self() };
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(own);
        Turn { kick: self }
    }
}

/// A thread's turn with a vCPU; ends when dropped.
pub(super) struct Turn<'a> {
    kick: &'a KvmKick,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self
            .kick
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
        RUNNING.with(|running| running.set(ptr::null_mut()));
    }
}
