//! The device.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Interrupts, Line, Registers};

/// How many lines it has.
pub(super) const PINS: usize = 24;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;

const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const TABLE: u8 = 0x10;

/// Version 0x11; the highest line in bits 23:16.
const VERSION_VALUE: u32 = (PINS as u32 - 1) << 16 | 0x11;

const VECTOR: u64 = 0xff;
const MODE: u64 = 7 << 8;
const EXTINT: u64 = 7 << 8;
const LOGICAL: u64 = 1 << 11;
pub(super) const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
pub(super) const MASKED: u64 = 1 << 16;
/// Bits of an entry that a store changes; delivery status and remote IRR are ours.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

const MSI_ADDRESS: u64 = 0xfee0_0000;

/// The one IOAPIC: a page at [`memory::layout::IOAPIC_START`].
pub struct Ioapic {
    inner: Mutex<Inner>,
    interrupts: Arc<dyn Interrupts>,
}

pub(super) struct Inner {
    pub select: u8,
    pub id: u32,
    pub table: [u64; PINS],
    /// Lines that are asserted, a bit each.
    pub lines: u32,
}

/// A wire to one input.
struct Wire {
    ioapic: Arc<Ioapic>,
    pin: u8,
}

impl Line for Wire {
    fn set(&self, high: bool) {
        self.ioapic.set_line(self.pin, high);
    }
}

impl Ioapic {
    /// Bytes it takes in memory.
    pub const BYTES: u64 = 0x1000;

    /// One with all lines masked and low.
    #[must_use]
    pub fn new(interrupts: Arc<dyn Interrupts>) -> Self {
        Self {
            inner: Mutex::new(Inner {
                select: 0,
                id: 0,
                table: [MASKED; PINS],
                lines: 0,
            }),
            interrupts,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The wire to a line, 0 to 23; nothing happens at others.
    #[must_use]
    pub fn line(self: &Arc<Self>, pin: u8) -> Arc<dyn Line> {
        Arc::new(Wire {
            ioapic: Arc::clone(self),
            pin,
        })
    }

    /// Drives a line. Never waits.
    pub fn set_line(&self, pin: u8, high: bool) {
        let pin = usize::from(pin);
        if pin >= PINS {
            return;
        }
        let mut inner = self.lock();
        let bit = 1 << pin;
        let rises = high && inner.lines & bit == 0;
        if high {
            inner.lines |= bit;
        } else {
            inner.lines &= !bit;
        }
        if inner.table[pin] & LEVEL != 0 {
            self.serve_level(&mut inner, pin);
        } else if rises && inner.table[pin] & MASKED == 0 {
            self.send(inner.table[pin]);
        }
    }

    /// A local APIC ended a level-triggered interrupt of `vector`: lines that are still asserted
    /// interrupt again.
    pub fn end_of_interrupt(&self, vector: u8) {
        let mut inner = self.lock();
        for pin in 0..PINS {
            let entry = &mut inner.table[pin];
            if *entry & REMOTE_IRR != 0 && *entry & VECTOR == u64::from(vector) {
                *entry &= !REMOTE_IRR;
                self.serve_level(&mut inner, pin);
            }
        }
    }

    /// Interrupts for a level-triggered line that is asserted and was not served yet.
    pub(super) fn serve_level(&self, inner: &mut Inner, pin: usize) {
        let entry = &mut inner.table[pin];
        let asserted = inner.lines & 1 << pin != 0;
        if asserted && *entry & LEVEL != 0 && *entry & (MASKED | REMOTE_IRR) == 0 {
            *entry |= REMOTE_IRR;
            self.send(*entry);
        }
    }

    /// Sends the message of an entry of the redirection table.
    fn send(&self, entry: u64) {
        if entry & MODE == EXTINT {
            // There is no 8259 that it could come from.
            return;
        }
        let logical = if entry & LOGICAL != 0 { 1 << 2 } else { 0 };
        let address = MSI_ADDRESS | entry >> 56 << 12 | logical;
        let level = if entry & LEVEL != 0 {
            1 << 15 | 1 << 14
        } else {
            0
        };
        let data = (entry & (VECTOR | MODE)) as u32 | level;
        self.interrupts.signal_msi(address, data);
    }

    fn write_table(&self, inner: &mut Inner, register: u8, value: u32) {
        let pin = usize::from((register - TABLE) / 2);
        let Some(entry) = inner.table.get_mut(pin) else {
            return;
        };
        let shift = u32::from(register & 1) * 32;
        let mask = WRITABLE & 0xffff_ffff << shift;
        *entry = *entry & !mask | u64::from(value) << shift & mask;
        if *entry & LEVEL == 0 {
            *entry &= !REMOTE_IRR;
        }
        self.serve_level(inner, pin);
    }
}

impl Inner {
    fn read(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => self.id,
            VERSION => VERSION_VALUE,
            TABLE.. => {
                let entry = self.table.get(usize::from((self.select - TABLE) / 2));
                let shift = u32::from(self.select & 1) * 32;
                entry.map_or(0, |entry| (entry >> shift) as u32)
            }
            _ => 0,
        }
    }
}

impl Registers for Ioapic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let inner = self.lock();
        let value = match offset {
            SELECT => u32::from(inner.select),
            WINDOW => inner.read(),
            _ => 0,
        };
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&value.to_le_bytes());
        data.copy_from_slice(&bytes[..data.len()]);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        match offset {
            SELECT => inner.select = data[0],
            WINDOW => {
                let Ok(bytes) = data.try_into() else {
                    return;
                };
                let value = u32::from_le_bytes(bytes);
                match inner.select {
                    ID => inner.id = value & 0x0f00_0000,
                    register @ TABLE.. => self.write_table(&mut inner, register, value),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}
