//! The kernel proper out of a kernel as distributions ship it, so that no machine decompresses it.
//!
//! The recipe of kernels calls it once per kernel. A kernel that it cannot decompress is no failure
//! of the recipe: the machine's process can boot the original too.
//!
//! Source: the kernel's `Documentation/arch/x86/boot.rst`, 2.06 and later.

use std::io::{self, Read};

/// Setup sectors, the magic number and the payload's place in the setup header.
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: std::ops::Range<usize> = 0x202..0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;
/// The magic number of lz4's legacy frame, which the kernel's build makes.
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// A block of it decompresses to at most this.
const LZ4_BLOCK: usize = 8 << 20;

/// The ELF file that a bzImage carries, of at most `limit` bytes.
///
/// # Errors
/// `InvalidData` when it is none, damaged, or larger; `Unsupported` when its compression is another
/// than gzip, xz, zstd and lz4.
pub(crate) fn decompress(file: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    let payload = payload(file).ok_or_else(|| damaged("it is no bzImage"))?;
    let reader: Box<dyn Read + '_> = match payload {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::GzDecoder::new(payload)),
        [0xfd, b'7', b'z', ..] => Box::new(lzma_rust2::XzReader::new(payload, false)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(payload)?.single_frame())
        }
        [0x02, 0x21, 0x4c, 0x18, ..] => Box::new(io::Cursor::new(lz4_legacy(payload, limit)?)),
        _ => return Err(io::ErrorKind::Unsupported.into()),
    };
    let mut out = Vec::new();
    reader.take(limit + 1).read_to_end(&mut out)?;
    if out.len() as u64 > limit {
        return Err(damaged("it is too large"));
    }
    if !out.starts_with(b"\x7fELF") {
        return Err(damaged("what is in it is no ELF file"));
    }
    Ok(out)
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn payload(file: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?) as usize);
    if file.get(MAGIC)? != b"HdrS" {
        return None;
    }
    let sectors = match file[SETUP_SECTORS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * SECTOR + number(PAYLOAD_OFFSET)?;
    file.get(start..start + number(PAYLOAD_LENGTH)?)
}

/// Blocks, each after its length; what follows the last is the decompressed size, which is no
/// plausible length of a block.
fn lz4_legacy(bytes: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    let mut rest = &bytes[LZ4_LEGACY.len()..];
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 || length > after.len() {
            break;
        }
        let (packed, after) = after.split_at(length);
        let size =
            lz4_flex::block::decompress_into(packed, &mut block).map_err(io::Error::other)?;
        out.extend_from_slice(&block[..size]);
        if out.len() as u64 > limit {
            return Err(damaged("it is too large"));
        }
        rest = after;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 2 * SECTOR];
        file[SETUP_SECTORS] = 1;
        file[MAGIC].copy_from_slice(b"HdrS");
        file[PAYLOAD_OFFSET..][..4].copy_from_slice(&16u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        file[PAYLOAD_LENGTH..][..4].copy_from_slice(&length.to_le_bytes());
        file.extend_from_slice(&[0x90; 16]);
        file.extend_from_slice(payload);
        file.extend_from_slice(b"the rest of the decompressor");
        file
    }

    #[test]
    fn each_known_compression_gives_the_kernel_back() {
        let mut kernel = b"\x7fELF".to_vec();
        kernel.resize(9 << 20, 7);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&kernel).unwrap();
        let mut lz4 = LZ4_LEGACY.to_vec();
        for block in kernel.chunks(LZ4_BLOCK) {
            let packed = lz4_flex::block::compress(block);
            lz4.extend_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
            lz4.extend_from_slice(&packed);
        }
        // As the kernel's build appends it.
        lz4.extend_from_slice(&(9u32 << 20).to_le_bytes());
        let zstd = zstd::encode_all(kernel.as_slice(), 1).unwrap();
        for payload in [gzip.finish().unwrap(), lz4, zstd] {
            let file = bzimage(&payload);
            assert!(decompress(&file, 9 << 20).unwrap() == kernel);
            assert!(decompress(&file, (9 << 20) - 1).is_err());
        }
        let unknown = decompress(&bzimage(b"BZh9"), 9 << 20).unwrap_err();
        assert_eq!(unknown.kind(), io::ErrorKind::Unsupported);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(payload: Vec<u8>, lz4: bool, cut in 0..3000usize) {
            let magic = if lz4 { &LZ4_LEGACY[..] } else { &[] };
            let mut file = bzimage(&[magic, &payload].concat());
            file.truncate(cut);
            let _ = decompress(&file, 1 << 20);
        }
    }
}
