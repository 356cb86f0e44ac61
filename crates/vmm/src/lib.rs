//! A virtual machine: memory, boot, bus, vCPU threads, and the `berth-vmm` process they live in.
//!
//! ```text
//!  engines ── control socket ──► control ─► machine ─┬─ boot: kernel, initrd, tables into RAM
//!                                                    ├─ bus: who answers at which address
//!  berth console ─────────────► console ◄── serial ──┤
//!                                                    └─ a thread per vCPU (crate cpu)
//! ```
//! It knows nothing of instances, images or the store: whoever starts `berth-vmm` gives it files
//! and numbers. Nothing in it waits for the daemon, which may die and come back.

pub mod boot;
pub mod bus;
pub mod config;
pub mod console;
pub mod control;
pub mod exit;
pub mod front;
#[doc(hidden)]
pub mod fuzzing;
pub mod jail;
pub mod machine;
mod outbox;
pub mod process;
pub mod resources;
pub mod shares;

pub use config::VmConfig;
pub use exit::{ExitRecord, StopReason};
