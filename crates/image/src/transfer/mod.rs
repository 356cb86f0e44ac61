//! Import and export (placeholder signatures; filled in next).
use std::{io::{Read, Write}, path::Path};
use crate::{digest::Digest, error::StoreError, job::{Cancelled, Job}, layer::LayerError, manifest::{ManifestError, RunConfig}, platform::Platform, reference::Reference, store::Store};

/// How to import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Name for the result; archives that carry names keep them when `None`.
    pub name: Option<Reference>,
    /// Platform to take from a multi-platform layout, or to record for a root file system; the host's by default.
    pub platform: Option<Platform>,
    /// Run configuration recorded for a root file system.
    pub config: RunConfig,
}

/// Formats an image can be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// A tar that is an OCI layout and a `docker save` archive at once.
    Archive,
    /// The root file system as a plain tar, layers merged.
    RootFs,
}

/// An import failed; the store is as before.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Neither an OCI layout nor a docker archive.
    #[error("the archive is neither an OCI layout nor a `docker save` archive: {0}")]
    Format(String),
    /// A document in the archive is not acceptable.
    #[error("the archive's image was refused")]
    Manifest(#[from] ManifestError),
    /// A layer could not be unpacked.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Cancelled by the caller.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// An export failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Writing the output failed.
    #[error("cannot write the export")]
    Write(#[source] std::io::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Cancelled by the caller.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl Store {
    /// Imports every image of an OCI layout directory. Blocks.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn import_layout(&self, _directory: &Path, _options: &ImportOptions, _job: &Job) -> Result<Vec<Digest>, ImportError> {
        todo!()
    }

    /// Imports an OCI layout tar or a `docker save` archive, compressed or not. Blocks.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn import_archive(&self, _input: impl Read + Send, _options: &ImportOptions, _job: &Job) -> Result<Vec<Digest>, ImportError> {
        todo!()
    }

    /// Imports a root file system tar (plain, gzip, zstd, xz, bzip2) as a one-layer image. Blocks.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn import_rootfs(&self, _input: impl Read + Send, _options: &ImportOptions, _job: &Job) -> Result<Digest, ImportError> {
        todo!()
    }

    /// Writes images to a stream; the same images give the same bytes. Blocks.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn export(&self, _images: &[Digest], _format: ExportFormat, _output: impl Write, _job: &Job) -> Result<(), ExportError> {
        todo!()
    }

    /// Writes images as an OCI layout directory, which must not exist or be empty. Blocks.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn export_layout(&self, _images: &[Digest], _directory: &Path, _job: &Job) -> Result<(), ExportError> {
        todo!()
    }
}
