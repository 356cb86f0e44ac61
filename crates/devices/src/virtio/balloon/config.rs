//! Features, queues and configuration space (virtio 1.2, 5.5.2 to 5.5.4).

const F_STATS: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_HINTING: u64 = 1 << 3;
const F_REPORTING: u64 = 1 << 5;

/// What is offered.
pub(super) const FEATURES: u64 = F_STATS | F_DEFLATE_ON_OOM | F_HINTING | F_REPORTING;
/// Entries of the queues; how many there are depends on what is negotiated.
pub(super) const QUEUES: [u16; 5] = [128; 5];

/// Where in the configuration space the driver says how large the balloon is.
pub(super) const ACTUAL: u64 = 4;

/// No hints are wanted.
pub(super) const COMMAND_STOP: u32 = 0;
/// The hints were used, the pages may be.
pub(super) const COMMAND_DONE: u32 = 1;
/// The first number of a round of hinting.
pub(super) const COMMAND_FIRST: u32 = 2;

/// Bytes of a page of the balloon, whatever the pages of the guest are.
pub(super) const PAGE_BYTES: u64 = 4096;

/// Numbers of the queues that are optional: those that are negotiated follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Optional {
    pub(super) stats: Option<u16>,
    pub(super) hinting: Option<u16>,
    pub(super) reporting: Option<u16>,
}

impl Optional {
    pub(super) fn of(features: u64) -> Self {
        let mut next = 2;
        let mut number = |feature| {
            (features & feature != 0).then(|| {
                next += 1;
                next - 1
            })
        };
        Self {
            stats: number(F_STATS),
            hinting: number(F_HINTING),
            reporting: number(F_REPORTING),
        }
    }
}

/// `struct virtio_balloon_config`.
pub(super) fn space(target_pages: u32, actual_pages: u32, command: u32) -> [u8; 12] {
    let mut space = [0; 12];
    space[..4].copy_from_slice(&target_pages.to_le_bytes());
    space[4..8].copy_from_slice(&actual_pages.to_le_bytes());
    space[8..].copy_from_slice(&command.to_le_bytes());
    space
}
