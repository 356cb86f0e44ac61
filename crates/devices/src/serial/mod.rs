//! A serial port: a 16550A (National Semiconductor PC16550D, 1995), without a modem and without
//! the time a byte takes on a wire.
//!
//! What the guest sends goes to a writer at once; what it shall receive waits in a queue that
//! [`Serial::input`] fills.

mod device;
mod state;
#[cfg(test)]
mod tests;

pub use device::Serial;
pub use state::SerialState;
