//! The thread that writes: everything that waits goes into one SQLite transaction and one sync.
//!
//! A guard that fails costs its own transaction only. A failing disk fails the whole batch: when
//! it is full, nothing happened and the next batch is tried; after any other error the writer
//! refuses all further work, because a failed sync leaves the kernel's pages in an unknown state.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OptionalExtension, ffi, params};
use tokio::sync::oneshot;

use super::reader::record;
use super::schema::Opened;
use crate::error::{BackendFault, CommitError, LeaseError};
use crate::history::{History, MAX_UNSYNCED};
use crate::lease::Deadlines;
use crate::record::{Event, LeaseId, Record, Revision};
use crate::txn::{Durability, Op, Txn};

/// Jobs in one batch. A batch also ends at [`BATCH_BYTES`].
const BATCH_JOBS: usize = 256;
/// Bytes of transactions in one batch.
const BATCH_BYTES: usize = 8 << 20;
/// Without work for so long, the WAL is moved into the database.
const IDLE: Duration = Duration::from_millis(500);
/// How often old history is dropped while nothing happens.
const EVICT: Duration = Duration::from_secs(60);

/// Something to write.
pub(super) enum Job {
    Commit {
        txn: Txn,
        reply: oneshot::Sender<Result<Revision, CommitError>>,
    },
    Grant {
        ttl: Duration,
        reply: oneshot::Sender<Result<LeaseId, LeaseError>>,
    },
    KeepAlive {
        lease: LeaseId,
        reply: oneshot::Sender<Result<(), LeaseError>>,
    },
    Revoke {
        lease: LeaseId,
        reply: oneshot::Sender<Result<(), LeaseError>>,
    },
}

impl Job {
    fn durable(&self) -> bool {
        match self {
            Self::Commit { txn, .. } => txn.durability == Durability::Durable,
            Self::Revoke { .. } => true,
            Self::Grant { .. } | Self::KeepAlive { .. } => false,
        }
    }

    fn bytes(&self) -> usize {
        if let Self::Commit { txn, .. } = self {
            txn.bytes()
        } else {
            0
        }
    }
}

/// An answer that is sent once the batch is where it has to be.
enum Answer {
    Commit(
        oneshot::Sender<Result<Revision, CommitError>>,
        Result<Revision, CommitError>,
    ),
    Grant(oneshot::Sender<Result<LeaseId, LeaseError>>, LeaseId),
    Lease(
        oneshot::Sender<Result<(), LeaseError>>,
        Result<(), LeaseError>,
    ),
}

impl Answer {
    /// Sends what was decided, or that the batch failed. Whoever no longer waits misses it.
    fn send(self, failure: Option<&CommitError>) {
        match (self, failure) {
            (Self::Commit(reply, result), None) => drop(reply.send(result)),
            (Self::Grant(reply, lease), None) => drop(reply.send(Ok(lease))),
            (Self::Lease(reply, result), None) => drop(reply.send(result)),
            (Self::Commit(reply, _), Some(error)) => drop(reply.send(Err(error.clone()))),
            (Self::Grant(reply, _), Some(error)) => drop(reply.send(Err(error.clone().into()))),
            (Self::Lease(reply, _), Some(error)) => drop(reply.send(Err(error.clone().into()))),
        }
    }
}

/// What a batch did, to be made known when it is committed.
struct Batch {
    revision: Revision,
    next_lease: u64,
    answers: Vec<Answer>,
    commits: Vec<(Revision, Vec<Event>)>,
    started: Vec<(LeaseId, Duration)>,
    ended: Vec<LeaseId>,
    kept: Vec<LeaseId>,
}

impl Batch {
    fn changed(&self) -> bool {
        !self.commits.is_empty() || !self.started.is_empty() || !self.ended.is_empty()
    }
}

struct Writer {
    connection: Connection,
    history: Arc<History>,
    deadlines: Deadlines,
    revision: Revision,
    next_lease: u64,
    /// Whether the connection syncs at commit now.
    syncing: bool,
    /// The newest revision known to be on the disk.
    synced: Revision,
    /// Whether the WAL holds what the database does not.
    dirty: bool,
    failed: Option<BackendFault>,
}

/// Closes the history when the writer is gone, even by a panic: nobody waits for it then.
struct Last(Arc<History>);

