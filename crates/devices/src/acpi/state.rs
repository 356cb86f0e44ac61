//! What is saved of the registers.

use serde::{Deserialize, Serialize};

use super::PowerRegisters;

/// Events the guest has not taken yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerState {
    /// As bits of the events register.
    pub events: u32,
}

impl PowerRegisters {
    /// What to save.
    #[must_use]
    pub fn state(&self) -> PowerState {
        PowerState {
            events: *self.lock(),
        }
    }

    /// Takes a saved state, and drives the line as it demands.
    pub fn restore(&self, state: PowerState) {
        *self.lock() = 0;
        self.raise(state.events);
    }
}
