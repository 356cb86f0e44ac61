//! [`Engine`]: plans, starts, shows, cancels, retries and recovers operations.
//!
//! Holds the definitions and the tasks that run. What an operation is at is in the store; what it
//! is at just now is in its task's live side, which answers before the store does.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use store::{CommitError, Entry, Revision, Store, Txn, crash};
use tokio::sync::{Semaphore, broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::context::Live;
use crate::definition::Definition;
use crate::error::{BuildError, CancelError, EngineError, PlanError, RetryError};
use crate::operation::{
    CANCELS, Failure, MAX_INPUT_BYTES, MAX_RESOURCES, OPERATIONS, Operation, OperationId, State,
    now,
};
use crate::retention::{Ended, Retention};
use crate::runner::{Interrupted, Runner, waiting};

/// Changes a slow observer of all operations may be behind before it misses some.
const EVENTS_KEPT: usize = 256;

/// How much goes on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Operations that run at once, of all kinds together; the others wait in order.
    pub concurrent: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { concurrent: 128 }
    }
}

/// An operation that does not exist yet.
#[derive(Debug, Clone)]
pub struct Planned {
    /// What will be recorded.
    pub operation: Operation,
    /// What records it. The caller adds its own changes (or appends this to its own transaction),
    /// commits, and only then calls [`Engine::launch`].
    pub txn: Txn,
}

/// What a start found.
#[derive(Debug, Clone, Default)]
pub struct Recovery {
    /// Unfinished operations that go on.
    pub resumed: Vec<OperationId>,
    /// Operations that are stuck, from before or because nothing is known of their kind here.
    pub stuck: Vec<OperationId>,
    /// Records that cannot be read, by key, and why. They are left as they are.
    pub unreadable: Vec<(String, String)>,
}

/// Builds an [`Engine`].
#[derive(Debug)]
pub struct Builder {
    store: Store,
    definitions: Vec<Definition>,
    limits: Limits,
    retention: Retention,
}

impl Builder {
    /// Adds a kind of operation, or an older version of one.
    #[must_use]
    pub fn register(mut self, definition: Definition) -> Self {
        self.definitions.push(definition);
        self
    }

    /// How much goes on at once.
    #[must_use]
    pub const fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Which ended operations are kept.
    #[must_use]
    pub const fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Checks the definitions. Nothing runs before [`Engine::recover`] or [`Engine::launch`].
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build(self) -> Result<Engine, BuildError> {
        let mut kinds: HashMap<&'static str, HashMap<u32, Kind>> = HashMap::new();
        for definition in self.definitions {
            let (kind, version) = (definition.kind, definition.version);
            let mut names = HashSet::new();
            if let Some(step) = definition.step_names().find(|name| !names.insert(*name)) {
                return Err(BuildError::DuplicateStep { kind, step });
            }
            let permits = definition.limit.clamp(1, Semaphore::MAX_PERMITS);
            let turn = Arc::new(Semaphore::new(permits));
            let entry = Kind {
                definition: Arc::new(definition),
                turn,
            };
            if kinds
                .entry(kind)
                .or_default()
                .insert(version, entry)
                .is_some()
            {
                return Err(BuildError::Duplicate { kind, version });
            }
        }
        let concurrent = self.limits.concurrent.clamp(1, Semaphore::MAX_PERMITS);
        let core = Core {
            store: self.store,
            kinds,
            turn: Arc::new(Semaphore::new(concurrent)),
            retention: self.retention,
            ended: Ended::default(),
            live: Mutex::default(),
            fresh: Mutex::default(),
            events: broadcast::Sender::new(EVENTS_KEPT),
            stopping: CancellationToken::new(),
            abort: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        Ok(Engine {
            core: Arc::new(core),
        })
    }
}

struct Kind {
    definition: Arc<Definition>,
    turn: Arc<Semaphore>,
}

/// What tasks and handles share.
pub(crate) struct Core {
    pub(crate) store: Store,
    kinds: HashMap<&'static str, HashMap<u32, Kind>>,
    turn: Arc<Semaphore>,
    retention: Retention,
    ended: Ended,
    live: Mutex<HashMap<OperationId, Arc<Live>>>,
    /// Planned here and not launched yet: of these no step can have begun.
    fresh: Mutex<HashSet<OperationId>>,
    events: broadcast::Sender<Arc<Operation>>,
    pub(crate) stopping: CancellationToken,
    abort: CancellationToken,
    tasks: TaskTracker,
}

impl Core {
    fn kind(&self, operation: &Operation) -> Option<&Kind> {
        self.kinds
            .get(operation.kind.as_str())?
            .get(&operation.version)
    }

