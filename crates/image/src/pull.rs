//! Pulling (placeholder signatures; filled in next).
use crate::{digest::Digest, error::StoreError, job::{Cancelled, Job}, layer::LayerError, manifest::ManifestError, platform::Platform, reference::Reference, registry::{Registries, RegistryError}, store::Store};

/// What to pull.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// Platform of a multi-platform image; the host's by default.
    pub platform: Option<Platform>,
    /// Layers fetched at once; 4 by default.
    pub parallel: usize,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self { platform: None, parallel: 4 }
    }
}

/// A finished pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The image.
    pub image: Digest,
    /// Nothing had to be fetched: the name already meant this image.
    pub up_to_date: bool,
    /// Bytes received from the network.
    pub fetched_bytes: u64,
}

/// A pull failed; the store is as before.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Names of this host are not served by any registry.
    #[error("{0} is an image of this host and cannot be pulled; build or import it, or give a registry")]
    Local(Reference),
    /// The registry failed or refused.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The image's documents are not acceptable.
    #[error("the image {reference} was refused")]
    Manifest {
        /// The image.
        reference: Reference,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A layer could not be fetched or unpacked.
    #[error("layer {layer} of {reference} failed")]
    Layer {
        /// The image.
        reference: Reference,
        /// The layer's blob digest.
        layer: Digest,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Cancelled by the caller.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl Store {
    /// Pulls an image and unpacks its layers.
    ///
    /// # Errors
    /// [`PullError`]; nothing of a failed pull remains.
    pub async fn pull(&self, _registries: &Registries, _reference: &Reference, _options: &PullOptions, _job: &Job) -> Result<Pulled, PullError> {
        todo!()
    }
}
