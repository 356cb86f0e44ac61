//! One error enum per thing callers ask of the engine.

use store::{CommitError, ReadError, TableError};

use crate::operation::{OperationId, State};

/// Why an engine could not be built: mistakes of the program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Two definitions of one kind and version.
    #[error("operation {kind} version {version} is defined twice")]
    Duplicate {
        /// The kind.
        kind: &'static str,
        /// The version.
        version: u32,
    },
    /// Two steps of one name.
    #[error("operation {kind} has two steps called {step}")]
    DuplicateStep {
        /// The kind.
        kind: &'static str,
        /// The name.
        step: &'static str,
    },
}

/// Why an operation cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Nothing is known of such operations.
    #[error("no operation is called {kind:?}")]
    UnknownKind {
        /// The kind.
        kind: String,
    },
    /// The input cannot be written as JSON.
    #[error("the input of {kind} cannot be written as JSON")]
    Input {
        /// The kind.
        kind: String,
        /// What JSON refused.
        #[source]
        source: serde_json::Error,
    },
    /// Something is longer than a record takes.
    #[error("the {what} of {kind} is too long ({size}, at most {max} is allowed)")]
    TooLong {
        /// The kind.
        kind: String,
        /// What is too long.
        what: &'static str,
        /// How long it is.
        size: usize,
        /// What is allowed.
        max: usize,
    },
    /// The record cannot be built.
    #[error(transparent)]
    Record(#[from] TableError),
}

/// Why an operation cannot be read or started.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is none of that id.
    #[error("no operation {id}; `berth op list` shows those that are kept")]
    NotFound {
        /// The id.
        id: OperationId,
    },
    /// Its record cannot be read.
    #[error(transparent)]
    Record(#[from] TableError),
    /// The store could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store could not be written.
    #[error("operation {id} could not be recorded")]
    Commit {
        /// The id.
        id: OperationId,
        /// Why.
        #[source]
        source: CommitError,
    },
    /// The engine is shutting down; the operation goes on after the next start.
    #[error("the daemon is stopping; operation {id} goes on when it starts again")]
    Stopping {
        /// The id.
        id: OperationId,
    },
}

/// Why an operation cannot be cancelled.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    /// It has ended.
    #[error("operation {id} has ended already ({state:?}); there is nothing to cancel")]
    Ended {
        /// The id.
        id: OperationId,
        /// How.
        state: State,
    },
    /// It could not be found, read or written.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Why an operation cannot be retried.
#[derive(Debug, thiserror::Error)]
pub enum RetryError {
    /// Only what is stuck or failed can be.
    #[error("operation {id} is {state:?}; only a stuck or failed one can be retried")]
    NotRetriable {
        /// The id.
        id: OperationId,
        /// What it is instead.
        state: State,
    },
    /// Nothing is known of such operations here, so nobody could carry it on.
    #[error("this Berth does not know {kind} version {version}; install the version that does")]
    Unknown {
        /// The kind.
        kind: String,
        /// The version.
        version: u32,
    },
    /// It could not be found, read or written.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
