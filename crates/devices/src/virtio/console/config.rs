//! Features and configuration space (virtio 1.2, 5.3.3 and 5.3.4).

const F_SIZE: u64 = 1 << 0;
const F_EMERGENCY_WRITE: u64 = 1 << 2;

/// What is offered.
pub(super) const FEATURES: u64 = F_SIZE | F_EMERGENCY_WRITE;
/// Entries of the queues: input, output.
pub(super) const QUEUES: [u16; 2] = [64, 64];
/// Input.
pub(super) const RECEIVE: u16 = 0;
/// Output.
pub(super) const TRANSMIT: u16 = 1;
/// Where a store is a character of output, driver or no driver.
pub(super) const EMERGENCY_WRITE: u64 = 8;

/// `struct virtio_console_config` for a terminal of so many columns and rows.
pub(super) fn space(columns: u16, rows: u16) -> [u8; 12] {
    let mut space = [0; 12];
    space[..2].copy_from_slice(&columns.to_le_bytes());
    space[2..4].copy_from_slice(&rows.to_le_bytes());
    space[4..8].copy_from_slice(&1u32.to_le_bytes());
    space
}
