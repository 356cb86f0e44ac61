//! The PCI transport, modern only (virtio 1.2, 4.1): a virtio device as a PCI function.
//!
//! One 64-bit BAR holds everything ([`place`]): common configuration, interrupt status, the
//! device's own configuration, a doorbell for each queue, the MSI-X table. Legacy interrupts do not
//! exist on this platform: without MSI-X a driver has to poll.
//!
//! The status register is the state machine (2.1); what is drawn here is what this side does:
//! ```text
//!   0 ── ACKNOWLEDGE, DRIVER ──► features written ── FEATURES_OK ─┬─ subset offered ─► queues set up
//!   ▲                                                             └─ else the bit does not stick
//!   │                                                                               │ DRIVER_OK
//!   ├──────────────── 0 written: deactivate, forget ◄───────────────────────────────┤
//!   │                                                                               ▼
//!   └── 0 written ◄── DEVICE_NEEDS_RESET ◄── queues break the rules ──────── device activated
//! ```

mod common;
mod function;
mod shared;
mod state;
#[cfg(test)]
mod tests;

pub use function::VirtioPci;
pub use state::TransportState;

/// Where things are in the BAR.
pub mod place {
    /// The one BAR (0 and 1, as it is a 64-bit one).
    pub const BAR: u8 = 0;
    /// Its size.
    pub const BAR_BYTES: u64 = 0x8000;
    /// Common configuration (4.1.4.3).
    pub const COMMON: u64 = 0;
    /// Its size.
    pub const COMMON_BYTES: u64 = 0x40;
    /// Interrupt status (4.1.4.5).
    pub const ISR: u64 = 0x1000;
    /// Its size.
    pub const ISR_BYTES: u64 = 4;
    /// The device's own configuration (4.1.4.6).
    pub const DEVICE: u64 = 0x2000;
    /// Its size.
    pub const DEVICE_BYTES: u64 = 0x1000;
    /// Doorbells (4.1.4.4): that of queue `n` at `n * NOTIFY_STEP`.
    pub const NOTIFY: u64 = 0x3000;
    /// Their size.
    pub const NOTIFY_BYTES: u64 = 0x1000;
    /// Bytes from one doorbell to the next.
    pub const NOTIFY_STEP: u64 = 4;
    /// MSI-X table.
    pub const MSIX_TABLE: u64 = 0x4000;
    /// MSI-X pending bits.
    pub const MSIX_PENDING: u64 = 0x6000;
}
