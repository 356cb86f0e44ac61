//! Tar streams: read with limits, written reproducibly.
//!
//! Own code instead of a general crate because everything read here is hostile: headers, names,
//! extended records and sparse maps are bounded before they are believed, and data is handed out as
//! borrowed chunks so that a file's bytes are copied once, into the page cache. Called for layers
//! here, and by the node for files copied in and out of instances. Knows nothing of layers or of the
//! file system.
//!
//! Formats: POSIX ustar and pax (IEEE 1003.1), GNU (long names, base-256 numbers, old sparse), GNU
//! sparse in pax 0.0, 0.1 and 1.0, star's prefix, and the pre-POSIX directory convention.

mod header;
mod pax;
mod reader;
mod sparse;
mod writer;

pub use reader::Reader;
pub use writer::Writer;

/// Size of everything in a tar.
pub const BLOCK: usize = 512;

/// One member of a tar, its data not included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// As written, not normalized.
    pub path: Vec<u8>,
    /// Target of links.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions with setuid, setgid and sticky: 0..=0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Seconds since the epoch and nanoseconds.
    pub mtime: (i64, u32),
    /// Length of the file, holes included.
    pub size: u64,
    /// Major and minor number.
    pub device: (u32, u32),
    /// Sorted by name, without the `SCHILY.xattr.` prefix.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data goes when the file has holes.
    pub sparse: Option<Vec<Segment>>,
}

/// Kind of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; data follows.
    #[default]
    File,
    /// Another name of an entry before it.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// A stretch of data in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file it begins.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
}

/// A tar stream was refused or could not be unpacked. Each variant names the entry concerned.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream under the tar failed: a broken compression, or its source.
    #[error("the archive cannot be read{}", after(entry))]
    Read {
        /// The last entry reached, empty at the start.
        entry: String,
        /// What the stream said.
        #[source]
        source: std::io::Error,
    },
    /// The stream ends inside an entry.
    #[error("the archive ends in the middle of entry {entry:?}")]
    Truncated {
        /// The entry.
        entry: String,
    },
    /// A header makes no sense.
    #[error(
        "the header at byte {offset} of the archive is invalid: {reason}{}",
        after(entry)
    )]
    Header {
        /// Where in the uncompressed stream.
        offset: u64,
        /// The entry before it, or the one it describes.
        entry: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// More of something than the limits allow.
    #[error("entry {entry:?} exceeds a limit: {what} (at most {limit})")]
    Limit {
        /// The entry.
        entry: String,
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// A path or link that would lead somewhere it must not.
    #[error("entry {entry:?} was refused: {reason}")]
    Unsafe {
        /// The entry.
        entry: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A kind of entry that has no meaning in a layer.
    #[error("entry {entry:?} has the unsupported tar type {kind:?}")]
    Kind {
        /// The entry.
        entry: String,
        /// The type character.
        kind: char,
    },
    /// The kernel refused.
    #[error("cannot {action} entry {entry:?}{}", full(source))]
    Write {
        /// What was tried, as a verb.
        action: &'static str,
        /// The entry.
        entry: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The owner of the operation cancelled it.
    #[error(transparent)]
    Cancelled(#[from] crate::job::Cancelled),
}

fn after(entry: &str) -> String {
    if entry.is_empty() {
        String::new()
    } else {
        format!(" (at entry {entry:?})")
    }
}

fn full(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "; free space with `berth image gc` or enlarge the file system"
        }
        _ => "",
    }
}

/// A path for people: lossy and bounded.
pub fn display(path: &[u8]) -> String {
    let cut = &path[..path.len().min(256)];
    let mut text = String::from_utf8_lossy(cut).into_owned();
    if cut.len() < path.len() {
        text.push('…');
    }
    text
}
