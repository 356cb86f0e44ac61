//! ACPI, hardware-reduced (ACPI 6.5, 4.1): the tables that describe the machine, the registers
//! they point to, and the generation identifier.
//!
//! ```text
//!  tables() ──► RSDP ─ XSDT ┬ FADT ─ DSDT ── names ports and lines of ──► PowerRegisters
//!                           ├ MADT: local APICs, the IOAPIC
//!                           └ MCFG: ECAM       generation page ◄── GenerationId::renew
//! ```
//! The tables are one piece of bytes, made for the address it is placed at. Who places it reserves
//! the memory.

mod device;
mod dsdt;
mod generation;
mod state;
mod tables;
#[cfg(test)]
mod tests;

pub use device::{PowerRegisters, PowerRequest};
pub use generation::GenerationId;
pub use state::PowerState;
pub use tables::{AcpiConfig, AcpiTables, tables};
