//! Transactions as data: guards that must hold, operations that then all happen.
//!
//! Built by callers (often by several, into one `Txn`), checked by [`crate::limits`], carried out
//! by a backend. Nothing here does I/O.

use bytes::Bytes;

use crate::record::{LeaseId, Revision};

/// When a commit may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Durability {
    /// At once. May be lost by a power cut (not by the death of the process), but never torn, and
    /// never without every later commit going too: the next durable commit carries it to the disk.
    Relaxed,
    /// When the disk has it.
    #[default]
    Durable,
}

/// What a guard asks of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key exists, at whatever revision.
    Present,
    /// The key exists and was last put at this revision.
    At(Revision),
}

/// A condition on the state before the transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The key looked at.
    pub key: String,
    /// What must hold for it.
    pub expect: Expect,
}

impl Guard {
    /// Whether the guard holds for a key that was last put at `actual`.
    pub(crate) fn holds(&self, actual: Option<Revision>) -> bool {
        match self.expect {
            Expect::Absent => actual.is_none(),
            Expect::Present => actual.is_some(),
            Expect::At(revision) => actual == Some(revision),
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Create or overwrite. A key put without a lease loses the one it had.
    Put {
        /// The key to write.
        key: String,
        /// Its new value.
        value: Bytes,
        /// The lease that will take it away.
        lease: Option<LeaseId>,
    },
    /// Delete; a key that does not exist is no change and no error.
    Delete {
        /// The key to delete.
        key: String,
    },
}

impl Op {
    /// The key this operation touches.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Guards and operations that happen together or not at all.
///
/// ```
/// # use store::Txn;
/// let mut txn = Txn::new();
/// txn.expect_absent("instance/web").put("instance/web", "…").put("name/web", "…");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    pub(crate) guards: Vec<Guard>,
    pub(crate) ops: Vec<Op>,
    pub(crate) durability: Durability,
}

impl Txn {
    /// An empty, durable transaction.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty transaction that need not be on the disk when it is answered.
    #[must_use]
    pub fn relaxed() -> Self {
        Self {
            durability: Durability::Relaxed,
            ..Self::default()
        }
    }

    /// Only if `key` does not exist.
    pub fn expect_absent(&mut self, key: impl Into<String>) -> &mut Self {
        self.expect(key, Expect::Absent)
    }

    /// Only if `key` exists.
    pub fn expect_present(&mut self, key: impl Into<String>) -> &mut Self {
        self.expect(key, Expect::Present)
    }

    /// Only if `key` was last put at `revision`.
    pub fn expect_revision(&mut self, key: impl Into<String>, revision: Revision) -> &mut Self {
        self.expect(key, Expect::At(revision))
    }

    /// Adds a guard.
    pub fn expect(&mut self, key: impl Into<String>, expect: Expect) -> &mut Self {
        self.guards.push(Guard {
            key: key.into(),
            expect,
        });
        self
    }

    /// Creates or overwrites `key`.
    pub fn put(&mut self, key: impl Into<String>, value: impl Into<Bytes>) -> &mut Self {
        self.ops.push(Op::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        });
        self
    }

    /// Creates or overwrites `key`; it disappears with `lease`.
    pub fn put_leased(
        &mut self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        lease: LeaseId,
    ) -> &mut Self {
        self.ops.push(Op::Put {
            key: key.into(),
            value: value.into(),
            lease: Some(lease),
        });
        self
    }

    /// Deletes `key` if it exists.
    pub fn delete(&mut self, key: impl Into<String>) -> &mut Self {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }

    /// Takes over everything `other` asks for. The result is durable if either was.
    pub fn append(&mut self, other: Self) -> &mut Self {
        self.guards.extend(other.guards);
        self.ops.extend(other.ops);
        self.durability = self.durability.max(other.durability);
        self
    }

    /// The conditions, in the order they are checked.
    #[must_use]
    pub fn guards(&self) -> &[Guard] {
        &self.guards
    }

    /// The changes, in the order they are applied.
    #[must_use]
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// When the commit may be answered.
    #[must_use]
    pub const fn durability(&self) -> Durability {
        self.durability
    }

    /// Bytes of keys and values: what [`crate::limits::MAX_TXN_BYTES`] bounds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let guards: usize = self.guards.iter().map(|guard| guard.key.len()).sum();
        let ops: usize = self
            .ops
            .iter()
            .map(|op| match op {
                Op::Put { key, value, .. } => key.len() + value.len(),
                Op::Delete { key } => key.len(),
            })
            .sum();
        guards + ops
    }
}
