//! One error enum per operation of the store. Texts say what happened and what to do.

use std::error::Error;
use std::sync::Arc;

use crate::record::{LeaseId, Revision};
use crate::txn::Expect;

/// Why a backend could not do its work: the disk, the file, the connection.
///
/// Shared, because one failed group commit answers many callers.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{doing} failed")]
pub struct BackendFault {
    /// What the backend was doing.
    pub doing: &'static str,
    /// The library's own error.
    #[source]
    pub source: Arc<dyn Error + Send + Sync>,
}

impl BackendFault {
    /// Wraps a library's error.
    pub fn new(doing: &'static str, source: impl Error + Send + Sync + 'static) -> Self {
        Self {
            doing,
            source: Arc::new(source),
        }
    }
}

/// A transaction or a key breaks one of [`crate::limits`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// More guards or operations than a transaction takes.
    #[error("a transaction takes at most {max} {what}, this one has {count}; split it")]
    TooMany {
        /// "guards" or "operations".
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many are allowed.
        max: usize,
    },
    /// All keys and values together are too long.
    #[error("a transaction takes at most {max} bytes, this one has {bytes}; split it")]
    TxnTooLong {
        /// How many bytes there are.
        bytes: usize,
        /// How many are allowed.
        max: usize,
    },
    /// A value is too long.
    #[error("the value of {key:?} has {bytes} bytes, at most {max} are allowed")]
    ValueTooLong {
        /// Whose value.
        key: String,
        /// How many bytes it has.
        bytes: usize,
        /// How many are allowed.
        max: usize,
    },
    /// A key is too long.
    #[error("a key has at most {max} bytes, the one starting {start:?} has {bytes}")]
    KeyTooLong {
        /// Its first characters.
        start: String,
        /// How many bytes it has.
        bytes: usize,
        /// How many are allowed.
        max: usize,
    },
    /// A key is empty or has control characters.
    #[error("\"{key}\" is no key: keys are not empty and have no control characters")]
    KeyInvalid {
        /// The key, escaped.
        key: String,
    },
    /// Two operations on one key.
    #[error("the transaction changes {key:?} twice; change each key once")]
    DuplicateKey {
        /// The key.
        key: String,
    },
}

/// Why a transaction was not committed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// A guard did not hold; nothing was changed. Read again and decide anew.
    #[error("{key:?} is {}, the change expected it {}", found(*.actual), expected(*.expect))]
    Conflict {
        /// The key of the first guard that failed.
        key: String,
        /// What the guard asked for.
        expect: Expect,
        /// The revision the key has, if it exists.
        actual: Option<Revision>,
    },
    /// The transaction breaks a limit; nothing was changed.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// A key was to be attached to a lease that has ended; nothing was changed.
    #[error("lease {lease} has ended; grant a new one")]
    LeaseNotFound {
        /// The lease.
        lease: LeaseId,
    },
    /// There is no room left; nothing was changed and the store goes on working.
    #[error("the disk of the store is full; free some space and try again")]
    Full,
    /// The disk failed in the middle. The transaction may or may not survive: read it back after
    /// a restart. The store takes no more commits, because what the kernel did with the pages it
    /// could not write is unknown.
    #[error("the store could not write; look at the disk, then restart")]
    Failed(#[from] BackendFault),
    /// The store was closed (or crashed, in tests) before the answer: whether the transaction was
    /// committed is unknown.
    #[error("the store is closed")]
    Closed,
}

impl CommitError {
    /// Whether reading again and retrying can help.
    #[must_use]
    pub const fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }
}

fn found(actual: Option<Revision>) -> String {
    actual.map_or_else(
        || "absent".to_owned(),
        |revision| format!("at revision {revision}"),
    )
}

fn expected(expect: Expect) -> String {
    match expect {
        Expect::Absent => "absent".to_owned(),
        Expect::Present => "present".to_owned(),
        Expect::At(revision) => format!("at revision {revision}"),
    }
}

/// Why a read gave nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The revision asked for is older than the kept history: list again without one.
    #[error("revision {at} is no longer kept, the oldest is {oldest}; read the present state")]
    Compacted {
        /// What was asked for.
        at: Revision,
        /// The oldest that can be read.
        oldest: Revision,
    },
    /// The revision asked for does not exist yet.
    #[error("revision {at} does not exist, the newest is {newest}")]
    Future {
        /// What was asked for.
        at: Revision,
        /// The newest there is.
        newest: Revision,
    },
    /// A key of the range breaks a limit.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The backend could not read.
    #[error("the store could not be read")]
    Failed(#[from] BackendFault),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// Why a watch ended or did not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// Events after `from` are no longer kept (the watcher was too slow, or the store restarted):
    /// list again, and watch from the listing's revision.
    #[error("events after revision {from} are no longer kept (oldest {oldest}); list again")]
    Compacted {
        /// The last revision the watcher has seen.
        from: Revision,
        /// The oldest revision a watch can start from.
        oldest: Revision,
    },
    /// The prefix breaks a limit.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// Why a lease could not be granted, kept or revoked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LeaseError {
    /// It has expired or was revoked; its keys are gone.
    #[error("lease {lease} has ended; grant a new one")]
    NotFound {
        /// The lease.
        lease: LeaseId,
    },
    /// The backend could not write.
    #[error("the lease could not be recorded")]
    Commit(#[from] CommitError),
}
