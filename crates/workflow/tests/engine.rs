//! The engine as its callers see it: cost, limits, cancel, progress, retention, restarts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use store::memory::{Memory, Point};
use store::{Durability, Store, sqlite};
use tokio::sync::{Notify, Semaphore};
use workflow::{
    CancelError, Context, Definition, Engine, Limits, OperationId, PlanError, Progress, Retention,
    RetryError, State, Step, StepError,
};

/// A step that waits for a permit, if it has a gate, and counts.
#[derive(Clone)]
struct Gate {
    name: &'static str,
    permits: Arc<Semaphore>,
    /// Running now, most at once, undone.
    counts: Arc<[AtomicUsize; 3]>,
    heeds_cancel: bool,
}

impl Gate {
    fn new(name: &'static str, permits: usize) -> Self {
        let permits = Arc::new(Semaphore::new(permits));
        Self {
            name,
            permits,
            counts: Arc::default(),
            heeds_cancel: true,
        }
    }

    fn count(&self, which: usize) -> usize {
        self.counts[which].load(Ordering::SeqCst)
    }
}

impl Step for Gate {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn run(&self, ctx: &Context) -> Result<(), StepError> {
        let running = self.counts[0].fetch_add(1, Ordering::SeqCst) + 1;
        self.counts[1].fetch_max(running, Ordering::SeqCst);
        let outcome = tokio::select! {
            permit = self.permits.acquire() => {
                permit.expect("never closed").forget();
                Ok(())
            }
            () = ctx.cancelled(), if self.heeds_cancel => Err(StepError::Cancelled),
        };
        self.counts[0].fetch_sub(1, Ordering::SeqCst);
        outcome
    }

