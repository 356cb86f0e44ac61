//! virtio-vsock (virtio 1.2, 5.10): stream sockets between guest and host, in user space.
//!
//! The host's side are Unix sockets, in the form the field is used to:
//! ```text
//!  program ── connects to UDS, writes "CONNECT 1024\n" ──► guest listens on port 1024
//!          ◄─ "OK 1073741824\n" ── then a plain stream of bytes
//!
//!  guest connects to CID 2, port 1025 ──► program listens on UDS_1025
//! ```
//! [`Mux`](mux) knows connections and speaks packets; the [`handler`] carries packets between it
//! and the queues. Everything a guest can make grow is bounded: connections, bytes kept for slow
//! programs (in each connection by the credit we give, over all of them by a budget), answers it
//! does not fetch (its own requests wait then).

mod connection;
mod device;
mod dial;
mod handler;
mod mux;
mod packet;
#[cfg(test)]
mod tests;

pub use device::{Vsock, VsockOptions};
pub use dial::{Dial, UnixDialer};
