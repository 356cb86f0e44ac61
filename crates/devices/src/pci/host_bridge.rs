//! The host bridge at 00:00.0: what a kernel expects to find first.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{ConfigSpace, Identity, PciFunction, Window};
use crate::{StateError, state};

/// A bridge with an identity and nothing else.
pub struct HostBridge {
    config: Mutex<ConfigSpace>,
}

impl HostBridge {
    /// The generic PCI Express host bridge that QEMU's virt machines have, which needs no driver.
    #[must_use]
    pub fn new() -> Self {
        Self {
            config: Mutex::new(ConfigSpace::new(Identity {
                vendor: 0x1b36,
                device: 0x0008,
                revision: 0,
                class: 0x06_0000,
                subsystem_vendor: 0x1af4,
                subsystem: 0x1100,
            })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciFunction for HostBridge {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.lock().read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.lock().write(offset, data);
    }

    fn windows(&self) -> Vec<Window> {
        Vec::new()
    }

    fn bar_read(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn reset(&self) {
        self.lock().reset();
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        state::encode("PCI host bridge", &self.lock().state())
    }

    fn restore(&self, bytes: &[u8]) -> Result<(), StateError> {
        let saved = state::decode("PCI host bridge", bytes)?;
        self.lock().restore(&saved)
    }
}
