//! Errors of reading and changing the store, and the helper that gives I/O errors their path.
//!
//! Operations with more to say have their own enum beside them and carry this one inside.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{digest::Digest, manifest::ManifestError, reference::ReferenceError};

/// Reading or changing the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call on a file of the store failed.
    #[error("cannot {action} {}{}", path.display(), hint(source))]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The directory was written by a newer Berth.
    #[error(
        "the image store {} has format {found}; this Berth knows format {known}: use the newer Berth, or another --root",
        path.display()
    )]
    Version {
        /// The store.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// Version known.
        known: u32,
    },
    /// A file of the store is not what was written there.
    #[error("the stored file {} is damaged ({reason}); remove the image and pull it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No such image.
    #[error("no image {0:?} on this host; see `berth image list`, or pull it")]
    NotFound(String),
    /// Several images start with the given digits.
    #[error("{name:?} is the start of several image ids: {}", matches.iter().map(Digest::short).collect::<Vec<_>>().join(", "))]
    Ambiguous {
        /// What was asked.
        name: String,
        /// What it could mean.
        matches: Vec<Digest>,
    },
    /// Not an image name.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A stored document does not parse.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// A way out for the errors that have a usual one.
fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free space with `berth image gc` or enlarge the file system"
        }
        io::ErrorKind::PermissionDenied => "; the image store belongs to root",
        io::ErrorKind::ReadOnlyFilesystem => "; the file system is read-only",
        _ => "",
    }
}

/// `.map_err(at("open", path))` for I/O results.
pub(crate) fn at<E: Into<io::Error>>(
    action: &'static str,
    path: impl AsRef<Path>,
) -> impl FnOnce(E) -> StoreError {
    let path = path.as_ref().to_owned();
    move |source| StoreError::Io {
        action,
        path,
        source: source.into(),
    }
}
