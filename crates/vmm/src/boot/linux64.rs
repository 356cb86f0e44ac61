//! What a kernel entered by Linux's 64-bit protocol is told, and the page tables it begins with.
//!
//! Source: the kernel's `Documentation/arch/x86/boot.rst` and `zero-page.rst`.

use memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{Handover, map};

/// Where `boot_params` is put.
pub(super) const BOOT_PARAMS: u64 = 0x3000;
/// The top-level page table; the others follow it.
pub(super) const PAGE_TABLES: u64 = 0x4000;
const TABLE_BYTES: u64 = 0x1000;
const MAPPED_GIB: u64 = 4;
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;

/// Writes `boot_params`; `header` is the setup header of the kernel's own file, if it has one.
pub(super) fn write(
    memory: &GuestMemory,
    bytes: u64,
    handover: &Handover,
    header: Option<&[u8]>,
) -> Result<(), GuestMemoryError> {
    let mut params = [0u8; 4096];
    let mut put = |at: usize, field: &[u8]| params[at..at + field.len()].copy_from_slice(field);
    match header {
        Some(header) => put(bzimage::HEADER, header),
        None => {
            put(0x1fe, &[0x55, 0xaa]);
            put(0x202, b"HdrS");
            put(0x206, &0x020cu16.to_le_bytes());
        }
    }
    // type_of_loader: one without a number of its own.
    put(0x210, &[0xff]);
    let low = |address: u64| (address as u32).to_le_bytes();
    if let Some(initrd) = &handover.initrd {
        put(0x218, &low(initrd.start));
        put(0x21c, &low(initrd.end - initrd.start));
    }
    put(0x228, &low(map::COMMAND_LINE));
    put(0x070, &handover.rsdp.unwrap_or(0).to_le_bytes());
    let ranges = map::ranges(bytes);
    put(0x1e8, &[ranges.len() as u8]);
    for (index, range) in ranges.iter().enumerate() {
        let at = 0x2d0 + 20 * index;
        put(at, &range.start.to_le_bytes());
        put(at + 8, &range.bytes.to_le_bytes());
        put(at + 16, &(range.kind as u32).to_le_bytes());
    }
    memory.write_slice(&params, GuestAddress(BOOT_PARAMS))?;
    write_page_tables(memory)
}

/// Maps the first 4 GiB to themselves, by pages of 2 MiB.
fn write_page_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    let pointers = PAGE_TABLES + TABLE_BYTES;
    let directories = pointers + TABLE_BYTES;
    memory.write_obj(pointers | PRESENT_WRITABLE, GuestAddress(PAGE_TABLES))?;
    for gib in 0..MAPPED_GIB {
        let directory = directories + gib * TABLE_BYTES;
        memory.write_obj(
            directory | PRESENT_WRITABLE,
            GuestAddress(pointers + gib * 8),
        )?;
        for entry in 0..512 {
            let page = (gib << 30) + (entry << 21);
            let address = GuestAddress(directory + entry * 8);
            memory.write_obj(page | LARGE | PRESENT_WRITABLE, address)?;
        }
    }
    Ok(())
}
