//! How a guest says it uses its memory (virtio 1.2, 5.5.6.4).

/// The guest's word, in bytes and counts; what it did not say is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestMemoryStats {
    /// Bytes read from swap.
    pub swap_in_bytes: Option<u64>,
    /// Bytes written to swap.
    pub swap_out_bytes: Option<u64>,
    /// Page faults that needed I/O.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Bytes not used for anything.
    pub free_bytes: Option<u64>,
    /// Bytes there are.
    pub total_bytes: Option<u64>,
    /// Bytes that could be used without swapping.
    pub available_bytes: Option<u64>,
    /// Bytes of caches that could be given up.
    pub cache_bytes: Option<u64>,
}

/// Bytes of a tag and its value.
const ENTRY_BYTES: usize = 10;
/// Bytes of a list that are looked at.
pub(super) const LIST_BYTES: usize = 64 * ENTRY_BYTES;

impl GuestMemoryStats {
    /// Reads a list of tags and values; unknown tags are skipped.
    pub(super) fn parse(list: &[u8]) -> Self {
        let mut stats = Self::default();
        for entry in list.chunks_exact(ENTRY_BYTES) {
            let tag = u16::from_le_bytes([entry[0], entry[1]]);
            let mut value = [0; 8];
            value.copy_from_slice(&entry[2..]);
            let field = match tag {
                0 => &mut stats.swap_in_bytes,
                1 => &mut stats.swap_out_bytes,
                2 => &mut stats.major_faults,
                3 => &mut stats.minor_faults,
                4 => &mut stats.free_bytes,
                5 => &mut stats.total_bytes,
                6 => &mut stats.available_bytes,
                7 => &mut stats.cache_bytes,
                _ => continue,
            };
            *field = Some(u64::from_le_bytes(value));
        }
        stats
    }
}
