//! The record of an operation: what is stored, and what observers see.
//!
//! The JSON of [`Operation`] is a stored format, pinned by a golden file. Changes go through a new
//! schema version of [`OPERATIONS`].

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use model::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::Table;
use uuid::Uuid;

/// Where operations are kept.
pub(crate) const OPERATIONS: Table<Operation> = Table::new("operation/", 1);
/// Where it is kept that an operation was cancelled, apart from the record its runner writes.
pub(crate) const CANCELS: Table<Timestamp> = Table::new("operation-cancel/", 1);

/// Bytes of an operation's input as JSON.
pub(crate) const MAX_INPUT_BYTES: usize = 64 << 10;
/// Bytes of one step's output, or of the result, as JSON.
pub(crate) const MAX_OUTPUT_BYTES: usize = 16 << 10;
/// Bytes of a message.
pub(crate) const MAX_MESSAGE_BYTES: usize = 4 << 10;
/// Resources of one operation, and bytes of each.
pub(crate) const MAX_RESOURCES: (usize, usize) = (16, 256);

/// Identity of an operation: a UUIDv7 (RFC 9562), so ids sort by the time they were made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(Uuid);

/// Text that is not an operation's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an operation id (a UUID); `berth op list` shows the ids")]
pub struct ParseOperationIdError {
    /// What was given.
    pub text: String,
}

impl OperationId {
    pub(crate) fn now() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OperationId({self})")
    }
}

impl FromStr for OperationId {
    type Err = ParseOperationIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = |_| ParseOperationIdError {
            text: text.chars().take(64).collect(),
        };
        Uuid::try_parse(text).map(Self).map_err(refused)
    }
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Committed, waits for its turn.
    Pending,
    /// Steps run.
    Running,
    /// Every step is done.
    Succeeded,
    /// A step failed for good, and this kind of operation is not undone. Can be retried.
    Failed,
    /// What was done is being undone.
    Undoing,
    /// A step failed for good; everything is undone.
    Undone,
    /// Was cancelled; everything is undone.
    Cancelled,
    /// Cannot go on by itself; the error says what to do. Can be retried.
    Stuck,
}

impl State {
    /// Whether nothing more happens by itself.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Running | Self::Undoing)
    }

    /// Whether somebody can make it go on.
    #[must_use]
    pub const fn is_retriable(self) -> bool {
        matches!(self, Self::Stuck | Self::Failed)
    }
}

/// How far an operation is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// What it does just now.
    pub message: String,
    /// How much of `total` is done.
    pub done: u64,
    /// How much there is; 0 when unknown.
    pub total: u64,
    /// Unit of both, such as `bytes`; empty when there is nothing to count.
    pub unit: String,
}

impl Progress {
    /// Only says what happens.
    pub fn message(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            ..Self::default()
        }
    }
}

/// Why an operation did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The step, if it was one.
    pub step: Option<String>,
    /// What happened, why and what to do, for the user.
    pub message: String,
}

/// What an operation that turned back becomes when everything is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// [`State::Undone`].
    Undone,
    /// [`State::Cancelled`].
    Cancelled,
}

impl Ending {
    pub(crate) const fn state(self) -> State {
        match self {
            Self::Undone => State::Undone,
            Self::Cancelled => State::Cancelled,
        }
    }
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Identity.
    pub id: OperationId,
    /// Which definition carries it out.
    pub kind: String,
    /// Which version of that definition.
    pub version: u32,
    /// What it is about (`instances/web`), for listing.
    pub resources: Vec<String>,
    /// What it was asked for.
    pub input: Value,
    /// Where it stands.
    pub state: State,
    /// Forward: the index of the next step. Turned back: how many steps are left to undo.
    pub step: usize,
    /// Attempts of the present step in the present direction that failed.
    pub attempts: u32,
    /// Whether it was taken up again after a restart: then any step may have begun.
    pub resumed: bool,
    /// Set once it turned back.
    pub ending: Option<Ending>,
    /// What steps left for later ones, by step name.
    pub outputs: BTreeMap<String, Value>,
    /// What it made, for the user.
    pub result: Option<Value>,
    /// How far it is.
    pub progress: Progress,
    /// Why it turned back or failed.
    pub error: Option<Failure>,
    /// Why it is stuck.
    pub stuck: Option<Failure>,
    /// When it was planned.
    pub created_at: Timestamp,
    /// When its first step began.
    pub started_at: Option<Timestamp>,
    /// When it came to its final state.
    pub finished_at: Option<Timestamp>,
}

impl Operation {
    /// Whether it is about this resource.
    #[must_use]
    pub fn concerns(&self, resource: &str) -> bool {
        self.resources.iter().any(|own| own == resource)
    }
}

/// The wall clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Shortens a message to what a record takes.
pub(crate) fn shorten(mut message: String) -> String {
    if message.len() > MAX_MESSAGE_BYTES {
        let mut end = MAX_MESSAGE_BYTES - '…'.len_utf8();
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
    }
    message
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Written by version 1 of the format.
    const GOLDEN: &str = include_str!("../tests/golden/operation-v1.json");

    pub(crate) fn golden() -> Operation {
        let record = store::Record {
            key: "operation/0192f0c1-7d3e-7aa2-9c41-5b6f2a10c3d4".to_owned(),
            value: GOLDEN.trim().to_owned().into(),
            created: store::Revision(1),
            modified: store::Revision(1),
            lease: None,
        };
        let entry = OPERATIONS.decode(&record);
        entry.expect("the golden record is read").value
    }

    /// What is stored stays readable.
    #[test]
    fn the_stored_format_is_the_golden_one() {
        let operation = golden();
        assert_eq!(operation.state, State::Undoing);
        assert_eq!(
            operation.error.as_ref().map(|e| e.message.as_str()),
            Some("no space")
        );
        let written = OPERATIONS.encode("x", &operation).expect("writes");
        assert_eq!(String::from_utf8_lossy(&written), GOLDEN.trim());
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let cut = shorten("é".repeat(MAX_MESSAGE_BYTES));
        assert!(cut.len() <= MAX_MESSAGE_BYTES && cut.ends_with("é…"));
        assert_eq!(shorten("short".to_owned()), "short");
    }
}