    fn live(&self) -> MutexGuard<'_, HashMap<OperationId, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh(&self) -> MutexGuard<'_, HashSet<OperationId>> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn entry(&self, id: OperationId) -> Result<Entry<Operation>, EngineError> {
        let entry = OPERATIONS.get(&self.store, &id.to_string()).await?;
        entry.ok_or(EngineError::NotFound { id })
    }

    /// The newest known of an operation: its task's view while it runs.
    fn overlay(&self, stored: Operation) -> Operation {
        match self.live().get(&stored.id) {
            Some(live) => Operation::clone(&live.watch.borrow()),
            None => stored,
        }
    }
}

/// Runs operations. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    core: Arc<Core>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<_> = self.core.kinds.keys().collect();
        f.debug_struct("Engine")
            .field("kinds", &kinds)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine over a store, without definitions yet.
    #[must_use]
    pub fn builder(store: Store) -> Builder {
        let (limits, retention) = (Limits::default(), Retention::default());
        Builder {
            store,
            definitions: Vec::new(),
            limits,
            retention,
        }
    }

    /// Prepares an operation of the newest version of `kind`: gives what records it, does nothing.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn plan<T: Serialize>(
        &self,
        kind: &str,
        input: &T,
        resources: impl IntoIterator<Item = String>,
    ) -> Result<Planned, PlanError> {
        let unknown = || PlanError::UnknownKind {
            kind: kind.to_owned(),
        };
        let versions = self.core.kinds.get(kind).ok_or_else(unknown)?;
        let version = versions.keys().max().copied().ok_or_else(unknown)?;
        let refused = |source| PlanError::Input {
            kind: kind.to_owned(),
            source,
        };
        let text = serde_json::to_vec(input).map_err(refused)?;
        let resources: Vec<String> = resources.into_iter().collect();
        let longest = resources.iter().map(String::len).max().unwrap_or(0);
        let sizes = [
            ("input (in bytes)", text.len(), MAX_INPUT_BYTES),
            ("list of resources", resources.len(), MAX_RESOURCES.0),
            ("name of a resource (in bytes)", longest, MAX_RESOURCES.1),
        ];
        if let Some((what, size, max)) = sizes.into_iter().find(|(_, size, max)| size > max) {
            return Err(PlanError::TooLong {
                kind: kind.to_owned(),
                what,
                size,
                max,
            });
        }
        let operation = Operation {
            id: OperationId::now(),
            kind: kind.to_owned(),
            version,
            resources,
            input: serde_json::from_slice(&text).map_err(refused)?,
            state: State::Pending,
            step: 0,
            attempts: 0,
            resumed: false,
            ending: None,
            outputs: Default::default(),
            result: None,
            progress: waiting(),
            error: None,
            stuck: None,
            created_at: now(),
            started_at: None,
            finished_at: None,
        };
        let mut txn = Txn::new();
        OPERATIONS.insert(&mut txn, &operation.id.to_string(), &operation)?;
        self.core.fresh().insert(operation.id);
        Ok(Planned { operation, txn })
    }

    /// A plan that was not committed after all.
    pub fn discard(&self, planned: &Planned) {
        self.core.fresh().remove(&planned.operation.id);
    }

    /// Starts an operation whose plan is committed. Starting one that runs or has ended does
    /// nothing.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn launch(&self, id: OperationId) -> Result<(), EngineError> {
        let entry = self.core.entry(id).await?;
        crash::point(&["launch", &entry.value.kind]);
        let resumed = !self.core.fresh().remove(&id);
        if entry.value.state.is_final() {
            return Ok(());
        }
        self.go_on(entry, resumed, false).await.map(drop)
    }

    /// Takes up every unfinished operation. Called once, at start, before any plan.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn recover(&self) -> Result<Recovery, EngineError> {
        let store = &self.core.store;
        let cancels = store.list(CANCELS.prefix()).await?;
        let cancels: HashSet<_> = cancels
            .records
            .iter()
            .map(|r| r.key[CANCELS.prefix().len()..].to_owned())
            .collect();
        let mut recovery = Recovery::default();
        let mut ended = Vec::new();
        for record in store.list(OPERATIONS.prefix()).await?.records {
            let entry = match OPERATIONS.decode(&record) {
                Ok(entry) => entry,
                Err(error) => {
                    tracing::error!(key = record.key, %error, "an operation cannot be read");
                    recovery.unreadable.push((record.key, error.to_string()));
                    continue;
                }
            };
            let (id, state) = (entry.value.id, entry.value.state);
            if state == State::Stuck {
                recovery.stuck.push(id);
            } else if state.is_final() {
                ended.push((
                    entry.value.finished_at.unwrap_or(entry.value.created_at),
                    id,
                ));
            } else {
                let cancelled = cancels.contains(&id.to_string());
                let resumed = self.go_on(entry, true, cancelled).await?;
                let list = if resumed {
                    &mut recovery.resumed
                } else {
                    &mut recovery.stuck
                };
                list.push(id);
            }
        }
        ended.sort_unstable();
        self.core.ended.add(ended);
        self.core.ended.prune(store, self.core.retention).await;
        Ok(recovery)
    }

    /// One operation as it is now.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn get(&self, id: OperationId) -> Result<Operation, EngineError> {
        let entry = self.core.entry(id).await?;
        Ok(self.core.overlay(entry.value))
    }

    /// Every operation that is kept, oldest first; of those about `resource`, if one is given.
    ///
    /// # Errors
    /// See [`EngineError`]. A record that cannot be read is left out ([`Recovery::unreadable`]).
    pub async fn list(&self, resource: Option<&str>) -> Result<Vec<Operation>, EngineError> {
        let page = self.core.store.list(OPERATIONS.prefix()).await?;
        let stored = page
            .records
            .iter()
            .filter_map(|record| OPERATIONS.decode(record).ok());
        let wanted = stored.filter(|e| resource.is_none_or(|r| e.value.concerns(r)));
        Ok(wanted.map(|entry| self.core.overlay(entry.value)).collect())
    }

    /// Follows one operation.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn subscribe(&self, id: OperationId) -> Result<Subscription, EngineError> {
        let running = |core: &Core| core.live().get(&id).map(|live| live.watch.subscribe());
        if let Some(changes) = running(&self.core) {
            return Ok(Subscription {
                changes,
                told: Told::Nothing,
            });
        }
        let stored = self.core.entry(id).await?.value;
        // It may have been started meanwhile; if it ended meanwhile, the record says so.
        let changes =
            running(&self.core).unwrap_or_else(|| watch::Sender::new(Arc::new(stored)).subscribe());
        Ok(Subscription {
            changes,
            told: Told::Nothing,
        })
    }

    /// Follows all operations. Each change of each, progress some times a second; who is too slow
    /// is told how many changes were missed.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Arc<Operation>> {
        self.core.events.subscribe()
    }

    /// Waits until an operation ends (or this engine no longer runs it).
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn wait(&self, id: OperationId) -> Result<Operation, EngineError> {
        let mut changes = self.subscribe(id).await?;
        let mut last = None;
        while let Some(operation) = changes.next().await {
            last = Some(operation);
        }
        match last {
            Some(operation) => Ok(Operation::clone(&operation)),
            None => self.get(id).await,
        }
    }

    /// Asks an operation to stop and to undo what it did. Recorded before it is answered; the
    /// operation may still succeed if it was just about to.
    ///
    /// # Errors
    /// See [`CancelError`].
    pub async fn cancel(&self, id: OperationId) -> Result<(), CancelError> {
        let entry = self.core.entry(id).await?;
        let state = entry.value.state;
        if state.is_final() {
            return Err(CancelError::Ended { id, state });
        }
        let mut txn = Txn::new();
        txn.expect_present(OPERATIONS.key(&id.to_string()));
        CANCELS
            .put(&mut txn, &id.to_string(), &now())
            .map_err(EngineError::from)?;
        self.commit(id, txn).await?;
        if let Some(live) = self.core.live().get(&id) {
            live.cancel.cancel();
            return Ok(());
        }
        // Nobody runs it: it ended just now, or was committed and not launched yet.
        let entry = self.core.entry(id).await?;
        if !entry.value.state.is_final() {
            let resumed = !self.core.fresh().remove(&id);
            self.go_on(entry, resumed, true).await?;
        }
        Ok(())
    }

    /// Makes a stuck operation go on where it stopped, and a failed one try its step again.
    ///
    /// # Errors
    /// See [`RetryError`].
    pub async fn retry(&self, id: OperationId) -> Result<(), RetryError> {
        let entry = self.core.entry(id).await?;
        let mut operation = entry.value;
        if !operation.state.is_retriable() {
            return Err(RetryError::NotRetriable {
                id,
                state: operation.state,
            });
        }
        if self.core.kind(&operation).is_none() {
            let (kind, version) = (operation.kind, operation.version);
            return Err(RetryError::Unknown { kind, version });
        }
        let turned = operation.ending.is_some();
        operation.state = if turned {
            State::Undoing
        } else {
            State::Running
        };
        operation.error = operation.error.filter(|_| turned);
        operation.stuck = None;
        operation.finished_at = None;
        operation.attempts = 0;
        let mut txn = Txn::new();
        let key = id.to_string();
        OPERATIONS
            .update(&mut txn, &key, entry.revision, &operation)
            .map_err(EngineError::from)?;
        CANCELS.remove(&mut txn, &key);
        let revision = self.commit(id, txn).await?;
        self.core.ended.forget(id);
        let entry = Entry {
            revision,
            value: operation,
            ..entry
        };
        self.go_on(entry, true, false).await?;
        Ok(())
    }

    /// Stops: no step begins any more; what runs may end within `grace` and is then dropped, as in
    /// a crash. Everything unfinished goes on after the next start.
    pub async fn shutdown(&self, grace: Duration) {
        self.core.stopping.cancel();
        self.core.tasks.close();
        if tokio::time::timeout(grace, self.core.tasks.wait())
            .await
            .is_err()
        {
            self.abort().await;
        }
    }

    /// Drops every task where it is.
    pub(crate) async fn abort(&self) {
        self.core.stopping.cancel();
        self.core.abort.cancel();
        self.core.tasks.close();
        self.core.tasks.wait().await;
    }

    async fn commit(&self, id: OperationId, txn: Txn) -> Result<Revision, EngineError> {
        let failed = |source: CommitError| EngineError::Commit { id, source };
        self.core.store.commit(txn).await.map_err(failed)
    }

    /// Starts the task of an unfinished operation, or marks it stuck when nothing is known of its
    /// kind; says which. One that runs is left alone.
    async fn go_on(
        &self,
        entry: Entry<Operation>,
        resumed: bool,
        cancelled: bool,
    ) -> Result<bool, EngineError> {
        let (id, revision) = (entry.value.id, entry.revision);
        let mut operation = entry.value;
        if self.core.stopping.is_cancelled() {
            return Err(EngineError::Stopping { id });
        }
        let Some(kind) = self.core.kind(&operation) else {
            self.stick_unknown(operation, revision).await?;
            return Ok(false);
        };
        operation.resumed |= resumed;
        let live = Arc::new(Live::new(&operation, self.core.events.clone()));
        if cancelled {
            live.cancel.cancel();
        }
        if self.core.live().try_insert_new(id, &live) {
            let runner = Runner {
                core: Arc::clone(&self.core),
                definition: Arc::clone(&kind.definition),
                operation,
                revision,
                live,
            };
            let turn = Arc::clone(&kind.turn);
            self.core.tasks.spawn(drive(runner, turn));
        }
        Ok(true)
    }

    async fn stick_unknown(
        &self,
        mut operation: Operation,
        revision: Revision,
    ) -> Result<(), EngineError> {
        let (id, kind, version) = (operation.id, &operation.kind, operation.version);
        let message = format!(
            "this Berth does not know {kind} version {version}; start the version that began it, \
             or install one that knows it and `berth op retry {id}`"
        );
        tracing::error!(operation = %id, message, "an operation is stuck");
        operation.stuck = Some(Failure {
            step: None,
            message,
        });
        operation.state = State::Stuck;
        operation.finished_at = Some(now());
        let mut txn = Txn::new();
        OPERATIONS.update(&mut txn, &id.to_string(), revision, &operation)?;
        self.commit(id, txn).await?;
        let _ = self.core.events.send(Arc::new(operation));
        Ok(())
    }
}

