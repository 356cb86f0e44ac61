//! Carries one operation on until it ends. One task owns the record; nobody else writes it.
//!
//! The record is written without waiting for the disk after each step, and durably before the
//! first undo and at the end. When the store fails or the daemon stops, the task just ends: the
//! next start takes the operation up from its record.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use model::chain;
use store::{CommitError, ReadError, Revision, Txn, crash};

use crate::context::{Context, Live, PROGRESS_EVERY};
use crate::definition::{Definition, OnFailure};
use crate::engine::Core;
use crate::operation::{
    CANCELS, Ending, Failure, OPERATIONS, Operation, Progress, State, now, shorten,
};
use crate::step::{AnyStep, StepError};

/// How often the transaction that ends an operation is tried when it conflicts.
const FINISH_ATTEMPTS: u32 = 20;
/// How long to wait for room on the disk before the record is written again.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// Why a task ended before its operation did. Not an error of the operation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Interrupted {
    /// The engine stops.
    #[error("the daemon is stopping")]
    Stopping,
    /// The record cannot be written.
    #[error("its record could not be written: {}", chain(.0))]
    Store(CommitError),
    /// The record cannot be read.
    #[error("its record could not be read: {}", chain(.0))]
    Read(ReadError),
    /// Another task carried it on in the meantime.
    #[error("it went on elsewhere")]
    Elsewhere,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Back,
}

/// How one step ended, tried as often as it may be.
enum Attempted {
    Done,
    Failed(String),
    Cancelled,
}

pub(crate) struct Runner {
    pub(crate) core: Arc<Core>,
    pub(crate) definition: Arc<Definition>,
    pub(crate) operation: Operation,
    pub(crate) revision: Revision,
    pub(crate) live: Arc<Live>,
}

impl Runner {
    /// Runs until the operation ends or the task must.
    pub(crate) async fn run(mut self) -> Result<Operation, Interrupted> {
        if self.operation.state == State::Pending {
            self.operation.state = State::Running;
            self.operation.started_at = Some(now());
        }
        self.live.publish(&self.operation);
        if self.operation.state == State::Running {
            self.forward().await?;
        }
        if self.operation.state == State::Undoing {
            self.back().await?;
        }
        Ok(self.operation)
    }

    async fn forward(&mut self) -> Result<(), Interrupted> {
        let definition = Arc::clone(&self.definition);
        while let Some(step) = definition.steps.get(self.operation.step) {
            self.check_stopping()?;
            if self.live.cancel.is_cancelled() {
                return self
                    .turn_back(Ending::Cancelled, None, self.operation.step)
                    .await;
            }
            // The step that failed may have done a part of its work: it is undone too.
            let begun = self.operation.step + 1;
            match self.attempt(step.as_ref(), Direction::Forward).await? {
                Attempted::Done => {
                    self.operation.step += 1;
                    self.operation.attempts = 0;
                    if begun < definition.steps.len() {
                        self.save(Txn::relaxed()).await?;
                    }
                }
                Attempted::Failed(message) => {
                    let failure = Failure {
                        step: Some(step.name().to_owned()),
                        message,
                    };
                    return self.turn_back(Ending::Undone, Some(failure), begun).await;
                }
                Attempted::Cancelled => {
                    return self.turn_back(Ending::Cancelled, None, begun).await;
                }
            }
        }
        self.end(State::Succeeded).await
    }

    /// Decides, durably, that everything is undone: from here on no step runs forward again.
    async fn turn_back(
        &mut self,
        ending: Ending,
        failure: Option<Failure>,
        begun: usize,
    ) -> Result<(), Interrupted> {
        self.operation.attempts = 0;
        self.operation.error = failure;
        if self.definition.on_failure == OnFailure::Stop {
            let cancelled = ending == Ending::Cancelled;
            return self
                .end(if cancelled {
                    State::Cancelled
                } else {
                    State::Failed
                })
                .await;
        }
        self.operation.state = State::Undoing;
        self.operation.ending = Some(ending);
        // What was begun before a restart may be more than the record says.
        let all = self.definition.steps.len();
        self.operation.step = if self.operation.resumed { all } else { begun };
        self.save(Txn::new()).await
    }

