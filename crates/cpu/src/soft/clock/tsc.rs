//! The time-stamp counter: the host's plus an offset.

use std::{
    arch::x86_64::{__cpuid, _rdtsc},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// How long at least to measure where the host does not say how fast it counts.
const CALIBRATION: Duration = Duration::from_millis(10);
/// Looks at clock and counter at one time, of which the quickest counts: a thread may lose its processor
/// in between.
const LOOKS: usize = 5;
const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// Where measuring begins.
static BEGIN: OnceLock<(u64, u64)> = OnceLock::new();

/// The counter of all vCPUs of a guest. It counts at the host's rate and starts from zero.
#[derive(Debug)]
pub struct Tsc {
    hz: u64,
    offset: AtomicU64,
}

impl Tsc {
    /// One that is zero now.
    #[must_use]
    pub fn new() -> Self {
        Self {
            hz: host_hz(),
            offset: AtomicU64::new(host_now().wrapping_neg()),
        }
    }

    /// What the host's counter is to be increased by, for translated code; it stays there as long
    /// as this does.
    pub(in crate::soft) fn offset(&self) -> &AtomicU64 {
        &self.offset
    }

    /// What `rdtsc` gives now.
    #[inline]
    #[must_use]
    pub fn now(&self) -> u64 {
        host_now().wrapping_add(self.offset.load(Ordering::Relaxed))
    }

    /// Makes it `value` now, as after a restore.
    pub fn set(&self, value: u64) {
        let offset = value.wrapping_sub(host_now());
        self.offset.store(offset, Ordering::Relaxed);
    }

    /// How often it counts in a second.
    #[must_use]
    pub fn hz(&self) -> u64 {
        self.hz
    }

    /// How long `ticks` take.
    #[must_use]
    pub fn nanos(&self, ticks: u64) -> u64 {
        scale(ticks, NANOS_PER_SECOND, self.hz)
    }

    /// How often it counts in `nanos`.
    #[must_use]
    pub fn ticks(&self, nanos: u64) -> u64 {
        scale(nanos, self.hz, NANOS_PER_SECOND)
    }
}

impl Default for Tsc {
    fn default() -> Self {
        Self::new()
    }
}

/// `value * by / of`, at most the largest number there is.
fn scale(value: u64, by: u64, of: u64) -> u64 {
    let exact = u128::from(value) * u128::from(by) / u128::from(of);
    u64::try_from(exact).unwrap_or(u64::MAX)
}

/// The host's counter.
#[inline]
fn host_now() -> u64 {
    // SAFETY: every 64-bit processor has the instruction, and Linux lets processes execute it.
    unsafe { _rdtsc() }
}

/// How often the host's counter counts in a second: as the processor or the hypervisor says, else
/// measured, once in a process.
fn host_hz() -> u64 {
    static HZ: OnceLock<u64> = OnceLock::new();
    *HZ.get_or_init(|| announced_hz().unwrap_or_else(measured_hz))
}

/// CPUID leaf 0x15 (Intel SDM 2A), else the hypervisors' leaf of timing information, 0x4000_0010.
fn announced_hz() -> Option<u64> {
    if __cpuid(0).eax >= 0x15 {
        let leaf = __cpuid(0x15);
        let (denominator, numerator, crystal) = (leaf.eax, leaf.ebx, leaf.ecx);
        if denominator != 0 && numerator != 0 && crystal != 0 {
            let ratio = u64::from(crystal) * u64::from(numerator);
            return Some(ratio / u64::from(denominator));
        }
    }
    let hypervisor = __cpuid(1).ecx & 1 << 31 != 0;
    if hypervisor && (0x4000_0010..0x4000_ffff).contains(&__cpuid(0x4000_0000).eax) {
        let khz = u64::from(__cpuid(0x4000_0010).eax);
        return (khz != 0).then_some(khz * 1000);
    }
    None
}

/// Begins to measure how fast the host's counter counts, for a process that will ask for it: what it does
/// meanwhile it need not wait for later.
pub fn begin_measuring() {
    BEGIN.get_or_init(look);
}

/// The counter measured against the clock that nobody adjusts.
fn measured_hz() -> u64 {
    let begin = *BEGIN.get_or_init(look);
    let passed = Duration::from_nanos(raw_nanos().saturating_sub(begin.0));
    std::thread::sleep(CALIBRATION.saturating_sub(passed));
    let end = look();
    scale(end.1 - begin.1, NANOS_PER_SECOND, (end.0 - begin.0).max(1)).max(1)
}

/// Nanoseconds, and the counter, as nearly at one time as can be had.
fn look() -> (u64, u64) {
    let looks = (0..LOOKS).map(|_| {
        let before = host_now();
        let nanos = raw_nanos();
        let took = host_now().wrapping_sub(before);
        (took, (nanos, before.wrapping_add(took / 2)))
    });
    let quickest = looks.min_by_key(|(took, _)| *took);
    quickest.map_or((0, 0), |(_, found)| found)
}

fn raw_nanos() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicRaw);
    time.tv_sec as u64 * NANOS_PER_SECOND + time.tv_nsec as u64
}
