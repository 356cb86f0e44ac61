//! Export: one archive format that every tool reads, the layout directory, the plain root file system.
//!
//! Nothing of the host or the time goes into an export: the same images give the same bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read, Write},
    path::Path,
};

use serde::Serialize;

use crate::{
    assemble::encode,
    digest::Digest,
    error::{StoreError, at},
    job::{Cancelled, Job},
    layer::write_merged,
    manifest::{Descriptor, Index, media},
    reference::Reference,
    store::{Lease, Store},
    tar::{Entry, Kind, Writer},
};

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Formats an image can be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// A tar that is an OCI layout and a `docker save` archive at once.
    Archive,
    /// The root file system as a plain tar, layers merged. One image only.
    RootFs,
}

/// An export failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Writing the output failed.
    #[error("cannot write the export")]
    Write(#[source] io::Error),
    /// A root file system is that of one image.
    #[error("a root file system can be exported of one image at a time, not of {0}")]
    OneImage(usize),
    /// The target directory has something in it.
    #[error("the directory {0:?} is not empty; choose a new one")]
    NotEmpty(std::path::PathBuf),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Cancelled by the caller.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// An entry of `manifest.json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// What an archive of some images consists of.
struct Contents {
    index: Vec<u8>,
    docker: Vec<u8>,
    blobs: BTreeSet<Digest>,
}

impl Store {
    /// Writes images to a stream; the same images give the same bytes. Blocks.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn export(
        &self,
        images: &[Digest],
        format: ExportFormat,
        output: impl Write,
        job: &Job,
    ) -> Result<(), ExportError> {
        let lease = self.lease()?;
        match format {
            ExportFormat::Archive => self.export_archive(&lease, images, output, job),
            ExportFormat::RootFs => {
                let [image] = images else {
                    return Err(ExportError::OneImage(images.len()));
                };
                let layers = lease.pin(images, |store| store.layers(image))?;
                let written = write_merged(&layers, output, self.limits().depth, job)
                    .and_then(|mut output| output.flush());
                job.check()?;
                written.map_err(ExportError::Write)
            }
        }
    }

    /// Writes images as an OCI layout directory, which must not exist or be empty. Blocks.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn export_layout(
        &self,
        images: &[Digest],
        directory: &Path,
        job: &Job,
    ) -> Result<(), ExportError> {
        let lease = self.lease()?;
        let contents = self.contents(&lease, images)?;
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(directory).map_err(at("create", directory))?;
        if fs::read_dir(directory)
            .map_err(at("list", directory))?
            .next()
            .is_some()
        {
            return Err(ExportError::NotEmpty(directory.to_owned()));
        }
        fs::create_dir_all(&blobs).map_err(at("create", &blobs))?;
        for blob in &contents.blobs {
            job.check()?;
            let to = blobs.join(blob.hex());
            fs::copy(self.blob_path(blob), &to).map_err(at("write", &to))?;
        }
        for (name, bytes) in [
            ("index.json", contents.index.as_slice()),
            ("oci-layout", LAYOUT),
        ] {
            let to = directory.join(name);
            fs::write(&to, bytes).map_err(at("write", &to))?;
        }
        Ok(())
    }

    fn export_archive(
        &self,
        lease: &Lease,
        images: &[Digest],
        output: impl Write,
        job: &Job,
    ) -> Result<(), ExportError> {
        let contents = self.contents(lease, images)?;
        let mut tar = Writer::new(output);
        let write = ExportError::Write;
        for dir in ["blobs/", "blobs/sha256/"] {
            let path = dir.as_bytes().to_vec();
            tar.entry(&Entry {
                path,
                kind: Kind::Directory,
                mode: 0o755,
                ..Entry::default()
            })
            .map_err(write)?;
        }
        let mut buffer = vec![0; 256 << 10];
        for blob in &contents.blobs {
            let size = self.blob_size(blob)?.unwrap_or(0);
            let path = blob_name(blob).into_bytes();
            tar.entry(&Entry {
                path,
                mode: 0o644,
                size,
                ..Entry::default()
            })
            .map_err(write)?;
            let mut file = self.open_blob(blob)?;
            loop {
                job.check()?;
                let count = file
                    .read(&mut buffer)
                    .map_err(at("read", self.blob_path(blob)))?;
                if count == 0 {
                    break;
                }
                tar.data(&buffer[..count]).map_err(write)?;
            }
        }
        tar.file("index.json", 0o644, &contents.index)
            .map_err(write)?;
        tar.file("manifest.json", 0o644, &contents.docker)
            .map_err(write)?;
        tar.file("oci-layout", 0o644, LAYOUT).map_err(write)?;
        tar.finish()
            .and_then(|mut output| output.flush())
            .map_err(write)
    }

    fn contents(&self, lease: &Lease, images: &[Digest]) -> Result<Contents, ExportError> {
        let mut names: BTreeMap<Digest, Vec<Reference>> = BTreeMap::new();
        for (name, image) in self.refs()? {
            names.entry(image).or_default().push(name);
        }
        let (mut manifests, mut docker, mut blobs) = (Vec::new(), Vec::new(), BTreeSet::new());
        for image in images.iter().collect::<BTreeSet<_>>() {
            let record = lease.pin(&[*image], |store| store.complete(image))?;
            let layers = record.layers.iter().map(|layer| layer.blob);
            blobs.extend(layers.clone().chain([*image, record.config]));
            let tagged = names.remove(image).unwrap_or_default();
            let tagged: Vec<&Reference> =
                tagged.iter().filter(|name| name.tag().is_some()).collect();
            docker.push(DockerImage {
                config: blob_name(&record.config),
                repo_tags: tagged.iter().map(ToString::to_string).collect(),
                layers: layers.map(|layer| blob_name(&layer)).collect(),
            });
            let size = self.blob_size(image)?.unwrap_or(0);
            let mut entry = Descriptor::new(&record.media_type, *image, size);
            entry.platform = Some(record.platform);
            if tagged.is_empty() {
                manifests.push(entry.clone());
            }
            for name in tagged {
                let mut entry = entry.clone();
                entry
                    .annotations
                    .insert("io.containerd.image.name".into(), name.to_string());
                entry.annotations.insert(
                    "org.opencontainers.image.ref.name".into(),
                    name.tag().unwrap_or_default().to_owned(),
                );
                manifests.push(entry);
            }
        }
        let index = Index {
            schema_version: 2,
            media_type: media::INDEX.into(),
            manifests,
        };
        Ok(Contents {
            index: encode(&index),
            docker: encode(&docker),
            blobs,
        })
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
