//! The device.

use std::{
    collections::VecDeque,
    io::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{Line, Registers};

/// Received bytes that wait; more are refused, so that whoever sends waits too.
const QUEUE_BYTES: usize = 4096;

/// Interrupts enabled: data received, transmitter empty; those of line and modem status can be
/// enabled, but never happen.
pub(super) const IER_RECEIVED: u8 = 1 << 0;
pub(super) const IER_EMPTY: u8 = 1 << 1;
const IER_WRITABLE: u8 = 0x0f;

const IIR_NONE: u8 = 0b0001;
const IIR_EMPTY: u8 = 0b0010;
const IIR_RECEIVED: u8 = 0b0100;
const IIR_FIFO: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVED: u8 = 1 << 1;

const LCR_DIVISOR: u8 = 1 << 7;

pub(super) const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;

const LSR_RECEIVED: u8 = 1 << 0;
/// Nothing waits to be sent, and nothing is being sent.
const LSR_EMPTY: u8 = 1 << 5 | 1 << 6;

/// Clear to send, data set ready, carrier detected.
const MSR_READY: u8 = 0xb0;

/// One serial port: eight registers at [`Serial::BASE`] for the first.
pub struct Serial {
    inner: Mutex<Inner>,
    line: Arc<dyn Line>,
}

pub(super) struct Inner {
    output: Box<dyn Write + Send>,
    pub received: VecDeque<u8>,
    /// The transmitter became empty, and nobody has been told.
    pub emptied: bool,
    pub interrupts: u8,
    pub fifo: bool,
    pub line_control: u8,
    pub modem_control: u8,
    pub scratch: u8,
    pub divisor: u16,
    /// What the line was last driven to.
    high: bool,
}

impl Serial {
    /// First port of the first serial port.
    pub const BASE: u16 = 0x3f8;
    /// How many ports.
    pub const COUNT: u16 = 8;
    /// Its input of the IOAPIC.
    pub const IRQ: u8 = 4;

    /// A port that sends to `output` and interrupts by `line`. The writer is called from vCPU
    /// threads, a byte at a time, with the device locked: it should not wait for long. What it
    /// fails to take is lost.
    #[must_use]
    pub fn new(output: Box<dyn Write + Send>, line: Arc<dyn Line>) -> Self {
        Self {
            inner: Mutex::new(Inner {
                output,
                received: VecDeque::new(),
                emptied: false,
                interrupts: 0,
                fifo: false,
                line_control: 3,
                modem_control: MCR_OUT2,
                scratch: 0,
                divisor: 12,
                high: false,
            }),
            line,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the guest receive `bytes`: as many of the first as there is room for, which is the
    /// result. Never waits.
    #[must_use]
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut inner = self.lock();
        let taken = bytes.len().min(QUEUE_BYTES - inner.received.len());
        inner.received.extend(&bytes[..taken]);
        self.drive(&mut inner);
        taken
    }

    /// How many bytes [`Serial::input`] takes now.
    #[must_use]
    pub fn room(&self) -> usize {
        QUEUE_BYTES - self.lock().received.len()
    }

    /// Drives the line as the registers demand.
    pub(super) fn drive(&self, inner: &mut Inner) {
        let high = inner.modem_control & MCR_OUT2 != 0 && inner.cause() != IIR_NONE;
        if high != inner.high {
            inner.high = high;
            self.line.set(high);
        }
    }
}

impl Inner {
    /// The most urgent interrupt that waits, as the identification register shows it.
    fn cause(&self) -> u8 {
        if self.interrupts & IER_RECEIVED != 0 && !self.received.is_empty() {
            IIR_RECEIVED
        } else if self.interrupts & IER_EMPTY != 0 && self.emptied {
            IIR_EMPTY
        } else {
            IIR_NONE
        }
    }

    fn divisor_shown(&self) -> bool {
        self.line_control & LCR_DIVISOR != 0
    }

    fn read(&mut self, register: u64) -> u8 {
        match register {
            0 if self.divisor_shown() => self.divisor as u8,
            0 => self.received.pop_front().unwrap_or(0),
            1 if self.divisor_shown() => (self.divisor >> 8) as u8,
            1 => self.interrupts,
            2 => {
                let cause = self.cause();
                if cause == IIR_EMPTY {
                    self.emptied = false;
                }
                cause | if self.fifo { IIR_FIFO } else { 0 }
            }
            3 => self.line_control,
            4 => self.modem_control,
            5 if self.received.is_empty() => LSR_EMPTY,
            5 => LSR_EMPTY | LSR_RECEIVED,
            6 => self.modem_status(),
            7 => self.scratch,
            _ => 0,
        }
    }

    /// In a loop, what modem control drives comes back: RTS as CTS, DTR as DSR, and the two
    /// outputs as ring and carrier.
    fn modem_status(&self) -> u8 {
        let control = self.modem_control;
        if control & MCR_LOOP == 0 {
            return MSR_READY;
        }
        (control & 1) << 5 | (control & 2) << 3 | (control & 0b1100) << 4
    }

    fn write(&mut self, register: u64, value: u8) {
        match register {
            0 if self.divisor_shown() => self.divisor = self.divisor & 0xff00 | u16::from(value),
            0 => self.send(value),
            1 if self.divisor_shown() => {
                self.divisor = self.divisor & 0xff | u16::from(value) << 8;
            }
            1 => {
                if value & !self.interrupts & IER_EMPTY != 0 {
                    self.emptied = true;
                }
                self.interrupts = value & IER_WRITABLE;
            }
            2 => {
                self.fifo = value & FCR_ENABLE != 0;
                if value & FCR_CLEAR_RECEIVED != 0 {
                    self.received.clear();
                }
            }
            3 => self.line_control = value,
            4 => self.modem_control = value & 0x1f,
            7 => self.scratch = value,
            _ => {}
        }
    }

    fn send(&mut self, byte: u8) {
        if self.modem_control & MCR_LOOP != 0 {
            if self.received.len() < QUEUE_BYTES {
                self.received.push_back(byte);
            }
        } else {
            // There is nobody to tell of an error: the wire is cut.
            let _ = self.output.write_all(&[byte]);
        }
        self.emptied = true;
    }
}

impl Registers for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut inner = self.lock();
        for (register, byte) in (offset..).zip(data) {
            *byte = inner.read(register);
        }
        self.drive(&mut inner);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        for (register, byte) in (offset..).zip(data) {
            inner.write(register, *byte);
            if register == 0 {
                // A byte leaves: the interrupt for the last one is over, and there is a new one.
                let emptied = std::mem::take(&mut inner.emptied);
                self.drive(&mut inner);
                inner.emptied = emptied;
            }
        }
        self.drive(&mut inner);
    }
}
