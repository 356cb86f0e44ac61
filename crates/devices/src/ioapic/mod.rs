//! The IOAPIC: 24 lines in, messages out (Intel 82093AA, 1996).
//!
//! It serves what has a wire: the serial port and the event device of ACPI. It is level- and
//! edge-triggered and says nothing of polarity: a line that is driven high is asserted.

mod device;
mod state;
#[cfg(test)]
mod tests;

pub use device::Ioapic;
pub use state::IoapicState;
