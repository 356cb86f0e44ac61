//! The compressions that kernels come in, undone on the host: there it takes a fraction of what it
//! takes in a guest on the software CPU.
//!
//! The stream ends before the payload does: the kernel's build appends the decompressed size to
//! some of them. What a decoder does not eat is ignored.

use std::io::{self, Read};

use crate::BzImageError;

/// The magic number of lz4's legacy frame, which the kernel's build makes (`lz4 -l`).
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// A block of it decompresses to at most this.
const LZ4_BLOCK: usize = 8 << 20;

/// How a kernel is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// gzip, RFC 1952.
    Gzip,
    /// xz.
    Xz,
    /// LZMA alone, the older format.
    Lzma,
    /// bzip2.
    Bzip2,
    /// Zstandard, RFC 8878.
    Zstd,
    /// lz4 in its legacy frame.
    Lz4,
}

impl Compression {
    /// Tells by the first bytes.
    pub(crate) fn of(start: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Compression); 6] = [
            (&[0x1f, 0x8b], Compression::Gzip),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"BZh", Compression::Bzip2),
            (&[0x5d, 0, 0], Compression::Lzma),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            (&LZ4_LEGACY, Compression::Lz4),
        ];
        let found = MAGICS.iter().find(|(magic, _)| start.starts_with(magic));
        found.map(|(_, compression)| *compression)
    }
}

/// Decompresses `bytes`, to at most `limit`.
///
/// # Errors
/// When they are damaged, or decompress to more.
pub(crate) fn decompress(
    bytes: &[u8],
    compression: Compression,
    limit: u64,
) -> Result<Vec<u8>, BzImageError> {
    let failed = |source| BzImageError::Decompress {
        compression,
        source,
    };
    let reader: Box<dyn Read + '_> = match compression {
        Compression::Gzip => Box::new(flate2::bufread::GzDecoder::new(bytes)),
        Compression::Xz => Box::new(lzma_rust2::XzReader::new(bytes, false)),
        Compression::Lzma => {
            let memory_kib = 128 << 10;
            let reader = lzma_rust2::LzmaReader::new_mem_limit(bytes, memory_kib, None);
            Box::new(reader.map_err(|error| failed(io::Error::other(error)))?)
        }
        Compression::Bzip2 => Box::new(bzip2::bufread::BzDecoder::new(bytes)),
        Compression::Zstd => {
            let reader = zstd::stream::read::Decoder::with_buffer(bytes).map_err(failed)?;
            Box::new(reader.single_frame())
        }
        Compression::Lz4 => return lz4_legacy(bytes, limit),
    };
    let mut out = Vec::new();
    reader
        .take(limit + 1)
        .read_to_end(&mut out)
        .map_err(failed)?;
    if out.len() as u64 > limit {
        return Err(BzImageError::TooLarge { limit });
    }
    Ok(out)
}

/// Blocks, each after its length; the last is followed by the end, or by a decompressed size that
/// is no plausible length of a block.
fn lz4_legacy(bytes: &[u8], limit: u64) -> Result<Vec<u8>, BzImageError> {
    let mut out = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    let mut rest = bytes.get(LZ4_LEGACY.len()..).unwrap_or_default();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        if *length == LZ4_LEGACY {
            rest = after;
            continue;
        }
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 || length > after.len() {
            break;
        }
        let (packed, after) = after.split_at(length);
        let size = lz4_flex::block::decompress_into(packed, &mut block).map_err(|error| {
            BzImageError::Decompress {
                compression: Compression::Lz4,
                source: io::Error::other(error),
            }
        })?;
        if (out.len() + size) as u64 > limit {
            return Err(BzImageError::TooLarge { limit });
        }
        out.extend_from_slice(&block[..size]);
        rest = after;
    }
    Ok(out)
}
