//! From errors of the crates below to answers for the user.

use api::{ErrorCode, Problem, error::FieldProblem};
pub(crate) use model::chain;
use model::validate::Invalid;

/// Why control could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The records cannot be read.
    #[error(transparent)]
    Table(#[from] store::TableError),
    /// The store cannot be read.
    #[error(transparent)]
    Read(#[from] store::ReadError),
    /// The operations cannot be taken up.
    #[error(transparent)]
    Workflow(#[from] workflow::EngineError),
    /// The operations are defined wrongly: a fault of this program.
    #[error(transparent)]
    Definitions(#[from] workflow::BuildError),
}

/// A fault of the daemon or its store.
pub(crate) fn internal(error: impl std::error::Error) -> Problem {
    let text = chain(&error);
    tracing::error!(error = %text, "a request failed");
    Problem::new(ErrorCode::Internal, text).hint("look at the daemon's log: journalctl -u berth")
}

/// A request that names impossible values.
pub(crate) fn invalid(what: &str, invalid: Invalid) -> Problem {
    let mut problem = Problem::new(ErrorCode::Invalid, format!("{what} cannot be accepted"));
    problem.fields = invalid
        .fields
        .into_iter()
        .map(|error| FieldProblem {
            field: error.field,
            message: error.message,
        })
        .collect();
    problem
}

/// One field that is wrong.
pub(crate) fn wrong_field(field: &str, message: impl Into<String>) -> Problem {
    let message = message.into();
    let mut problem = Problem::new(ErrorCode::Invalid, "the request cannot be accepted");
    problem.fields = vec![FieldProblem {
        field: field.to_owned(),
        message,
    }];
    problem
}

/// An engine that refused or failed.
pub(crate) fn from_engine(name: &str, error: engine::EngineError) -> Problem {
    use engine::EngineError;
    match error {
        EngineError::NotRunning { .. } => Problem::new(
            ErrorCode::Conflict,
            format!("instance {name:?} is not running"),
        )
        .hint(format!("start it: berth start {name}")),
        EngineError::Refused { message } => Problem::new(ErrorCode::Failed, message),
        EngineError::Program { message, code } => Problem::new(program(code.into()), message),
        EngineError::NotFound { message } => Problem::new(ErrorCode::NotFound, message),
        error @ EngineError::Stale { .. } => Problem::new(ErrorCode::Conflict, error.to_string()),
        error @ EngineError::Failed { .. } => internal(error),
    }
}

/// The kind of failure behind the exit code of a program that could not be executed.
pub(crate) fn program(code: i32) -> ErrorCode {
    match code {
        127 => ErrorCode::ProgramNotFound,
        126 => ErrorCode::ProgramNotExecutable,
        _ => ErrorCode::Failed,
    }
}

/// An image store that refused or failed.
pub(crate) fn from_images(error: image::StoreError) -> Problem {
    use image::StoreError;
    match error {
        StoreError::NotFound(_) => Problem::new(ErrorCode::NotFound, error.to_string()),
        StoreError::Ambiguous { .. } | StoreError::Reference(_) => {
            Problem::new(ErrorCode::Invalid, error.to_string())
        }
        error => internal(error),
    }
}

/// A task of the blocking pool that panicked goes on panicking here.
pub(crate) fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
