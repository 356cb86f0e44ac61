//! Layers and power failures: flushing in the background, unpacking again what a failure may have hurt.
//!
//! See `layers` for why. Called when a layer is published and when a store is opened.

use std::{fs, sync::PoisonError, thread};

use super::{ImageRecord, Lease, Store, durable, layers::boot_id};
use crate::{
    digest::Digest,
    error::{StoreError, at},
    job::Job,
    layer::{Expected, LayerError, ingest_blob, read_source},
};

impl Store {
    /// Notes a layer for the next background flush, and starts one if none is under way.
    pub(super) fn flush_later(&self, diff_id: Digest) {
        let mut queue = self
            .inner
            .unflushed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        queue.push(diff_id);
        if queue.len() > 1 {
            // Whoever put the first one there has a thread on its way.
            return;
        }
        let store = self.clone();
        let spawned = thread::Builder::new()
            .name("image-flush".into())
            .spawn(move || store.flush());
        if spawned.is_err() {
            // Tried again with the next layer, or when the store is opened again.
            queue.clear();
        }
    }

    /// Flushes until nothing is noted any more.
    fn flush(&self) {
        loop {
            let noted = self
                .inner
                .unflushed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let result = self.flush_once(&noted);
            let mut queue = self
                .inner
                .unflushed
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            queue.drain(..noted.len());
            if let Err(error) = result {
                tracing::debug!(%error, "layers stay marked as not flushed");
                queue.clear();
            }
            if queue.is_empty() {
                return;
            }
        }
    }

    fn flush_once(&self, noted: &[Digest]) -> Result<(), StoreError> {
        let dir = fs::File::open(self.root()).map_err(at("open", self.root()))?;
        rustix::fs::syncfs(&dir).map_err(at("flush", self.root()))?;
        // Shared with pins: the collector does not move a layer away under our hands.
        let _lock = self.lock_shared()?;
        for diff_id in noted {
            if let Some(mut record) = self.layer_record(diff_id)? {
                record.unflushed_since_boot = None;
                durable::write_json(&self.layer_dir(diff_id).join("layer.json"), &record)?;
            }
        }
        Ok(())
    }

    /// Unpacks layers again that were not flushed when the machine went down, from their blobs.
    pub(super) fn recover_layers(&self) -> Result<(), StoreError> {
        let dir = self.root().join("layers/sha256");
        let boot = boot_id();
        let mut suspects = Vec::new();
        for entry in fs::read_dir(&dir).map_err(at("list", &dir))? {
            let name = entry.map_err(at("list", &dir))?.file_name();
            let Some(diff_id) = name.to_str().and_then(|hex| Digest::from_hex(hex).ok()) else {
                continue;
            };
            match self
                .layer_record(&diff_id)?
                .map(|record| record.unflushed_since_boot)
            {
                Some(None) => {}
                Some(Some(since)) if since == boot => self.flush_later(diff_id),
                Some(Some(_)) | None => suspects.push(diff_id),
            }
        }
        if suspects.is_empty() {
            return Ok(());
        }
        let lease = self.lease()?;
        let images = self.image_records()?;
        for diff_id in suspects {
            tracing::info!(layer = %diff_id, "unpacking a layer again that the last shutdown cut short");
            self.unpack_again(&lease, &diff_id, &images)?;
        }
        Ok(())
    }

    fn unpack_again(
        &self,
        lease: &Lease,
        diff_id: &Digest,
        images: &[ImageRecord],
    ) -> Result<(), StoreError> {
        let from = self.layer_dir(diff_id);
        let doubtful = lease.fresh_path("doubtful");
        fs::rename(&from, &doubtful).map_err(at("remove", &from))?;
        let blob = images
            .iter()
            .flat_map(|image| &image.layers)
            .find(|layer| layer.diff_id == *diff_id);
        // Without an image nobody misses it.
        let Some(blob) = blob.map(|layer| layer.blob) else {
            return Ok(());
        };
        let size = self.blob_size(&blob)?.unwrap_or(0);
        let expected = Expected {
            blob: Some((blob, size)),
            diff_id: Some(*diff_id),
        };
        let mut source = read_source(self.open_blob(&blob)?);
        match ingest_blob(self, lease, expected, &mut source, &Job::silent()) {
            Ok(_) => Ok(()),
            Err(LayerError::Store(error)) => Err(error),
            Err(error) => Err(StoreError::Damaged {
                path: self.blob_path(&blob),
                reason: error.to_string(),
            }),
        }
    }
}
