//! virtio-net (virtio 1.2, 5.1): a network card on a tap device or an interface.
//!
//! A pair of queues has a worker and a queue of the tap of its own. Checksums and segmentation stay
//! undone where both sides can leave them to the other: what the driver accepts is told to the tap,
//! and the header in front of every packet goes through unchanged (the kernel checks it). Which
//! frames may pass, from and to which address, is the business of the bridge behind the tap.

mod config;
mod control;
mod device;
mod handler;
mod interface;
mod port;
#[cfg(test)]
mod tests;

pub use device::{Net, NetControl, NetOptions, NetState, NetStats};
pub use port::Port;
