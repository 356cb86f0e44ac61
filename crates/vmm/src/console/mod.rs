//! The serial console: what the guest puts out goes to a history, a log and everybody attached;
//! what one of them types goes to the guest.
//!
//! ```text
//!  serial ─► Output ─► [console thread] ─┬─► history (64 KiB)
//!                                        ├─► log file
//!                                        └─► each client: history first, then what comes
//!  serial ◄─ Input  ◄──────────────────────── the client that types
//! ```
//! The socket carries plain bytes both ways, so that any tool can attach. The first client that
//! sends something is the one that types until it leaves; what others send is dropped. A client
//! that does not read is dropped once it is [`BACKLOG_BYTES`] behind; the guest never waits for one. One
//! that types and hangs up at once is read to its end.

mod log;
mod ring;
mod server;
#[cfg(test)]
mod tests;

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use log::Log;
pub use server::Console;

/// Kept for who attaches later.
pub const HISTORY_BYTES: usize = 64 << 10;
/// How far behind a client may be.
pub const BACKLOG_BYTES: usize = 256 << 10;
/// Clients at once.
pub const MAX_CLIENTS: usize = 16;
/// What the guest may put out before the console thread takes it.
const PENDING_BYTES: usize = 64 << 10;
/// How long the guest waits for the console thread before output is lost.
const PATIENCE: Duration = Duration::from_millis(100);

/// Where the guest's output goes in: the serial port writes here.
#[derive(Clone)]
pub struct Output(Arc<Pending>);

struct Pending {
    bytes: Mutex<Vec<u8>>,
    taken: Condvar,
    wake: EventFd,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Output {
    /// # Errors
    /// When the kernel gives no eventfd.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Pending {
            bytes: Mutex::default(),
            taken: Condvar::new(),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })))
    }

    /// Takes output. Waits a moment if the console thread is far behind, and then drops it.
    pub fn push(&self, data: &[u8]) {
        let mut bytes = lock(&self.0.bytes);
        if bytes.len() + data.len() > PENDING_BYTES {
            let waited = self.0.taken.wait_timeout(bytes, PATIENCE);
            bytes = waited.unwrap_or_else(PoisonError::into_inner).0;
            if bytes.len() + data.len() > PENDING_BYTES {
                return;
            }
        }
        let first = bytes.is_empty();
        bytes.extend_from_slice(data);
        drop(bytes);
        if first {
            self.wake();
        }
    }

    fn take(&self) -> Vec<u8> {
        let _level = self.0.wake.read();
        let bytes = std::mem::take(&mut *lock(&self.0.bytes));
        self.0.taken.notify_all();
        bytes
    }

    /// Makes the console thread look around.
    fn wake(&self) {
        // It can only fail for being signalled 2^64 times already.
        let _signalled = self.0.wake.write(1);
    }
}

impl io::Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.push(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where what is typed goes: the serial port's receiver. Returns how many bytes it took.
pub type Input = Box<dyn FnMut(&[u8]) -> usize + Send>;
