//! The threads that read. Each has its own connection, hence its own snapshot: WAL readers wait
//! for no writer and no writer waits for them.
//!
//! A reader may see a commit a moment before it is published; it waits for the publication before
//! it answers, so that a watch from the answer's revision always fits.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row};
use tokio::sync::oneshot;

use crate::error::{BackendFault, ReadError};
use crate::history::History;
use crate::limits::MAX_PAGE_BYTES;
use crate::record::{LeaseId, Page, Range, Record, Revision};

/// A long listing must not hold up a point read; more than two buy nothing on a page cache.
pub(super) const THREADS: usize = 2;

/// Something to read.
pub(super) enum Job {
    Get {
        key: String,
        reply: oneshot::Sender<Result<Option<Record>, ReadError>>,
    },
    Range {
        range: Range,
        reply: oneshot::Sender<Result<Page, ReadError>>,
    },
}

/// The readers' end of the queue.
pub(super) type Queue = Arc<Mutex<Receiver<Job>>>;

/// A queue the threads share.
pub(super) fn queue() -> (Sender<Job>, Queue) {
    let (sender, receiver) = mpsc::channel();
    (sender, Arc::new(Mutex::new(receiver)))
}

/// Starts a thread that lives until the queue is closed and empty.
pub(super) fn start(
    connection: Connection,
    queue: Queue,
    history: Arc<History>,
) -> std::io::Result<JoinHandle<()>> {
    let reader = Reader {
        connection,
        history,
    };
    Builder::new().name("store-read".to_owned()).spawn(move || {
        loop {
            let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            match job {
                // Nobody waits any more if a reply cannot be sent.
                Ok(Job::Get { key, reply }) => drop(reply.send(reader.get(&key))),
                Ok(Job::Range { range, reply }) => drop(reply.send(reader.range(&range))),
                Err(_) => return,
            }
        }
    })
}

struct Reader {
    connection: Connection,
    history: Arc<History>,
}

fn fault(source: rusqlite::Error) -> BackendFault {
    BackendFault::new("reading the database", source)
}

/// Columns: key, value, created, modified, lease.
pub(super) fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record {
        key: row.get(0)?,
        value: Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?),
        created: Revision(row.get(2)?),
        modified: Revision(row.get(3)?),
        lease: row.get::<_, Option<u64>>(4)?.map(LeaseId),
    })
}

impl Reader {
    fn get(&self, key: &str) -> Result<Option<Record>, ReadError> {
        let sql = "SELECT key, value, created, modified, lease FROM kv WHERE key = ?1";
        let mut statement = self.connection.prepare_cached(sql).map_err(fault)?;
        let found = statement
            .query_row([key], record)
            .optional()
            .map_err(fault)?;
        if let Some(record) = &found {
            self.history.wait_for(record.modified);
        }
        Ok(found)
    }

    fn range(&self, range: &Range) -> Result<Page, ReadError> {
        // One read transaction: the revision and the rows are of the same snapshot.
        let snapshot = self.connection.unchecked_transaction().map_err(fault)?;
        let mut revision = snapshot
            .prepare_cached("SELECT revision FROM meta")
            .map_err(fault)?;
        let seen = revision
            .query_row([], |row| Ok(Revision(row.get(0)?)))
            .map_err(fault)?;
        self.history.wait_for(seen);
        let Some(at) = range.at else {
            let mut page = self.scan(range, range.limit)?;
            page.revision = seen;
            return Ok(page);
        };
        let mut before = self.history.rewind(at, seen)?;
        before.retain(|key, _| {
            key.starts_with(&range.prefix) && range.after.as_ref().is_none_or(|after| key > after)
        });
        // As many more as the past may take away again.
        let present = self.scan(range, range.limit.saturating_add(before.len()))?;
        Ok(rewound(present, before, at, range.limit))
    }

    /// The present state of the range, without its revision.
    fn scan(&self, range: &Range, limit: usize) -> Result<Page, ReadError> {
        let sql =
            "SELECT key, value, created, modified, lease FROM kv WHERE key >= ?1 ORDER BY key";
        let mut statement = self.connection.prepare_cached(sql).map_err(fault)?;
        let mut rows = statement.query([range.lower()]).map_err(fault)?;
        let mut page = Page {
            records: Vec::new(),
            revision: Revision::ZERO,
            more: None,
        };
        let mut bytes = 0;
        while let Some(row) = rows.next().map_err(fault)? {
            let key = row.get_ref(0).map_err(fault)?;
            if !key
                .as_bytes()
                .is_ok_and(|key| key.starts_with(range.prefix.as_bytes()))
            {
                break;
            }
            let full = page.records.len() >= limit || bytes >= MAX_PAGE_BYTES;
            if full && let Some(last) = page.records.last() {
                page.more = Some(last.key.clone());
                break;
            }
            let record = record(row).map_err(fault)?;
            bytes += record.value.len();
            page.records.push(record);
        }
        Ok(page)
    }
}

/// Lays what keys held before over what they hold now. Of a present that was cut short, only the
/// part up to its last key is known.
fn rewound(
    present: Page,
    mut before: std::collections::BTreeMap<String, Option<Record>>,
    at: Revision,
    limit: usize,
) -> Page {
    let mut more = present.more;
    if let Some(last) = &more {
        before.retain(|key, _| key <= last);
    }
    let mut records = present.records;
    records.retain(|record| !before.contains_key(&record.key));
    records.extend(before.into_values().flatten());
    records.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    if records.len() > limit || (records.len() == limit && more.is_some()) {
        records.truncate(limit);
        more = records.last().map(|record| record.key.clone());
    }
    Page {
        records,
        revision: at,
        more,
    }
}
