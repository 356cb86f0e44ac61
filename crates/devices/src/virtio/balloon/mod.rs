//! virtio-balloon (virtio 1.2, 5.5): memory that the guest lends back, and memory it says is free.
//!
//! | queue | what the guest says | what happens |
//! |---|---|---|
//! | inflate | pages in the balloon | their memory goes back to the host |
//! | deflate | pages taken out, also by itself when it is short of memory | nothing: they are zero when touched |
//! | statistics | how it uses its memory | kept for [`BalloonControl::stats`] |
//! | hinting | pages free now, it may take them back any time | listed for a snapshot or a migration, not freed |
//! | reporting | free pages it leaves alone until answered | their memory goes back to the host |
//!
//! Memory goes back by punching holes into the memory file; it counts as written, as it then reads
//! as zeroes.

mod config;
mod device;
mod discard;
mod handler;
mod state;
mod stats;
#[cfg(test)]
mod tests;

pub use device::{Balloon, BalloonControl};
pub use state::BalloonState;
pub use stats::GuestMemoryStats;
