//! Unpacked layers: directories under the name of their diff id.
//!
//! Owns `layers/sha256`. A directory appears there complete, or not at all; what fills it is the
//! business of the `layer` module.
//!
//! A layer's thousands of files are not flushed before it is used: a flush of the whole file system waits
//! for everything else that is being written on the host. Instead its record names the boot it was
//! unpacked in until a flush in the background has happened. Its blob *is* durable by then, so after a
//! power failure `recovery` unpacks the layers of an unfinished flush again; a killed process loses
//! nothing, because the kernel has the files.

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
    /// The boot in which it was unpacked, until its files are known to be on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unflushed_since_boot: Option<String>,
}

impl LayerRecord {
    /// The record of a layer just unpacked.
    pub(crate) fn new(diff_id: Digest, bytes: u64, entries: u64) -> Self {
        Self {
            version: FORMAT,
            diff_id,
            bytes,
            entries,
            unflushed_since_boot: Some(boot_id()),
        }
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
    pub(super) fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
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
        Ok(self.layer_record(diff_id)?.map(|record| LayerInfo {
            diff_id: *diff_id,
            path: self.layer_fs(diff_id),
            bytes: record.bytes,
            entries: record.entries,
        }))
    }

    pub(super) fn layer_record(&self, diff_id: &Digest) -> Result<Option<LayerRecord>, StoreError> {
        durable::read_json(&self.layer_dir(diff_id).join("layer.json"))
    }

    /// Makes a finished layer visible. `work` holds its files in `fs`; its blob is published already.
    pub(crate) fn publish_layer(
        &self,
        work: &Path,
        record: &LayerRecord,
    ) -> Result<(), StoreError> {
        durable::write_json(&work.join("layer.json"), record)?;
        let to = self.layer_dir(&record.diff_id);
        match fs::rename(work, &to) {
            Ok(()) => {
                durable::sync_dir(&self.root().join("layers/sha256"))?;
                self.flush_later(record.diff_id);
                Ok(())
            }
            // Somebody else unpacked the same layer meanwhile; the lease removes ours.
            Err(error) if is_occupied(&error) => Ok(()),
            Err(source) => Err(at("create", &to)(source)),
        }
    }
}

/// Changes with every start of the machine.
pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

fn is_occupied(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
    )
}
