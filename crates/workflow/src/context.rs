//! [`Context`]: what a step sees of its operation. All a step may touch of the machinery.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::chain;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use store::Store;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::operation::{MAX_OUTPUT_BYTES, Operation, OperationId, Progress, shorten};
use crate::step::StepError;

/// Observers see progress at most this often.
pub(crate) const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// The live side of an operation: who watches it, who wants it to stop.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) cancel: CancellationToken,
    pub(crate) watch: watch::Sender<Arc<Operation>>,
    pub(crate) events: broadcast::Sender<Arc<Operation>>,
    progress: Mutex<Latest>,
}

/// The newest progress, and whether observers have seen it.
#[derive(Debug)]
struct Latest {
    progress: Progress,
    unseen: bool,
    shown: Option<Instant>,
}

impl Live {
    pub(crate) fn new(operation: &Operation, events: broadcast::Sender<Arc<Operation>>) -> Self {
        Self {
            cancel: CancellationToken::new(),
            watch: watch::Sender::new(Arc::new(operation.clone())),
            events,
            progress: Mutex::new(Latest {
                progress: operation.progress.clone(),
                unseen: false,
                shown: None,
            }),
        }
    }

    /// Shows observers the operation, with the newest progress.
    pub(crate) fn publish(&self, operation: &Operation) {
        let mut latest = self.latest();
        latest.unseen = false;
        latest.shown = Some(Instant::now());
        let progress = latest.progress.clone();
        drop(latest);
        let shown = Arc::new(Operation {
            progress,
            ..operation.clone()
        });
        self.watch.send_replace(Arc::clone(&shown));
        // Without subscribers there is nobody to tell.
        let _ = self.events.send(shown);
    }

    pub(crate) fn progress(&self) -> Progress {
        self.latest().progress.clone()
    }

    /// Whether there is progress observers should see by now.
    pub(crate) fn due(&self) -> bool {
        let latest = self.latest();
        latest.unseen
            && latest
                .shown
                .is_none_or(|shown| shown.elapsed() >= PROGRESS_EVERY)
    }

    fn report(&self, progress: Progress) {
        let mut latest = self.latest();
        latest.unseen = true;
        latest.progress = progress;
    }

    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a step gets, fresh for each attempt.
#[derive(Debug)]
pub struct Context {
    operation: Operation,
    step: &'static str,
    store: Store,
    live: Arc<Live>,
    left: Mutex<Left>,
}

/// What the step leaves behind; kept only if it succeeds.
#[derive(Debug, Default)]
pub(crate) struct Left {
    pub(crate) output: Option<Value>,
    pub(crate) result: Option<Value>,
}

impl Context {
    pub(crate) fn new(
        operation: Operation,
        step: &'static str,
        store: Store,
        live: Arc<Live>,
    ) -> Self {
        Self {
            operation,
            step,
            store,
            live,
            left: Mutex::default(),
        }
    }

    /// The operation's id: a good name for what a step makes, so that doing it again finds it.
    #[must_use]
    pub const fn id(&self) -> OperationId {
        self.operation.id
    }

    /// The operation as it was when this attempt began.
    #[must_use]
    pub const fn operation(&self) -> &Operation {
        &self.operation
    }

    /// How many attempts of this step failed before this one.
    #[must_use]
    pub const fn failed_attempts(&self) -> u32 {
        self.operation.attempts
    }

    /// The store the operation is kept in.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// What the operation was asked for.
    ///
    /// # Errors
    /// A permanent one when the input is of another shape.
    pub fn input<T: DeserializeOwned>(&self) -> Result<T, StepError> {
        T::deserialize(&self.operation.input)
            .map_err(|e| StepError::permanent(format!("the operation's input is damaged: {e}")))
    }

    /// What an earlier step left, if it did.
    ///
    /// # Errors
    /// A permanent one when it is of another shape.
    pub fn output<T: DeserializeOwned>(&self, step: &str) -> Result<Option<T>, StepError> {
        let output = self
            .operation
            .outputs
            .get(step)
            .map(T::deserialize)
            .transpose();
        output.map_err(|e| StepError::permanent(format!("the output of {step} is damaged: {e}")))
    }

    /// What an earlier step must have left.
    ///
    /// # Errors
    /// A permanent one when there is none, or of another shape.
    pub fn require<T: DeserializeOwned>(&self, step: &str) -> Result<T, StepError> {
        let missing = || StepError::permanent(format!("step {step} left nothing; this is a bug"));
        self.output(step)?.ok_or_else(missing)
    }

    /// Leaves something small for later steps; kept when this step succeeds.
    ///
    /// # Errors
    /// A permanent one when it is no JSON or longer than 16 KiB.
    pub fn set_output<T: Serialize>(&self, output: &T) -> Result<(), StepError> {
        self.left().output = Some(self.small(output)?);
        Ok(())
    }

    /// Says what the operation made, for the user; kept when this step succeeds.
    ///
    /// # Errors
    /// A permanent one when it is no JSON or longer than 16 KiB.
    pub fn set_result<T: Serialize>(&self, result: &T) -> Result<(), StepError> {
        self.left().result = Some(self.small(result)?);
        Ok(())
    }

    /// Tells observers how far the step is. Cheap: call it as often as there is news.
    pub fn progress(&self, progress: Progress) {
        let message = shorten(progress.message);
        self.live.report(Progress {
            message,
            ..progress
        });
    }

    /// Whether somebody wants the operation cancelled. Not to be heeded by an undo.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.live.cancel.is_cancelled()
    }

    /// Waits until somebody wants the operation cancelled: to be raced against long work.
    pub async fn cancelled(&self) {
        self.live.cancel.cancelled().await;
    }

    fn small<T: Serialize>(&self, value: &T) -> Result<Value, StepError> {
        let step = self.step;
        let failed =
            |e| StepError::permanent(format!("what {step} left is no JSON: {}", chain(&e)));
        let text = serde_json::to_vec(value).map_err(failed)?;
        if text.len() > MAX_OUTPUT_BYTES {
            let size = text.len();
            return Err(StepError::permanent(format!(
                "what {step} left is too long ({size} bytes, at most {MAX_OUTPUT_BYTES})"
            )));
        }
        serde_json::from_slice(&text).map_err(failed)
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take_left(&self) -> Left {
        std::mem::take(&mut self.left())
    }
}
