//! kvmclock: a page of the guest's memory that says what its time-stamp counter means
//! (Linux, Documentation/virt/kvm/x86/msr.rst and `struct pvclock_vcpu_time_info`).
//!
//! System time is the counter in nanoseconds, from zero at zero: the same function on all vCPUs,
//! so the page is written once and declared stable.

use std::time::{SystemTime, UNIX_EPOCH};

use memory::Ram;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use super::Tsc;
use crate::soft::Fault;

const WALL_CLOCK_OLD: u32 = 0x11;
const SYSTEM_TIME_OLD: u32 = 0x12;
const WALL_CLOCK: u32 = 0x4b56_4d00;
const SYSTEM_TIME: u32 = 0x4b56_4d01;
const ENABLE: u64 = 1;
/// The counters of all vCPUs agree.
const FLAG_STABLE: u8 = 1;
/// The guest was stopped by its host: its watchdogs should not bark.
const FLAG_STOPPED: u8 = 2;

/// The clock MSRs of one vCPU.
#[derive(Debug, Default)]
pub struct KvmClock {
    state: KvmClockState,
}

/// What is saved of a [`KvmClock`]: its MSRs. The pages are in the guest's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmClockState {
    /// MSR 0x4b564d01: address of the time page, bit 0 while it is kept.
    pub system_time: u64,
    /// MSR 0x4b564d00: address where the time of boot was asked for.
    pub wall_clock: u64,
}

impl KvmClock {
    /// Whether `msr` is one of its own.
    #[must_use]
    pub fn has(msr: u32) -> bool {
        matches!(
            msr,
            WALL_CLOCK_OLD | SYSTEM_TIME_OLD | WALL_CLOCK | SYSTEM_TIME
        )
    }

    /// `rdmsr`.
    ///
    /// # Errors
    /// `#GP(0)` where [`KvmClock::has`] is `false`.
    pub fn read_msr(&self, msr: u32) -> Result<u64, Fault> {
        match msr {
            WALL_CLOCK | WALL_CLOCK_OLD => Ok(self.state.wall_clock),
            SYSTEM_TIME | SYSTEM_TIME_OLD => Ok(self.state.system_time),
            _ => Err(Fault::GP0),
        }
    }

    /// `wrmsr`: fills the page whose address is stored. One outside of RAM is not filled.
    ///
    /// # Errors
    /// `#GP(0)` where [`KvmClock::has`] is `false`.
    pub fn write_msr(&mut self, msr: u32, value: u64, ram: &Ram, tsc: &Tsc) -> Result<(), Fault> {
        match msr {
            WALL_CLOCK | WALL_CLOCK_OLD => {
                self.state.wall_clock = value;
                write_wall_clock(ram, value & !1, tsc);
            }
            SYSTEM_TIME | SYSTEM_TIME_OLD => {
                self.state.system_time = value;
                self.write_page(ram, tsc, FLAG_STABLE);
            }
            _ => return Err(Fault::GP0),
        }
        Ok(())
    }

    /// Tells the guest that its host had stopped it, before it runs again.
    pub fn stopped(&self, ram: &Ram, tsc: &Tsc) {
        self.write_page(ram, tsc, FLAG_STABLE | FLAG_STOPPED);
    }

    /// What to save.
    #[must_use]
    pub fn state(&self) -> KvmClockState {
        self.state
    }

    /// Takes a saved state; the pages come with the guest's memory, but another host may count at
    /// another rate, so they are written anew.
    pub fn restore(&mut self, state: KvmClockState, ram: &Ram, tsc: &Tsc) {
        self.state = state;
        self.stopped(ram, tsc);
    }

    fn write_page(&self, ram: &Ram, tsc: &Tsc, flags: u8) {
        if self.state.system_time & ENABLE == 0 {
            return;
        }
        let (multiplier, shift) = scale(tsc.hz());
        let mut page = [0; 32];
        // The counter's and the system's time of the anchor are both zero.
        page[24..28].copy_from_slice(&multiplier.to_le_bytes());
        page[28] = shift as u8;
        page[29] = flags;
        write_versioned(ram, self.state.system_time & !ENABLE, &mut page);
    }
}

/// Multiplier and shift that turn ticks into nanoseconds:
/// `(ticks << shift) * multiplier >> 32`, a negative shift to the right.
fn scale(hz: u64) -> (u32, i8) {
    const NANOS: u64 = 1_000_000_000;
    let (mut hz, mut shift) = (hz.max(1), 0i8);
    while hz > 2 * NANOS {
        hz >>= 1;
        shift -= 1;
    }
    while hz <= NANOS {
        hz <<= 1;
        shift += 1;
    }
    // Between a half and one, of 1 << 32.
    (((NANOS << 32) / hz) as u32, shift)
}

/// The time of the epoch at which the guest's counter was zero (`struct pvclock_wall_clock`).
fn write_wall_clock(ram: &Ram, address: u64, tsc: &Tsc) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let boot = now.saturating_sub(std::time::Duration::from_nanos(tsc.nanos(tsc.now())));
    let mut page = [0; 12];
    page[4..8].copy_from_slice(&(boot.as_secs() as u32).to_le_bytes());
    page[8..12].copy_from_slice(&boot.subsec_nanos().to_le_bytes());
    write_versioned(ram, address, &mut page);
}

/// Writes a structure that begins with a version: odd while it changes, then the next even one.
/// Where there is no RAM, nothing happens.
fn write_versioned(ram: &Ram, address: u64, page: &mut [u8]) {
    let memory = ram.guest_memory();
    let at = GuestAddress(address);
    let version: u32 = memory.read_obj(at).unwrap_or(0);
    let changing = version.wrapping_add(1) | 1;
    page[..4].copy_from_slice(&changing.to_le_bytes());
    if memory.write_slice(page, at).is_ok() {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        // The range was just written, so it is RAM.
        let _ = memory.write_obj(changing.wrapping_add(1), at);
    }
}
