//! A store in memory that can crash, for tests.
//!
//! [`Memory`] is the machine: it holds what is on the "disk" and outlives the handles it gives.
//! A [`Hook`] is asked at every durable point whether to crash there; after a crash every handle
//! answers `Closed`, and [`Memory::restart`] gives a new one over what survived. Written without
//! sharing code with the SQLite backend beyond the history, so that each checks the other.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::backend::{Backend, BoxFuture};
use crate::error::{CommitError, LeaseError, ReadError, WatchError};
use crate::handle::Store;
use crate::history::{History, HistoryBounds, MAX_UNSYNCED, RESTART_GAP};
use crate::lease::Deadlines;
use crate::limits::MAX_PAGE_BYTES;
use crate::record::{Event, LeaseId, Page, Range, Record, Revision};
use crate::txn::{Durability, Op, Txn};
use crate::watch::Watcher;

/// Where a crash can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Point {
    /// The transaction was asked for and nothing of it is kept.
    BeforeCommit,
    /// The transaction is committed and nobody has heard of it.
    AfterCommit,
}

/// What dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Crash {
    /// The process: every commit stays.
    Process,
    /// The machine: relaxed commits since the last durable one are lost.
    Power,
}

/// Asked at each point of each commit that would change something; `Some` crashes there.
pub type Hook = Box<dyn FnMut(Point, &Txn) -> Option<Crash> + Send>;

/// The machine under an in-memory store. Clones are the same machine.
#[derive(Clone)]
pub struct Memory {
    world: Arc<Mutex<World>>,
}

struct World {
    records: BTreeMap<String, Record>,
    revision: Revision,
    /// Changes a power cut takes back, oldest first.
    unsynced: Vec<Event>,
    synced: Revision,
    deadlines: Deadlines,
    next_lease: u64,
    /// Whether the thread that ends leases runs.
    reaping: bool,
    bounds: HistoryBounds,
    /// Told apart by identity: the handles of a crashed store hold another one.
    history: Arc<History>,
    alive: bool,
    hook: Option<Hook>,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let world = self.lock();
        f.debug_struct("Memory")
            .field("records", &world.records.len())
            .field("revision", &world.revision)
            .field("alive", &world.alive)
            .finish_non_exhaustive()
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty store, running.
    #[must_use]
    pub fn new() -> Self {
        Self::with_history(HistoryBounds::default())
    }

    /// An empty store that keeps this much history.
    #[must_use]
    pub fn with_history(bounds: HistoryBounds) -> Self {
        let world = World {
            records: BTreeMap::new(),
            revision: Revision::ZERO,
            unsynced: Vec::new(),
            synced: Revision::ZERO,
            deadlines: Deadlines::default(),
            next_lease: 1,
            reaping: false,
            bounds,
            history: Arc::new(History::new(Revision::ZERO, bounds)),
            alive: true,
            hook: None,
        };
        Self {
            world: Arc::new(Mutex::new(world)),
        }
    }

    /// A handle on the running store.
    #[must_use]
    pub fn store(&self) -> Store {
        let history = Arc::clone(&self.lock().history);
        Store::new(MemoryBackend {
            memory: self.clone(),
            history,
        })
    }

    /// Asks `hook` at every durable point from now on, also after a restart.
    pub fn set_hook(&self, hook: Hook) {
        self.lock().hook = Some(hook);
    }

    /// No more planned crashes.
    pub fn clear_hook(&self) {
        self.lock().hook = None;
    }

    /// Crashes now. Every handle answers `Closed` from here on.
    pub fn crash(&self, crash: Crash) {
        self.lock().crash(crash);
    }

    /// Whether the store has crashed and was not restarted.
    #[must_use]
    pub fn crashed(&self) -> bool {
        !self.lock().alive
    }

