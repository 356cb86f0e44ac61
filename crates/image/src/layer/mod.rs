//! Layers: a tar stream becomes a directory for overlayfs, and back.
//!
//! `pipeline` moves bytes between threads (hash ∥ inflate ∥ hash ∥ write), `unpack` gives entries their
//! meaning, `tree` is the only one that touches the target directory, `diff` reads an overlay's upper
//! directory back into a tar. Callers: pull, import, recipes, commit. Knows nothing of images.

mod compression;
mod diff;
mod pipeline;
mod tree;
mod unpack;

pub(crate) use compression::{Compression, open as open_compressed};
pub(crate) use diff::{write_diff, write_merged};
pub(crate) use pipeline::{
    Expected, Ingested, ingest_blob, ingest_part, ingest_tar, piped, read_source,
};
#[cfg(test)]
pub(crate) use unpack::unpack;
#[doc(hidden)]
pub(crate) use unpack::unpack as unpack_for_fuzzing;
pub(crate) use unpack::unpack_merged;

pub use crate::tar::TarError;
use crate::{digest::Digest, error::StoreError, job::Cancelled};

/// A layer could not be taken in; nothing of it remains.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The source of the bytes failed.
    #[error("the layer's source failed")]
    Source(#[source] std::io::Error),
    /// The tar stream was refused.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The bytes are not the promised ones.
    #[error(
        "the layer's {what} digest is {found} instead of {expected}: the content was damaged or altered on its way"
    )]
    Digest {
        /// Compressed or uncompressed.
        what: &'static str,
        /// What the manifest or configuration promised.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The length is not the promised one.
    #[error(
        "the layer has {found} bytes instead of {expected}: the transfer was cut off or altered"
    )]
    Size {
        /// What the manifest promised.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Cancelled by the caller.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

#[cfg(test)]
mod tests;
