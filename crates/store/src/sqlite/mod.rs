//! The store of one host: an SQLite file in WAL mode.
//!
//! ```text
//!  commit ──► queue ──► writer thread ── one SQLite transaction, one fsync for all that waited
//!                            └──► History ──► watchers
//!  get, range ──► queue ──► reader threads, each with its own connection and snapshot
//! ```
//!
//! Durable commits run with `synchronous=FULL` (the WAL is synced before the answer), batches of
//! only relaxed ones with `synchronous=NORMAL` (the WAL is written, its checksums make a torn tail
//! invisible, the next FULL commit or checkpoint syncs it). See <https://www.sqlite.org/wal.html>
//! and <https://www.sqlite.org/pragma.html#pragma_synchronous>.
//!
//! One process at a time, guarded by a lock file. Nobody else may write the database: history and
//! leases live in this process.

mod reader;
mod schema;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::backend::{Backend, BoxFuture};
use crate::error::{CommitError, LeaseError, ReadError, WatchError};
use crate::handle::Store;
use crate::history::{History, HistoryBounds};
use crate::record::{LeaseId, Page, Range, Record, Revision};
use crate::txn::Txn;
use crate::watch::Watcher;

/// How to open a store. The default is right for a daemon.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// How much history watchers and reads at a revision may use.
    pub history: HistoryBounds,
    /// How thoroughly the file is checked before it is trusted.
    pub check: Check,
}

/// How thoroughly a file is checked before it is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Check {
    /// Every page and row (`PRAGMA quick_check`): some milliseconds for ten thousand records.
    #[default]
    Quick,
    /// That, and every index against its table (`PRAGMA integrity_check`).
    Full,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the store {path} is in use by another process; stop the other daemon first")]
    Locked {
        /// The database.
        path: PathBuf,
    },
    /// A file could not be made or opened.
    #[error("the store {path} cannot be opened; check that the directory exists and is writable")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is damaged.
    #[error(
        "the store {path} is damaged ({finding}); move it away, then restore a backup or rebuild \
         it with `berth recover`"
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// The first thing that was wrong.
        finding: String,
    },
    /// The file is an SQLite database of something else.
    #[error("{path} is a database, but not Berth's; give another path")]
    NotOurs {
        /// The database.
        path: PathBuf,
    },
    /// A newer Berth wrote it.
    #[error("the store {path} has format {found}, this Berth knows up to {known}; upgrade Berth")]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// SQLite failed otherwise.
    #[error("the store {path} cannot be opened ({doing})")]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// No thread could be started.
    #[error("the store's threads cannot be started; check the limit of processes")]
    Thread {
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Opens the store at `path`, making it if there is none. Blocks while it checks the file.
///
/// # Errors
/// See [`OpenError`]; nothing is changed on disk by a failed open.
pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Store, OpenError> {
    let path = path.as_ref();
    let opened = schema::open(path, options.check)?;
    let history = Arc::new(History::new(opened.revision, options.history));

    let (reads, read_queue) = reader::queue();
    let mut threads = Vec::new();
    for _ in 0..reader::THREADS {
        let connection = schema::connect(path)?;
        let thread = reader::start(connection, Arc::clone(&read_queue), Arc::clone(&history));
        threads.push(thread.map_err(|source| OpenError::Thread { source })?);
    }
    let (writes, thread) = writer::start(opened, Arc::clone(&history))
        .map_err(|source| OpenError::Thread { source })?;
    threads.push(thread);
    Ok(Store::new(Sqlite {
        writes: Some(writes),
        reads: Some(reads),
        history,
        threads,
    }))
}

/// The handle's side: two queues and the history.
struct Sqlite {
    /// `None` only while dropping.
    writes: Option<Sender<writer::Job>>,
    /// `None` only while dropping.
    reads: Option<Sender<reader::Job>>,
    history: Arc<History>,
    threads: Vec<JoinHandle<()>>,
}

impl Sqlite {
    /// Queues a write and waits for its answer; `None` when the writer is gone.
    async fn write<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> writer::Job) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.writes.as_ref()?.send(job(reply)).ok()?;
        answer.await.ok()
    }

    /// Queues a read and waits for its answer.
    async fn read<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, ReadError>>) -> reader::Job,
    ) -> Result<T, ReadError> {
        let (reply, answer) = oneshot::channel();
        let queue = self.reads.as_ref().ok_or(ReadError::Closed)?;
        queue.send(job(reply)).map_err(|_| ReadError::Closed)?;
        answer.await.unwrap_or(Err(ReadError::Closed))
    }
}

impl Drop for Sqlite {
    /// Lets queued work finish, closes the files and releases the lock, so that whoever opens the
    /// store next finds it free.
    fn drop(&mut self) {
        // The writer last: whoever closes last moves the log into the database.
        self.reads = None;
        let writer = self.threads.pop();
        for reader in self.threads.drain(..) {
            // A thread that panicked has closed its files too.
            drop(reader.join());
        }
        self.writes = None;
        drop(writer.map(JoinHandle::join));
        self.history.close();
    }
}

impl Backend for Sqlite {
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, CommitError>> {
        Box::pin(async move {
            let answer = self.write(|reply| writer::Job::Commit { txn, reply }).await;
            answer.unwrap_or(Err(CommitError::Closed))
        })
    }

    fn get(&self, key: String) -> BoxFuture<'_, Result<Option<Record>, ReadError>> {
        Box::pin(self.read(|reply| reader::Job::Get { key, reply }))
    }

    fn range(&self, range: Range) -> BoxFuture<'_, Result<Page, ReadError>> {
        Box::pin(self.read(|reply| reader::Job::Range { range, reply }))
    }

    fn watch(&self, prefix: String, from: Revision) -> Result<Watcher, WatchError> {
        Watcher::new(Arc::clone(&self.history), prefix, from)
    }

    fn revision(&self) -> Result<Revision, ReadError> {
        Ok(self.history.newest())
    }

    fn compact(&self, through: Revision) {
        self.history.compact(through);
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, LeaseError>> {
        Box::pin(async move {
            let answer = self.write(|reply| writer::Job::Grant { ttl, reply }).await;
            answer.unwrap_or(Err(CommitError::Closed.into()))
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), LeaseError>> {
        Box::pin(async move {
            let answer = self
                .write(|reply| writer::Job::KeepAlive { lease, reply })
                .await;
            answer.unwrap_or(Err(CommitError::Closed.into()))
        })
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), LeaseError>> {
        Box::pin(async move {
            let answer = self
                .write(|reply| writer::Job::Revoke { lease, reply })
                .await;
            answer.unwrap_or(Err(CommitError::Closed.into()))
        })
    }
}
