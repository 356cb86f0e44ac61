//! Import: OCI layouts, `docker save` archives, root file systems, disks.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use serde::Deserialize;

use super::bundle::Bundle;
use crate::{
    assemble::{Part, assemble, assemble_with, record, rfc3339},
    digest::Digest,
    error::StoreError,
    job::{Cancelled, Event, Job, LayerState, Phase},
    layer::{
        Compression, Expected, Ingested, LayerError, ingest_blob, ingest_tar, open_compressed,
        piped, read_source,
    },
    manifest::{
        Descriptor, Document, History, ImageConfig, Index, Manifest, ManifestError, RunConfig,
    },
    platform::Platform,
    reference::Reference,
    store::{Lease, Store},
    vm::{DiskError, MachineImageError, machine},
};

/// Indexes within indexes that are followed.
const MAX_NESTING: usize = 4;
/// Annotations that name an image in a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// How to import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Name for the result; archives that carry names keep them when `None`.
    pub name: Option<Reference>,
    /// Platform to take from a multi-platform layout, or to record for a root file system; the host's
    /// by default.
    pub platform: Option<Platform>,
    /// Run configuration recorded for a root file system.
    pub config: RunConfig,
}

/// An import failed; the store is as before.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Neither an OCI layout nor a docker archive; it may be a root file system.
    #[error("this is not an image archive: {0}; `podman save` and `docker save` write usable ones")]
    NoImage(String),
    /// A broken OCI layout or docker archive.
    #[error(
        "this is not a usable image archive: {0}; `podman save` and `docker save` write usable ones"
    )]
    Format(String),
    /// The input failed.
    #[error("cannot read the archive")]
    Read {
        /// What the input said.
        #[source]
        source: std::io::Error,
    },
    /// A document in the archive is not acceptable.
    #[error("the image in the archive was refused")]
    Manifest(#[from] ManifestError),
    /// A disk that cannot be made an image.
    #[error(transparent)]
    Machine(#[from] MachineImageError),
    /// Its kernel cannot be taken out of a disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
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

impl Store {
    /// Imports every image of an OCI layout directory. Blocks.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn import_layout(
        &self,
        directory: &Path,
        options: &ImportOptions,
        job: &Job,
    ) -> Result<Vec<Digest>, ImportError> {
        let lease = self.lease()?;
        let bundle = Bundle::directory(directory)?;
        Importer {
            store: self,
            lease: &lease,
            bundle: &bundle,
            options,
            job,
        }
        .run()
    }

    /// Imports every image of an OCI layout tar or a `docker save` archive, compressed or not. Blocks.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn import_archive(
        &self,
        input: impl Read + Send,
        options: &ImportOptions,
        job: &Job,
    ) -> Result<Vec<Digest>, ImportError> {
        let lease = self.lease()?;
        let bundle = Bundle::spill(self, &lease, input, job)?;
        Importer {
            store: self,
            lease: &lease,
            bundle: &bundle,
            options,
            job,
        }
        .run()
    }

    /// Imports a root file system tar (plain, gzip, zstd, xz, bzip2) as a one-layer image. The same tar
    /// and options give the same image. Blocks.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn import_rootfs(
        &self,
        input: impl Read + Send,
        options: &ImportOptions,
        job: &Job,
    ) -> Result<Digest, ImportError> {
        let lease = self.lease()?;
        job.emit(Event::Phase(Phase::Transferring));
        let (_, tar) = open_compressed(BufReader::with_capacity(256 << 10, input))
            .map_err(|source| ImportError::Read { source })?;
        let layer = ingest_tar(self, &lease, tar, job)?;
        job.emit(Event::Phase(Phase::Recording));
        self.assemble_local(&lease, &layer, options)
    }

    /// Imports a disk with a kernel of its own, raw or qcow2, as a machine image. Blocks.
    ///
    /// # Errors
    /// [`ImportError::NoImage`] when the file looks like no disk; others of [`ImportError`].
    pub fn import_disk(
        &self,
        file: &File,
        options: &ImportOptions,
        job: &Job,
    ) -> Result<Digest, ImportError> {
        if !machine::is_disk(file) {
            return Err(ImportError::NoImage("it is no disk".into()));
        }
        let lease = self.lease()?;
        job.emit(Event::Phase(Phase::Transferring));
        let (raw, bytes, _) = machine::raw(file, &lease.fresh_path("raw"), self.limits(), job)?;
        // Said before anything is kept.
        machine::check(&raw, bytes)?;
        let layer = piped(
            |output| machine::write_layer(&raw, bytes, output),
            |input| ingest_tar(self, &lease, input, job),
        )?;
        job.emit(Event::Phase(Phase::Recording));
        let image = self.assemble_local(&lease, &layer, options)?;
        // Its kernel, so that the first machine need not wait for it.
        self.root_disk(&image, job)?;
        Ok(image)
    }

    /// An image of one layer that was made on this host.
    fn assemble_local(
        &self,
        lease: &Lease,
        layer: &Ingested,
        options: &ImportOptions,
    ) -> Result<Digest, ImportError> {
        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        let created = Some(rfc3339(0));
        let config = ImageConfig {
            created: created.clone(),
            architecture: platform.architecture,
            os: platform.os,
            variant: platform.variant,
            config: options.config.clone(),
            history: vec![History {
                created,
                created_by: Some("berth image import".into()),
                ..History::default()
            }],
            ..ImageConfig::default()
        };
        lease.pin(&[layer.blob, layer.diff_id], |_| Ok(()))?;
        let parts = [Part::new(layer)];
        Ok(assemble(
            self,
            lease,
            &parts,
            config,
            options.name.as_slice(),
        )?)
    }
}