    /// Starts anew over what survived; a store that still runs is closed in good order first.
    #[must_use]
    pub fn restart(&self) -> Store {
        let mut world = self.lock();
        world.history.close();
        world.revision = Revision(world.revision.0 + RESTART_GAP);
        world.synced = world.revision;
        world.unsynced.clear();
        world.deadlines.keep_all(Instant::now());
        world.history = Arc::new(History::new(world.revision, world.bounds));
        world.alive = true;
        drop(world);
        self.store()
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends leases in the background, as long as there are any.
    fn reap(&self) {
        let weak = Arc::downgrade(&self.world);
        thread::spawn(move || {
            while let Some(world) = weak.upgrade() {
                let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
                if world.alive {
                    world.expire(Instant::now());
                }
                if world.deadlines.next().is_none() {
                    world.reaping = false;
                    return;
                }
                drop(world);
                thread::sleep(Duration::from_millis(10));
            }
        });
    }
}

impl World {
    fn crash(&mut self, crash: Crash) {
        if !self.alive {
            return;
        }
        self.alive = false;
        self.history.close();
        if crash == Crash::Power {
            while let Some(event) = self.unsynced.pop() {
                match event.previous {
                    Some(record) => self.records.insert(event.key, record),
                    None => self.records.remove(&event.key),
                };
            }
            self.revision = self.synced;
        }
    }

    /// Whether the hook let this point pass.
    fn passes(&mut self, point: Point, txn: &Txn) -> Result<(), CommitError> {
        match self.hook.as_mut().and_then(|hook| hook(point, txn)) {
            Some(crash) => {
                self.crash(crash);
                Err(CommitError::Closed)
            }
            None => Ok(()),
        }
    }

    fn commit(&mut self, txn: &Txn) -> Result<Revision, CommitError> {
        for guard in &txn.guards {
            let actual = self.records.get(&guard.key).map(|record| record.modified);
            if !guard.holds(actual) {
                let (key, expect) = (guard.key.clone(), guard.expect);
                return Err(CommitError::Conflict {
                    key,
                    expect,
                    actual,
                });
            }
        }
        for op in &txn.ops {
            if let Op::Put {
                lease: Some(lease), ..
            } = op
                && !self.deadlines.alive(*lease)
            {
                return Err(CommitError::LeaseNotFound { lease: *lease });
            }
        }
        let revision = self.revision.next();
        let events = self.events(txn, revision);
        if events.is_empty() {
            return Ok(self.revision);
        }
        self.passes(Point::BeforeCommit, txn)?;
        self.apply(revision, events, txn.durability);
        self.passes(Point::AfterCommit, txn)?;
        Ok(revision)
    }

    /// What the operations would change.
    fn events(&self, txn: &Txn, revision: Revision) -> Vec<Event> {
        let mut events = Vec::with_capacity(txn.ops.len());
        for op in &txn.ops {
            let previous = self.records.get(op.key()).cloned();
            let record = match op {
                Op::Put { key, value, lease } => Some(Record {
                    key: key.clone(),
                    value: value.clone(),
                    created: previous.as_ref().map_or(revision, |record| record.created),
                    modified: revision,
                    lease: *lease,
                }),
                Op::Delete { .. } if previous.is_none() => continue,
                Op::Delete { .. } => None,
            };
            events.push(Event {
                key: op.key().to_owned(),
                revision,
                record,
                previous,
            });
        }
        events
    }

    fn apply(&mut self, revision: Revision, events: Vec<Event>, durability: Durability) {
        for event in &events {
            match &event.record {
                Some(record) => self.records.insert(event.key.clone(), record.clone()),
                None => self.records.remove(&event.key),
            };
        }
        self.revision = revision;
        if durability == Durability::Durable || revision.0 - self.synced.0 >= MAX_UNSYNCED {
            self.unsynced.clear();
            self.synced = revision;
        } else {
            self.unsynced.extend(events.iter().cloned());
        }
        self.history.publish([(revision, events)]);
    }

    /// Deletes the keys of leases in one transaction.
    fn end_leases(&mut self, leases: &[LeaseId]) {
        for lease in leases {
            self.deadlines.end(*lease);
        }
        let revision = self.revision.next();
        let attached = |record: &&Record| record.lease.is_some_and(|lease| leases.contains(&lease));
        let gone: Vec<_> = self.records.values().filter(attached).cloned().collect();
        let gone = gone.into_iter().map(|previous| Event {
            key: previous.key.clone(),
            revision,
            record: None,
            previous: Some(previous),
        });
        let events: Vec<_> = gone.collect();
        if !events.is_empty() {
            self.apply(revision, events, Durability::Durable);
        }
    }

