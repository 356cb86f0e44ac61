//! What a disk is made of.

use std::{io, ops::Range, os::fd::BorrowedFd};

use crate::virtio::HostBuffer;

/// Storage behind a disk: so many bytes, addressed by offset. Called from several threads at once;
/// ranges are within [`Disk::bytes`] and multiples of 512.
pub trait Disk: Send + Sync {
    /// Its size, a multiple of 512. May grow while in use.
    fn bytes(&self) -> u64;

    /// Fills all buffers from `offset` on.
    ///
    /// # Errors
    /// When it could not be read whole; what is in the buffers then is not said.
    fn read(&self, buffers: &[HostBuffer<'_>], offset: u64) -> io::Result<()>;

    /// Writes all buffers from `offset` on. Durable after [`Disk::flush`].
    ///
    /// # Errors
    /// When it could not be written whole.
    fn write(&self, buffers: &[HostBuffer<'_>], offset: u64) -> io::Result<()>;

    /// Makes durable what was written before.
    ///
    /// # Errors
    /// When that cannot be promised.
    fn flush(&self) -> io::Result<()>;

    /// Forgets what is in a range; it reads as anything afterwards. May do nothing.
    ///
    /// # Errors
    /// When the storage fails.
    fn discard(&self, range: Range<u64>) -> io::Result<()>;

    /// Makes a range read as zeroes; `unmap` says whether its space may be given back.
    ///
    /// # Errors
    /// When it could not be zeroed whole.
    fn write_zeroes(&self, range: Range<u64>, unmap: bool) -> io::Result<()>;

    /// The file whose byte `n` is byte `n` of the disk, if there is one: reads and flushes may then go to it
    /// by an io_uring instead of through here. It is the same as long as there is the disk.
    fn ring_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
