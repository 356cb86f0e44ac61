//! File systems of a disk, as far as a kernel is looked for on them: names of a directory, and whole files.
//!
//! Called by `boot` alone. A disk comes from strangers, so each is read by code of this process, never by
//! mounting: what it says of itself is checked before it is believed, every read lies within its
//! partition, and links, chains and counts have an end. Nothing is ever written.

mod ext4;
mod fat;
mod links;
mod window;
mod xfs;

use self::{ext4::Extended, fat::Fat, xfs::Xfs};
pub(super) use window::Window;

/// Most entries of a directory that are looked at.
const MAX_ENTRIES: usize = 4096;

/// A file system that can be read.
pub(super) enum Files {
    /// Root file systems and `/boot`.
    Ext4(Box<Extended>),
    /// EFI system partitions, and sticks.
    Fat(Fat),
    /// Root file systems and `/boot` of the Red Hat family.
    Xfs(Xfs),
}

/// Why a file was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadError {
    /// There is none at its path.
    Missing,
    /// It is larger than the limit.
    TooLarge,
    /// It is none, or the file system is damaged there.
    Unreadable,
}

/// File systems and containers of them that are known and not read: name, where their mark lies, the mark.
const UNREAD: [(&str, u64, &[u8]); 8] = [
    ("XFS of a version that is not known", 0, b"XFSB"),
    ("Btrfs", 0x1_0040, b"_BHRfS_M"),
    ("F2FS", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    ("EROFS", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("SquashFS", 0, b"hsqs"),
    ("NTFS", 3, b"NTFS    "),
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("LVM", 512, b"LABELONE"),
];

impl Files {
    /// What a partition holds; `None` when that is not read, or damaged.
    pub(super) fn open(window: &Window) -> Option<Self> {
        let extended = || Extended::load(window).map(|it| Self::Ext4(Box::new(it)));
        extended()
            .or_else(|| Fat::load(window).map(Self::Fat))
            .or_else(|| Xfs::load(window).map(Self::Xfs))
    }

    /// What a partition holds that is not read, by its name for people.
    pub(super) fn unread(window: &Window) -> Option<&'static str> {
        let found = UNREAD.iter().find(|(_, at, mark)| {
            let mut bytes = vec![0; mark.len()];
            window.read(*at, &mut bytes).is_ok() && bytes == *mark
        });
        found.map(|(name, ..)| *name)
    }

    /// By which a kernel's initial file system knows it, where it can be a root.
    pub(super) fn uuid(&self) -> Option<String> {
        match self {
            Self::Ext4(files) => Some(files.uuid()),
            Self::Xfs(files) => Some(files.uuid()),
            Self::Fat(_) => None,
        }
    }

    /// Whether there is something at a path.
    pub(super) fn has(&self, path: &str) -> bool {
        match self {
            Self::Ext4(files) => files.has(path),
            Self::Fat(files) => files.has(path),
            Self::Xfs(files) => files.has(path),
        }
    }

    /// A whole file of at most `limit` bytes.
    pub(super) fn bytes(&self, path: &str, limit: u64) -> Result<Vec<u8>, ReadError> {
        match self {
            Self::Ext4(files) => files.bytes(path, limit),
            Self::Fat(files) => files.bytes(path, limit),
            Self::Xfs(files) => files.bytes(path, limit),
        }
    }

    /// The names in a directory; none where there is no such directory.
    pub(super) fn names(&self, directory: &str) -> Vec<String> {
        match self {
            Self::Ext4(files) => files.names(directory),
            Self::Fat(files) => files.names(directory),
            Self::Xfs(files) => files.names(directory),
        }
    }
}
