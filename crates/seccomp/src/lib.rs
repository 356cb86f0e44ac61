//! Seccomp: from a policy over system calls to a classic BPF program, without libseccomp.
//!
//! The `container` crate parses a bundle's `linux.seccomp` into a [`Policy`] (or takes
//! [`default_profile`]), compiles it before it forks, and installs it in the child as the last
//! thing before `execve`. [`compile`] is pure and fast (tens of µs for the default profile);
//! [`install`] is the only function here that talks to the kernel.
//!
//! What this crate never does: read files, know what a container is, guess a system call's number
//! (a name it does not know is left out and reported in [`Program::unknown`]).
//!
//! ```text
//!  OCI JSON ─► Policy ─► resolve names per architecture ─► ranges of numbers ─► search tree ─► BPF
//! ```

mod action;
mod arch;
mod compile;
mod emit;
mod install;
#[cfg(test)]
mod interpret;
mod oci;
mod policy;
mod profile;
mod syscalls;
#[cfg(test)]
mod tests;

#[doc(hidden)]
pub mod fuzzing;

pub use action::Action;
pub use arch::Arch;
pub use compile::{CompileError, Program, compile};
pub use emit::Instruction;
pub use install::{Installation, install};
pub use policy::{Argument, Flag, NewCalls, Operator, Policy, Rule};
pub use profile::default_profile;
pub use syscalls::number;
