//! What lies around the vCPUs: everything that is not RAM, and how it interrupts them.

/// Everything a vCPU can reach that is not RAM. Called from the threads of all vCPUs at once; a
/// call may take a lock of a device but must not wait for a vCPU.
pub trait Bus: Send + Sync {
    /// `in`: fills 1, 2 or 4 bytes. Where nothing answers, all ones.
    fn port_read(&self, port: u16, data: &mut [u8]);

    /// `out` of 1, 2 or 4 bytes. Where nothing listens, nothing happens.
    fn port_write(&self, port: u16, data: &[u8]);

    /// A load of 1 to 8 bytes from a guest physical address. Where nothing answers, all ones.
    fn mmio_read(&self, address: u64, data: &mut [u8]);

    /// A store of 1 to 8 bytes to a guest physical address. Where nothing listens, nothing happens.
    fn mmio_write(&self, address: u64, data: &[u8]);

    /// A local APIC ended a level-triggered interrupt of `vector`: the IOAPIC may signal again.
    fn end_of_interrupt(&self, vector: u8);
}

/// A message-signalled interrupt: a store that a local APIC takes as an interrupt (Intel SDM 3A,
/// 12.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Msi {
    /// `0xFEEx_xxxx`: destination and how it is meant. Bits 63:40 hold bits 31:8 of the
    /// destination where it has more than eight (KVM's extended format).
    pub address: u64,
    /// Vector, delivery mode, trigger mode.
    pub data: u32,
}
