//! Features and configuration space (virtio 1.2, 5.2.3 and 5.2.4).

/// At most [`SEGMENTS`] buffers a request.
const F_SEG_MAX: u64 = 1 << 2;
const F_READ_ONLY: u64 = 1 << 5;
const F_BLOCK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_MULTI_QUEUE: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Bytes of a sector, the unit of the protocol.
pub(super) const SECTOR: u64 = 512;
/// Entries of a queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Data buffers of a request: a queue's worth less header and status.
const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Ranges in one discard or write-zeroes request.
pub(super) const RANGES: usize = 16;
/// Sectors of one range to discard.
pub(super) const DISCARD_SECTORS: u32 = 1 << 22;
/// Sectors of one range to zero; where the file system cannot, they are written.
pub(super) const ZERO_SECTORS: u32 = 1 << 17;
/// Data bytes of one request.
pub(super) const REQUEST_BYTES: u64 = 64 << 20;

pub(super) fn features(read_only: bool, queues: u16) -> u64 {
    let mut features = F_SEG_MAX | F_BLOCK_SIZE | F_FLUSH | F_TOPOLOGY;
    if queues > 1 {
        features |= F_MULTI_QUEUE;
    }
    if read_only {
        features | F_READ_ONLY
    } else {
        features | F_DISCARD | F_WRITE_ZEROES
    }
}

/// `struct virtio_blk_config` for a disk of `bytes`.
pub(super) fn space(bytes: u64, queues: u16) -> [u8; 60] {
    let mut space = [0; 60];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(bytes / SECTOR).to_le_bytes());
    put(12, &SEGMENTS.to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    // Physical blocks of 2^3 sectors, as pages and file systems of the host have.
    put(24, &[3]);
    put(26, &8u16.to_le_bytes());
    put(34, &queues.to_le_bytes());
    put(36, &DISCARD_SECTORS.to_le_bytes());
    put(40, &(RANGES as u32).to_le_bytes());
    put(44, &8u32.to_le_bytes());
    put(48, &ZERO_SECTORS.to_le_bytes());
    put(52, &(RANGES as u32).to_le_bytes());
    put(56, &[1]);
    space
}
