//! virtio-block (virtio 1.2, 5.2): a disk.
//!
//! Every queue has a worker of its own, so requests of different queues overlap. What a disk is made
//! of is behind [`Disk`]; [`FileDisk`] is a file or a block device. Requests go between guest memory
//! and the disk in place, one after another in a queue; reads and flushes overlap by an io_uring where that
//! is asked for and the kernel has it. The guest's view is a write-back cache: what it wants durable it flushes.

mod config;
mod device;
mod disk;
mod file;
mod handler;
mod held;
mod request;
mod ring;
#[cfg(test)]
mod tests;

pub use device::{Block, BlockControl, BlockOptions, BlockStats};
pub use disk::Disk;
pub use file::FileDisk;
pub use ring::probe_ring;
