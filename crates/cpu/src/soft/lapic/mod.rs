//! The local APIC of a software vCPU: xAPIC and x2APIC (Intel SDM 3A, chapter 12).
//!
//! ```text
//!  any thread                               the vCPU's thread
//!  Router::signal ─► Inbox (atomics) ─────► LocalApic::take ─► run loop
//!                      │ attention  ▲        ▲   │ end of interrupt ─► Bus
//!          POSIX timer ┘            └── IPIs ┴───┘
//! ```
//! It has two halves. The [`Inbox`] is what others put interrupts into, from any thread and without
//! stopping anybody; the [`LocalApic`] has the registers and belongs to the vCPU's thread. The
//! [`Router`] finds the inboxes a message is for.
//!
//! # What the run loop does
//! - Before anything else in `run`, on its thread: [`LocalApic::bind`].
//! - Between blocks: [`Inbox::attention`], one relaxed load. When it is `true`:
//!   [`LocalApic::take`] with the gates that are open now, until it gives `None`, and whatever else
//!   the loop was nudged for ([`Inbox::nudge`]): kicks, flush requests.
//! - After what may open a gate (`IF` set, the end of an interrupt shadow, `iret` after an NMI):
//!   [`LocalApic::look`], so that what waited is seen between the next blocks.
//! - After `hlt` and while waiting for a SIPI: [`LocalApic::take`] and [`Inbox::wait`] in turns.
//! - Accesses to memory at [`LocalApic::base`], MSRs 0x1b, 0x6e0 and 0x800 to 0x8ff, and `cr8` go to
//!   the methods of [`LocalApic`].
//!
//! Timers are POSIX timers that send a signal to the vCPU's thread; its handler does nothing but
//! set the attention word. So a running vCPU notices at the end of its block, a waiting one wakes
//! exactly then, and nobody else wakes for it.

mod inbox;
mod local;
mod registers;
mod router;
mod state;
#[cfg(test)]
mod tests;
mod timer;

pub use inbox::{Event, Gates, Inbox};
pub use local::LocalApic;
pub use router::{MAX_VCPUS, Router};
pub use state::LapicState;
