//! Reads qcow2 disk images, to write them out raw.
//!
//! Follows QEMU's `docs/interop/qcow2.rst`, versions 2 and 3. An image comes from strangers: every number is
//! bounded before it is used, and what would make a reader open other files (backing files, external
//! data files), need a key, or be in doubt (a corrupt mark, extended entries) is refused. Snapshots in an
//! image are passed over: what is read is its present state.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

use crate::job::{Cancelled, Job};

/// First bytes of every image.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of the header up to the compression type.
const HEADER_BYTES: usize = 105;
/// Clusters are 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Where a cluster or a table lies, in an entry.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros, wherever it lies.
const ZERO: u64 = 1;
/// Incompatible features: only that reference counts may be off, which readers need not know, and
/// that the compression is named.
const KNOWN_FEATURES: u64 = 1 | 1 << 3;

/// A qcow2 image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// The file breaks the format's rules, or ends early.
    #[error("the qcow2 image is damaged: {0}")]
    Damaged(&'static str),
    /// It uses what is not read here.
    #[error("the qcow2 image {0}; make a plain copy: qemu-img convert -O qcow2 OLD NEW")]
    Unsupported(&'static str),
    /// It is larger than allowed.
    #[error("the qcow2 image holds more than {limit} bytes")]
    TooLarge {
        /// Most bytes.
        limit: u64,
    },
    /// The files fail.
    #[error("the qcow2 image cannot be read")]
    Io(#[from] io::Error),
    /// Cancelled by the caller.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// What is accepted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Largest disk, holes included.
    pub disk_bytes: u64,
    /// Most bytes that are no zeros: many entries may point to one cluster of the file.
    pub data_bytes: u64,
}

struct Header {
    cluster_bits: u32,
    bytes: u64,
    l1_offset: u64,
    l1_entries: u64,
    zstd: bool,
}

/// Writes the disk that `image` holds to `raw`, an empty file, leaving out what is zero. Answers its
/// length.
pub(super) fn convert(
    image: &File,
    raw: &File,
    bounds: Bounds,
    job: &Job,
) -> Result<u64, Qcow2Error> {
    let header = Header::read(image, bounds)?;
    raw.set_len(header.bytes)?;
    let cluster_bytes = 1_usize << header.cluster_bits;
    let per_table = (cluster_bytes / 8) as u64;
    let mut reader = Clusters {
        image,
        header: &header,
        packed: Vec::new(),
        cluster: vec![0; cluster_bytes],
    };
    let mut table = vec![0; cluster_bytes];
    let mut left = bounds.data_bytes;
    let l1 = read_table(image, header.l1_offset, header.l1_entries)?;
    for (index, entry) in (0_u64..).zip(entries(&l1)) {
        let offset = entry & OFFSET;
        if offset == 0 {
            continue;
        }
        job.check()?;
        read_at(image, &mut table, offset)?;
        for (number, entry) in (index * per_table..).zip(entries(&table)) {
            let start = number << header.cluster_bits;
            if start >= header.bytes {
                break;
            }
            if !reader.read(entry)? || reader.cluster.iter().all(|&byte| byte == 0) {
                continue;
            }
            let within = (header.bytes - start).min(cluster_bytes as u64);
            left = left.checked_sub(within).ok_or(Qcow2Error::TooLarge {
                limit: bounds.data_bytes,
            })?;
            let within = usize::try_from(within).unwrap_or(cluster_bytes);
            raw.write_all_at(&reader.cluster[..within], start)?;
        }
    }
    Ok(header.bytes)
}

impl Header {
    fn read(image: &File, bounds: Bounds) -> Result<Self, Qcow2Error> {
        let mut bytes = [0; HEADER_BYTES];
        // A header of version 2 is shorter, and so may be a file with nothing in it.
        let mut got = 0;
        while got < HEADER_BYTES {
            match image.read_at(&mut bytes[got..], got as u64)? {
                0 => break,
                count => got += count,
            }
        }
        Self::parse(&bytes, bounds)
    }

    fn parse(bytes: &[u8; HEADER_BYTES], bounds: Bounds) -> Result<Self, Qcow2Error> {
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
        let long = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        if bytes[..4] != MAGIC {
            return Err(Qcow2Error::Damaged("its first bytes are others"));
        }
        let version = word(4);
        if !matches!(version, 2 | 3) {
            return Err(Qcow2Error::Unsupported("is of another version than 2 or 3"));
        }
        if long(8) != 0 {
            return Err(Qcow2Error::Unsupported("needs a backing file"));
        }
        if word(32) != 0 {
            return Err(Qcow2Error::Unsupported("is encrypted"));
        }
        let (features, header_bytes) = match version {
            2 => (0, 72),
            _ => (long(72), word(100)),
        };
        if features & 1 << 1 != 0 {
            return Err(Qcow2Error::Damaged(
                "it is marked as corrupt; qemu-img check -r all repairs it",
            ));
        }
        if features & !KNOWN_FEATURES != 0 {
            return Err(Qcow2Error::Unsupported(
                "has features not known here, such as a data file of its own",
            ));
        }
        // Named only where the feature says so, and the header is long enough to.
        let compression = match features & 1 << 3 {
            0 => 0,
            _ if header_bytes > 104 => bytes[104],
            _ => return Err(Qcow2Error::Damaged("its header is too short")),
        };
        let header = Self {
            cluster_bits: word(20),
            bytes: long(24),
            l1_offset: long(40),
            l1_entries: u64::from(word(36)),
            zstd: compression == 1,
        };
        if compression > 1 {
            return Err(Qcow2Error::Unsupported("is compressed in an unknown way"));
        }
        if !CLUSTER_BITS.contains(&header.cluster_bits) {
            return Err(Qcow2Error::Damaged("its cluster size is none"));
        }
        if header.bytes > bounds.disk_bytes {
            let limit = bounds.disk_bytes;
            return Err(Qcow2Error::TooLarge { limit });
        }
        // A table of one cluster has entries of 8 bytes, each for a cluster.
        let per_entry = 1_u64 << (2 * header.cluster_bits - 3);
        let needed = header.bytes.div_ceil(per_entry);
        if header.l1_entries < needed {
            return Err(Qcow2Error::Damaged("its first table is too short"));
        }
        // More than needed may be there, to grow into.
        Ok(Self {
            l1_entries: needed,
            ..header
        })
    }
}

/// Reads clusters by their entries.
struct Clusters<'a> {
    image: &'a File,
    header: &'a Header,
    packed: Vec<u8>,
    cluster: Vec<u8>,
}

impl Clusters<'_> {
    /// Reads one into `self.cluster`; `false` when it is zeros.
    fn read(&mut self, entry: u64) -> Result<bool, Qcow2Error> {
        if entry & COMPRESSED != 0 {
            self.read_compressed(entry)?;
            return Ok(true);
        }
        let offset = entry & OFFSET;
        if offset == 0 || entry & ZERO != 0 {
            return Ok(false);
        }
        read_at(self.image, &mut self.cluster, offset)?;
        Ok(true)
    }

    /// The rest of the last sector is whatever comes next, and may be beyond the end of the file.
    fn read_compressed(&mut self, entry: u64) -> Result<(), Qcow2Error> {
        let bits = 62 - (self.header.cluster_bits - 8);
        let offset = entry & ((1 << bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> bits;
        let bytes = (sectors + 1) * 512 - (offset & 511);
        self.packed.clear();
        let bytes =
            usize::try_from(bytes).map_err(|_| Qcow2Error::Damaged("a cluster is too large"))?;
        self.packed.resize(bytes, 0);
        let mut got = 0;
        while got < bytes {
            match self
                .image
                .read_at(&mut self.packed[got..], offset + got as u64)?
            {
                0 => break,
                count => got += count,
            }
        }
        let packed = &self.packed[..got];
        let unpacked = if self.header.zstd {
            zstd::stream::read::Decoder::with_buffer(packed)
                .and_then(|decoder| decoder.single_frame().read_exact(&mut self.cluster))
        } else {
            flate2::read::DeflateDecoder::new(packed).read_exact(&mut self.cluster)
        };
        unpacked.map_err(|_| Qcow2Error::Damaged("a compressed cluster cannot be read"))
    }
}

fn read_table(image: &File, offset: u64, entries: u64) -> Result<Vec<u8>, Qcow2Error> {
    let damaged = Qcow2Error::Damaged("its first table lies beyond its end");
    let end = entries
        .checked_mul(8)
        .and_then(|bytes| offset.checked_add(bytes));
    // Before memory is taken for it.
    if end.is_none_or(|end| image.metadata().map_or(0, |meta| meta.len()) < end) {
        return Err(damaged);
    }
    let bytes = usize::try_from(entries * 8).map_err(|_| damaged)?;
    let mut table = vec![0; bytes];
    read_at(image, &mut table, offset)?;
    Ok(table)
}

fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    table
        .chunks_exact(8)
        .map(|entry| u64::from_be_bytes(entry.try_into().unwrap_or_default()))
}

fn read_at(image: &File, bytes: &mut [u8], offset: u64) -> Result<(), Qcow2Error> {
    image
        .read_exact_at(bytes, offset)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => {
                Qcow2Error::Damaged("it ends early")
            }
            _ => error.into(),
        })
}

/// Whatever the bytes are, converting ends, and never exceeds its bounds.
pub(crate) fn fuzz(data: &[u8]) {
    let file =
        || rustix::fs::memfd_create("qcow2", rustix::fs::MemfdFlags::CLOEXEC).map(File::from);
    let (Ok(image), Ok(raw)) = (file(), file()) else {
        return;
    };
    if image.write_all_at(data, 0).is_err() {
        return;
    }
    let bounds = Bounds {
        disk_bytes: 16 << 20,
        data_bytes: 1 << 20,
    };
    if let Ok(bytes) = convert(&image, &raw, bounds, &Job::silent()) {
        assert!(bytes <= bounds.disk_bytes);
    }
}
