//! The registers that the tables point to: sleep, reset, and the events of the generic event
//! device.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Line, Registers};

/// Offsets of the registers from [`PowerRegisters::BASE`].
pub(super) const SLEEP_CONTROL: u16 = 0;
pub(super) const SLEEP_STATUS: u16 = 1;
pub(super) const RESET: u16 = 2;
pub(super) const EVENTS: u16 = 4;

/// Sleep control: the type in bits 4:2, and the bit that enters it (ACPI 6.5, 4.8.3.7).
const SLEEP_TYPE: u8 = 0b111 << 2;
const SLEEP_ENABLE: u8 = 1 << 5;
/// The type of S5, soft off, as the `_S5` object says.
pub(super) const SLEEP_TYPE_OFF: u8 = 5;
/// What a store to the reset register must be.
pub(super) const RESET_VALUE: u8 = 1;

/// Events, as bits of their register. Reading takes them.
pub(super) const EVENT_POWER: u32 = 1 << 0;
pub(super) const EVENT_SLEEP: u32 = 1 << 1;
pub(super) const EVENT_GENERATION: u32 = 1 << 2;

/// What a guest asks of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PowerRequest {
    /// To be switched off.
    Off,
    /// To start anew.
    Reset,
}

/// Eight ports at [`PowerRegisters::BASE`].
pub struct PowerRegisters {
    events: Mutex<u32>,
    line: Arc<dyn Line>,
    request: Box<dyn Fn(PowerRequest) + Send + Sync>,
}

impl PowerRegisters {
    /// First port.
    pub const BASE: u16 = 0x600;
    /// How many ports.
    pub const COUNT: u16 = 8;
    /// Input of the IOAPIC for events.
    pub const IRQ: u8 = 9;

    /// Registers that call `request` from a vCPU's thread when the guest wants something, and
    /// interrupt by `line`.
    #[must_use]
    pub fn new(
        line: Arc<dyn Line>,
        request: impl Fn(PowerRequest) + Send + Sync + 'static,
    ) -> Self {
        Self {
            events: Mutex::new(0),
            line,
            request: Box::new(request),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, u32> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Presses the power button: the guest should shut down.
    pub fn press_power_button(&self) {
        self.raise(EVENT_POWER);
    }

    /// Presses the sleep button.
    pub fn press_sleep_button(&self) {
        self.raise(EVENT_SLEEP);
    }

    /// Tells the guest that its generation identifier changed.
    pub fn generation_changed(&self) {
        self.raise(EVENT_GENERATION);
    }

    pub(super) fn raise(&self, event: u32) {
        let mut events = self.lock();
        *events |= event;
        if *events != 0 {
            self.line.set(true);
        }
    }
}

impl Registers for PowerRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // Sleep status: never woken. Anything but the whole register of events takes none.
        if offset == u64::from(EVENTS) && data.len() == 4 {
            let mut events = self.lock();
            data.copy_from_slice(&std::mem::take(&mut *events).to_le_bytes());
            self.line.set(false);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (Ok(offset), [value]) = (u16::try_from(offset), data) else {
            return;
        };
        match offset {
            SLEEP_CONTROL
                if value & SLEEP_ENABLE != 0 && value & SLEEP_TYPE == SLEEP_TYPE_OFF << 2 =>
            {
                (self.request)(PowerRequest::Off);
            }
            RESET if *value == RESET_VALUE => (self.request)(PowerRequest::Reset),
            _ => {}
        }
    }
}
