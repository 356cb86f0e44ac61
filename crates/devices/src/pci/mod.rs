//! PCI: one bus of functions with configuration space, BARs and MSI-X (PCI Local Bus 3.0; PCI
//! Express Base 5.0 for ECAM).
//!
//! ```text
//!  ECAM, 0xcf8 ─► PciBus ─► PciFunction::config_*      a function keeps a ConfigSpace, a MsixTable
//!  BAR memory  ─►        ─► PciFunction::bar_*
//! ```
//! [`PciBus`] knows which function decodes which address; it acts as the firmware that gives BARs
//! their first addresses. There are no bridges, no I/O BARs and no legacy interrupts: every function
//! is of the kind that a modern kernel drives by memory and MSI-X.

mod bus;
mod config;
mod function;
mod host_bridge;
mod msix;
mod ports;
mod space;
#[cfg(test)]
mod tests;

pub use bus::{PciBus, PciError};
pub use config::{BarKind, ConfigSpace, ConfigState, Identity};
pub use function::{PciFunction, Window};
pub use host_bridge::HostBridge;
pub use msix::{MsixPlace, MsixState, MsixTable};
pub use ports::ConfigPorts;