    fn expire(&mut self, now: Instant) {
        let expired = self.deadlines.expired(now);
        if !expired.is_empty() {
            self.end_leases(&expired);
        }
    }

    fn range(&self, range: &Range) -> Result<Page, ReadError> {
        let mut records = self.records.clone();
        let revision = range.at.unwrap_or(self.revision);
        for (key, previous) in self.history.rewind(revision, self.revision)? {
            match previous {
                Some(record) => records.insert(key, record),
                None => records.remove(&key),
            };
        }
        let mut page = Page {
            records: Vec::new(),
            revision,
            more: None,
        };
        let mut bytes = 0;
        let wanted = records
            .into_values()
            .filter(|record| record.key.starts_with(&range.prefix))
            .filter(|record| range.after.as_ref().is_none_or(|after| record.key > *after));
        for record in wanted {
            let full = page.records.len() >= range.limit || bytes >= MAX_PAGE_BYTES;
            if full && let Some(last) = page.records.last() {
                page.more = Some(last.key.clone());
                break;
            }
            bytes += record.value.len();
            page.records.push(record);
        }
        Ok(page)
    }
}

/// A handle on one life of the machine.
struct MemoryBackend {
    memory: Memory,
    history: Arc<History>,
}

impl MemoryBackend {
    /// The world, if this handle's life of it still goes on.
    fn world(&self) -> Option<MutexGuard<'_, World>> {
        let mut world = self.memory.lock();
        if !world.alive || !Arc::ptr_eq(&world.history, &self.history) {
            return None;
        }
        world.expire(Instant::now());
        Some(world)
    }

    fn commit_now(&self, txn: &Txn) -> Result<Revision, CommitError> {
        self.world().ok_or(CommitError::Closed)?.commit(txn)
    }
}

impl Backend for MemoryBackend {
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, CommitError>> {
        Box::pin(async move { self.commit_now(&txn) })
    }

    fn get(&self, key: String) -> BoxFuture<'_, Result<Option<Record>, ReadError>> {
        Box::pin(async move {
            Ok(self
                .world()
                .ok_or(ReadError::Closed)?
                .records
                .get(&key)
                .cloned())
        })
    }

    fn range(&self, range: Range) -> BoxFuture<'_, Result<Page, ReadError>> {
        Box::pin(async move { self.world().ok_or(ReadError::Closed)?.range(&range) })
    }

    fn watch(&self, prefix: String, from: Revision) -> Result<Watcher, WatchError> {
        drop(self.world().ok_or(WatchError::Closed)?);
        Watcher::new(Arc::clone(&self.history), prefix, from)
    }

    fn revision(&self) -> Result<Revision, ReadError> {
        Ok(self.world().ok_or(ReadError::Closed)?.revision)
    }

    fn compact(&self, through: Revision) {
        self.history.compact(through);
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, LeaseError>> {
        Box::pin(async move {
            let mut world = self.world().ok_or(CommitError::Closed)?;
            let lease = LeaseId(world.next_lease);
            world.next_lease += 1;
            world.deadlines.start(lease, ttl, Instant::now());
            let start = !std::mem::replace(&mut world.reaping, true);
            drop(world);
            if start {
                self.memory.reap();
            }
            Ok(lease)
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), LeaseError>> {
        Box::pin(async move {
            let mut world = self.world().ok_or(CommitError::Closed)?;
            let kept = world.deadlines.keep(lease, Instant::now());
            if kept {
                Ok(())
            } else {
                Err(LeaseError::NotFound { lease })
            }
        })
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), LeaseError>> {
        Box::pin(async move {
            let mut world = self.world().ok_or(CommitError::Closed)?;
            if !world.deadlines.alive(lease) {
                return Err(LeaseError::NotFound { lease });
            }
            world.end_leases(&[lease]);
            Ok(())
        })
    }
}
