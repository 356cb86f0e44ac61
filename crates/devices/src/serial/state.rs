//! What is saved of a serial port.

use serde::{Deserialize, Serialize};

use super::Serial;

/// A serial port at rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Bytes the guest has not received yet.
    pub received: Vec<u8>,
    /// The transmitter became empty, and the guest was not told.
    pub emptied: bool,
    /// Interrupt enable register.
    pub interrupts: u8,
    /// Whether the FIFOs are on.
    pub fifo: bool,
    /// Line control register.
    pub line_control: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Divisor of the baud rate.
    pub divisor: u16,
}

impl Serial {
    /// What to save.
    #[must_use]
    pub fn state(&self) -> SerialState {
        let inner = self.lock();
        SerialState {
            received: inner.received.iter().copied().collect(),
            emptied: inner.emptied,
            interrupts: inner.interrupts,
            fifo: inner.fifo,
            line_control: inner.line_control,
            modem_control: inner.modem_control,
            scratch: inner.scratch,
            divisor: inner.divisor,
        }
    }

    /// Takes a saved state, and drives the line as it demands.
    pub fn restore(&self, state: &SerialState) {
        let mut inner = self.lock();
        inner.received = state.received.iter().copied().collect();
        inner.emptied = state.emptied;
        inner.interrupts = state.interrupts;
        inner.fifo = state.fifo;
        inner.line_control = state.line_control;
        inner.modem_control = state.modem_control;
        inner.scratch = state.scratch;
        inner.divisor = state.divisor;
        self.drive(&mut inner);
    }
}
