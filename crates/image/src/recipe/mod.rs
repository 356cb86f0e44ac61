//! Recipes (placeholder signatures; filled in next).
use crate::{digest::Digest, error::StoreError, job::{Cancelled, Job}, layer::LayerError, reference::Reference, store::Store};

/// An image Berth can make by itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// Debian's static busybox with all its applets.
    Busybox,
    /// A Debian root file system by mmdebstrap.
    Debian(DebianRecipe),
}

/// Parameters of the Debian recipe.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DebianRecipe {
    /// Suite, e.g. `bookworm` or `stable`.
    pub suite: String,
    /// Additional packages.
    pub packages: Vec<String>,
    /// With systemd as init: a system-container image.
    pub systemd: bool,
    /// Mirror URL; the host's own apt sources when `None`.
    pub mirror: Option<String>,
}

/// A finished build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The image.
    pub image: Digest,
    /// An earlier build of the same recipe and inputs was found.
    pub cached: bool,
}

/// A recipe failed; the store is as before.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Making the layer failed.
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
    /// Builds a recipe and names the result, or finds the earlier result. Blocks.
    ///
    /// # Errors
    /// [`RecipeError`].
    pub fn build_recipe(&self, _recipe: &Recipe, _name: &Reference, _fresh: bool, _job: &Job) -> Result<Built, RecipeError> {
        todo!()
    }
}

/// A recipe's earlier result, under the key of its inputs.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct CachedResult {
    pub version: u32,
    pub image: Digest,
}
