//! A part of a disk, and nothing outside of it.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::super::partition::Partition;

/// A partition as a file system's reader sees it.
pub(in super::super) struct Window {
    disk: File,
    part: Partition,
}

impl Window {
    /// That of one partition.
    ///
    /// # Errors
    /// When this process can open no more files.
    pub(in super::super) fn new(disk: &File, part: Partition) -> io::Result<Self> {
        let disk = disk.try_clone()?;
        Ok(Self { disk, part })
    }

    /// As [`Window::new`].
    pub(super) fn again(&self) -> io::Result<Self> {
        Self::new(&self.disk, self.part)
    }

    /// Its length.
    pub(super) fn bytes(&self) -> u64 {
        self.part.bytes
    }

    /// Fills `bytes` from `start` on.
    ///
    /// # Errors
    /// Of the disk, and when not all of it lies within the partition.
    pub(super) fn read(&self, start: u64, bytes: &mut [u8]) -> io::Result<()> {
        let end = start.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.part.bytes) {
            return Err(io::Error::other("beyond the end of the partition"));
        }
        self.disk.read_exact_at(bytes, self.part.offset + start)
    }
}
