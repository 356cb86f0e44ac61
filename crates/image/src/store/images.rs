//! Image records and names: which images are complete, and what they are called.
//!
//! Owns `images/` and `refs/`. Everything here is a few small files; nothing blocks for long.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{FORMAT, Hold, Lease, Store, durable};
use crate::{
    digest::Digest,
    error::{StoreError, at},
    manifest::ImageConfig,
    platform::Platform,
    reference::Reference,
};

/// Shortest start of an id that is looked up as one.
const MIN_PREFIX: usize = 4;

/// The promise that an image is complete: everything named here is in the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub version: u32,
    pub manifest: Digest,
    pub media_type: String,
    /// Manifest, configuration and layer blobs together.
    pub blob_bytes: u64,
    pub config: Digest,
    /// Lowest first.
    pub layers: Vec<ImageLayer>,
    pub platform: Platform,
    #[serde(default)]
    pub created: Option<String>,
    pub added_unix: i64,
}

/// A layer of an image: what was transferred, and what it unpacks to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageLayer {
    pub blob: Digest,
    pub diff_id: Digest,
}

#[derive(Serialize, Deserialize)]
struct RefRecord {
    version: u32,
    name: Reference,
    image: Digest,
}

/// An image of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Image {
    /// Digest of its manifest: the image's identity.
    pub id: Digest,
    /// Its names, sorted; none after its tag moved on.
    pub names: Vec<Reference>,
    /// Digest of its configuration, the id that Docker shows.
    pub config: Digest,
    /// Diff ids of its layers, lowest first.
    pub layers: Vec<Digest>,
    /// The platform it was built for.
    pub platform: Platform,
    /// When it was built, RFC 3339, if it says so.
    pub created: Option<String>,
    /// When it came into this store, seconds since the epoch.
    pub added_unix: i64,
    /// Its documents and layers as transferred, in bytes.
    pub blob_bytes: u64,
    /// Content of its unpacked layers in bytes.
    pub unpacked_bytes: u64,
}

/// What removing a name did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Untagged {
    /// The image the names meant.
    pub image: Digest,
    /// Names removed.
    pub removed: Vec<Reference>,
    /// Names the image still has. At 0 the next collection takes it unless it is in use.
    pub remaining: usize,
}