/// Adds a task's live side unless there is one.
trait TryInsertNew {
    fn try_insert_new(&mut self, id: OperationId, live: &Arc<Live>) -> bool;
}

impl TryInsertNew for HashMap<OperationId, Arc<Live>> {
    fn try_insert_new(&mut self, id: OperationId, live: &Arc<Live>) -> bool {
        match self.entry(id) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(slot) => {
                slot.insert(Arc::clone(live));
                true
            }
        }
    }
}

/// An operation's task: waits for its turn, runs, tidies up.
async fn drive(runner: Runner, turn: Arc<Semaphore>) {
    let core = Arc::clone(&runner.core);
    let id = runner.operation.id;
    let live = Arc::clone(&runner.live);
    let work = async {
        // Of its kind first, so that waiting for its own kind holds up nobody else. A cancelled
        // one waits too: undoing takes a turn like doing.
        let turns = async {
            (
                turn.acquire_owned().await,
                Arc::clone(&core.turn).acquire_owned().await,
            )
        };
        let turns = tokio::select! {
            turns = turns => turns,
            () = core.stopping.cancelled() => return Err(Interrupted::Stopping),
        };
        // Whoever started this read the record a while ago; another task may have ended it since.
        let current = core.store.get(OPERATIONS.key(&id.to_string())).await;
        let unchanged = current.map_err(Interrupted::Read)?;
        if unchanged.is_none_or(|record| record.modified != runner.revision) {
            return Err(Interrupted::Elsewhere);
        }
        let outcome = runner.run().await;
        drop(turns);
        outcome
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = core.abort.cancelled() => Err(Interrupted::Stopping),
    };
    // The record is written: from here on it answers.
    core.live().remove(&id);
    match outcome {
        Ok(operation) => {
            live.publish(&operation);
            drop(live);
            log_end(&operation);
            if operation.state != State::Stuck {
                core.ended
                    .add([(operation.finished_at.unwrap_or_else(now), id)]);
                core.ended.prune(&core.store, core.retention).await;
            }
        }
        Err(Interrupted::Stopping) => {
            tracing::info!(operation = %id, "goes on after the next start");
        }
        Err(Interrupted::Elsewhere) => {}
        Err(error @ (Interrupted::Store(_) | Interrupted::Read(_))) => {
            tracing::error!(operation = %id, %error, "stopped until the next start");
        }
    }
}

