//! The store on disk: layout, opening, recovery, and the small records that name images.
//!
//! ```text
//!   ROOT/version                    format of everything below
//!   ROOT/blobs/sha256/<hex>         manifests, configurations, layers as transferred
//!   ROOT/layers/sha256/<hex>/fs     a layer unpacked, named by its diff id; layer.json beside it
//!   ROOT/images/<hex>.json          a complete image: written last, so its presence is the promise
//!   ROOT/refs/<hash>.json           a name and the image it means
//!   ROOT/recipes/<key>.json         results of recipes
//!   ROOT/kernels, ROOT/disks        what virtual machines boot (see `vm`)
//!   ROOT/ingest/<lease>/…           unfinished work of live operations (see `lease`)
//!   ROOT/partial/<hex>              what was received of a blob before its pull ended (see `partial`)
//!   ROOT/locks/store                shared by who pins or records, exclusive for the collector
//! ```
//! Content first becomes durable (layers: see `layers`), then visible by rename, then named by an image record. A crash
//! between any two steps leaves unnamed content that the next collection takes, never a name without
//! content. Called by every other module of the crate; knows nothing of registries and archives.

mod blob;
mod durable;
mod gc;
mod images;
mod layers;
mod lease;
mod partial;
mod recovery;
mod usage;

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

pub(crate) use blob::{BlobWriter, SealedBlob};
pub(crate) use durable::{read_json, read_limited, write as write_private, write_json};
pub use gc::{GcReport, InUse};
pub use images::{Image, Untagged};
pub(crate) use images::{ImageLayer, ImageRecord};
pub use layers::LayerInfo;
pub(crate) use layers::LayerRecord;
pub use lease::Hold;
pub(crate) use lease::Lease;
pub(crate) use partial::Part;
pub use usage::{ImageUsage, Usage};

use crate::{
    digest::Digest,
    error::{StoreError, at},
    limits::Limits,
};

/// Version of the layout and of every record in it.
pub(crate) const FORMAT: u32 = 1;

/// A handle to a store. Cheap to clone; any number of handles, threads and processes may share a root.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    limits: Limits,
    /// Layers that wait for the background flush.
    unflushed: Mutex<Vec<Digest>>,
}

impl Store {
    /// Opens the store at `root`, creating it if need be, removes what dead operations left, and after a
    /// power failure unpacks again the layers it may have hurt. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Version`] when a newer Berth wrote it; [`StoreError::Io`] otherwise.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(root, Limits::default())
    }

    /// Like [`Store::open`], with other limits on what comes in.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(root: impl AsRef<Path>, limits: Limits) -> Result<Self, StoreError> {
        let root = root.as_ref();
        let mut builder = fs::DirBuilder::new();
        // Layers hold setuid programs, device nodes and other people's secrets.
        builder.recursive(true).mode(0o700);
        for dir in [
            "",
            "blobs/sha256",
            "layers/sha256",
            "images",
            "refs",
            "recipes",
            "kernels/sha256",
            "disks/sha256",
            "ingest",
            "partial",
            "locks",
        ] {
            let path = root.join(dir);
            builder.create(&path).map_err(at("create", &path))?;
        }
        let root = root.canonicalize().map_err(at("resolve", root))?;
        check_version(&root)?;
        let lock = root.join("locks/store");
        fs::File::options()
            .create(true)
            .append(true)
            .open(&lock)
            .map_err(at("create", &lock))?;

        let store = Self {
            inner: Arc::new(Inner {
                root,
                limits,
                unflushed: Mutex::default(),
            }),
        };
        let abandoned = store.recover_leases()?;
        if abandoned > 0 {
            tracing::info!(abandoned, "removed unfinished image operations");
        }
        store.tidy_parts()?;
        {
            let _lock = store.lock_exclusive()?;
            for dir in ["images", "refs", "recipes", "kernels"] {
                durable::sweep(&store.root().join(dir))?;
            }
        }
        store.recover_layers()?;
        Ok(store)
    }

    /// The directory that holds everything.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The limits in force.
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("root", &self.inner.root)
            .finish_non_exhaustive()
    }
}

/// Writes the version into a new store, checks it in an old one.
fn check_version(root: &Path) -> Result<(), StoreError> {
    let path = root.join("version");
    match durable::read_json::<u32>(&path)? {
        None => durable::write_json(&path, &FORMAT),
        Some(FORMAT) => Ok(()),
        Some(found) => Err(StoreError::Version {
            path: root.to_owned(),
            found,
            known: FORMAT,
        }),
    }
}