    async fn undo(&self, _: &Context) -> Result<(), StepError> {
        self.counts[2].fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

const OPEN: usize = 1 << 20;

async fn begin(engine: &Engine, store: &Store, kind: &str) -> OperationId {
    let resources = ["instances/web".to_owned()];
    let planned = engine.plan(kind, &"input", resources).expect("plans");
    store.commit(planned.txn).await.expect("commits");
    engine.launch(planned.operation.id).await.expect("launches");
    planned.operation.id
}

fn five_steps() -> Definition {
    ["a", "b", "c", "d", "e"]
        .into_iter()
        .fold(Definition::new("five", 1), |d, name| {
            d.step(Gate::new(name, OPEN))
        })
}

#[tokio::test]
async fn five_steps_cost_two_durable_commits() {
    let memory = Memory::new();
    let durable = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&durable);
    memory.set_hook(Box::new(move |point, txn| {
        if point == Point::BeforeCommit && txn.durability() == Durability::Durable {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        None
    }));
    let store = memory.store();
    let engine = Engine::builder(store.clone())
        .register(five_steps())
        .build()
        .expect("builds");
    let id = begin(&engine, &store, "five").await;
    let ended = engine.wait(id).await.expect("waits");
    assert_eq!(ended.state, State::Succeeded);
    assert!(ended.started_at.is_some() && ended.finished_at >= ended.started_at);
    assert_eq!(
        durable.load(Ordering::SeqCst),
        2,
        "one to begin, one to end"
    );
    assert_eq!(
        engine.get(id).await.expect("is kept").state,
        State::Succeeded
    );
    assert_eq!(
        engine
            .list(Some("instances/web"))
            .await
            .expect("lists")
            .len(),
        1
    );
    assert_eq!(
        engine
            .list(Some("instances/other"))
            .await
            .expect("lists")
            .len(),
        0
    );
    engine
        .launch(id)
        .await
        .expect("launching what has ended does nothing");
    assert!(matches!(
        engine.cancel(id).await,
        Err(CancelError::Ended { .. })
    ));
    assert!(matches!(
        engine.retry(id).await,
        Err(RetryError::NotRetriable { .. })
    ));
}

#[tokio::test]
async fn operations_wait_for_their_turn_and_can_be_cancelled_meanwhile() {
    let store = Memory::new().store();
    let (wide, narrow) = (Gate::new("wide", 0), Gate::new("narrow", 0));
    let engine = Engine::builder(store.clone())
        .register(Definition::new("wide", 1).step(wide.clone()))
        .register(Definition::new("narrow", 1).step(narrow.clone()).limit(2))
        .limits(Limits { concurrent: 3 })
        .build()
        .expect("builds");
    let mut ids = Vec::new();
    for kind in ["narrow", "narrow", "narrow", "wide", "wide"] {
        ids.push(begin(&engine, &store, kind).await);
    }
    while narrow.count(0) + wide.count(0) < 3 {
        tokio::task::yield_now().await;
    }
    let states: Vec<_> = engine
        .list(None)
        .await
        .expect("lists")
        .iter()
        .map(|op| op.state)
        .collect();
    assert_eq!(
        states.iter().filter(|s| **s == State::Running).count(),
        3,
        "{states:?}"
    );
    assert_eq!(
        states.iter().filter(|s| **s == State::Pending).count(),
        2,
        "{states:?}"
    );

    // One that waits and one that runs; permits for the others.
    engine.cancel(ids[2]).await.expect("cancels");
    engine.cancel(ids[0]).await.expect("cancels");
    wide.permits.add_permits(2);
    for id in [ids[0], ids[2]] {
        let ended = engine.wait(id).await.expect("waits");
        assert_eq!(ended.state, State::Cancelled);
    }
    narrow.permits.add_permits(1);
    for id in [ids[1], ids[3], ids[4]] {
        let ended = engine.wait(id).await.expect("waits");
        assert_eq!(ended.state, State::Succeeded);
    }
    assert_eq!(narrow.count(1), 2, "the limit of the kind held");
    assert!(wide.count(1) <= 2, "and the one of all");
    assert_eq!(narrow.count(2), 1, "what never began is not undone");
}

/// Reports much and says when it was let go.
struct Chatty(Arc<Notify>);

impl Step for Chatty {
    fn name(&self) -> &'static str {
        "chatty"
    }

    async fn run(&self, ctx: &Context) -> Result<(), StepError> {
        for done in 0..=5000 {
            let message = "copying".to_owned();
            ctx.progress(Progress {
                message,
                done,
                total: 5000,
                unit: "bytes".to_owned(),
            });
            if done % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        self.0.notified().await;
        Ok(())
    }

    async fn undo(&self, _: &Context) -> Result<(), StepError> {
        Ok(())
    }
}

#[tokio::test]
async fn progress_reaches_observers_thinned_out_and_never_the_store() {
    let store = Memory::new().store();
    let go = Arc::new(Notify::new());
    let engine = Engine::builder(store.clone())
        .register(Definition::new("chat", 1).step(Chatty(Arc::clone(&go))))
        .build()
        .expect("builds");
    let mut events = engine.events();
    let id = begin(&engine, &store, "chat").await;
    let before = store.revision().expect("a revision");
    let mut changes = engine.subscribe(id).await.expect("subscribes");
    loop {
        let change = changes.next().await.expect("it runs");
        if change.progress.done == 5000 {
            break;
        }
    }
    assert_eq!(
        store.revision().expect("a revision"),
        before,
        "nothing was written"
    );
    go.notify_one();
    assert_eq!(
        engine.wait(id).await.expect("waits").state,
        State::Succeeded
    );
    while changes.next().await.is_some() {}
    let mut seen = Vec::new();
    while let Ok(operation) = events.try_recv() {
        seen.push(operation);
    }
    assert!(seen.len() < 1000, "{} events for 5000 reports", seen.len());
    let last = seen.last().expect("events");
    assert_eq!((last.state, last.progress.done), (State::Succeeded, 5000));
}

#[tokio::test]
async fn a_stopped_engine_goes_on_where_it_was_from_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    let (first, last) = (Gate::new("first", OPEN), Gate::new("last", 0));
    let define = || {
        Definition::new("two", 1)
            .step(first.clone())
            .step(last.clone())
    };
    let start = || {
        let store = sqlite::open(&path, sqlite::Options::default()).expect("opens");
        let engine = Engine::builder(store.clone())
            .register(define())
            .build()
            .expect("builds");
        (store, engine)
    };
    let (store, engine) = start();
    let id = begin(&engine, &store, "two").await;
    let planned = engine.plan("two", &(), []).expect("plans");
    store
        .commit(planned.txn)
        .await
        .expect("committed, but never launched");
    while last.count(0) == 0 {
        tokio::task::yield_now().await;
    }
    engine.shutdown(Duration::ZERO).await;
    assert!(
        engine.launch(planned.operation.id).await.is_err(),
        "nothing begins any more"
    );
    drop((store, engine));

    last.permits.add_permits(OPEN);
    let (store, engine) = start();
    let recovery = engine.recover().await.expect("recovers");
    assert_eq!(recovery.resumed, [id, planned.operation.id], "both go on");
    for id in recovery.resumed {
        assert_eq!(
            engine.wait(id).await.expect("waits").state,
            State::Succeeded
        );
    }
    engine.shutdown(Duration::from_secs(10)).await;
    drop((store, engine));

    // A Berth that does not know the kind any more shows what it cannot carry on.
    let (store, engine) = start();
    let orphan = engine.plan("two", &(), []).expect("plans");
    store.commit(orphan.txn).await.expect("commits");
    let id = orphan.operation.id;
    drop(engine);
    let other = Engine::builder(store.clone())
        .register(five_steps())
        .build()
        .expect("builds");
    assert_eq!(other.recover().await.expect("recovers").stuck, [id]);
    let stuck = other.get(id).await.expect("is kept");
    let told = stuck.stuck.expect("says why").message;
    assert!(
        stuck.state == State::Stuck && told.contains("two version 1"),
        "{told}"
    );
    assert!(matches!(
        other.retry(id).await,
        Err(RetryError::Unknown { .. })
    ));
    let knows = Engine::builder(store)
        .register(define())
        .build()
        .expect("builds");
    assert_eq!(
        knows.recover().await.expect("recovers").stuck,
        [id],
        "stuck until retried"
    );
    knows
        .retry(id)
        .await
        .expect("the version that knows it carries it on");
    assert_eq!(knows.wait(id).await.expect("waits").state, State::Succeeded);
}

/// Never works, never for the same reason twice.
struct Unlucky(AtomicUsize);

impl Step for Unlucky {
    fn name(&self) -> &'static str {
        "unlucky"
    }

