//! The real-time clock and its battery-backed memory (Motorola MC146818A).
//!
//! It shows the host's time in UTC. Alarms and periodic interrupts do not exist, and setting the
//! time does nothing: guests have better clocks and keep them themselves.

mod device;
mod state;
#[cfg(test)]
mod tests;

pub use device::Rtc;
pub use state::RtcState;
