//! Pull: a name in a registry becomes an image in the store.
//!
//! ```text
//!   resolve (mirrors in order) ─▶ index? choose platform ─▶ configuration
//!      ─▶ layers in parallel: fetch ∥ inflate ∥ hash ∥ unpack ─▶ record, name
//! ```
//! Async; blocking work runs on tokio's blocking threads. Everything is pinned by one lease before it
//! is looked for, so a collection running meanwhile cannot take it. What was received of a layer when a
//! pull ends early is kept for a while, and the next pull goes on with it (`store::partial`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    assemble::record,
    digest::Digest,
    error::StoreError,
    job::{Cancelled, Event, Job, LayerState, Phase},
    layer::{Expected, LayerError, ingest_blob, ingest_part, read_source},
    manifest::{Descriptor, Document, ImageConfig, Manifest, ManifestError},
    platform::Platform,
    reference::{DEFAULT_TAG, Reference},
    registry::{Registries, RegistryError, Target},
    store::{Lease, Part, Store},
};

/// Pieces of a layer that may wait between the network and the pipeline.
const QUEUE: usize = 16;
/// Indexes within indexes that are followed.
const MAX_NESTING: usize = 4;

/// What to pull.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// Platform of a multi-platform image; the host's by default.
    pub platform: Option<Platform>,
    /// Layers fetched at once; 4 by default.
    pub parallel: usize,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            platform: None,
            parallel: 4,
        }
    }
}

/// A finished pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The image.
    pub image: Digest,
    /// Nothing had to be fetched: the image was already here.
    pub up_to_date: bool,
    /// Bytes of layers received from the network.
    pub fetched_bytes: u64,
}

