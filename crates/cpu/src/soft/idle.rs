//! Whether a guest has been idle for so long that what was decoded and translated for it is better
//! given back: a host has many guests, and most of them do nothing most of the time.
//!
//! Asked by [`super::Interpreter`] whenever a vCPU halts. It only judges; what is given back, and
//! that too little is not worth it, is its caller's business.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// How long a vCPU is watched before it is judged.
const WINDOW: Duration = Duration::from_secs(1);
/// It is idle when it took less than this part of the time: some tens of timer interrupts.
const PART: u32 = 50;

/// What is known of the last window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To be asked again after this long at the latest.
    Unknown(Duration),
    /// It did next to nothing.
    Idle,
}

/// One vCPU, watched.
#[derive(Debug)]
pub struct Watch {
    since: Instant,
    /// Processor time of its thread at that time.
    used: Duration,
}

impl Watch {
    /// To be made and asked by the vCPU's own thread; made by another it says nothing wrong, but
    /// says it later.
    #[must_use]
    pub fn new() -> Self {
        Self {
            since: Instant::now(),
            used: processor_time(),
        }
    }

    /// Judges the vCPU of the calling thread, which has halted.
    pub fn look(&mut self) -> Verdict {
        let elapsed = self.since.elapsed();
        if let Some(rest) = WINDOW.checked_sub(elapsed).filter(|it| !it.is_zero()) {
            return Verdict::Unknown(rest);
        }
        let before = std::mem::replace(self, Self::new());
        // A window nobody looked at in time may have been busy at one end.
        let is_known = elapsed < 2 * WINDOW;
        if is_known && self.used.saturating_sub(before.used) * PART < elapsed {
            Verdict::Idle
        } else {
            Verdict::Unknown(WINDOW)
        }
    }
}

/// What the calling thread took of a processor.
pub(super) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sleeps_is_idle_and_who_works_is_not() {
        let mut watch = Watch::new();
        let Verdict::Unknown(rest) = watch.look() else {
            panic!("it was not watched yet");
        };
        std::thread::sleep(rest);
        // On a host so busy that the sleep took two windows nothing is known, and it sleeps again.
        while let Verdict::Unknown(rest) = watch.look() {
            std::thread::sleep(rest);
        }
        let began = processor_time();
        while processor_time() - began < WINDOW / 10 {
            std::hint::spin_loop();
        }
        while let Verdict::Unknown(rest) = watch.look() {
            assert!(rest <= WINDOW);
            if rest == WINDOW {
                return;
            }
            std::thread::sleep(rest);
        }
        panic!("it worked for a tenth of the time");
    }
}
