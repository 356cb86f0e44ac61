//! The one shape of every error answer.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What kind of failure it was. Fixes the HTTP status and the exit code of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is malformed or names impossible values.
    Invalid,
    /// The caller is unknown: no token, or one that is not valid.
    Unauthenticated,
    /// The caller may not do this.
    Denied,
    /// Too many attempts; later ones may do.
    RateLimited,
    /// There is no such thing.
    NotFound,
    /// It contradicts what is: a name taken, a thing in use, a spec changed meanwhile.
    Conflict,
    /// The request body is larger than accepted.
    TooLarge,
    /// It cannot be had here: a capability that this host or build lacks.
    Unsupported,
    /// It did not happen within the time given.
    Timeout,
    /// It was cancelled.
    Cancelled,
    /// The program to run does not exist in the instance.
    ProgramNotFound,
    /// The program to run exists and cannot be executed.
    ProgramNotExecutable,
    /// It failed outside the daemon: a registry, a disk, the kernel.
    Failed,
    /// A fault of the daemon itself.
    Internal,
}

impl ErrorCode {
    /// The HTTP status that carries it (RFC 9110 §15).
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthenticated => 401,
            Self::Denied => 403,
            Self::RateLimited => 429,
            Self::NotFound => 404,
            Self::Conflict | Self::Cancelled => 409,
            Self::TooLarge => 413,
            Self::ProgramNotFound | Self::ProgramNotExecutable => 422,
            Self::Unsupported => 501,
            Self::Timeout => 504,
            Self::Failed => 502,
            Self::Internal => 500,
        }
    }
}

/// One wrong field of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FieldProblem {
    /// Path of the field in the request.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// An error answer, in the form of RFC 9457 (`application/problem+json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
pub struct Problem {
    /// What kind of failure.
    pub code: ErrorCode,
    /// HTTP status.
    pub status: u16,
    /// What happened, and why.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The wrong fields, for `invalid`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldProblem>,
}

impl Problem {
    /// A problem without a hint.
    #[must_use]
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self {
            code,
            status: code.status(),
            detail,
            hint: None,
            fields: Vec::new(),
        }
    }

    /// There is no such thing.
    #[must_use]
    pub fn not_found(what: &str, name: &str) -> Self {
        Self::new(ErrorCode::NotFound, format!("there is no {what} {name:?}"))
    }

    /// Says what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        for field in &self.fields {
            write!(f, "\n  {}: {}", field.field, field.message)?;
        }
        Ok(())
    }
}
