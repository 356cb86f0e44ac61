//! Configuration mechanism 1: address at port 0xcf8, data at 0xcfc (PCI Local Bus 3.0, 3.2.2.3.2).
//! Kernels look here before they have read the ACPI tables that tell of ECAM.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use super::PciBus;
use crate::Registers;

const ENABLE: u32 = 1 << 31;

/// The eight ports from [`ConfigPorts::BASE`].
pub struct ConfigPorts {
    bus: Arc<PciBus>,
    address: AtomicU32,
}

impl ConfigPorts {
    /// The first port.
    pub const BASE: u16 = 0xcf8;
    /// How many there are.
    pub const COUNT: u16 = 8;

    /// Ports to a bus.
    #[must_use]
    pub fn new(bus: Arc<PciBus>) -> Self {
        Self {
            bus,
            address: AtomicU32::new(0),
        }
    }

    /// Address register, to save; the only state there is.
    #[must_use]
    pub fn state(&self) -> u32 {
        self.address.load(Ordering::Relaxed)
    }

    /// Takes a saved address register.
    pub fn restore(&self, state: u32) {
        self.address.store(state & !0x7f00_0003, Ordering::Relaxed);
    }

    /// Slot and register that an access of `bytes` to the data port at `offset` reaches now: bus
    /// 23:16, device 15:11, function 10:8.
    fn target(&self, offset: u64, bytes: usize) -> Option<(u8, u16)> {
        let address = self.state();
        let is_data = (4..8).contains(&offset) && offset as usize + bytes <= 8;
        let exists = is_data && address & ENABLE != 0 && address & 0x00ff_0700 == 0;
        let register = (address & 0xfc) as u16 + (offset & 3) as u16;
        exists.then_some(((address >> 11 & 0x1f) as u8, register))
    }
}

impl Registers for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.state().to_le_bytes());
        } else if let Some((slot, register)) = self.target(offset, data.len()) {
            self.bus.config_read(slot, register, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 0 {
            if let Ok(bytes) = data.try_into() {
                self.restore(u32::from_le_bytes(bytes));
            }
        } else if let Some((slot, register)) = self.target(offset, data.len()) {
            self.bus.config_write(slot, register, data);
        }
    }
}
