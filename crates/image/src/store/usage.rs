//! How much the images take, and how much of it they share.
//!
//! Sizes of layers come from their records, so this reads small files only.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::{Image, LayerInfo, Store};
use crate::{digest::Digest, error::StoreError};

/// The space one image takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageUsage {
    /// The image.
    pub image: Image,
    /// Unpacked layers that other images use too, in bytes.
    pub shared_bytes: u64,
    /// Unpacked layers that only this image uses, in bytes: what removing it would give back, besides
    /// its blobs.
    pub unique_bytes: u64,
}

/// The space all images take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// By image, in the order of [`Store::list`].
    pub images: Vec<ImageUsage>,
    /// Every unpacked layer once, and how many images use it.
    pub layers: Vec<(LayerInfo, usize)>,
    /// All unpacked layers, each once, in bytes.
    pub layer_bytes: u64,
    /// All blobs, each once, in bytes.
    pub blob_bytes: u64,
    /// What the images would take without sharing layers, in bytes.
    pub unshared_bytes: u64,
}

impl Store {
    /// Measures the store. Blocks for as long as reading every record takes.
    ///
    /// # Errors
    /// [`StoreError`] when a record cannot be read.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let images = self.list()?;
        let mut users: HashMap<Digest, usize> = HashMap::new();
        for image in &images {
            for layer in image.layers.iter().collect::<HashSet<_>>() {
                *users.entry(*layer).or_default() += 1;
            }
        }
        let mut layers = Vec::new();
        let mut sizes = HashMap::new();
        for (diff_id, count) in &users {
            if let Some(info) = self.layer(diff_id)? {
                sizes.insert(*diff_id, info.bytes);
                layers.push((info, *count));
            }
        }
        layers.sort_by_key(|(info, _)| info.diff_id);
        let mut blobs: HashMap<Digest, u64> = HashMap::new();
        for record in self.image_records()? {
            let layer_blobs = record.layers.iter().map(|layer| layer.blob);
            for blob in layer_blobs.chain([record.manifest, record.config]) {
                blobs.insert(blob, self.blob_size(&blob)?.unwrap_or(0));
            }
        }
        let images: Vec<ImageUsage> = images
            .into_iter()
            .map(|image| {
                let (mut shared_bytes, mut unique_bytes) = (0, 0);
                for layer in image.layers.iter().collect::<HashSet<_>>() {
                    let bytes = sizes.get(layer).copied().unwrap_or(0);
                    *if users[layer] > 1 {
                        &mut shared_bytes
                    } else {
                        &mut unique_bytes
                    } += bytes;
                }
                ImageUsage {
                    image,
                    shared_bytes,
                    unique_bytes,
                }
            })
            .collect();
        Ok(Usage {
            layer_bytes: layers.iter().map(|(info, _)| info.bytes).sum(),
            blob_bytes: blobs.values().sum(),
            unshared_bytes: images
                .iter()
                .map(|usage| usage.shared_bytes + usage.unique_bytes)
                .sum(),
            images,
            layers,
        })
    }
}
