//! The control socket: how whoever started a machine, or came after them, asks and commands it.
//!
//! ```text
//!  client                            berth-vmm
//!  Hello{version}  ───────────────►
//!                  ◄───────────────  Welcome{version, name, pid}
//!  Pause, Stats, … ───────────────►
//!                  ◄───────────────  Ok, Stats{…}, Error{message}   one for each, in order
//!  Subscribe       ───────────────►
//!                  ◄───────────────  Ok, then Event{…} whenever something happens
//! ```
//! [`protocol`] has no I/O, for synchronous and asynchronous clients alike; [`Client`] is the
//! synchronous one. The server ([`serve`]) is the main thread of the machine's process; it waits
//! for no client, and drops one that is too far behind or breaks the rules.

mod client;
pub mod protocol;
mod server;
#[cfg(test)]
mod tests;

pub use client::{CallError, Client};
pub use protocol::{Event, Reply, Request, VERSION};
pub use server::{Commands, EventSource, Events, serve};
