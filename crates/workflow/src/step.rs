//! What a step is: a name, a way forward and a way back, both idempotent.

use std::error::Error;
use std::fmt::Display;
use std::time::Duration;

use model::chain;
use store::{BoxFuture, CommitError, ReadError, Store, TableError, Txn};

use crate::context::Context;
use crate::operation::Operation;

/// How long to wait where a store asks for another try.
const STORE_RETRY: Duration = Duration::from_millis(20);

/// Why a step did not do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// May work in a while: tried again after `after`, up to [`Step::attempts`] times in all.
    #[error("{message}")]
    Retryable {
        /// What happened, for the user, should it never work.
        message: String,
        /// How long to wait.
        after: Duration,
    },
    /// Will not work: the operation turns back.
    #[error("{message}")]
    Permanent {
        /// What happened, why and what to do, for the user.
        message: String,
    },
    /// The step saw that the operation was cancelled and stopped.
    #[error("cancelled")]
    Cancelled,
}

impl StepError {
    /// Will not work, and what the user reads about it.
    pub fn permanent(message: impl Display) -> Self {
        Self::Permanent {
            message: message.to_string(),
        }
    }

    /// Will not work because of an error, told with its causes.
    pub fn because(error: &(dyn Error + 'static)) -> Self {
        Self::Permanent {
            message: chain(error),
        }
    }

    /// May work after a while.
    pub fn retry(after: Duration, message: impl Display) -> Self {
        Self::Retryable {
            message: message.to_string(),
            after,
        }
    }
}

impl From<CommitError> for StepError {
    fn from(error: CommitError) -> Self {
        Self::retry(STORE_RETRY, chain(&error))
    }
}

impl From<ReadError> for StepError {
    fn from(error: ReadError) -> Self {
        Self::retry(STORE_RETRY, chain(&error))
    }
}

impl From<TableError> for StepError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Read(error) => error.into(),
            error => Self::because(&error),
        }
    }
}

/// One step of an operation.
///
/// Both ways are idempotent: they may be run again after they succeeded, after they failed, and
/// after the process died anywhere in them. What a step did must be on the disk when it answers.
pub trait Step: Send + Sync + 'static {
    /// Unique in its definition, and never changed: outputs are kept by it.
    fn name(&self) -> &'static str;

    /// Does the step's work. Long ones watch [`Context::cancelled`].
    fn run(&self, ctx: &Context) -> impl Future<Output = Result<(), StepError>> + Send;

    /// Takes the step's work back. Must succeed when none was done, and not count on the step's
    /// own output: after a power cut the work may be there and the output lost.
    fn undo(&self, ctx: &Context) -> impl Future<Output = Result<(), StepError>> + Send;

    /// How often each way is tried while it says [`StepError::Retryable`].
    fn attempts(&self) -> u32 {
        5
    }
}

/// Adds to the transaction that ends an operation, so that the caller's records change with it.
pub trait Finish: Send + Sync + 'static {
    /// Reads what it needs and adds guards and operations to `txn`. Called for every final state,
    /// stuck included; called again when the transaction was a conflict.
    fn finish(
        &self,
        operation: &Operation,
        store: &Store,
        txn: &mut Txn,
    ) -> impl Future<Output = Result<(), StepError>> + Send;
}

/// [`Step`] behind a pointer.
pub(crate) trait AnyStep: Send + Sync {
    fn name(&self) -> &'static str;
    fn attempts(&self) -> u32;
    fn run<'a>(&'a self, ctx: &'a Context) -> BoxFuture<'a, Result<(), StepError>>;
    fn undo<'a>(&'a self, ctx: &'a Context) -> BoxFuture<'a, Result<(), StepError>>;
}

impl<T: Step> AnyStep for T {
    fn name(&self) -> &'static str {
        Step::name(self)
    }

    fn attempts(&self) -> u32 {
        Step::attempts(self).max(1)
    }

    fn run<'a>(&'a self, ctx: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(Step::run(self, ctx))
    }

    fn undo<'a>(&'a self, ctx: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(Step::undo(self, ctx))
    }
}

/// [`Finish`] behind a pointer.
pub(crate) trait AnyFinish: Send + Sync {
    fn finish<'a>(
        &'a self,
        operation: &'a Operation,
        store: &'a Store,
        txn: &'a mut Txn,
    ) -> BoxFuture<'a, Result<(), StepError>>;
}

impl<T: Finish> AnyFinish for T {
    fn finish<'a>(
        &'a self,
        operation: &'a Operation,
        store: &'a Store,
        txn: &'a mut Txn,
    ) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(Finish::finish(self, operation, store, txn))
    }
}
