//! virtio-console (virtio 1.2, 5.3): one terminal, `hvc0`.
//!
//! Output goes to a writer of the host, input comes through [`ConsoleControl::input`]. One port; the
//! terminal's size is shown and may change.

mod config;
mod device;
mod handler;
mod state;
#[cfg(test)]
mod tests;

pub use device::{Console, ConsoleControl};
pub use state::ConsoleState;
