//! What the setup header says.
//!
//! Source: the kernel's `Documentation/arch/x86/boot.rst`.

use std::ops::Range;

use crate::{BzImageError, Compression, decompress::decompress, is_elf};

/// Offset of the setup header.
pub const HEADER: usize = 0x1f1;
/// Past the last field of protocol 2.12.
pub const HEADER_END: usize = 0x268;
const SECTOR: usize = 512;
/// The largest kernel once decompressed. Debian's have 50 MiB, with all built in 150.
const MAX_VMLINUX: u64 = 512 << 20;
/// Since protocol 2.08 the header says where the compressed kernel is.
const PAYLOAD_SINCE: u16 = 0x0208;
/// Since protocol 2.12 it says whether it can be entered in 64-bit mode.
const ENTRY64_SINCE: u16 = 0x020c;

/// What the header says; ranges lie within the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BzImage {
    /// The decompressor with all it carries: what a boot loader puts into memory.
    pub protected_mode: Range<usize>,
    /// The compressed kernel, if the header says where it is.
    pub payload: Option<Range<usize>>,
    /// Whether the decompressor can be entered in 64-bit mode, 0x200 bytes into it.
    pub entry64: bool,
    /// Where it would like to be.
    pub preferred_address: u64,
    /// Bytes it needs there to decompress in place.
    pub init_bytes: u32,
}

/// Whether this is how such a file begins.
fn is_bzimage(start: &[u8]) -> bool {
    start.get(0x202..0x206) == Some(b"HdrS")
}

impl BzImage {
    /// Reads the header.
    ///
    /// # Errors
    /// When it is none, too old (before Linux 2.6.24), or says of itself what cannot be.
    pub fn parse(file: &[u8]) -> Result<Self, BzImageError> {
        if !is_bzimage(file) || file.len() < HEADER_END {
            return Err(BzImageError::Format("it is no bzImage"));
        }
        let version = u16::from_le_bytes([file[0x206], file[0x207]]);
        if version < PAYLOAD_SINCE {
            return Err(BzImageError::Format("its boot protocol is older than 2.08"));
        }
        let sectors = match file[HEADER] {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let start = (sectors + 1) * SECTOR;
        if start >= file.len() {
            return Err(BzImageError::Format("it ends within its real-mode code"));
        }
        let within = |range: &Range<usize>| range.start < range.end && range.end <= file.len();
        let payload = start + u32_at(file, 0x248) as usize;
        let payload = payload..payload + u32_at(file, 0x24c) as usize;
        let entry64 = version >= ENTRY64_SINCE && file[0x236] & 1 != 0;
        Ok(Self {
            protected_mode: start..file.len(),
            payload: Some(payload).filter(within),
            entry64,
            preferred_address: u64::from(u32_at(file, 0x258))
                | u64::from(u32_at(file, 0x25c)) << 32,
            init_bytes: u32_at(file, 0x260),
        })
    }

    /// The ELF file in `file`, which this is the header of; `None` if there is none that can be
    /// found.
    ///
    /// # Errors
    /// When it is damaged, or decompresses to more than 512 MiB.
    pub fn vmlinux(&self, file: &[u8]) -> Result<Option<Vec<u8>>, BzImageError> {
        let Some(payload) = self.payload.clone().and_then(|range| file.get(range)) else {
            return Ok(None);
        };
        if is_elf(payload) {
            return Ok(Some(payload.to_vec()));
        }
        let Some(compression) = Compression::of(payload) else {
            return Ok(None);
        };
        let vmlinux = decompress(payload, compression, MAX_VMLINUX)?;
        Ok(Some(vmlinux).filter(|it| is_elf(it)))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
