//! What is saved of the clock: its memory, not the time.

use serde::{Deserialize, Serialize};

use super::{Rtc, device::BYTES};
use crate::StateError;

/// The clock's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// Byte selected, 0 to 127.
    pub index: u8,
    /// All 128 bytes.
    pub memory: Vec<u8>,
}

impl Rtc {
    /// What to save.
    #[must_use]
    pub fn state(&self) -> RtcState {
        let inner = self.lock();
        RtcState {
            index: inner.index,
            memory: inner.memory.to_vec(),
        }
    }

    /// Takes a saved state.
    ///
    /// # Errors
    /// When the memory has another size.
    pub fn restore(&self, state: &RtcState) -> Result<(), StateError> {
        let memory = <[u8; BYTES]>::try_from(state.memory.as_slice());
        let memory = memory.map_err(|_| StateError::Mismatch {
            device: "real-time clock",
            reason: format!("{} bytes instead of {BYTES}", state.memory.len()),
        })?;
        let mut inner = self.lock();
        inner.index = state.index & 0x7f;
        inner.memory = memory;
        Ok(())
    }
}
