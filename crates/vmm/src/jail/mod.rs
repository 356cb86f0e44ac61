//! Locking the process up before it reads anything a guest or an image made.
//!
//! Three walls, each of which would do alone for most mistakes:
//! 1. [`Jail::enter`]: own mount, network, IPC and UTS namespaces (the process namespace comes with
//!    the fork, see [`crate::process`]), an empty read-only root, the user of this machine alone,
//!    no capabilities, `no_new_privs`, limits;
//! 2. Landlock: no file can be opened by a path, whatever the mount namespace holds, but below the
//!    folders shared with the guest;
//! 3. a filter on system calls per kind of thread ([`filter`]): what none of them needs ends the
//!    process.
//!
//! Only threads that serve such folders keep capabilities, over the users of the machine's own user
//! namespace: to read and make files for all users of the guest.
//!
//! All that is needed is opened before. The jail is entered with one thread only; each thread made
//! later begins with [`Filters::install`].

mod confine;
mod filter;
#[cfg(test)]
mod tests;

use std::io;

pub use confine::{Jail, drop_capabilities};
pub use filter::{Filters, ThreadKind};

/// A step of locking up failed: nothing of the guest may run.
#[derive(Debug, thiserror::Error)]
#[error("lock the process up: {step}; --no-jail does without, for debugging only")]
pub struct JailError {
    /// Which step.
    pub step: &'static str,
    /// Why.
    pub source: io::Error,
}

/// Names the step that failed.
trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, JailError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, JailError> {
        self.map_err(|error| JailError {
            step,
            source: error.into(),
        })
    }
}