    async fn back(&mut self) -> Result<(), Interrupted> {
        let definition = Arc::clone(&self.definition);
        while self.operation.step > 0 {
            self.check_stopping()?;
            let Some(step) = definition.steps.get(self.operation.step - 1) else {
                self.operation.step = definition.steps.len();
                continue;
            };
            match self.attempt(step.as_ref(), Direction::Back).await? {
                Attempted::Done => {
                    self.operation.step -= 1;
                    self.operation.attempts = 0;
                    if self.operation.step > 0 {
                        self.save(Txn::relaxed()).await?;
                    }
                }
                Attempted::Failed(why) => return self.stick(step.name(), &why).await,
                Attempted::Cancelled => {
                    return self.stick(step.name(), "it stopped half-way").await;
                }
            }
        }
        let ending = self.operation.ending.unwrap_or(Ending::Undone);
        self.end(ending.state()).await
    }

    /// What was done cannot be taken back: somebody has to look.
    async fn stick(&mut self, step: &str, why: &str) -> Result<(), Interrupted> {
        let id = self.operation.id;
        let message =
            format!("undoing {step} failed: {why}; remove the cause, then `berth op retry {id}`");
        self.operation.stuck = Some(Failure {
            step: Some(step.to_owned()),
            message: shorten(message),
        });
        self.end(State::Stuck).await
    }

    /// One step in one direction, with retries.
    async fn attempt(
        &mut self,
        step: &dyn AnyStep,
        direction: Direction,
    ) -> Result<Attempted, Interrupted> {
        loop {
            let (message, after) = match self.once(step, direction).await {
                Ok(()) => return Ok(Attempted::Done),
                Err(StepError::Cancelled) => return Ok(Attempted::Cancelled),
                Err(StepError::Permanent { message }) => {
                    return Ok(Attempted::Failed(shorten(message)));
                }
                Err(StepError::Retryable { message, after }) => (shorten(message), after),
            };
            self.operation.attempts += 1;
            let (failed, most) = (self.operation.attempts, step.attempts());
            if failed >= most {
                return Ok(Attempted::Failed(format!("{message} ({failed} attempts)")));
            }
            tracing::info!(
                operation = %self.operation.id, step = step.name(), failed, message,
                "a step is tried again"
            );
            self.save(Txn::relaxed()).await?;
            let forward = direction == Direction::Forward;
            tokio::select! {
                () = tokio::time::sleep(after) => {}
                () = self.core.stopping.cancelled() => return Err(Interrupted::Stopping),
                () = self.live.cancel.cancelled(), if forward => return Ok(Attempted::Cancelled),
            }
        }
    }

    /// One attempt. Shows progress meanwhile; keeps what the step left if it succeeds.
    async fn once(&mut self, step: &dyn AnyStep, direction: Direction) -> Result<(), StepError> {
        let (core, live) = (&self.core, &self.live);
        let context = Context::new(
            self.operation.clone(),
            step.name(),
            core.store.clone(),
            Arc::clone(live),
        );
        let (begins, ends) = match direction {
            Direction::Forward => ("run", "ran"),
            Direction::Back => ("undo", "undone"),
        };
        crash::point(&["step", &self.operation.kind, step.name(), begins]);
        let work = match direction {
            Direction::Forward => step.run(&context),
            Direction::Back => step.undo(&context),
        };
        let mut work = AssertUnwindSafe(work).catch_unwind();
        let outcome = loop {
            tokio::select! {
                outcome = &mut work => break outcome,
                () = tokio::time::sleep(PROGRESS_EVERY) => {
                    if live.due() {
                        live.publish(&self.operation);
                    }
                }
            }
        };
        drop(work);
        match outcome {
            Ok(outcome) => outcome?,
            // The panic's message went to the log with its place; it is not for users.
            Err(_) => return Err(StepError::permanent("Berth failed in it; this is a bug")),
        }
        crash::point(&["step", &self.operation.kind, step.name(), ends]);
        if direction == Direction::Forward {
            let left = context.take_left();
            if let Some(output) = left.output {
                self.operation
                    .outputs
                    .insert(step.name().to_owned(), output);
            }
            self.operation.result = left.result.or(self.operation.result.take());
        }
        Ok(())
    }

