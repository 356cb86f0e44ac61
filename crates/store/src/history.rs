//! The recent past: a bounded ring of commits that watchers and reads at a revision share.
//!
//! There is one per open store, in memory. Nothing is queued per watcher: a watcher is a cursor
//! into the ring, so a slow one costs nothing and, once the ring has moved past it, is told so.
//! After a restart the ring starts empty, which is an honest *compacted* to whoever asks for more.
//!
//! Backends publish here after a commit is visible (and, if durable, on the disk) and before it
//! is answered. Never published: what may still be rolled back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::error::{ReadError, WatchError};
use crate::record::{Event, Record, Revision};

/// The most revisions that may be visible without being on the disk.
pub(crate) const MAX_UNSYNCED: u64 = 1024;

/// How far revisions jump when a store is opened. More than a power cut can take back, so that a
/// revision somebody saw before is never used for another change.
pub(crate) const RESTART_GAP: u64 = 2 * MAX_UNSYNCED;

/// Events a watcher gets at once, rounded up to whole transactions.
const BATCH_EVENTS: usize = 512;

/// How much history is kept: until the first of these is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryBounds {
    /// Transactions.
    pub commits: usize,
    /// Bytes of keys and values, with some overhead counted for each event.
    pub bytes: usize,
    /// Age.
    pub age: Duration,
}

impl Default for HistoryBounds {
    /// Starting an instance takes about 18 KiB of history, so this is the last hundred starts: time enough
    /// for a watcher in the same process, or one that connects again. It is resident in every busy daemon.
    fn default() -> Self {
        Self {
            commits: 10_000,
            bytes: 2 << 20,
            age: Duration::from_secs(600),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct History {
    bounds: HistoryBounds,
    ring: Mutex<Ring>,
    published: Condvar,
    wake: watch::Sender<Revision>,
}

#[derive(Debug)]
struct Ring {
    commits: VecDeque<Commit>,
    /// A watch may start here, a read may look here; not before.
    oldest: Revision,
    newest: Revision,
    bytes: usize,
    closed: bool,
}

#[derive(Debug)]
struct Commit {
    revision: Revision,
    at: Instant,
    bytes: usize,
    events: Vec<Event>,
}

impl History {
    /// An empty history that starts at `revision`.
    pub(crate) fn new(revision: Revision, bounds: HistoryBounds) -> Self {
        let ring = Ring {
            commits: VecDeque::new(),
            oldest: revision,
            newest: revision,
            bytes: 0,
            closed: false,
        };
        Self {
            bounds,
            ring: Mutex::new(ring),
            published: Condvar::new(),
            wake: watch::Sender::new(revision),
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Nothing panics while holding the lock half-way through a change.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends commits, oldest first, and wakes whoever waits for them.
    pub(crate) fn publish(&self, commits: impl IntoIterator<Item = (Revision, Vec<Event>)>) {
        let mut ring = self.ring();
        let now = Instant::now();
        for (revision, events) in commits {
            let bytes = events.iter().map(Event::weight).sum();
            ring.newest = revision;
            ring.bytes += bytes;
            ring.commits.push_back(Commit {
                revision,
                at: now,
                bytes,
                events,
            });
        }
        ring.evict(&self.bounds, now);
        let newest = ring.newest;
        drop(ring);
        self.published.notify_all();
        self.wake.send_replace(newest);
    }

    /// Forgets what has grown too old while nothing was written.
    pub(crate) fn evict(&self) {
        self.ring().evict(&self.bounds, Instant::now());
    }

    /// Forgets history up to and including `through`.
    pub(crate) fn compact(&self, through: Revision) {
        let mut ring = self.ring();
        let through = through.min(ring.newest);
        while ring
            .commits
            .front()
            .is_some_and(|commit| commit.revision <= through)
        {
            ring.drop_front();
        }
        ring.oldest = ring.oldest.max(through);
        drop(ring);
        // A watcher asleep behind `through` has seen everything: only waking tells it nothing new.
    }

    /// Ends every watch.
    pub(crate) fn close(&self) {
        let mut ring = self.ring();
        ring.closed = true;
        let newest = ring.newest;
        drop(ring);
        self.published.notify_all();
        self.wake.send_replace(newest);
    }

    /// The newest published revision.
    pub(crate) fn newest(&self) -> Revision {
        self.ring().newest
    }

    /// A receiver that changes with every publication.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Revision> {
        self.wake.subscribe()
    }

    /// Waits until `revision` is published: a reader may see a commit a moment before that.
    pub(crate) fn wait_for(&self, revision: Revision) {
        let ring = self.ring();
        drop(
            self.published
                .wait_while(ring, |ring| ring.newest < revision && !ring.closed)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Events under `prefix` after `from`, at most a batch, and the revision they reach.
    pub(crate) fn after(
        &self,
        from: Revision,
        prefix: &str,
    ) -> Result<(Vec<Event>, Revision), WatchError> {
        let ring = self.ring();
        if from < ring.oldest || from > ring.newest {
            return Err(WatchError::Compacted {
                from,
                oldest: ring.oldest,
            });
        }
        let start = ring
            .commits
            .partition_point(|commit| commit.revision <= from);
        let mut events = Vec::new();
        for commit in ring.commits.range(start..) {
            events.extend(
                commit
                    .events
                    .iter()
                    .filter(|e| e.key.starts_with(prefix))
                    .cloned(),
            );
            if events.len() >= BATCH_EVENTS {
                return Ok((events, commit.revision));
            }
        }
        if events.is_empty() && ring.closed {
            return Err(WatchError::Closed);
        }
        Ok((events, ring.newest))
    }

    /// What the keys changed after `at` and up to `seen` held at `at`: laid over the state at
    /// `seen`, it gives the state at `at`.
    pub(crate) fn rewind(
        &self,
        at: Revision,
        seen: Revision,
    ) -> Result<BTreeMap<String, Option<Record>>, ReadError> {
        let ring = self.ring();
        if at > ring.newest {
            return Err(ReadError::Future {
                at,
                newest: ring.newest,
            });
        }
        if at < ring.oldest {
            return Err(ReadError::Compacted {
                at,
                oldest: ring.oldest,
            });
        }
        let start = ring.commits.partition_point(|commit| commit.revision <= at);
        let mut before = BTreeMap::new();
        for commit in ring
            .commits
            .range(start..)
            .take_while(|commit| commit.revision <= seen)
        {
            for event in &commit.events {
                // The first change after `at` displaced what `at` had.
                before
                    .entry(event.key.clone())
                    .or_insert_with(|| event.previous.clone());
            }
        }
        Ok(before)
    }
}

impl Ring {
    fn drop_front(&mut self) {
        if let Some(commit) = self.commits.pop_front() {
            self.bytes -= commit.bytes;
            self.oldest = commit.revision;
        }
    }

    fn evict(&mut self, bounds: &HistoryBounds, now: Instant) {
        while let Some(front) = self.commits.front() {
            let too_much = self.commits.len() > bounds.commits || self.bytes > bounds.bytes;
            if !too_much && now.duration_since(front.at) <= bounds.age {
                break;
            }
            self.drop_front();
        }
    }
}
