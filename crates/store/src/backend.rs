//! What a backend must provide. Callers use [`crate::Store`], never this.
//!
//! A backend may assume that limits were checked. It must never answer a durable commit before
//! the disk has it, show a transaction in part, or reuse a revision.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::error::{CommitError, LeaseError, ReadError, WatchError};
use crate::record::{LeaseId, Page, Range, Record, Revision};
use crate::txn::Txn;
use crate::watch::Watcher;

/// A boxed future, so that backends stay usable behind a pointer.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A store of revisioned keys. See the crate's documentation for the contract and
/// [`crate::conformance`] for its proof.
///
/// Dropping the future of a write does not take the write back.
pub trait Backend: Send + Sync + 'static {
    /// Carries out a transaction, or names the first guard that fails. The answer is the revision
    /// of the commit; the current one when nothing changed.
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, CommitError>>;

    /// The present record of a key.
    fn get(&self, key: String) -> BoxFuture<'_, Result<Option<Record>, ReadError>>;

    /// One page of a range.
    fn range(&self, range: Range) -> BoxFuture<'_, Result<Page, ReadError>>;

    /// Every change under `prefix` after `from`.
    fn watch(&self, prefix: String, from: Revision) -> Result<Watcher, WatchError>;

    /// The newest visible revision.
    fn revision(&self) -> Result<Revision, ReadError>;

    /// Forgets history up to and including `through`; the present state is never touched.
    /// Revisions newer than the newest count as the newest.
    fn compact(&self, through: Revision);

    /// A new lease. Not yet durable; the first durable commit that uses it is.
    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, LeaseError>>;

    /// Starts the lease's time anew.
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), LeaseError>>;

    /// Ends the lease now: its keys are deleted in one durable transaction.
    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), LeaseError>>;
}
