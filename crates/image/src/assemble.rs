//! From layers in the store to an image: configuration, manifest, record, name.
//!
//! The last steps of everything that makes an image on this host (recipes, imports of root file
//! systems, commits) and of docker archives, which carry no manifest. Same input, same digest.

use serde::Serialize;

use crate::{
    digest::Digest,
    error::StoreError,
    layer::{Compression, Ingested},
    manifest::{Descriptor, ImageConfig, Manifest, media},
    reference::Reference,
    store::{FORMAT, ImageLayer, ImageRecord, Lease, Store},
};

/// A layer that the new image is made of.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub descriptor: Descriptor,
    pub diff_id: Digest,
}

impl Part {
    /// A layer just taken in.
    pub(crate) fn new(layer: &Ingested) -> Self {
        // Only these two come out of local layers; archives name their own types.
        let media_type = match layer.compression {
            Compression::Plain => media::LAYER,
            Compression::Zstd => media::LAYER_ZSTD,
            _ => media::LAYER_GZIP,
        };
        Self {
            descriptor: Descriptor::new(media_type, layer.blob, layer.blob_bytes),
            diff_id: layer.diff_id,
        }
    }
}

/// Writes the documents of a new image and records it.
pub(crate) fn assemble(
    store: &Store,
    lease: &Lease,
    parts: &[Part],
    mut config: ImageConfig,
    names: &[Reference],
) -> Result<Digest, StoreError> {
    config.rootfs.kind = "layers".into();
    config.rootfs.diff_ids = parts.iter().map(|part| part.diff_id).collect();
    let bytes = encode(&config);
    assemble_with(store, lease, parts, &bytes, names)
}

/// The same for a configuration that must stay as it was written elsewhere.
pub(crate) fn assemble_with(
    store: &Store,
    lease: &Lease,
    parts: &[Part],
    config: &[u8],
    names: &[Reference],
) -> Result<Digest, StoreError> {
    let manifest = Manifest {
        schema_version: 2,
        media_type: media::MANIFEST.into(),
        config: Descriptor::new(media::CONFIG, Digest::of(config), config.len() as u64),
        layers: parts.iter().map(|part| part.descriptor.clone()).collect(),
        annotations: Default::default(),
    };
    let bytes = encode(&manifest);
    lease.pin(&[manifest.config.digest, Digest::of(&bytes)], |_| Ok(()))?;
    store.put_blob(lease, config)?;
    store.put_blob(lease, &bytes)?;
    record(store, lease, &bytes, &manifest, config, names)
}

/// Records an image whose documents and layers are all in the store.
pub(crate) fn record(
    store: &Store,
    lease: &Lease,
    manifest_bytes: &[u8],
    manifest: &Manifest,
    config: &[u8],
    names: &[Reference],
) -> Result<Digest, StoreError> {
    let parsed = ImageConfig::parse(config, store.limits())?;
    let layers = manifest.layers.iter().zip(&parsed.rootfs.diff_ids);
    let record = ImageRecord {
        version: FORMAT,
        manifest: Digest::of(manifest_bytes),
        media_type: manifest.effective_media_type().to_owned(),
        blob_bytes: manifest.layers.iter().map(|layer| layer.size).sum::<u64>()
            + (manifest_bytes.len() + config.len()) as u64,
        config: manifest.config.digest,
        layers: layers
            .map(|(layer, diff_id)| ImageLayer {
                blob: layer.digest,
                diff_id: *diff_id,
            })
            .collect(),
        platform: parsed.platform(),
        created: parsed.created,
        added_unix: time::OffsetDateTime::now_utc().unix_timestamp(),
    };
    store.record_image(lease, &record, names)?;
    Ok(record.manifest)
}

/// RFC 3339 text of seconds since the epoch.
pub(crate) fn rfc3339(unix: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(unix)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_else(|_| "1970-01-01T00:00:00Z".into())
}

pub(crate) fn encode(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("documents have string keys and no failing fields")
}
