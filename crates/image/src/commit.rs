//! Commit: an instance's changes become an image.
//!
//! Called with an overlay's upper directory; the instance should be stopped or paused. Owners are
//! recorded as they are on disk, that is as inside the container when the runtime id-maps its layers.

use std::path::Path;

use crate::{
    assemble::{Part, assemble, rfc3339},
    digest::Digest,
    error::StoreError,
    job::{Cancelled, Event, Job, Phase},
    layer::{LayerError, ingest_tar, piped, write_diff},
    manifest::{History, RunConfig},
    reference::Reference,
    store::Store,
};

/// What to record with a committed image.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    /// Name for the new image.
    pub name: Option<Reference>,
    /// Run configuration; the base's when `None`.
    pub config: Option<RunConfig>,
    /// Text for the image's history.
    pub comment: Option<String>,
    /// Seconds since the epoch recorded as the creation time; now when `None`.
    pub created_unix: Option<i64>,
}

/// A commit failed; the store is as before.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Reading the directory or making the layer failed.
    #[error("the changes in the instance cannot be made a layer")]
    Layer(#[from] LayerError),
    /// The image would have more layers than can be mounted.
    #[error(
        "the base image already has {0} layers, the most that can be mounted; export and import it to merge them"
    )]
    TooManyLayers(usize),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Cancelled by the caller.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl Store {
    /// Makes an image of `base` plus the changes in an overlay's upper directory: kernel whiteouts and
    /// opaque directories become the layer format's. The same changes give the same layer. Blocks.
    ///
    /// # Errors
    /// [`CommitError`]; the overlay must have been mounted with `redirect_dir=off,metacopy=off`.
    pub fn commit(
        &self,
        upper: &Path,
        base: &Digest,
        options: &CommitOptions,
        job: &Job,
    ) -> Result<Digest, CommitError> {
        let lease = self.lease()?;
        let record = lease.pin(&[*base], |store| store.complete(base))?;
        if record.layers.len() >= self.limits().layers {
            return Err(CommitError::TooManyLayers(record.layers.len()));
        }
        let manifest = self.manifest(base)?;
        let mut parts: Vec<Part> = (manifest.layers.into_iter().zip(&record.layers))
            .map(|(descriptor, layer)| Part {
                descriptor,
                diff_id: layer.diff_id,
            })
            .collect();
        job.emit(Event::Phase(Phase::Building));
        let depth = self.limits().depth;
        let layer = piped(
            |output| write_diff(upper, output, depth, job).map(drop),
            |tar| ingest_tar(self, &lease, tar, job),
        );
        let layer = match layer {
            // The walk stops with an I/O error when cancelled; say what it was.
            Err(LayerError::Cancelled(cancelled)) => return Err(cancelled.into()),
            Err(error) => {
                job.check()?;
                return Err(error.into());
            }
            Ok(layer) => layer,
        };
        parts.push(Part::new(&layer));
        job.emit(Event::Phase(Phase::Recording));
        let mut config = self.config(base)?;
        if let Some(run) = &options.config {
            config.config.clone_from(run);
        }
        let created = options
            .created_unix
            .unwrap_or_else(|| time::OffsetDateTime::now_utc().unix_timestamp());
        config.created = Some(rfc3339(created));
        config.history.push(History {
            created: config.created.clone(),
            created_by: Some("berth commit".into()),
            comment: options.comment.clone(),
            empty_layer: false,
        });
        let pins: Vec<Digest> = parts
            .iter()
            .flat_map(|part| [part.descriptor.digest, part.diff_id])
            .collect();
        lease.pin(&pins, |_| Ok(()))?;
        Ok(assemble(
            self,
            &lease,
            &parts,
            config,
            options.name.as_slice(),
        )?)
    }
}