/// A pull failed; the store is as before, but for what was received of layers, which is kept for a day
/// for the next pull.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Names of this host are not served by any registry.
    #[error(
        "{0} is an image of this host and cannot be pulled; build or import it, or give a registry"
    )]
    Local(Reference),
    /// The registry failed or refused.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The image's documents are not acceptable.
    #[error("the image {reference} was refused")]
    Manifest {
        /// The image.
        reference: Reference,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A layer could not be fetched or unpacked.
    #[error("layer {layer} of {reference} failed")]
    Layer {
        /// The image.
        reference: Reference,
        /// The layer's blob digest.
        layer: Digest,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Cancelled by the caller.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl Store {
    /// Pulls an image and unpacks its layers. Layers that are here already are not fetched again, and a
    /// layer that two pulls of this process want is fetched once.
    ///
    /// # Errors
    /// [`PullError`]; of a failed or cancelled pull only received bytes of layers remain, for a day.
    pub async fn pull(
        &self,
        registries: &Registries,
        reference: &Reference,
        options: &PullOptions,
        job: &Job,
    ) -> Result<Pulled, PullError> {
        if reference.is_local() {
            return Err(PullError::Local(reference.clone()));
        }
        let store = self.clone();
        let lease = Arc::new(blocking(move || store.lease()).await?);
        job.emit(Event::Phase(Phase::Resolving));
        let puller = Puller {
            store: self,
            registries,
            reference,
            options,
            job,
            lease: &lease,
        };
        let result = puller.run().await;
        // Removing what is unfinished takes system calls; the blocking threads do that.
        blocking(move || drop(lease)).await;
        // However deep the cancellation was noticed, it is what the caller wants to hear of.
        job.check()?;
        result
    }
}

/// One pull.
struct Puller<'a> {
    store: &'a Store,
    registries: &'a Registries,
    reference: &'a Reference,
    options: &'a PullOptions,
    job: &'a Job,
    lease: &'a Arc<Lease>,
}

/// An image's documents, verified, and the place that had them.
struct Found {
    targets: Vec<Target>,
    bytes: Bytes,
    manifest: Manifest,
}

impl Puller<'_> {
    async fn run(&self) -> Result<Pulled, PullError> {
        let found = self.resolve().await?;
        let image = Digest::of(&found.bytes);
        let known = self
            .lease
            .pin(&[image], |store| store.image_record(&image))?;
        if known.is_some() {
            self.store.tag(&image, self.reference)?;
            return Ok(Pulled {
                image,
                up_to_date: true,
                fetched_bytes: 0,
            });
        }
        found
            .manifest
            .check()
            .map_err(|source| self.refused(source))?;
        let (config_bytes, config) = self.config(&found).await?;
        let layers = &found.manifest.layers;
        let diff_ids = &config.rootfs.diff_ids;
        if layers.len() != diff_ids.len() {
            let source = ManifestError::LayerCount {
                layers: layers.len(),
                diff_ids: diff_ids.len(),
            };
            return Err(self.refused(source));
        }
        self.job.emit(Event::Phase(Phase::Transferring));
        let fetched_bytes = self.layers(&found, diff_ids).await?;

        self.job.emit(Event::Phase(Phase::Recording));
        let (store, lease, name) = (
            self.store.clone(),
            Arc::clone(self.lease),
            self.reference.clone(),
        );
        blocking(move || {
            lease.pin(&[image, found.manifest.config.digest], |_| Ok(()))?;
            store.put_blob(&lease, &config_bytes)?;
            store.put_blob(&lease, &found.bytes)?;
            record(
                &store,
                &lease,
                &found.bytes,
                &found.manifest,
                &config_bytes,
                &[name],
            )
        })
        .await?;
        Ok(Pulled {
            image,
            up_to_date: false,
            fetched_bytes,
        })
    }

    /// Asks each place in turn; one that fails passes the question on.
    async fn resolve(&self) -> Result<Found, PullError> {
        let mut targets = self.registries.sources(self.reference);
        let mut place = 0;
        loop {
            match self.resolve_at(&targets[place]).await {
                Ok((bytes, manifest)) => {
                    // What has the manifest has the layers too; the others follow in their order.
                    targets[..=place].rotate_right(1);
                    return Ok(Found {
                        targets,
                        bytes,
                        manifest,
                    });
                }
                Err(PullError::Registry(error))
                    if place + 1 < targets.len() && !self.cancelled() =>
                {
                    let next = targets[place + 1].registry();
                    self.job.note(format!(
                        "{}: {error}; asking {next}",
                        targets[place].registry()
                    ));
                    place += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn resolve_at(&self, target: &Target) -> Result<(Bytes, Manifest), PullError> {
        let limits = self.store.limits();
        let wanted = self.options.platform.clone().unwrap_or_else(Platform::host);
        let mut digest = self.reference.digest();
        for _ in 0..MAX_NESTING {
            let name = match &digest {
                Some(digest) => digest.to_string(),
                None => self.reference.tag().unwrap_or(DEFAULT_TAG).to_owned(),
            };
            let fetched =
                self.registries
                    .manifest(target, &name, digest, limits.manifest_bytes, self.job);
            let bytes = fetched.await?;
            match Document::parse(&bytes, limits).map_err(|source| self.refused(source))? {
                Document::Manifest(manifest) => return Ok((bytes, manifest)),
                Document::Index(index) => {
                    digest = Some(
                        index
                            .select(&wanted)
                            .map_err(|source| self.refused(source))?
                            .digest,
                    );
                }
            }
        }
        Err(self.refused(ManifestError::Ambiguous))
    }

    async fn config(&self, found: &Found) -> Result<(Bytes, ImageConfig), PullError> {
        let limits = self.store.limits();
        let blob = &found.manifest.config;
        let mut result = Err(self.refused(ManifestError::NotAnImage(String::new())));
        for target in &found.targets {
            match self
                .registries
                .small_blob(target, blob, limits.config_bytes, self.job)
                .await
            {
                Ok(bytes) => {
                    let config = ImageConfig::parse(&bytes, limits)
                        .map_err(|source| self.refused(source))?;
                    return Ok((bytes, config));
                }
                Err(error) => result = Err(error.into()),
            }
        }
        result
    }

    /// Fetches the missing layers, several at once. After a failure the others are stopped and waited
    /// for, so that nothing goes on behind the caller's back.
    async fn layers(&self, found: &Found, diff_ids: &[Digest]) -> Result<u64, PullError> {
        let cancel = self.job.cancel_token().child_token();
        let job = self.job.with_cancel(cancel.clone());
        let work: HashMap<Digest, (&Descriptor, Digest)> =
            (found.manifest.layers.iter().zip(diff_ids))
                .map(|(layer, diff_id)| (layer.digest, (layer, *diff_id)))
                .collect();
        // In the image's order, each layer once.
        let mut order = found
            .manifest
            .layers
            .iter()
            .map(|layer| layer.digest)
            .collect::<Vec<_>>();
        let mut seen = std::collections::HashSet::new();
        order.retain(|digest| seen.insert(*digest));
        for digest in &order {
            emit(&job, work[digest].0, LayerState::Waiting, 0);
        }
        let running = order.iter().map(|digest| {
            let (layer, diff_id) = work[digest];
            let (job, cancel) = (&job, &cancel);
            async move {
                let result = self.layer(&found.targets, layer, diff_id, job).await;
                if result.is_err() {
                    cancel.cancel();
                }
                result
            }
        });
        // Collected, so that the future holds no borrowing closure and stays Send.
        let running: Vec<_> = running.collect();
        let results: Vec<Result<u64, PullError>> = stream::iter(running)
            .buffer_unordered(self.options.parallel.max(1))
            .collect()
            .await;
        let mut fetched = 0;
        let mut first: Option<PullError> = None;
        for result in results {
            match result {
                Ok(bytes) => fetched += bytes,
                // The layers stopped because of another one have nothing to say.
                Err(error) if is_cancelled(&error) => {
                    first.get_or_insert(error);
                }
                Err(error) if first.as_ref().is_none_or(is_cancelled) => first = Some(error),
                Err(_) => {}
            }
        }
        first.map_or(Ok(fetched), Err)
    }

    /// Makes sure one layer is here; answers the bytes fetched for it.
    async fn layer(
        &self,
        targets: &[Target],
        layer: &Descriptor,
        diff_id: Digest,
        job: &Job,
    ) -> Result<u64, PullError> {
        job.check()?;
        let failed = |source| PullError::Layer {
            reference: self.reference.clone(),
            layer: layer.digest,
            source,
        };
        if layer.size > self.store.limits().layer_blob_bytes {
            let limit = self.store.limits().layer_blob_bytes;
            return Err(failed(LayerError::Size {
                expected: limit,
                found: layer.size,
            }));
        }
        let turn = turn_for(self.store, layer.digest);
        let _turn = tokio::select! {
            () = job.cancel_token().cancelled() => return Err(Cancelled.into()),
            guard = turn.lock() => guard,
        };
        let (blob, unpacked) = self.lease.pin(&[layer.digest, diff_id], |store| {
            let blob = store.blob_size(&layer.digest)? == Some(layer.size);
            Ok((blob, store.layer(&diff_id)?.is_some()))
        })?;
        if blob && unpacked {
            emit(job, layer, LayerState::Present, layer.size);
            return Ok(0);
        }
        if blob {
            // Fetched by a pull that was killed before it had unpacked it.
            emit(job, layer, LayerState::Pulling, layer.size);
            if let Ok(()) = self.unpack_stored(layer, diff_id, job).await {
                emit(job, layer, LayerState::Done, layer.size);
                return Ok(0);
            }
            job.check()?;
        }
        self.fetch_somewhere(targets, layer, diff_id, job).await
    }

    /// Unpacks a layer whose blob is in the store.
    async fn unpack_stored(
        &self,
        layer: &Descriptor,
        diff_id: Digest,
        job: &Job,
    ) -> Result<(), LayerError> {
        let (store, lease, job) = (self.store.clone(), Arc::clone(self.lease), job.clone());
        let digest = layer.digest;
        let expected = Expected {
            blob: Some((digest, layer.size)),
            diff_id: Some(diff_id),
        };
        blocking(move || {
            let file = store.open_blob(&digest)?;
            ingest_blob(&store, &lease, expected, &mut read_source(file), &job).map(drop)
        })
        .await
    }

    /// Fetches a layer from the first place that has it right.
    async fn fetch_somewhere(
        &self,
        targets: &[Target],
        layer: &Descriptor,
        diff_id: Digest,
        job: &Job,
    ) -> Result<u64, PullError> {
        let mut result = Ok(0);
        for (place, target) in targets.iter().enumerate() {
            emit(job, layer, LayerState::Pulling, 0);
            result = self.fetch_at(target, layer, diff_id, job).await;
            let error = match &result {
                Ok(_) => {
                    emit(job, layer, LayerState::Done, layer.size);
                    return result;
                }
                Err(error) => error,
            };
            // Another place may have the right bytes, but nothing helps against a bad image or a full disk.
            let elsewhere = matches!(error, PullError::Registry(_)) || is_wrong(error);
            if !elsewhere || job.check().is_err() || place + 1 == targets.len() {
                break;
            }
            job.note(format!(
                "{}: {error}; asking {}",
                target.registry(),
                targets[place + 1].registry()
            ));
        }
        result
    }

    /// Fetches a layer from one place, going on with what an earlier pull received. If that was no part
    /// of it, all is fetched anew.
    async fn fetch_at(
        &self,
        target: &Target,
        layer: &Descriptor,
        diff_id: Digest,
        job: &Job,
    ) -> Result<u64, PullError> {
        let there = self.receive(layer).await?;
        let resumed = there.len() > 0;
        if resumed {
            let (length, size) = (there.len(), layer.size);
            job.note(format!(
                "layer {}: {length} of {size} bytes are here already",
                layer.digest.short()
            ));
        }
        match self.fetch(target, layer, diff_id, there, job).await {
            Err(error) if resumed && is_wrong(&error) => {
                job.note(format!("{error}; fetching all of it anew"));
                let anew = self.receive(layer).await?;
                self.fetch(target, layer, diff_id, anew, job).await
            }
            result => result,
        }
    }

    /// What is there of a layer, to be gone on with.
    async fn receive(&self, layer: &Descriptor) -> Result<Part, StoreError> {
        let (store, lease) = (self.store.clone(), Arc::clone(self.lease));
        let (digest, size) = (layer.digest, layer.size);
        blocking(move || store.receive(&lease, &digest, size)).await
    }

    /// One attempt at one place: the network on this task, the pipeline on blocking threads. Answers the
    /// bytes fetched.
    async fn fetch(
        &self,
        target: &Target,
        layer: &Descriptor,
        diff_id: Digest,
        there: Part,
        job: &Job,
    ) -> Result<u64, PullError> {
        let offset = there.len();
        let (sender, mut receiver) = mpsc::channel::<Result<Bytes, LayerError>>(QUEUE);
        let (store, lease, pipeline_job) =
            (self.store.clone(), Arc::clone(self.lease), job.clone());
        let expected = Expected {
            blob: Some((layer.digest, layer.size)),
            diff_id: Some(diff_id),
        };
        let pipeline = tokio::task::spawn_blocking(move || {
            let mut source = || receiver.blocking_recv().transpose();
            ingest_part(there, &store, &lease, expected, &mut source, &pipeline_job)
        });
        let progress = |done| emit(job, layer, LayerState::Pulling, done);
        let streamed = self
            .registries
            .stream_blob(target, layer, offset, &sender, progress, job)
            .await;
        if let Err(error) = &streamed {
            // Tells the pipeline that the end is not the layer's end. It may have gone already.
            let reason = std::io::Error::other(error.to_string());
            let _ = sender.send(Err(LayerError::Source(reason))).await;
        }
        drop(sender);
        let ingested = joined(pipeline.await);
        streamed?;
        ingested
            .map(|_| layer.size - offset)
            .map_err(|source| match source {
                LayerError::Cancelled(cancelled) => cancelled.into(),
                source => PullError::Layer {
                    reference: self.reference.clone(),
                    layer: layer.digest,
                    source,
                },
            })
    }

    fn refused(&self, source: ManifestError) -> PullError {
        PullError::Manifest {
            reference: self.reference.clone(),
            source,
        }
    }

    fn cancelled(&self) -> bool {
        self.job.check().is_err()
    }
}

fn is_cancelled(error: &PullError) -> bool {
    matches!(
        error,
        PullError::Cancelled(_) | PullError::Registry(RegistryError::Cancelled(_))
    )
}

/// Whether the bytes that came are not those of the layer.
fn is_wrong(error: &PullError) -> bool {
    matches!(
        error,
        PullError::Layer {
            source: LayerError::Digest { .. } | LayerError::Size { .. },
            ..
        }
    )
}

fn emit(job: &Job, layer: &Descriptor, state: LayerState, done_bytes: u64) {
    job.emit(Event::Layer {
        layer: layer.digest,
        state,
        done_bytes,
        total_bytes: layer.size,
    });
}

/// One turn per layer and store in this process: the second pull of a layer waits and then finds it.
fn turn_for(store: &Store, layer: Digest) -> Arc<tokio::sync::Mutex<()>> {
    type Turns = HashMap<(std::path::PathBuf, Digest), Weak<tokio::sync::Mutex<()>>>;
    static TURNS: Mutex<Option<Turns>> = Mutex::new(None);
    let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    let turns = turns.get_or_insert_default();
    turns.retain(|_, turn| turn.strong_count() > 0);
    let key = (store.root().to_owned(), layer);
    if let Some(turn) = turns.get(&key).and_then(Weak::upgrade) {
        return turn;
    }
    let turn = Arc::new(tokio::sync::Mutex::new(()));
    turns.insert(key, Arc::downgrade(&turn));
    turn
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(tokio::task::spawn_blocking(work).await)
}

fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking tasks are not aborted, except by a runtime that is going away with us.
            Err(_) => std::panic::resume_unwind(Box::new("the runtime shut down during a pull")),
        },
    }
}

impl Job {
    /// The same sink with another token.
    fn with_cancel(&self, cancel: CancellationToken) -> Self {
        let sink = self.clone();
        Self::new(move |event| sink.emit(event), cancel)
    }
}
