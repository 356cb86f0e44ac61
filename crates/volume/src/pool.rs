//! The trait all pools implement, and its types.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::VolumeId;

/// What a volume should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Most bytes it may hold; no limit of its own if absent.
    pub size_bytes: Option<u64>,
    /// Owner of its top directory when it is made.
    pub uid: u32,
    /// Group of its top directory when it is made.
    pub gid: u32,
    /// Permission bits of its top directory when it is made.
    pub mode: u32,
}

/// Whether a volume's size limit holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enforcement {
    /// No limit was asked for.
    Unlimited,
    /// Writing past the limit fails. (ext4 exempts those with `CAP_SYS_RESOURCE` over the host:
    /// root of the host itself, and guests that were given that capability without a user
    /// namespace.)
    Enforced,
    /// The limit is recorded, but nothing enforces it.
    Unsupported {
        /// Why, for users.
        reason: String,
    },
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str("unlimited"),
            Self::Enforced => f.write_str("enforced"),
            Self::Unsupported { reason } => write!(f, "unsupported: {reason}"),
        }
    }
}

/// A volume as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Which.
    pub id: VolumeId,
    /// Its size limit in bytes, if any.
    pub size_bytes: Option<u64>,
    /// Whether that limit holds.
    pub quota: Enforcement,
    /// The directory to mount into an instance. Below it, everything is the guest's: never follow
    /// links there.
    pub path: PathBuf,
}

/// Bytes and entries in use by one volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes on disk, in whole blocks; a file with several names counts once.
    pub bytes: u64,
    /// Files, directories and links.
    pub inodes: u64,
}

/// Room of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes still free for volumes.
    pub free_bytes: u64,
}

/// What a pool can do beyond the minimum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether size limits hold, as [`Enforcement::Enforced`] or why not.
    pub quota: Enforcement,
}

/// What [`Pool::populate`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Populated {
    /// The volume had content of its own; nothing was touched.
    NotEmpty,
    /// The image has no such directory; nothing was touched.
    NoSource,
    /// So many entries were copied.
    Copied(u64),
}

/// Why an operation on a volume failed. The volume is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// There is no such volume.
    #[error("volume {id} does not exist")]
    Missing {
        /// Which.
        id: VolumeId,
    },
    /// The volume holds more than the wanted limit.
    #[error(
        "volume {id} holds {used_bytes} bytes and cannot be limited to {wanted_bytes}; \
         remove files from it first, or choose a larger size"
    )]
    TooSmall {
        /// Which.
        id: VolumeId,
        /// Bytes in use.
        used_bytes: u64,
        /// Bytes wanted as the limit.
        wanted_bytes: u64,
    },
    /// Its record on disk cannot be understood.
    #[error("the record of volume {id} at {path} cannot be read: {reason}")]
    Record {
        /// Which.
        id: VolumeId,
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// What is to be copied goes past a limit.
    #[error("{path} in the image cannot be copied into volume {id}: {reason}")]
    Refused {
        /// Which.
        id: VolumeId,
        /// The path in the image.
        path: PathBuf,
        /// Which limit.
        reason: &'static str,
    },
    /// The system refused.
    #[error("volume {id}: could not {doing} {path}")]
    Io {
        /// Which.
        id: VolumeId,
        /// What was attempted, as a verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The pool itself could not be read.
    #[error("pool {path}: could not {doing}")]
    Pool {
        /// Its directory.
        path: PathBuf,
        /// What was attempted, as a verb.
        doing: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A place for volumes.
///
/// Promises of every pool, checked by [`crate::conformance`]:
/// - An operation is done completely or not at all, whatever crashes when; what it leaves behind
///   is removed when the pool is next opened.
/// - When it returns, it is durable (but see [`crate::Kind::Root`]).
/// - Operations on different volumes may run at once, and `&self` may be shared by threads.
/// - A limit that does not hold is said to be [`Enforcement::Unsupported`], never silently
///   dropped.
///
/// All of it blocks; call it off the async threads.
pub trait Pool: Send + Sync {
    /// What this pool can do.
    fn capabilities(&self) -> Capabilities;

    /// Makes the volume if it is missing, and brings its limit to the wanted one. Owner and mode
    /// are set at birth only: later they are the guest's to change.
    ///
    /// # Errors
    /// See [`VolumeError`].
    fn ensure(&self, id: &VolumeId, spec: &VolumeSpec) -> Result<VolumeInfo, VolumeError>;

    /// Removes the volume and all in it. It is gone from [`Pool::list`] at once; says whether it
    /// was there.
    ///
    /// # Errors
    /// See [`VolumeError`].
    fn remove(&self, id: &VolumeId) -> Result<bool, VolumeError>;

    /// One volume; `None` if there is none.
    ///
    /// # Errors
    /// See [`VolumeError`].
    fn info(&self, id: &VolumeId) -> Result<Option<VolumeInfo>, VolumeError>;

    /// Every volume, by kind and name.
    ///
    /// # Errors
    /// See [`VolumeError`].
    fn list(&self) -> Result<Vec<VolumeInfo>, VolumeError>;

    /// What the volume holds.
    ///
    /// # Errors
    /// [`VolumeError::Missing`], and see [`VolumeError`].
    fn usage(&self, id: &VolumeId) -> Result<Usage, VolumeError>;

    /// Changes the limit; `None` takes it away.
    ///
    /// # Errors
    /// [`VolumeError::Missing`], [`VolumeError::TooSmall`], and see [`VolumeError`].
    fn resize(&self, id: &VolumeId, size_bytes: Option<u64>) -> Result<VolumeInfo, VolumeError>;

    /// Fills an empty volume with what an image has at `path` below `image_root`, owner and mode
    /// of the top directory included. Links in the image are resolved within it and never out of
    /// it; devices are left out. Must be done before the volume is mounted.
    ///
    /// # Errors
    /// [`VolumeError::Missing`], [`VolumeError::Refused`], and see [`VolumeError`].
    fn populate(
        &self,
        id: &VolumeId,
        image_root: BorrowedFd<'_>,
        path: &Path,
    ) -> Result<Populated, VolumeError>;

    /// The room there is.
    ///
    /// # Errors
    /// See [`VolumeError`].
    fn space(&self) -> Result<Space, VolumeError>;
}