fn log_end(operation: &Operation) {
    let (id, kind, state) = (operation.id, operation.kind.as_str(), operation.state);
    let failure = operation.stuck.as_ref().or(operation.error.as_ref());
    match failure {
        None => tracing::info!(operation = %id, kind, ?state, "ended"),
        Some(failure) => {
            let (step, why) = (failure.step.as_deref(), failure.message.as_str());
            tracing::warn!(operation = %id, kind, ?state, step, why, "ended");
        }
    }
}

/// One operation's changes, newest state first seen first; states in between may be skipped.
#[derive(Debug)]
pub struct Subscription {
    changes: watch::Receiver<Arc<Operation>>,
    told: Told,
}

/// What a subscriber was told.
#[derive(Debug)]
enum Told {
    Nothing,
    Some,
    /// The last state.
    All,
}

impl Subscription {
    /// The present state at once, then each newer one; `None` after the last.
    pub async fn next(&mut self) -> Option<Arc<Operation>> {
        match self.told {
            Told::Nothing => {}
            // What nobody has looked at yet is told of even where the operation's task has ended.
            Told::Some => self.changes.changed().await.ok()?,
            Told::All => return None,
        }
        let operation = Arc::clone(&self.changes.borrow_and_update());
        self.told = if operation.state.is_final() {
            Told::All
        } else {
            Told::Some
        };
        Some(operation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_is_told_even_if_it_came_with_the_end_of_the_task() {
        let mut operation = crate::operation::tests::golden();
        operation.state = State::Running;
        let task = watch::Sender::new(Arc::new(operation.clone()));
        let mut told = Subscription {
            changes: task.subscribe(),
            told: Told::Nothing,
        };
        let first = told.next().await.expect("there is a first state");
        assert_eq!(first.state, State::Running);
        operation.state = State::Succeeded;
        task.send_replace(Arc::new(operation));
        drop(task);
        let last = told.next().await.expect("the last state is told");
        assert_eq!(last.state, State::Succeeded);
        assert!(told.next().await.is_none());
    }
}