impl Store {
    /// All images, named ones first, by name.
    ///
    /// # Errors
    /// [`StoreError`] when a record cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, StoreError> {
        let mut names: BTreeMap<Digest, Vec<Reference>> = BTreeMap::new();
        for (name, image) in self.refs()? {
            names.entry(image).or_default().push(name);
        }
        let mut images = Vec::new();
        for record in self.image_records()? {
            images
                .push(self.describe(&record, names.remove(&record.manifest).unwrap_or_default())?);
        }
        images.sort_by(|a, b| {
            (a.names.is_empty(), &a.names, a.id).cmp(&(b.names.is_empty(), &b.names, b.id))
        });
        Ok(images)
    }

    /// Finds an image by name (`nginx`, `registry/repo:tag`, `repo@sha256:…`), id (`sha256:…`) or the
    /// start of an id (at least 4 digits). Names without a registry are looked up on this host first.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Ambiguous`], or that the text is no name at all.
    pub fn resolve(&self, text: &str) -> Result<Digest, StoreError> {
        if let Ok(id) = text.parse::<Digest>() {
            return self
                .image_record(&id)?
                .map(|_| id)
                .ok_or_else(|| StoreError::NotFound(text.into()));
        }
        let candidates = Reference::candidates(text);
        for name in candidates.iter().flatten() {
            if let Some(record) = self.ref_record(name)? {
                return Ok(record.image);
            }
        }
        let hex = text.len() <= 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if hex && text.len() >= MIN_PREFIX {
            let ids = self
                .image_records()?
                .into_iter()
                .map(|record| record.manifest);
            let matches: Vec<Digest> = ids.filter(|id| id.hex().starts_with(text)).collect();
            match matches.as_slice() {
                [] => {}
                [id] => return Ok(*id),
                _ => {
                    return Err(StoreError::Ambiguous {
                        name: text.to_owned(),
                        matches,
                    });
                }
            }
        }
        candidates?;
        Err(StoreError::NotFound(text.to_owned()))
    }

    /// Everything about one image, by any text that [`Store::resolve`] takes.
    ///
    /// # Errors
    /// As [`Store::resolve`].
    pub fn get(&self, text: &str) -> Result<Image, StoreError> {
        let id = self.resolve(text)?;
        let record = self.complete(&id)?;
        let refs = self.refs()?.into_iter();
        let names = refs
            .filter(|(_, image)| *image == id)
            .map(|(name, _)| name)
            .collect();
        self.describe(&record, names)
    }

    /// How to run an image.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or that the stored configuration is damaged.
    pub fn config(&self, image: &Digest) -> Result<ImageConfig, StoreError> {
        self.config_blob(&self.complete(image)?.config)
    }

    /// The directories to mount, **topmost first**: the order of overlayfs' `lowerdir`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn layers(&self, image: &Digest) -> Result<Vec<PathBuf>, StoreError> {
        let record = self.complete(image)?;
        Ok(record
            .layers
            .iter()
            .rev()
            .map(|layer| self.layer_fs(&layer.diff_id))
            .collect())
    }

    /// Gives an image a name; the name's former image loses it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such image.
    pub fn tag(&self, image: &Digest, name: &Reference) -> Result<(), StoreError> {
        let _lock = self.lock_shared()?;
        self.complete(image)?;
        self.write_ref(name, image)
    }

    /// Removes a name, or all names of an image given by its id. Content stays until [`Store::gc`].
    ///
    /// # Errors
    /// As [`Store::resolve`].
    pub fn untag(&self, text: &str) -> Result<Untagged, StoreError> {
        let image = self.resolve(text)?;
        let asked = Reference::candidates(text).unwrap_or_default();
        let (removed, kept): (Vec<Reference>, Vec<Reference>) = {
            let all = self
                .refs()?
                .into_iter()
                .filter(|(_, id)| *id == image)
                .map(|(name, _)| name);
            let all: Vec<Reference> = all.collect();
            let one = asked.iter().map(stored).find(|name| all.contains(name));
            all.into_iter()
                .partition(|name| one.as_ref().is_none_or(|one| one == name))
        };
        let _lock = self.lock_shared()?;
        for name in &removed {
            durable::remove(&self.ref_path(name))?;
        }
        Ok(Untagged {
            image,
            removed,
            remaining: kept.len(),
        })
    }

    /// Keeps an image from collection until the answer is dropped.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when it is already gone.
    pub fn hold(&self, image: &Digest) -> Result<Hold, StoreError> {
        let lease = self.lease()?;
        lease.pin(&[*image], |store| store.complete(image).map(drop))?;
        Ok(Hold::new(lease))
    }

    /// Records a complete image and its names. All content is pinned by `lease` and published.
    pub(crate) fn record_image(
        &self,
        _lease: &Lease,
        record: &ImageRecord,
        names: &[Reference],
    ) -> Result<(), StoreError> {
        let _lock = self.lock_shared()?;
        durable::write_json(&self.image_path(&record.manifest), record)?;
        names
            .iter()
            .try_for_each(|name| self.write_ref(name, &record.manifest))
    }

    pub(crate) fn image_path(&self, id: &Digest) -> PathBuf {
        self.root()
            .join("images")
            .join(format!("{}.json", id.hex()))
    }

    pub(crate) fn image_record(&self, id: &Digest) -> Result<Option<ImageRecord>, StoreError> {
        durable::read_json(&self.image_path(id))
    }

    /// The record of an image that must be here.
    pub(crate) fn complete(&self, id: &Digest) -> Result<ImageRecord, StoreError> {
        self.image_record(id)?
            .ok_or_else(|| StoreError::NotFound(id.to_string()))
    }

    /// Every image record.
    pub(crate) fn image_records(&self) -> Result<Vec<ImageRecord>, StoreError> {
        read_all(&self.root().join("images"))
    }

    /// Every name and what it means, sorted by name.
    pub(crate) fn refs(&self) -> Result<Vec<(Reference, Digest)>, StoreError> {
        let records: Vec<RefRecord> = read_all(&self.root().join("refs"))?;
        let mut refs: Vec<_> = records
            .into_iter()
            .map(|record| (record.name, record.image))
            .collect();
        refs.sort();
        Ok(refs)
    }

    fn ref_record(&self, name: &Reference) -> Result<Option<RefRecord>, StoreError> {
        durable::read_json(&self.ref_path(name))
    }

    fn write_ref(&self, name: &Reference, image: &Digest) -> Result<(), StoreError> {
        let record = RefRecord {
            version: FORMAT,
            name: stored(name),
            image: *image,
        };
        durable::write_json(&self.ref_path(name), &record)
    }

    /// Names can be longer than a file name, so the file is named by their hash.
    fn ref_path(&self, name: &Reference) -> PathBuf {
        let hash = Digest::of(stored(name).to_string().as_bytes());
        self.root()
            .join("refs")
            .join(format!("{}.json", hash.hex()))
    }

    fn describe(&self, record: &ImageRecord, names: Vec<Reference>) -> Result<Image, StoreError> {
        let mut unpacked_bytes = 0;
        for layer in &record.layers {
            unpacked_bytes += self.layer(&layer.diff_id)?.map_or(0, |info| info.bytes);
        }
        Ok(Image {
            id: record.manifest,
            names,
            config: record.config,
            layers: record.layers.iter().map(|layer| layer.diff_id).collect(),
            platform: record.platform.clone(),
            created: record.created.clone(),
            added_unix: record.added_unix,
            blob_bytes: record.blob_bytes,
            unpacked_bytes,
        })
    }
}

/// A name as it is kept: pinned by digest it needs no tag, and would otherwise never be found by one.
fn stored(name: &Reference) -> Reference {
    name.digest()
        .map_or_else(|| name.clone(), |digest| name.with_digest(digest))
}

/// Reads every record of a directory. A record removed meanwhile is not an error.
fn read_all<T: serde::de::DeserializeOwned>(dir: &Path) -> Result<Vec<T>, StoreError> {
    let mut records = Vec::new();
    for entry in fs::read_dir(dir).map_err(at("list", dir))? {
        let path = entry.map_err(at("list", dir))?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            records.extend(durable::read_json::<T>(&path)?);
        }
    }
    Ok(records)
}