    async fn run(&self, ctx: &Context) -> Result<(), StepError> {
        let n = self.0.fetch_add(1, Ordering::SeqCst);
        assert_eq!(ctx.failed_attempts() as usize, n, "attempts are counted");
        Err(StepError::retry(
            Duration::from_millis(1),
            format!("reason {n}"),
        ))
    }

    async fn undo(&self, _: &Context) -> Result<(), StepError> {
        Ok(())
    }

    fn attempts(&self) -> u32 {
        3
    }
}

#[tokio::test]
async fn attempts_end_and_ended_operations_are_forgotten_in_time() {
    let store = Memory::new().store();
    let engine = Engine::builder(store.clone())
        .register(Definition::new("no", 1).step(Unlucky(AtomicUsize::new(0))))
        .register(five_steps())
        .retention(Retention {
            count: 3,
            age: Duration::from_secs(3600),
        })
        .build()
        .expect("builds");
    let id = begin(&engine, &store, "no").await;
    let undone = engine.wait(id).await.expect("waits");
    let error = undone.error.expect("says why");
    assert_eq!(
        (undone.state, error.step.as_deref()),
        (State::Undone, Some("unlucky"))
    );
    assert_eq!(error.message, "reason 2 (3 attempts)");
    let mut last = id;
    for _ in 0..10 {
        last = begin(&engine, &store, "five").await;
        engine.wait(last).await.expect("waits");
    }
    engine.shutdown(Duration::from_secs(10)).await;
    let kept: Vec<_> = engine
        .list(None)
        .await
        .expect("lists")
        .iter()
        .map(|op| op.id)
        .collect();
    assert_eq!(
        (kept.len(), kept.last()),
        (3, Some(&last)),
        "the newest are kept"
    );
    assert!(engine.get(id).await.is_err(), "the oldest is forgotten");
}

#[tokio::test]
async fn plans_are_limited() {
    let store = Memory::new().store();
    let engine = Engine::builder(store)
        .register(five_steps())
        .build()
        .expect("builds");
    assert!(matches!(
        engine.plan("six", &(), []),
        Err(PlanError::UnknownKind { .. })
    ));
    let long = "x".repeat(70_000);
    assert!(matches!(
        engine.plan("five", &long, []),
        Err(PlanError::TooLong { .. })
    ));
    let many = (0..17).map(|n| n.to_string());
    assert!(matches!(
        engine.plan("five", &(), many),
        Err(PlanError::TooLong { .. })
    ));
    assert!(matches!(
        engine.plan("five", &(), [long]),
        Err(PlanError::TooLong { .. })
    ));
    let twice = Engine::builder(Memory::new().store()).register(five_steps());
    assert!(
        twice.register(five_steps()).build().is_err(),
        "one definition for each version"
    );
}
