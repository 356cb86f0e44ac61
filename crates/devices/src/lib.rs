//! Devices of a virtual machine: the platform's own and virtio, one directory each.
//!
//! A device is reached through [`Registers`] and reaches back through RAM, [`Interrupts`] and
//! [`Line`]. It knows of no CPU and of no hypervisor, so all of them work with both.
//!
//! ```text
//!  ports   0x3f8  serial::Serial         line 4     memory  ECAM_START    pci::PciBus (ECAM)
//!          0x60   i8042::I8042                              IOAPIC_START  ioapic::Ioapic
//!          0x70   rtc::Rtc                                  elsewhere     pci::PciBus (BARs)
//!          0xcf8  pci::ConfigPorts
//!          0x600  acpi::PowerRegisters   line 9     ends of interrupts go to the IOAPIC
//! ```
//! Each has its ports or size as constants; lines are [`ioapic::Ioapic::line`]. What the guest reads
//! of all this is [`acpi::tables`].
//!
//! Every directory has the same files: `mod.rs` says what the device is and what follows which
//! specification, `device.rs` holds the device behind its lock, `state.rs` what is saved of it
//! (a serde type with `state()` and `restore()` on the device), `tests.rs` proves it. What is more
//! than one noun gets a file of its own.

pub mod acpi;
pub mod i8042;
pub mod ioapic;
pub mod pci;
pub mod rtc;
pub mod serial;
pub mod state;
#[cfg(test)]
mod testing;
pub mod virtio;

#[doc(hidden)]
pub mod fuzzing;

pub use state::StateError;

/// What a device shows to the guest at some range of ports or memory. Called from all vCPU threads
/// at once; a device locks itself. Offsets and sizes are the guest's choice: any of 1, 2, 4, 8
/// bytes at any offset, and nothing they do may harm the host.
pub trait Registers: Send + Sync {
    /// A load of 1 to 8 bytes at an offset from the start of the range. What does not exist reads
    /// as the device's specification says, else as zero.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// A store of 1 to 8 bytes.
    fn write(&self, offset: u64, data: &[u8]);
}

/// How a device interrupts, whoever delivers it.
pub trait Interrupts: Send + Sync {
    /// Delivers a message-signalled interrupt: `address` and `data` as a PCI function would store
    /// them (Intel SDM 3A, 12.11). Never waits.
    fn signal_msi(&self, address: u64, data: u32);
}

/// The wire from a device to an input of an interrupt controller.
pub trait Line: Send + Sync {
    /// Drives it high or low. Never waits.
    fn set(&self, high: bool);
}
