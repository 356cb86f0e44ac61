//! Time as the guest sees it: its time-stamp counter ([`Tsc`]) and the clock page that tells it
//! what the counter means (kvmclock, [`KvmClock`]).
//!
//! The guest's counter is the host's plus an offset, so reading it costs one instruction and all
//! vCPUs agree. Nothing here sleeps; deadlines are kept by [`super::lapic`].

mod kvmclock;
#[cfg(test)]
mod tests;
mod tsc;

pub use kvmclock::{KvmClock, KvmClockState};
pub use tsc::{Tsc, begin_measuring};