    /// Brings the operation to a final state, together with the caller's records.
    async fn end(&mut self, state: State) -> Result<(), Interrupted> {
        self.operation.state = state;
        self.operation.finished_at = Some(now());
        self.operation.attempts = 0;
        crash::point(&["ending", &self.operation.kind]);
        let mut tried = 0;
        loop {
            let mut txn = Txn::new();
            let id = self.operation.id.to_string();
            if state != State::Stuck {
                CANCELS.remove(&mut txn, &id);
            }
            let hook = match &self.definition.finish {
                Some(hook) => {
                    let finish = hook.finish(&self.operation, &self.core.store, &mut txn);
                    AssertUnwindSafe(finish)
                        .catch_unwind()
                        .await
                        .unwrap_or_else(|_| {
                            Err(StepError::permanent("Berth failed in it; this is a bug"))
                        })
                }
                None => Ok(()),
            };
            let (why, after) = match hook {
                Ok(()) => match self.save(txn).await {
                    Err(Interrupted::Store(error @ CommitError::Conflict { .. })) => {
                        (chain(&error), Duration::from_millis(5))
                    }
                    Err(Interrupted::Store(error @ CommitError::Limit(_))) => {
                        return self.stick_at_end(state, &chain(&error)).await;
                    }
                    other => return other,
                },
                Err(StepError::Retryable { message, after }) => (message, after),
                Err(error) => return self.stick_at_end(state, &error.to_string()).await,
            };
            tried += 1;
            if tried >= FINISH_ATTEMPTS {
                return self.stick_at_end(state, &why).await;
            }
            tokio::select! {
                () = tokio::time::sleep(after) => {}
                () = self.core.stopping.cancelled() => return Err(Interrupted::Stopping),
            }
        }
    }

    /// All steps are through, but the caller's records cannot be changed with the end: stuck,
    /// without the hook that failed. A retry goes on from here.
    async fn stick_at_end(&mut self, wanted: State, why: &str) -> Result<(), Interrupted> {
        let id = self.operation.id;
        if wanted != State::Stuck {
            let message = format!(
                "recording its end failed: {why}; remove the cause, then `berth op retry {id}`"
            );
            self.operation.stuck = Some(Failure {
                step: None,
                message: shorten(message),
            });
        }
        self.operation.state = State::Stuck;
        self.save(Txn::new()).await
    }

    /// Writes the record with whatever else `txn` does, and shows it. Waits for room on the disk.
    async fn save(&mut self, mut txn: Txn) -> Result<(), Interrupted> {
        self.operation.progress = self.live.progress();
        let id = self.operation.id.to_string();
        if let Err(error) = OPERATIONS.update(&mut txn, &id, self.revision, &self.operation) {
            // The record is made of JSON values and strings.
            tracing::error!(operation = id, %error, "an operation's record cannot be written");
        }
        loop {
            match self.core.store.commit(txn.clone()).await {
                Ok(revision) => {
                    self.revision = revision;
                    // The end is shown when the task is gone, so that a retry finds the way free.
                    if self.operation.state.is_final() {
                        crash::point(&["ended", &self.operation.kind]);
                    } else {
                        self.live.publish(&self.operation);
                    }
                    return Ok(());
                }
                Err(CommitError::Full) => {
                    tracing::warn!(operation = id, "waiting for room on the disk of the store");
                    tokio::select! {
                        () = tokio::time::sleep(FULL_RETRY) => {}
                        () = self.core.stopping.cancelled() => return Err(Interrupted::Stopping),
                    }
                }
                Err(error) => return Err(Interrupted::Store(error)),
            }
        }
    }

    fn check_stopping(&self) -> Result<(), Interrupted> {
        if self.core.stopping.is_cancelled() {
            Err(Interrupted::Stopping)
        } else {
            Ok(())
        }
    }
}

/// What is shown while an operation waits for its turn.
pub(crate) fn waiting() -> Progress {
    Progress::message("waiting for its turn")
}
