//! The virtual machine generation identifier: 16 bytes in memory that change when a machine goes on
//! from a saved state, so that its guest stops using random numbers twice (Microsoft, "Virtual
//! Machine Generation ID", 2012).

use std::sync::Arc;

use memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::PowerRegisters;

/// The identifier, in the page the tables point to. It is saved with the guest's memory.
pub struct GenerationId {
    memory: GuestMemory,
    address: u64,
    registers: Arc<PowerRegisters>,
}

impl GenerationId {
    /// At `address` ([`super::AcpiTables::generation_id`]) of the guest's memory.
    #[must_use]
    pub fn new(memory: GuestMemory, address: u64, registers: Arc<PowerRegisters>) -> Self {
        Self {
            memory,
            address,
            registers,
        }
    }

    /// Sets the identifier before the guest starts: 16 random bytes.
    ///
    /// # Errors
    /// When the address is not in RAM.
    pub fn set(&self, id: [u8; 16]) -> Result<(), GuestMemoryError> {
        self.memory.write_slice(&id, GuestAddress(self.address))
    }

    /// Sets another one and tells the guest: it goes on from a saved state.
    ///
    /// # Errors
    /// When the address is not in RAM.
    pub fn renew(&self, id: [u8; 16]) -> Result<(), GuestMemoryError> {
        self.set(id)?;
        self.registers.generation_changed();
        Ok(())
    }
}
