//! virtio (OASIS virtio 1.2): the devices, the queues they share with the guest's drivers, and the
//! PCI transport that shows them.
//!
//! ```text
//!  guest ── PciBus ── pci::VirtioPci ── VirtioDevice      on the vCPU's thread, briefly
//!               │           │    ▲            │
//!               │ kick      │    │ Interrupt  │ activate: queues go to the worker
//!               └──────► EventFd │            ▼
//!                           └──► Worker ── Handler        one thread for one or more queues
//! ```
//! A driver's notification is a write to an eventfd and nothing else on the vCPU's thread; what is
//! in a queue is looked at by the [`Worker`] that owns it. [`VirtioDevice::activate`] hands the
//! queues over, [`VirtioDevice::deactivate`] takes them back once the worker holds still: so a reset
//! forgets them, a pause keeps them, and a snapshot is a pause whose queues are written down.
//!
//! Every device directory has the same files: `mod.rs` (what it is), `config.rs` (features and
//! configuration space), `device.rs` (the [`VirtioDevice`] and the handle the host steers it with),
//! `handler.rs` (what it does with its queues), `state.rs` where something is saved, `tests.rs`.
//!
//! Whatever a driver writes is hostile: chains are checked whole ([`Chain::parse`]), work between
//! two looks at the stop bell is bounded ([`VirtQueue::serve`]), and a queue that breaks the rules
//! sets DEVICE_NEEDS_RESET and is not touched again before the reset.

pub mod balloon;
pub mod block;
mod chain;
pub mod console;
mod device;
pub mod entropy;
pub mod fs;
#[doc(hidden)]
pub mod fuzzing;
mod limiter;
pub mod net;
pub mod pci;
mod queue;
#[cfg(test)]
mod testing;
pub mod vsock;
mod worker;

pub use chain::{
    Buffer, Buffers, Chain, ChainError, HostBuffer, MAX_BUFFERS, MAX_VECTORS, TooShort,
};
pub use device::{
    ActivateError, Activation, ConfigNotifier, DeviceEvent, DeviceKind, Host, Interrupt,
    VirtioDevice, read_config_bytes,
};
pub use limiter::{Limits, RateLimiter};
pub use queue::{QueueError, SavedQueue, Served, VirtQueue};
pub use worker::{Events, Handler, Worker, fd};
