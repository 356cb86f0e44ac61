//! The context of a long operation: who hears of its progress, and how it is cancelled.
//!
//! Every pull, push, import, export, commit and recipe takes a [`Job`]. Events are advisory: they are
//! sent from the threads doing the work, so a sink must return quickly and must not call back into
//! the operation.

use std::{fmt, sync::Arc};

use tokio_util::sync::CancellationToken;

use crate::digest::Digest;

/// Something a user may want to see while an operation runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The operation as a whole entered a phase.
    Phase(Phase),
    /// One layer moved on. Named by its compressed digest where one is known beforehand.
    Layer {
        /// The layer's blob digest.
        layer: Digest,
        /// What happens to it.
        state: LayerState,
        /// Compressed bytes handled so far.
        done_bytes: u64,
        /// Compressed bytes in all; 0 when unknown.
        total_bytes: u64,
    },
    /// A line for a person: a retry and its cause, a line of a recipe's tool.
    Note(String),
}

/// Phases of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Asking the registry what a name means.
    Resolving,
    /// Moving layers in or out.
    Transferring,
    /// Building a root file system.
    Building,
    /// Making the result durable and naming it.
    Recording,
}

/// What happens to one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// Queued behind other layers.
    Waiting,
    /// Being fetched, inflated, hashed and unpacked, all at once.
    Pulling,
    /// Already here (pull) or already there (push).
    Present,
    /// Taken over from another repository of the same registry.
    Mounted,
    /// Being sent.
    Pushing,
    /// Finished and verified.
    Done,
}

/// Progress sink and cancellation of one operation. Cloning shares both.
#[derive(Clone)]
pub struct Job {
    sink: Arc<dyn Fn(Event) + Send + Sync>,
    cancel: CancellationToken,
}

/// The operation was cancelled by its owner; nothing of it remains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

impl Job {
    /// A job that reports to `sink` and stops soon after `cancel` fires.
    pub fn new(sink: impl Fn(Event) + Send + Sync + 'static, cancel: CancellationToken) -> Self {
        Self {
            sink: Arc::new(sink),
            cancel,
        }
    }

    /// A job that nobody watches or cancels.
    pub fn silent() -> Self {
        Self::new(|_| {}, CancellationToken::new())
    }

    /// The token that cancels this job.
    pub fn cancel_token(&self) -> &CancellationToken {
        &self.cancel
    }

    pub(crate) fn emit(&self, event: Event) {
        (self.sink)(event);
    }

    pub(crate) fn note(&self, line: impl Into<String>) {
        self.emit(Event::Note(line.into()));
    }

    pub(crate) fn check(&self) -> Result<(), Cancelled> {
        if self.cancel.is_cancelled() {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("cancelled", &self.cancel.is_cancelled())
            .finish_non_exhaustive()
    }
}
