//! Its features, sizes and configuration space.

/// Entries of its queues (virtio 1.2, 5.11.2): requests of priority (`FORGET`, `INTERRUPT`), and all
/// others. A request of the second has up to 256 pages, which a chain must hold beside its headers.
pub(super) const QUEUES: [u16; 2] = [128, 1024];

/// Longest tag, in bytes.
pub(super) const MAX_TAG: usize = 36;

/// The configuration space (virtio 1.2, 5.11.4): the tag, filled up with zeroes, and the number of
/// queues of requests.
pub(super) fn space(tag: &str) -> [u8; 40] {
    let mut space = [0; 40];
    let bytes = tag.as_bytes();
    let length = bytes.len().min(MAX_TAG);
    space[..length].copy_from_slice(&bytes[..length]);
    space[MAX_TAG..].copy_from_slice(&1u32.to_le_bytes());
    space
}
