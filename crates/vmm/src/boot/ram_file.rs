//! Copies what is booted into the file behind RAM.
//!
//! Written through the mapping, each page would first be zeroed and mapped, by a fault of its own;
//! written through the file it is neither. Pages of zeros, a third of a kernel, are left out: RAM
//! that was never written is zero already.

use std::{
    io,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use memory::{PAGE_BYTES, Ram, layout};

use super::Source;

/// Copied at a time: what the caches of a processor hold.
const PIECE: usize = 128 << 10;
/// From so many bytes on it pays to have help.
const MUCH: u64 = 4 << 20;

/// Copies `bytes` from `offset` of `source` to fresh RAM at `address`, below the hole for devices.
///
/// # Errors
/// What reading or writing says; `InvalidInput` where there is no such RAM.
pub(super) fn copy(
    source: &(impl Source + ?Sized),
    offset: u64,
    ram: &Ram,
    address: u64,
    bytes: u64,
) -> io::Result<()> {
    let top = ram.bytes().min(layout::LOW_END);
    if address.checked_add(bytes).is_none_or(|end| end > top) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Pieces begin at boundaries of pages in RAM.
    let lead = address % PAGE_BYTES;
    let pieces = (lead + bytes).div_ceil(PIECE as u64);
    let next = AtomicU64::new(0);
    let work = || -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                return Ok(());
            }
            let start = (piece * PIECE as u64).saturating_sub(lead);
            let end = ((piece + 1) * PIECE as u64 - lead).min(bytes);
            let data = &mut buffer[..(end - start) as usize];
            source.read_at(offset + start, data)?;
            write(ram, address + start, data)?;
        }
    };
    if bytes < MUCH {
        return work();
    }
    thread::scope(|scope| {
        let helper = thread::Builder::new().spawn_scoped(scope, work);
        let own = work();
        // Without a helper everything was done here.
        let helped = helper.map_or(Ok(()), |helper| match helper.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        own.and(helped)
    })
}

/// Writes runs of pages that are not zero. RAM below the hole is the start of its file.
fn write(ram: &Ram, address: u64, data: &[u8]) -> io::Result<()> {
    let page = PAGE_BYTES as usize;
    let first = page - (address % PAGE_BYTES) as usize;
    let mut run = 0;
    let mut at = 0;
    while at < data.len() {
        let end = if at == 0 { first } else { at + page }.min(data.len());
        if is_zero(&data[at..end]) {
            ram.file()
                .write_all_at(&data[run..at], address + run as u64)?;
            run = end;
        }
        at = end;
    }
    ram.file().write_all_at(&data[run..], address + run as u64)
}

fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];
    // A comparison of slices is libc's `memcmp`, which is fast however this is compiled.
    bytes == &ZEROS[..bytes.len()]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn every_byte_arrives_wherever_it_begins_and_pages_of_zeros_take_no_memory() {
        let ram = Ram::new(32 << 20).unwrap();
        let mut source = vec![0u8; (6 << 20) + 777];
        for at in (0..source.len()).filter(|at| at >> 14 & 1 == 1 || at % 100_003 == 0) {
            source[at] = ((at * 31) >> 3) as u8 | 1;
        }
        for (offset, address, bytes) in [
            (0u64, 1u64 << 20, source.len() as u64),
            (5, (8 << 20) + 4095, (5 << 20) + 13),
            (70_000, (16 << 20) + 1, 4097),
            (99, (20 << 20) + 7, 0),
            (1, (32 << 20) - 10, 10),
        ] {
            copy(source.as_slice(), offset, &ram, address, bytes).unwrap();
            let mut arrived = vec![1; bytes as usize];
            let memory = ram.guest_memory();
            memory
                .read_slice(&mut arrived, GuestAddress(address))
                .unwrap();
            let sent = &source[offset as usize..][..bytes as usize];
            assert!(arrived == sent, "{bytes} bytes to {address:#x}");
        }
        let ram = Ram::new(32 << 20).unwrap();
        copy([0; 1 << 20].as_slice(), 0, &ram, 1 << 20, 1 << 20).unwrap();
        assert_eq!(rustix::fs::fstat(&**ram.file()).unwrap().st_blocks, 0);
        for (address, bytes) in [((32 << 20) - 9, 10), (u64::MAX, 2), (1 << 20, 1 << 24)] {
            assert!(copy(source.as_slice(), 0, &ram, address, bytes).is_err());
        }
    }
}
