//! What Berth remembers: revisioned keys, compare-and-set transactions, watches and leases.
//!
//! ```text
//!  control, node, workflow
//!        │  Table<T> builds operations and decodes records (versioned JSON)
//!        ▼
//!      Store ── limits are checked here, once, for every backend
//!        │
//!        ▼
//!  Backend ── sqlite: one writer thread (group commit), readers that never wait for it
//!         └─ memory: the same contract with crash points, for tests
//! ```
//!
//! The contract, which [`conformance`] runs against every backend:
//!
//! - A [`Txn`] is a list of guards and a list of operations. Either every guard holds and every
//!   operation is applied at one new [`Revision`], or nothing happens and the first guard that
//!   failed is named.
//! - Revisions only grow, also across restarts and lost power; none is ever used twice.
//! - A [`Durability::Durable`] commit is on the disk before it is answered, together with every
//!   commit answered before it. A [`Durability::Relaxed`] one is visible at once, may be lost by a
//!   power cut, and is never half there.
//! - A [`Watcher`] sees every change after its revision, in order, a transaction never split; or
//!   it is told [`WatchError::Compacted`] and must list again. It is never silently behind.
//!
//! The store knows nothing of instances, and holds nothing large or fast-changing (metrics, logs,
//! memory). Its limits are etcd's, so what works on one host works on a thousand.

#![forbid(unsafe_code)]

mod backend;
pub mod conformance;
pub mod crash;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod history;
mod lease;
pub mod limits;
pub mod memory;
mod record;
pub mod sqlite;
mod table;
mod txn;
mod watch;

pub use backend::{Backend, BoxFuture};
pub use error::{BackendFault, CommitError, LeaseError, LimitError, ReadError, WatchError};
pub use handle::Store;
pub use history::HistoryBounds;
pub use record::{Event, LeaseId, Page, Range, Record, Revision};
pub use table::{Entry, Listing, Table, TableChange, TableError, Upgrade};
pub use txn::{Durability, Expect, Guard, Op, Txn};
pub use watch::{Batch, Watcher};
