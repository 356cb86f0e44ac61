//! The device.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::Registers;

/// Bytes of memory, those of the clock included.
pub(super) const BYTES: usize = 128;

const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// A divider for 32,768 Hz, no update in progress.
const A_VALUE: u8 = 0x26;
const B_24_HOURS: u8 = 1 << 1;
const B_BINARY: u8 = 1 << 2;
/// The battery is good.
const D_VALUE: u8 = 1 << 7;

/// The clock: two ports at [`Rtc::BASE`].
pub struct Rtc {
    inner: Mutex<Inner>,
    /// Seconds since the epoch.
    now: Box<dyn Fn() -> u64 + Send + Sync>,
}

pub(super) struct Inner {
    pub index: u8,
    pub memory: [u8; BYTES],
}

impl Rtc {
    /// First port.
    pub const BASE: u16 = 0x70;
    /// How many ports.
    pub const COUNT: u16 = 2;

    /// One that shows the host's time.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            now.unwrap_or_default().as_secs()
        })
    }

    /// One that shows the seconds since the epoch that `now` says.
    #[must_use]
    pub fn with_clock(now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let mut memory = [0; BYTES];
        memory[usize::from(STATUS_B)] = B_24_HOURS;
        Self {
            inner: Mutex::new(Inner { index: 0, memory }),
            now: Box::new(now),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_byte(&self) -> u8 {
        let inner = self.lock();
        let mode = inner.memory[usize::from(STATUS_B)];
        let time = Time::at((self.now)());
        match inner.index {
            0x00 => encode(time.second, mode),
            0x02 => encode(time.minute, mode),
            0x04 if mode & B_24_HOURS != 0 => encode(time.hour, mode),
            0x04 => {
                let afternoon = if time.hour >= 12 { 0x80 } else { 0 };
                encode((time.hour + 11) % 12 + 1, mode) | afternoon
            }
            0x06 => encode(time.weekday, mode),
            0x07 => encode(time.day, mode),
            0x08 => encode(time.month, mode),
            0x09 => encode((time.year % 100) as u8, mode),
            CENTURY => encode((time.year / 100 % 100) as u8, mode),
            STATUS_A => A_VALUE,
            STATUS_C => 0,
            STATUS_D => D_VALUE,
            index => inner.memory[usize::from(index)],
        }
    }
}

impl Default for Rtc {
    fn default() -> Self {
        Self::new()
    }
}

impl Registers for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let [byte] = data {
            // The index cannot be read back.
            *byte = if offset == 1 { self.read_byte() } else { 0xff };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        match (offset, data) {
            // Bit 7 would mask NMIs.
            (0, [index]) => inner.index = index & 0x7f,
            (1, [value]) => {
                let index = inner.index;
                // Interrupts cannot be enabled.
                let keep = if index == STATUS_B { 0x87 } else { 0xff };
                inner.memory[usize::from(index)] = value & keep;
            }
            _ => {}
        }
    }
}

/// A number below 100 as the mode in status register B demands.
fn encode(value: u8, mode: u8) -> u8 {
    if mode & B_BINARY != 0 {
        value
    } else {
        ((value / 10) << 4) | (value % 10)
    }
}

/// A moment of the Gregorian calendar, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Time {
    pub second: u8,
    pub minute: u8,
    pub hour: u8,
    /// From 1, Sunday.
    pub weekday: u8,
    pub day: u8,
    pub month: u8,
    pub year: u64,
}

impl Time {
    /// At so many seconds after the epoch. Years begin in March here, so that a leap day is the
    /// last, and 400 of them have 146,097 days.
    pub fn at(seconds: u64) -> Self {
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        // From 1 March of the year 0.
        let shifted = days + 719_468;
        let (era, day) = (shifted / 146_097, shifted % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, next) = if month < 10 {
            (month + 3, 0)
        } else {
            (month - 9, 1)
        };
        Self {
            second: (rest % 60) as u8,
            minute: (rest / 60 % 60) as u8,
            hour: (rest / 3600) as u8,
            weekday: ((days + 4) % 7) as u8 + 1,
            day: day as u8,
            month: month as u8,
            year: era * 400 + year + next,
        }
    }
}
