//! What the kernel does with a system call: the verdicts of a filter.

use serde::{Deserialize, Serialize};

/// A verdict. Source: `seccomp(2)`, section on `SECCOMP_RET_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Kill the whole process with SIGSYS, uncatchable.
    KillProcess,
    /// Kill the calling thread only.
    KillThread,
    /// Send SIGSYS to the thread.
    Trap,
    /// Do not do it; return this error number.
    Errno(u16),
    /// Ask the user-space listener.
    Notify,
    /// Tell the tracer, with this message; ENOSYS without one.
    Trace(u16),
    /// Do it, and log it.
    Log,
    /// Do it.
    Allow,
}

impl Action {
    /// The filter's return value.
    pub const fn value(self) -> u32 {
        match self {
            Action::KillProcess => 0x8000_0000,
            Action::KillThread => 0,
            Action::Trap => 0x0003_0000,
            Action::Errno(errno) => 0x0005_0000 | errno as u32,
            Action::Notify => 0x7fc0_0000,
            Action::Trace(message) => 0x7ff0_0000 | message as u32,
            Action::Log => 0x7ffc_0000,
            Action::Allow => 0x7fff_0000,
        }
    }

    /// Whether calls that a policy does not know get through with this as its default.
    pub(crate) fn lets_pass(self) -> bool {
        matches!(
            self,
            Action::Allow | Action::Log | Action::Trace(_) | Action::Notify
        )
    }
}