struct Importer<'a> {
    store: &'a Store,
    lease: &'a Lease,
    bundle: &'a Bundle,
    options: &'a ImportOptions,
    job: &'a Job,
}

/// An entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Importer<'_> {
    fn run(&self) -> Result<Vec<Digest>, ImportError> {
        self.job.emit(Event::Phase(Phase::Transferring));
        let limits = self.store.limits();
        if let Some(bytes) = self.bundle.read("index.json", limits.manifest_bytes)? {
            return match Document::parse(&bytes, limits)? {
                Document::Index(index) => self.layout(&index),
                Document::Manifest(_) => {
                    Err(ImportError::Format("index.json is not an index".into()))
                }
            };
        }
        let Some(bytes) = self.bundle.read("manifest.json", limits.manifest_bytes)? else {
            return Err(ImportError::NoImage(
                "it has neither index.json nor manifest.json".into(),
            ));
        };
        let images: Vec<DockerImage> =
            serde_json::from_slice(&bytes).map_err(|source| ManifestError::Json {
                what: "manifest.json",
                source,
            })?;
        if images.is_empty() || images.len() > limits.index_entries {
            return Err(ImportError::Format(format!(
                "manifest.json lists {} images",
                images.len()
            )));
        }
        self.one_name(images.len())?;
        images.iter().map(|image| self.docker(image)).collect()
    }

    fn layout(&self, index: &Index) -> Result<Vec<Digest>, ImportError> {
        let wanted = self.options.platform.clone().unwrap_or_else(Platform::host);
        let fits = |entry: &&Descriptor| {
            entry
                .platform
                .as_ref()
                .is_none_or(|p| wanted.fit(p).is_some())
        };
        let entries: Vec<&Descriptor> = index.manifests.iter().filter(fits).collect();
        if entries.is_empty() {
            // Says what there is.
            index.select(&wanted)?;
            return Err(ImportError::Format("index.json lists no images".into()));
        }
        // An image with several names is listed once for each.
        let distinct: BTreeSet<Digest> = entries.iter().map(|entry| entry.digest).collect();
        self.one_name(distinct.len())?;
        let mut images = Vec::new();
        for entry in entries {
            let names = self.layout_names(entry);
            images.push(self.layout_image(entry, &names, &wanted)?);
        }
        Ok(images)
    }

    fn one_name(&self, images: usize) -> Result<(), ImportError> {
        if images > 1 && self.options.name.is_some() {
            let reason = format!("it holds {images} images, so one name does not fit all of them");
            return Err(ImportError::Format(reason));
        }
        Ok(())
    }

    fn layout_names(&self, entry: &Descriptor) -> Vec<Reference> {
        if let Some(name) = &self.options.name {
            return vec![name.clone()];
        }
        let full = entry.annotations.get(CONTAINERD_NAME);
        // The specification allows a bare tag here, which names nothing by itself.
        let short = entry
            .annotations
            .get(REF_NAME)
            .filter(|name| name.contains(['/', ':']));
        full.or(short)
            .and_then(|name| name.parse().ok())
            .into_iter()
            .collect()
    }

    fn layout_image(
        &self,
        entry: &Descriptor,
        names: &[Reference],
        wanted: &Platform,
    ) -> Result<Digest, ImportError> {
        let limits = self.store.limits();
        let mut current = entry.clone();
        for _ in 0..MAX_NESTING {
            let bytes = self.blob(&current, limits.manifest_bytes)?;
            let manifest = match Document::parse(&bytes, limits)? {
                Document::Index(index) => {
                    current = index.select(wanted)?.clone();
                    continue;
                }
                Document::Manifest(manifest) => manifest,
            };
            return self.oci(&bytes, &manifest, names);
        }
        Err(ImportError::Format(format!(
            "its indexes are nested more than {MAX_NESTING} deep"
        )))
    }

    fn oci(
        &self,
        bytes: &[u8],
        manifest: &Manifest,
        names: &[Reference],
    ) -> Result<Digest, ImportError> {
        let limits = self.store.limits();
        manifest.check()?;
        let config_bytes = self.blob(&manifest.config, limits.config_bytes)?;
        let config = ImageConfig::parse(&config_bytes, limits)?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            let layers = manifest.layers.len();
            return Err(ManifestError::LayerCount {
                layers,
                diff_ids: diff_ids.len(),
            }
            .into());
        }
        for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
            self.layer(layer, *diff_id)?;
        }
        self.lease
            .pin(&[Digest::of(bytes), manifest.config.digest], |_| Ok(()))?;
        self.store.put_blob(self.lease, &config_bytes)?;
        self.store.put_blob(self.lease, bytes)?;
        Ok(record(
            self.store,
            self.lease,
            bytes,
            manifest,
            &config_bytes,
            names,
        )?)
    }

    fn layer(&self, layer: &Descriptor, diff_id: Digest) -> Result<(), ImportError> {
        let present = self.lease.pin(&[layer.digest, diff_id], |store| {
            Ok(store.blob_size(&layer.digest)? == Some(layer.size)
                && store.layer(&diff_id)?.is_some())
        })?;
        self.event(
            layer,
            if present {
                LayerState::Present
            } else {
                LayerState::Pulling
            },
        );
        if present {
            return Ok(());
        }
        let name = blob_name(&layer.digest);
        let file = self.bundle.open(&name)?.ok_or_else(|| missing(&name))?;
        let expected = Expected {
            blob: Some((layer.digest, layer.size)),
            diff_id: Some(diff_id),
        };
        ingest_blob(
            self.store,
            self.lease,
            expected,
            &mut read_source(file),
            self.job,
        )?;
        self.event(layer, LayerState::Done);
        Ok(())
    }

    fn event(&self, layer: &Descriptor, state: LayerState) {
        let done_bytes = if state == LayerState::Pulling {
            0
        } else {
            layer.size
        };
        self.job.emit(Event::Layer {
            layer: layer.digest,
            state,
            done_bytes,
            total_bytes: layer.size,
        });
    }

    /// A docker archive names files, not digests; the configuration's diff ids are what is verified.
    fn docker(&self, image: &DockerImage) -> Result<Digest, ImportError> {
        let limits = self.store.limits();
        let config_bytes = self
            .bundle
            .read(&image.config, limits.config_bytes)?
            .ok_or_else(|| missing(&image.config))?;
        let config = ImageConfig::parse(&config_bytes, limits)?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != image.layers.len() {
            let layers = image.layers.len();
            return Err(ManifestError::LayerCount {
                layers,
                diff_ids: diff_ids.len(),
            }
            .into());
        }
        let mut parts = Vec::new();
        for (name, diff_id) in image.layers.iter().zip(diff_ids) {
            let file = self.bundle.open(name)?.ok_or_else(|| missing(name))?;
            let expected = Expected {
                blob: None,
                diff_id: Some(*diff_id),
            };
            let layer = ingest_blob(
                self.store,
                self.lease,
                expected,
                &mut read_source(file),
                self.job,
            )?;
            if matches!(layer.compression, Compression::Xz | Compression::Bzip2) {
                let reason =
                    format!("the layer {name:?} has a compression that no manifest can name");
                return Err(ImportError::Format(reason));
            }
            self.lease.pin(&[layer.blob, layer.diff_id], |_| Ok(()))?;
            parts.push(Part::new(&layer));
        }
        let names: Vec<Reference> = match &self.options.name {
            Some(name) => vec![name.clone()],
            None => image
                .repo_tags
                .iter()
                .flatten()
                .filter_map(|name| name.parse().ok())
                .collect(),
        };
        Ok(assemble_with(
            self.store,
            self.lease,
            &parts,
            &config_bytes,
            &names,
        )?)
    }

    /// A document of a layout, verified.
    fn blob(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, ImportError> {
        let name = blob_name(&descriptor.digest);
        let bytes = self
            .bundle
            .read(&name, limit)?
            .ok_or_else(|| missing(&name))?;
        let found = Digest::of(&bytes);
        if found != descriptor.digest {
            return Err(ImportError::Format(format!(
                "the content of {name:?} has the digest {found}"
            )));
        }
        Ok(bytes)
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn missing(name: &str) -> ImportError {
    ImportError::Format(format!("{name:?} is missing from it"))
}
