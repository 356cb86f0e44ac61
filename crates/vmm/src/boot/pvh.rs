//! What a kernel entered by PVH is told.
//!
//! Source: Xen's `xen/include/public/arch-x86/hvm/start_info.h`, version 1.

use memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{Handover, map};

/// Where `hvm_start_info` is put.
pub(super) const START_INFO: u64 = 0x2000;
const MODULES: u64 = 0x2040;
const MEMORY_MAP: u64 = 0x2100;
const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;

/// Writes `hvm_start_info` and what it points to.
pub(super) fn write(
    memory: &GuestMemory,
    bytes: u64,
    handover: &Handover,
) -> Result<(), GuestMemoryError> {
    let mut entries = Vec::new();
    let ranges = map::ranges(bytes);
    for range in &ranges {
        entries.extend_from_slice(&range.start.to_le_bytes());
        entries.extend_from_slice(&range.bytes.to_le_bytes());
        entries.extend_from_slice(&(range.kind as u32).to_le_bytes());
        entries.extend_from_slice(&0u32.to_le_bytes());
    }
    memory.write_slice(&entries, GuestAddress(MEMORY_MAP))?;

    let mut modules = Vec::new();
    if let Some(initrd) = &handover.initrd {
        for field in [initrd.start, initrd.end - initrd.start, 0, 0] {
            modules.extend_from_slice(&field.to_le_bytes());
        }
        memory.write_slice(&modules, GuestAddress(MODULES))?;
    }

    let mut info = Vec::new();
    for field in [MAGIC, VERSION, 0, u32::from(handover.initrd.is_some())] {
        info.extend_from_slice(&field.to_le_bytes());
    }
    let modules = if modules.is_empty() { 0 } else { MODULES };
    let rsdp = handover.rsdp.unwrap_or(0);
    for field in [modules, map::COMMAND_LINE, rsdp, MEMORY_MAP] {
        info.extend_from_slice(&field.to_le_bytes());
    }
    let count = u32::try_from(ranges.len()).expect("a memory map has a handful of ranges");
    for field in [count, 0] {
        info.extend_from_slice(&field.to_le_bytes());
    }
    memory.write_slice(&info, GuestAddress(START_INFO))
}
