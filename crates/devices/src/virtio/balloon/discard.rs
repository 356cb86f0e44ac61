//! Gives memory of the guest back to the host.

use std::{io, os::fd::AsRawFd};

use memory::{GuestMemory, PAGE_BYTES};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, bitmap::Bitmap};

/// Gives back the whole pages of a range of guest physical memory. What lies outside RAM, or in
/// another region than the start, is left alone.
pub(super) fn discard(memory: &GuestMemory, address: u64, bytes: u64) -> io::Result<()> {
    let Some((region, within)) = memory.to_region_addr(GuestAddress(address)) else {
        return Ok(());
    };
    let end =
        (within.raw_value().saturating_add(bytes)).min(region.len()) / PAGE_BYTES * PAGE_BYTES;
    let start = within.raw_value().next_multiple_of(PAGE_BYTES);
    let Some(file) = region.file_offset().filter(|_| start < end) else {
        return Ok(());
    };
    let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let offset = libc::off_t::try_from(file.start() + start).map_err(out_of_range)?;
    let length = libc::off_t::try_from(end - start).map_err(out_of_range)?;
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: guest memory becomes zero under its users, who take it for changing at any time.
    let done = unsafe { libc::fallocate(file.file().as_raw_fd(), mode, offset, length) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // It reads as zeroes now: that is a write like any other.
    region
        .bitmap()
        .mark_dirty(start as usize, (end - start) as usize);
    Ok(())
}
