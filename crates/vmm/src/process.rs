//! The process of a machine, and the one that watches over it.
//!
//! ```text
//!  supervisor ── fork into a new PID namespace ──► machine: opens files, locks itself up, runs
//!      │  ▲                                           │
//!      │  └── why it stopped, its limits; one message ┘
//!      ├─ reset: forks again; the control, console and vsock sockets stay
//!      └─ else: writes the exit record, ends
//! ```
//! The supervisor is small and single-threaded and reads nothing a guest made but that message, of
//! bounded size. So a machine that is killed by the filter, by the kernel for want of memory, or
//! by a mistake of ours still ends in a record; and a guest that resets itself gets a process that
//! never held anything of the guest before. If the supervisor dies, the kernel ends the machine.

mod footprint;
mod machine;
mod supervisor;

pub use machine::{Ended, Options, RunError, run};
pub use supervisor::{SuperviseError, Supervision, supervise};
