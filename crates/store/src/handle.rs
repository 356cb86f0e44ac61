//! [`Store`]: the handle everybody holds. Checks limits, then asks the backend.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::Backend;
use crate::error::{CommitError, LeaseError, ReadError, WatchError};
use crate::limits;
use crate::record::{LeaseId, Page, Range, Record, Revision};
use crate::txn::Txn;
use crate::watch::Watcher;

/// A store, whatever its backend. Cheap to clone; closed when the last clone is dropped.
///
/// Works on any executor. Dropping the future of a write does not take the write back.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn Backend>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// A handle on a backend.
    pub fn new(backend: impl Backend) -> Self {
        Self {
            backend: Arc::new(backend),
        }
    }

    /// Commits a transaction: all of it, or nothing and an error naming the first failed guard.
    /// The answer is the revision of the commit, the current one when nothing changed.
    ///
    /// # Errors
    /// See [`CommitError`]; only `Failed` and `Closed` leave the outcome open.
    pub async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        limits::check_txn(&txn)?;
        self.backend.commit(txn).await
    }

    /// The present record of a key.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn get(&self, key: impl Into<String>) -> Result<Option<Record>, ReadError> {
        let key = key.into();
        limits::check_key(&key)?;
        self.backend.get(key).await
    }

    /// One page of a range.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn range(&self, range: Range) -> Result<Page, ReadError> {
        limits::check_range(&range)?;
        self.backend.range(range).await
    }

    /// Every record under a prefix, all at one revision, however many pages it takes.
    ///
    /// # Errors
    /// See [`ReadError`]; a listing so long that history moved on under it starts again.
    pub async fn list(&self, prefix: &str) -> Result<Page, ReadError> {
        loop {
            let mut whole = self.range(Range::prefix(prefix)).await?;
            loop {
                let Some(after) = whole.more.take() else {
                    return Ok(whole);
                };
                let next = Range::prefix(prefix).after(after).at(whole.revision);
                match self.range(next).await {
                    Ok(page) => {
                        whole.records.extend(page.records);
                        whole.more = page.more;
                    }
                    Err(ReadError::Compacted { .. }) => break,
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Every change under `prefix` after `from` (as a listing's [`Page::revision`] gives it).
    ///
    /// # Errors
    /// [`WatchError::Compacted`] when those changes are no longer kept: list again.
    pub fn watch(&self, prefix: impl Into<String>, from: Revision) -> Result<Watcher, WatchError> {
        let prefix = prefix.into();
        if !prefix.is_empty() {
            limits::check_key(&prefix)?;
        }
        self.backend.watch(prefix, from)
    }

    /// The newest visible revision.
    ///
    /// # Errors
    /// When the store is closed.
    pub fn revision(&self) -> Result<Revision, ReadError> {
        self.backend.revision()
    }

    /// Forgets history up to and including `through`; the present state is never touched.
    pub fn compact(&self, through: Revision) {
        self.backend.compact(through);
    }

    /// A new lease that ends `ttl` after its last [`Store::keep_alive`], or when revoked. After a
    /// restart of the store every lease starts its time anew.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub async fn grant(&self, ttl: Duration) -> Result<LeaseId, LeaseError> {
        self.backend.grant(ttl).await
    }

    /// Starts the lease's time anew.
    ///
    /// # Errors
    /// [`LeaseError::NotFound`] when it has ended.
    pub async fn keep_alive(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.backend.keep_alive(lease).await
    }

    /// Ends the lease now: its keys are deleted in one durable transaction.
    ///
    /// # Errors
    /// [`LeaseError::NotFound`] when it has ended already.
    pub async fn revoke(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.backend.revoke(lease).await
    }
}
