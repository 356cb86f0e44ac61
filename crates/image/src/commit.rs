//! Commit (placeholder signatures; filled in next).
use std::path::Path;
use crate::{digest::Digest, error::StoreError, job::{Cancelled, Job}, layer::LayerError, manifest::RunConfig, reference::Reference, store::Store};

/// What to record with a committed image.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    /// Name for the new image.
    pub name: Option<Reference>,
    /// Run configuration; the base's when `None`.
    pub config: Option<RunConfig>,
    /// Text for the image's history.
    pub comment: Option<String>,
    /// Seconds since the epoch recorded as the creation time; now when `None`.
    pub created_unix: Option<i64>,
}

/// A commit failed; the store is as before.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Reading or writing the layer failed.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Cancelled by the caller.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl Store {
    /// Makes an image of `base` plus the changes in an overlay's upper directory. Blocks.
    ///
    /// # Errors
    /// [`CommitError`].
    pub fn commit(&self, _upper: &Path, _base: &Digest, _options: &CommitOptions, _job: &Job) -> Result<Digest, CommitError> {
        todo!()
    }
}
