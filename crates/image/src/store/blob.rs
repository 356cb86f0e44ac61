//! Blobs: bytes under the name of their digest.
//!
//! Owns `blobs/sha256`. A blob appears there complete, verified and durable, or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{Lease, Store, durable};
use crate::{
    digest::{Digest, Hasher},
    error::{StoreError, at},
    manifest::{Document, ImageConfig, Manifest, ManifestError},
};

impl Store {
    /// Where a blob is or would be.
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root().join("blobs/sha256").join(digest.hex())
    }

    /// The blob's length if it is here.
    pub(crate) fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let path = self.blob_path(digest);
        match fs::metadata(&path) {
            Ok(meta) => Ok(Some(meta.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(at("look at", &path)(source)),
        }
    }

    /// Opens a blob for streaming.
    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<File, StoreError> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(at("open", &path))
    }

    /// Reads a small blob whole and checks it against its name.
    pub(crate) fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        let bytes = durable::read_limited(&path, limit).map_err(at("read", &path))?;
        if Digest::of(&bytes) != *digest {
            return Err(StoreError::Damaged {
                path,
                reason: "its digest does not match its name".into(),
            });
        }
        Ok(bytes)
    }

    /// Stores a small blob.
    pub(crate) fn put_blob(&self, lease: &Lease, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if self.blob_size(&digest)? == Some(bytes.len() as u64) {
            return Ok(digest);
        }
        let mut writer = BlobWriter::create(lease)?;
        writer
            .write_all(bytes)
            .map_err(at("write", writer.path()))?;
        writer.seal()?.publish(self)?;
        Ok(digest)
    }

    /// The manifest of an image: its layers as they are transferred, lowest first.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or that the stored document is damaged.
    pub fn manifest(&self, image: &Digest) -> Result<Manifest, StoreError> {
        let bytes = self.read_blob(image, self.limits().manifest_bytes)?;
        match Document::parse(&bytes, self.limits())? {
            Document::Manifest(manifest) => Ok(manifest),
            Document::Index(_) => Err(ManifestError::Ambiguous.into()),
        }
    }

    /// A stored configuration by its own digest.
    pub(crate) fn config_blob(&self, digest: &Digest) -> Result<ImageConfig, StoreError> {
        let bytes = self.read_blob(digest, self.limits().config_bytes)?;
        Ok(ImageConfig::parse(&bytes, self.limits())?)
    }
}

/// A blob being written inside a lease; hashes as it goes.
pub(crate) struct BlobWriter {
    file: File,
    path: PathBuf,
    hasher: Hasher,
    size: u64,
    /// Bytes that the file has already: they are hashed when they come, and not written again.
    there: u64,
}

/// A complete and durable blob that is not yet visible.
pub(crate) struct SealedBlob {
    path: PathBuf,
    /// Digest of what was written.
    pub(crate) digest: Digest,
    /// Length of what was written.
    pub(crate) size: u64,
}

impl BlobWriter {
    pub(crate) fn create(lease: &Lease) -> Result<Self, StoreError> {
        let path = lease.fresh_path("blob");
        let file = File::create_new(&path).map_err(at("create", &path))?;
        Ok(Self {
            file,
            path,
            hasher: Hasher::default(),
            size: 0,
            there: 0,
        })
    }

    /// Goes on with the file at `path`, made if need be; how much of a blob of `size` bytes it has. It
    /// must then be given all of the blob, beginning with what the file has. A file that is longer than
    /// the blob is none of it and begins anew.
    pub(super) fn go_on(path: &Path, size: u64) -> Result<(Self, u64), StoreError> {
        let file = File::options().create(true).append(true).open(path);
        let file = file.map_err(at("create", path))?;
        let length = file.metadata().map_err(at("look at", path))?.len();
        let there = if length <= size { length } else { 0 };
        if there < length {
            file.set_len(0).map_err(at("cut", path))?;
        }
        let writer = Self {
            file,
            path: path.to_owned(),
            hasher: Hasher::default(),
            size: 0,
            there,
        };
        Ok((writer, there))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes what was written durable.
    pub(crate) fn seal(self) -> Result<SealedBlob, StoreError> {
        self.file.sync_all().map_err(at("flush", &self.path))?;
        Ok(SealedBlob {
            path: self.path,
            digest: self.hasher.finish(),
            size: self.size,
        })
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = bytes.len() as u64;
        let known = usize::try_from(self.there).map_or(bytes.len(), |known| known.min(bytes.len()));
        self.file.write_all(&bytes[known..])?;
        self.there -= length.min(self.there);
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SealedBlob {
    /// Makes the blob visible. A second writer of the same content replaces it with itself.
    pub(crate) fn publish(self, store: &Store) -> Result<(), StoreError> {
        let to = store.blob_path(&self.digest);
        fs::rename(&self.path, &to).map_err(at("create", &to))?;
        durable::sync_dir(&store.root().join("blobs/sha256"))
    }
}
