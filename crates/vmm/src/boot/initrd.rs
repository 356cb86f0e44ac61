//! The initial RAM file system: pieces put one behind the other.
//!
//! Linux takes several archives in a row, so that what all guests share is one read-only file and
//! what is this guest's own a small second one (`Documentation/driver-api/early-userspace/
//! buffer-format.rst`). Archives begin at multiples of four; the zeros between are skipped.

use std::{fs::File, ops::Range};

use memory::{PAGE_BYTES, Ram, layout};

use super::{BootError, Source, ram_file};

/// `initrd_addr_max` of all kernels: it lies below 2 GiB.
const HIGHEST: u64 = 0x8000_0000;
const ALIGN: u64 = 4;

/// Reads all pieces into memory, as high as may be and above `lowest`; says where they are.
pub(super) fn load(
    ram: &Ram,
    pieces: &[File],
    lowest: u64,
) -> Result<Option<Range<u64>>, BootError> {
    let mut sizes = Vec::with_capacity(pieces.len());
    let mut bytes = 0u64;
    for piece in pieces {
        let size = piece.size().map_err(BootError::Initrd)?;
        sizes.push(size);
        bytes = bytes.saturating_add(size).saturating_add(ALIGN) / ALIGN * ALIGN;
    }
    if pieces.is_empty() {
        return Ok(None);
    }
    let top = ram.bytes().min(layout::LOW_END).min(HIGHEST);
    let start = top
        .checked_sub(bytes)
        .map(|it| it / PAGE_BYTES * PAGE_BYTES);
    let start = start
        .filter(|&start| start >= lowest)
        .ok_or(BootError::InitrdRoom { bytes })?;
    let mut at = start;
    for (piece, size) in pieces.iter().zip(sizes) {
        ram_file::copy(piece, 0, ram, at, size).map_err(BootError::Initrd)?;
        at = (at + size).next_multiple_of(ALIGN);
    }
    Ok(Some(start..at))
}
