//! The memory map a guest is told, the same by each protocol.

use memory::layout;

/// Where the kernel's command line is put.
pub(super) const COMMAND_LINE: u64 = 0x2_0000;
/// Linux on x86 keeps as many bytes of it, with the NUL.
pub(super) const COMMAND_LINE_BYTES: usize = 2048;
/// End of the memory below 1 MiB that the guest may use.
const LOWMEM_END: u64 = 0xa_0000;
/// Where ACPI tables are put: a guest that is not told searches here.
pub const ACPI_START: u64 = 0xe_0000;
/// End of the room for them.
pub const ACPI_END: u64 = RESET_VECTOR;
/// Where a processor in real mode jumps to for the firmware to reset the machine (`f000:fff0`).
pub(super) const RESET_VECTOR: u64 = 0xf_fff0;
/// End of the first MiB, which belongs to firmware.
const FIRMWARE_END: u64 = 0x10_0000;

/// What a range of addresses is; the numbers are those of E820 (ACPI 6.5, 15.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// To be used.
    Ram = 1,
    /// To be left alone.
    Reserved = 2,
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub start: u64,
    pub bytes: u64,
    pub kind: Kind,
}

/// The map of a machine with `bytes` of RAM, in order of address.
pub(super) fn ranges(bytes: u64) -> Vec<Range> {
    let range = |start, end, kind| Range {
        start,
        bytes: end - start,
        kind,
    };
    let mut ranges = vec![
        range(0, LOWMEM_END, Kind::Ram),
        range(LOWMEM_END, FIRMWARE_END, Kind::Reserved),
    ];
    for (start, size) in layout::ram(bytes) {
        if start >= layout::HIGH_START {
            let end = layout::ECAM_START + layout::ECAM_BYTES;
            ranges.push(range(layout::ECAM_START, end, Kind::Reserved));
            ranges.push(range(start, start + size, Kind::Ram));
        } else if size > FIRMWARE_END {
            ranges.push(range(FIRMWARE_END, size, Kind::Ram));
        }
    }
    if bytes <= layout::LOW_END {
        let end = layout::ECAM_START + layout::ECAM_BYTES;
        ranges.push(range(layout::ECAM_START, end, Kind::Reserved));
    }
    ranges
}
