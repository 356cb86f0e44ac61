//! Where things lie in guest physical address space.
//!
//! ```text
//! 0                    RAM, at most up to 3 GiB
//! 0xC000_0000          32-bit device memory: PCI BARs
//! 0xE000_0000          PCI configuration space (ECAM), 256 MiB
//! 0xFEC0_0000          IOAPIC
//! 0xFEE0_0000          local APICs and message-signalled interrupts
//! 0x1_0000_0000        the rest of RAM
//! after it             64-bit device memory
//! ```

/// End of RAM below the hole for devices.
pub const LOW_END: u64 = 0xC000_0000;
/// Start of 32-bit device memory, for BARs.
pub const MMIO32_START: u64 = LOW_END;
/// End of 32-bit device memory.
pub const MMIO32_END: u64 = ECAM_START;
/// PCI configuration space: 256 buses of 1 MiB (PCI Firmware Specification 3.3, 4.1).
pub const ECAM_START: u64 = 0xE000_0000;
/// Size of PCI configuration space.
pub const ECAM_BYTES: u64 = 0x1000_0000;
/// The one IOAPIC.
pub const IOAPIC_START: u64 = 0xFEC0_0000;
/// Local APICs: the same address for every vCPU; also the target of message-signalled interrupts.
pub const LAPIC_START: u64 = 0xFEE0_0000;
/// Start of RAM above the hole.
pub const HIGH_START: u64 = 0x1_0000_0000;
/// 64-bit device memory begins at the first multiple of this after RAM.
pub const MMIO64_ALIGN: u64 = 0x40_0000_0000;

/// The pieces RAM of `bytes` comes in, as `(guest address, bytes)`: one below the hole and, when it
/// does not fit there, one above.
#[must_use]
pub fn ram(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(LOW_END);
    let mut pieces = vec![(0, low)];
    if bytes > low {
        pieces.push((HIGH_START, bytes - low));
    }
    pieces
}

/// Where 64-bit device memory begins for a guest with `bytes` of RAM.
#[must_use]
pub fn mmio64_start(bytes: u64) -> u64 {
    (HIGH_START + bytes.saturating_sub(LOW_END)).next_multiple_of(MMIO64_ALIGN)
}
