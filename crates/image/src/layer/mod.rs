//! Layers: from a tar stream to a directory.
use crate::error::StoreError;

/// A layer failed.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The tar stream was refused.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A tar stream was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {}
