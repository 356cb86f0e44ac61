//! Compressions of layers, recognized by their first bytes.
//!
//! The media type is only a claim (Docker labels plain tars as gzip), so the magic decides.

use std::io::{self, BufRead, Read};

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

/// Bytes needed by [`Compression::detect`].
const MAGIC: usize = 6;

/// Largest window a zstd frame may ask for (2^27 = 128 MiB, the format's recommendation).
const ZSTD_WINDOW_LOG: u32 = 27;
/// Largest dictionary of an xz stream, in KiB.
const XZ_MEMORY_KIB: u32 = 256 << 10;

impl Compression {
    fn detect(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A zstd skippable frame may come first (estargz-like writers).
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            _ => Self::Plain,
        }
    }

    /// A reader of the uncompressed bytes.
    fn decoder<'a>(self, input: impl BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Self::Plain => Box::new(input),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Box::new(decoder)
            }
            Self::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(
                input,
                true,
                XZ_MEMORY_KIB,
            )),
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        })
    }
}

/// Detects and decompresses a stream of unknown compression.
pub(crate) fn open<'a>(
    mut input: impl BufRead + Send + 'a,
) -> io::Result<(Compression, Box<dyn Read + Send + 'a>)> {
    let mut start = Vec::with_capacity(MAGIC);
    (&mut input).take(MAGIC as u64).read_to_end(&mut start)?;
    let compression = Compression::detect(&start);
    Ok((
        compression,
        compression.decoder(io::Cursor::new(start).chain(input))?,
    ))
}
