//! Pushing (placeholder signatures; filled in next).
use crate::{digest::Digest, error::StoreError, job::{Cancelled, Job}, reference::Reference, registry::{Registries, RegistryError}, store::Store};

/// How to push.
#[derive(Clone, Debug)]
pub struct PushOptions {
    /// Layers sent at once; 4 by default.
    pub parallel: usize,
}

impl Default for PushOptions {
    fn default() -> Self {
        Self { parallel: 4 }
    }
}

/// A finished push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Digest of the manifest in the registry.
    pub digest: Digest,
    /// Bytes sent.
    pub sent_bytes: u64,
}

/// A push failed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// Names of this host have no registry to push to.
    #[error("{0} names no registry; push to a name like registry.example/app:1")]
    Local(Reference),
    /// The registry failed or refused.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Cancelled by the caller.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl Store {
    /// Pushes an image of the store under a name in a registry.
    ///
    /// # Errors
    /// [`PushError`]; the tag is moved last, so a failed push leaves the registry's image as it was.
    pub async fn push(&self, _registries: &Registries, _image: &Digest, _to: &Reference, _options: &PushOptions, _job: &Job) -> Result<Pushed, PushError> {
        todo!()
    }
}