impl Drop for Last {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Starts the thread; it ends when the queue is closed and empty.
pub(super) fn start(
    opened: Opened,
    history: Arc<History>,
) -> std::io::Result<(Sender<Job>, JoinHandle<()>)> {
    let (sender, queue) = mpsc::channel();
    let mut deadlines = Deadlines::default();
    let now = Instant::now();
    for (lease, ttl) in opened.leases {
        deadlines.start(lease, ttl, now);
    }
    let mut writer = Writer {
        connection: opened.connection,
        history,
        deadlines,
        revision: opened.revision,
        next_lease: opened.next_lease,
        syncing: true,
        synced: opened.revision,
        dirty: true,
        failed: None,
    };
    let lock = opened.lock;
    let last = Last(Arc::clone(&writer.history));
    let thread = Builder::new()
        .name("store-write".to_owned())
        .spawn(move || {
            writer.serve(&queue);
            // The files first, then the lock: the next owner finds them closed.
            drop(writer);
            drop(lock);
            drop(last);
        })?;
    Ok((sender, thread))
}

impl Writer {
    fn serve(&mut self, queue: &Receiver<Job>) {
        loop {
            match queue.recv_timeout(self.patience()) {
                Ok(first) => {
                    let jobs = gather(first, queue);
                    self.run(jobs);
                }
                Err(RecvTimeoutError::Timeout) => self.idle(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// How long to wait for work before there is something else to do.
    fn patience(&self) -> Duration {
        let rest = if self.dirty { IDLE } else { EVICT };
        let next = self.deadlines.next().filter(|_| self.failed.is_none());
        next.map_or(rest, |next| {
            rest.min(next.saturating_duration_since(Instant::now()))
        })
    }

    fn idle(&mut self) {
        if self.failed.is_some() {
            self.dirty = false;
        } else if !self.deadlines.expired(Instant::now()).is_empty() {
            self.run(Vec::new());
        } else if self.dirty {
            self.checkpoint();
        }
        self.history.evict();
    }

    /// Moves the WAL into the database, which also syncs both.
    fn checkpoint(&mut self) {
        let sql = "PRAGMA wal_checkpoint(PASSIVE)";
        let columns = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        match self
            .connection
            .query_row::<(i64, i64, i64), _, _>(sql, [], columns)
        {
            Ok((0, frames, moved)) if frames == moved => {
                self.synced = self.revision;
                self.dirty = false;
            }
            // A reader was in the way: again when idle next time.
            Ok(_) => {}
            Err(error) => drop(self.fail(error)),
        }
    }

    fn run(&mut self, jobs: Vec<Job>) {
        if let Some(fault) = &self.failed {
            let error = CommitError::Failed(fault.clone());
            jobs.into_iter()
                .for_each(|job| unable(job).send(Some(&error)));
            return;
        }
        let mut batch = Batch {
            revision: self.revision,
            next_lease: self.next_lease,
            answers: Vec::with_capacity(jobs.len()),
            commits: Vec::with_capacity(jobs.len()),
            started: Vec::new(),
            ended: Vec::new(),
            kept: Vec::new(),
        };
        let failure = match self.transact(jobs, &mut batch) {
            Ok(()) => {
                self.settle(&mut batch);
                None
            }
            Err(error) => Some(self.fail(error)),
        };
        batch
            .answers
            .into_iter()
            .for_each(|answer| answer.send(failure.as_ref()));
    }

    /// Everything in one SQLite transaction. Jobs are always moved into the batch's answers.
    fn transact(&mut self, jobs: Vec<Job>, batch: &mut Batch) -> rusqlite::Result<()> {
        let expired = self.deadlines.expired(Instant::now());
        let unsynced = self.revision.0 - self.synced.0 + jobs.len() as u64 + 1;
        let durable =
            unsynced >= MAX_UNSYNCED || !expired.is_empty() || jobs.iter().any(Job::durable);
        let begun = self.begin(durable);
        let mut outcome = begun;
        if outcome.is_ok() && !expired.is_empty() {
            outcome = self.end_leases(&expired, batch).map(drop);
        }
        for job in jobs {
            if outcome.is_ok() {
                outcome = self.perform(job, batch);
            } else {
                batch.answers.push(unable(job));
            }
        }
        outcome = outcome.and_then(|()| self.finish(batch, durable));
        if outcome.is_err() && !self.connection.is_autocommit() {
            // The error that is reported is the first one.
            drop(self.connection.execute_batch("ROLLBACK"));
        }
        outcome
    }

    fn begin(&mut self, durable: bool) -> rusqlite::Result<()> {
        if self.syncing != durable {
            let level = if durable { "FULL" } else { "NORMAL" };
            self.connection.pragma_update(None, "synchronous", level)?;
            self.syncing = durable;
        }
        self.connection
            .prepare_cached("BEGIN IMMEDIATE")?
            .execute([])?;
        Ok(())
    }

    fn finish(&mut self, batch: &Batch, durable: bool) -> rusqlite::Result<()> {
        if !batch.changed() {
            self.connection.prepare_cached("ROLLBACK")?.execute([])?;
            return Ok(());
        }
        self.connection
            .prepare_cached("UPDATE meta SET revision = ?1, next_lease = ?2")?
            .execute(params![batch.revision.0, batch.next_lease])?;
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        self.dirty = true;
        if durable {
            self.synced = batch.revision;
        }
        Ok(())
    }

    /// The batch is committed: make it known.
    fn settle(&mut self, batch: &mut Batch) {
        let now = Instant::now();
        self.revision = batch.revision;
        self.next_lease = batch.next_lease;
        for (lease, ttl) in batch.started.drain(..) {
            self.deadlines.start(lease, ttl, now);
        }
        for lease in batch.kept.drain(..) {
            self.deadlines.keep(lease, now);
        }
        for lease in batch.ended.drain(..) {
            self.deadlines.end(lease);
        }
        if !batch.commits.is_empty() {
            self.history.publish(batch.commits.drain(..));
        }
    }

    /// What a failed batch means for its callers, and for everybody after them.
    fn fail(&mut self, error: rusqlite::Error) -> CommitError {
        let extended = error.sqlite_error().map(|error| error.extended_code);
        let full = error.sqlite_error_code() == Some(ErrorCode::DiskFull)
            || extended == Some(ffi::SQLITE_IOERR_SHMSIZE);
        if full {
            return CommitError::Full;
        }
        let fault = BackendFault::new("writing the database", error);
        self.failed = Some(fault.clone());
        CommitError::Failed(fault)
    }

    fn perform(&mut self, job: Job, batch: &mut Batch) -> rusqlite::Result<()> {
        match job {
            Job::Commit { txn, reply } => {
                let result = self.commit(&txn, batch);
                let (answer, outcome) = match result {
                    Ok(answer) => (answer, Ok(())),
                    Err(error) => (Err(CommitError::Closed), Err(error)),
                };
                batch.answers.push(Answer::Commit(reply, answer));
                outcome
            }
            Job::Grant { ttl, reply } => {
                let lease = LeaseId(batch.next_lease);
                batch.next_lease += 1;
                batch.answers.push(Answer::Grant(reply, lease));
                batch.started.push((lease, ttl));
                let millis = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
                self.connection
                    .prepare_cached("INSERT INTO lease (id, ttl_ms) VALUES (?1, ?2)")?
                    .execute(params![lease.0, millis])
                    .map(drop)
            }
            Job::KeepAlive { lease, reply } => {
                let alive = self.lease_exists(lease);
                let found = *alive.as_ref().unwrap_or(&false);
                let result = if found {
                    Ok(())
                } else {
                    Err(LeaseError::NotFound { lease })
                };
                batch.kept.extend(found.then_some(lease));
                batch.answers.push(Answer::Lease(reply, result));
                alive.map(drop)
            }
            Job::Revoke { lease, reply } => {
                let ended = self.end_leases(&[lease], batch);
                let found = *ended.as_ref().unwrap_or(&false);
                let result = if found {
                    Ok(())
                } else {
                    Err(LeaseError::NotFound { lease })
                };
                batch.answers.push(Answer::Lease(reply, result));
                ended.map(drop)
            }
        }
    }

    fn commit(
        &self,
        txn: &Txn,
        batch: &mut Batch,
    ) -> rusqlite::Result<Result<Revision, CommitError>> {
        for guard in &txn.guards {
            let actual = self
                .connection
                .prepare_cached("SELECT modified FROM kv WHERE key = ?1")?
                .query_row([&guard.key], |row| Ok(Revision(row.get(0)?)))
                .optional()?;
            if !guard.holds(actual) {
                let (key, expect) = (guard.key.clone(), guard.expect);
                return Ok(Err(CommitError::Conflict {
                    key,
                    expect,
                    actual,
                }));
            }
        }
        for op in &txn.ops {
            if let Op::Put {
                lease: Some(lease), ..
            } = op
                && !self.lease_exists(*lease)?
            {
                return Ok(Err(CommitError::LeaseNotFound { lease: *lease }));
            }
        }
        let revision = batch.revision.next();
        let mut events = Vec::with_capacity(txn.ops.len());
        for op in &txn.ops {
            events.extend(self.apply(op, revision)?);
        }
        if !events.is_empty() {
            batch.revision = revision;
            batch.commits.push((revision, events));
        }
        Ok(Ok(batch.revision))
    }

    fn apply(&self, op: &Op, revision: Revision) -> rusqlite::Result<Option<Event>> {
        let previous = self
            .connection
            .prepare_cached("SELECT key, value, created, modified, lease FROM kv WHERE key = ?1")?
            .query_row([op.key()], record)
            .optional()?;
        let record = match op {
            Op::Put { key, value, lease } => {
                let created = previous.as_ref().map_or(revision, |record| record.created);
                self.connection
                    .prepare_cached(
                        "INSERT INTO kv (key, value, created, modified, lease)
                         VALUES (?1, ?2, ?3, ?4, ?5)
                         ON CONFLICT (key) DO UPDATE SET value = excluded.value,
                             modified = excluded.modified, lease = excluded.lease",
                    )?
                    .execute(params![
                        key,
                        &value[..],
                        created.0,
                        revision.0,
                        lease.map(|lease| lease.0)
                    ])?;
                let (key, value) = (key.clone(), value.clone());
                Some(Record {
                    key,
                    value,
                    created,
                    modified: revision,
                    lease: *lease,
                })
            }
            Op::Delete { .. } if previous.is_none() => return Ok(None),
            Op::Delete { key } => {
                self.connection
                    .prepare_cached("DELETE FROM kv WHERE key = ?1")?
                    .execute([key])?;
                None
            }
        };
        Ok(Some(Event {
            key: op.key().to_owned(),
            revision,
            record,
            previous,
        }))
    }

    fn lease_exists(&self, lease: LeaseId) -> rusqlite::Result<bool> {
        self.connection
            .prepare_cached("SELECT 1 FROM lease WHERE id = ?1")?
            .exists([lease.0])
    }

    /// Deletes leases and all keys attached to them as one commit; false when none existed.
    fn end_leases(&self, leases: &[LeaseId], batch: &mut Batch) -> rusqlite::Result<bool> {
        let revision = batch.revision.next();
        let mut events = Vec::new();
        let mut found = false;
        for lease in leases {
            let sql = "DELETE FROM lease WHERE id = ?1";
            if self.connection.prepare_cached(sql)?.execute([lease.0])? == 0 {
                continue;
            }
            found = true;
            batch.ended.push(*lease);
            let sql = "DELETE FROM kv WHERE lease = ?1
                       RETURNING key, value, created, modified, lease";
            let mut statement = self.connection.prepare_cached(sql)?;
            for previous in statement.query_map([lease.0], record)? {
                let previous = previous?;
                let key = previous.key.clone();
                events.push(Event {
                    key,
                    revision,
                    record: None,
                    previous: Some(previous),
                });
            }
        }
        if !events.is_empty() {
            events.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            batch.revision = revision;
            batch.commits.push((revision, events));
        }
        Ok(found)
    }
}

/// Everything that waits already, up to the bounds of a batch.
fn gather(first: Job, queue: &Receiver<Job>) -> Vec<Job> {
    let mut bytes = first.bytes();
    let mut jobs = vec![first];
    while jobs.len() < BATCH_JOBS && bytes < BATCH_BYTES {
        let Ok(job) = queue.try_recv() else { break };
        bytes += job.bytes();
        jobs.push(job);
    }
    jobs
}

/// The answer of a job that was not carried out; only ever sent as a failure.
fn unable(job: Job) -> Answer {
    match job {
        Job::Commit { reply, .. } => Answer::Commit(reply, Err(CommitError::Closed)),
        Job::Grant { reply, .. } => Answer::Grant(reply, LeaseId(0)),
        Job::KeepAlive { reply, .. } | Job::Revoke { reply, .. } => {
            Answer::Lease(reply, Err(CommitError::Closed.into()))
        }
    }
}
