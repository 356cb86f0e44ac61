//! What is saved of the IOAPIC.

use serde::{Deserialize, Serialize};

use super::{Ioapic, device::PINS};

/// The IOAPIC at rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoapicState {
    /// Register selected.
    pub select: u8,
    /// Identification register.
    pub id: u32,
    /// Redirection table.
    pub table: [u64; PINS],
    /// Lines that were asserted, so that they do not seem to rise.
    pub lines: u32,
}

impl Ioapic {
    /// What to save.
    #[must_use]
    pub fn state(&self) -> IoapicState {
        let inner = self.lock();
        IoapicState {
            select: inner.select,
            id: inner.id,
            table: inner.table,
            lines: inner.lines,
        }
    }

    /// Takes a saved state. To be called before the devices at its lines are restored.
    pub fn restore(&self, state: &IoapicState) {
        let mut inner = self.lock();
        inner.select = state.select;
        inner.id = state.id;
        inner.table = state.table;
        inner.lines = state.lines;
        for pin in 0..PINS {
            self.serve_level(&mut inner, pin);
        }
    }
}
