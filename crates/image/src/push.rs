//! Push: an image of the store into a registry.
//!
//! Blobs first, in parallel, the manifest last: a failed push leaves the registry's tag as it was.
//! Blobs that the registry has are not sent; those it has in another repository we know of are mounted.

use futures::{StreamExt, TryStreamExt, stream};

use crate::{
    digest::Digest,
    error::StoreError,
    job::{Cancelled, Event, Job, LayerState, Phase},
    manifest::Descriptor,
    pull::blocking,
    reference::Reference,
    registry::{Registries, RegistryError, Sent, Target},
    store::Store,
};

/// Repositories offered as sources of mounts; each is part of the token's scope.
const MAX_MOUNT_SOURCES: usize = 8;

/// How to push.
#[derive(Clone, Debug)]
pub struct PushOptions {
    /// Layers sent at once; 4 by default. Each may hold 8 MiB in memory.
    pub parallel: usize,
}

impl Default for PushOptions {
    fn default() -> Self {
        Self { parallel: 4 }
    }
}

/// A finished push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Digest of the manifest in the registry.
    pub digest: Digest,
    /// Bytes of layers sent.
    pub sent_bytes: u64,
}

/// A push failed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// Names of this host have no registry to push to.
    #[error("{0} names no registry; push to a name like registry.example/app:1")]
    Local(Reference),
    /// The registry failed or refused.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Cancelled by the caller.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl Store {
    /// Pushes an image of the store under a name in a registry.
    ///
    /// # Errors
    /// [`PushError`]; the tag is moved last, so a failed push leaves the registry's image as it was.
    pub async fn push(
        &self,
        registries: &Registries,
        image: &Digest,
        to: &Reference,
        options: &PushOptions,
        job: &Job,
    ) -> Result<Pushed, PushError> {
        if to.is_local() {
            return Err(PushError::Local(to.clone()));
        }
        let (store, id) = (self.clone(), *image);
        let hold = blocking(move || store.hold(&id)).await?;
        let result = self.push_held(registries, image, to, options, job).await;
        blocking(move || drop(hold)).await;
        job.check()?;
        result
    }

    async fn push_held(
        &self,
        registries: &Registries,
        image: &Digest,
        to: &Reference,
        options: &PushOptions,
        job: &Job,
    ) -> Result<Pushed, PushError> {
        job.emit(Event::Phase(Phase::Transferring));
        let manifest = self.manifest(image)?;
        let bytes = self.read_blob(image, self.limits().manifest_bytes)?;
        let sources = self.mount_sources(to, &manifest.layers)?;
        let mut others: Vec<String> = sources.iter().flatten().cloned().collect();
        others.sort();
        others.dedup();
        let target = registries.destination(to, &others);
        let blobs = manifest.layers.iter().zip(&sources);
        let sends =
            blobs.map(|(blob, from)| self.send(registries, &target, blob, from.as_deref(), job));
        // Collected, so that the future holds no borrowing closure and stays Send.
        let sends: Vec<_> = sends.collect();
        let sent: Vec<u64> = stream::iter(sends)
            .buffer_unordered(options.parallel.max(1))
            .try_collect()
            .await?;
        self.send(registries, &target, &manifest.config, None, job)
            .await?;
        job.emit(Event::Phase(Phase::Recording));
        let name = match (to.tag(), to.digest()) {
            (Some(tag), _) => tag.to_owned(),
            (None, _) => image.to_string(),
        };
        let media_type = manifest.effective_media_type();
        let digest = registries
            .put_manifest(&target, &name, media_type, &bytes, job)
            .await?;
        Ok(Pushed {
            digest,
            sent_bytes: sent.iter().sum(),
        })
    }

    /// Brings one blob over; answers the bytes sent.
    async fn send(
        &self,
        registries: &Registries,
        target: &Target,
        blob: &Descriptor,
        from: Option<&str>,
        job: &Job,
    ) -> Result<u64, PushError> {
        let emit = |state, done_bytes| {
            job.emit(Event::Layer {
                layer: blob.digest,
                state,
                done_bytes,
                total_bytes: blob.size,
            });
        };
        emit(LayerState::Pushing, 0);
        let progress = |done| emit(LayerState::Pushing, done);
        let file = self.blob_path(&blob.digest);
        let sent = registries
            .put_blob(target, blob, &file, from, progress, job)
            .await?;
        let (state, bytes) = match sent {
            Sent::Present => (LayerState::Present, 0),
            Sent::Mounted => (LayerState::Mounted, 0),
            Sent::Uploaded => (LayerState::Done, blob.size),
        };
        emit(state, blob.size);
        Ok(bytes)
    }

    /// For each layer another repository of the same registry that, as far as we know, has it.
    fn mount_sources(
        &self,
        to: &Reference,
        layers: &[Descriptor],
    ) -> Result<Vec<Option<String>>, StoreError> {
        let mut known = Vec::new();
        for (name, image) in self.refs()? {
            let other = name.registry() == to.registry() && name.repository() != to.repository();
            if other
                && known.len() < MAX_MOUNT_SOURCES
                && let Some(record) = self.image_record(&image)?
            {
                known.push((name.repository().to_owned(), record));
            }
        }
        let source = |layer: &Descriptor| {
            let has = |(_, record): &&(String, crate::store::ImageRecord)| {
                record.layers.iter().any(|known| known.blob == layer.digest)
            };
            known
                .iter()
                .find(has)
                .map(|(repository, _)| repository.clone())
        };
        Ok(layers.iter().map(source).collect())
    }
}
