//! Bytes of a kernel image, in memory or in a file, read where they are wanted.
//!
//! A decompressed kernel is tens of megabytes: read from its file straight into guest memory, it
//! is copied once.

use std::{fs::File, io, os::unix::fs::FileExt};

/// Bytes that can be read at any place.
pub trait Source: Sync {
    /// How many there are.
    ///
    /// # Errors
    /// What the kernel says.
    fn size(&self) -> io::Result<u64>;

    /// Fills `data` from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` past the end, and what the kernel says.
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;
}

impl Source for [u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let found = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(data.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        data.copy_from_slice(found);
        Ok(())
    }
}

impl Source for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(data, offset)
    }
}
