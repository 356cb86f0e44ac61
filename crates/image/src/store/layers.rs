//! Unpacked layers: directories under the name of their diff id.
//!
//! Owns `layers/sha256`. A directory appears there complete and durable, or not at all; what fills
//! it is the business of the `layer` module.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{FORMAT, Store, durable};
use crate::{
    digest::Digest,
    error::{StoreError, at},
};

/// What is recorded beside a layer's files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub version: u32,
    pub diff_id: Digest,
    /// Content of regular files in bytes, hard links counted once, holes not at all.
    pub bytes: u64,
    pub entries: u64,
}

impl LayerRecord {
    pub(crate) fn new(diff_id: Digest, bytes: u64, entries: u64) -> Self {
        Self { version: FORMAT, diff_id, bytes, entries }
    }
}

/// A layer of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerInfo {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// The directory to mount.
    pub path: PathBuf,
    /// Content of its regular files in bytes.
    pub bytes: u64,
    /// Its files, directories and other entries.
    pub entries: u64,
}

impl Store {
    fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.root().join("layers/sha256").join(diff_id.hex())
    }

    /// The directory that an overlay takes as a lower layer.
    pub(crate) fn layer_fs(&self, diff_id: &Digest) -> PathBuf {
        self.layer_dir(diff_id).join("fs")
    }

    /// What is known of a layer; `None` when it is not here.
    ///
    /// # Errors
    /// [`StoreError`] when its record cannot be read.
    pub fn layer(&self, diff_id: &Digest) -> Result<Option<LayerInfo>, StoreError> {
        let record = durable::read_json::<LayerRecord>(&self.layer_dir(diff_id).join("layer.json"))?;
        Ok(record.map(|record| LayerInfo {
            diff_id: *diff_id,
            path: self.layer_fs(diff_id),
            bytes: record.bytes,
            entries: record.entries,
        }))
    }

    /// Makes a finished layer visible. `work` holds its files in `fs`.
    pub(crate) fn publish_layer(&self, work: &Path, record: &LayerRecord) -> Result<(), StoreError> {
        durable::write_json(&work.join("layer.json"), record)?;
        let dir = fs::File::open(work).map_err(at("open", work))?;
        // One flush of the file system instead of one per file: thousands of files, one barrier.
        rustix::fs::syncfs(&dir).map_err(at("flush", work))?;
        let to = self.layer_dir(&record.diff_id);
        match fs::rename(work, &to) {
            Ok(()) => durable::sync_dir(&self.root().join("layers/sha256")),
            // Somebody else unpacked the same layer meanwhile; the lease removes ours.
            Err(error) if is_occupied(&error) => Ok(()),
            Err(source) => Err(at("create", &to)(source)),
        }
    }
}

fn is_occupied(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists)
}
