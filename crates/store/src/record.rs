//! The nouns every backend speaks: revisions, records, ranges, pages and events.
//!
//! Plain data, no I/O. Called by everything in this crate.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A point in the store's history. Each transaction that changes something makes a new one.
///
/// Greater is later. Numbers may be skipped (a restart skips some), never used twice.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// Before anything was ever written.
    pub const ZERO: Self = Self(0);

    /// The revision after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names a lease. Never used twice in the life of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key with its value, as of some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The whole key.
    pub key: String,
    /// Opaque to the store; [`crate::Table`] gives it meaning.
    pub value: Bytes,
    /// When the key last came into being.
    pub created: Revision,
    /// When the value was last put: what a compare-and-set compares.
    pub modified: Revision,
    /// The lease that takes the key with it when it ends.
    pub lease: Option<LeaseId>,
}

/// Which keys to read: those with a prefix, in byte order, a page at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    pub(crate) prefix: String,
    pub(crate) after: Option<String>,
    pub(crate) limit: usize,
    pub(crate) at: Option<Revision>,
}

impl Range {
    /// Every key that starts with `prefix`; the empty prefix is the whole store.
    #[must_use]
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            after: None,
            limit: crate::limits::MAX_PAGE_RECORDS,
            at: None,
        }
    }

    /// Continue behind this key (what [`Page::more`] gave), which need not exist.
    #[must_use]
    pub fn after(mut self, key: impl Into<String>) -> Self {
        self.after = Some(key.into());
        self
    }

    /// At most this many records; brought into 1..=[`crate::limits::MAX_PAGE_RECORDS`].
    #[must_use]
    pub fn limit(mut self, records: usize) -> Self {
        self.limit = records.clamp(1, crate::limits::MAX_PAGE_RECORDS);
        self
    }

    /// As it was right after `revision`. Older than the kept history is
    /// [`crate::ReadError::Compacted`].
    #[must_use]
    pub fn at(mut self, revision: Revision) -> Self {
        self.at = Some(revision);
        self
    }

    /// The first possible key of this range, inclusive.
    pub(crate) fn lower(&self) -> String {
        match &self.after {
            // NUL is the smallest byte and no key contains it: the next key in byte order.
            Some(after) if after.as_str() >= self.prefix.as_str() => format!("{after}\0"),
            _ => self.prefix.clone(),
        }
    }
}

/// The answer to a [`Range`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In byte order of their keys.
    pub records: Vec<Record>,
    /// The state this page shows. Watch from here, or read the next page at it.
    pub revision: Revision,
    /// Where to continue ([`Range::after`]) when the page was cut by a limit.
    pub more: Option<String>,
}

/// One key's change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The key that changed.
    pub key: String,
    /// When: all events of a transaction share it.
    pub revision: Revision,
    /// What the key holds now; `None` when it was deleted.
    pub record: Option<Record>,
    /// What it held before; `None` when it did not exist.
    pub previous: Option<Record>,
}

impl Event {
    /// The revision the key had before, [`Revision::ZERO`] when it did not exist.
    #[must_use]
    pub fn previous_revision(&self) -> Revision {
        self.previous
            .as_ref()
            .map_or(Revision::ZERO, |record| record.modified)
    }

    /// What it costs to remember this event, in bytes.
    pub(crate) fn weight(&self) -> usize {
        const OVERHEAD: usize = 160;
        let record = |r: &Option<Record>| r.as_ref().map_or(0, |r| r.key.len() + r.value.len());
        OVERHEAD + self.key.len() + record(&self.record) + record(&self.previous)
    }
}
