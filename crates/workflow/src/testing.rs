//! Proves of an operation that every fault at every step leaves it done or undone, not between.
//!
//! Tests of this crate and of whoever defines operations implement [`Scenario`] and call
//! [`for_each_fault`], which runs the operation once for each fault on a world and a store of its
//! own: crashes of process and machine before and after each step, before and after each commit,
//! with and without a failure after the restart; steps that fail, fail after they did their work,
//! panic, ask for another try, run twice; cancels; and the same on the way back. Never used
//! outside tests.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use store::memory::{Crash, Memory, Point};
use store::{BoxFuture, Store, Txn};

use crate::context::Context;
use crate::definition::{Definition, OnFailure};
use crate::engine::Engine;
use crate::operation::{Operation, OperationId, State};
use crate::step::{AnyStep, StepError};

/// A test that hangs should say where. Nothing is asserted about how long anything takes.
const HANG: Duration = Duration::from_secs(60);

/// More restarts and retries than any case plans: an operation that needs more never ends.
const MOST_LIVES: usize = 8;

/// An operation to be proven, with the world its steps change. The world outlives crashes; the
/// store's content does as far as it was durable.
pub trait Scenario: Send + Sync {
    /// The operation, over the store of this life. Called again after each crash.
    fn definition(&self, store: &Store) -> Definition;

    /// Puts what the operation needs into the store, and says what to ask for.
    fn prepare(&self, store: &Store) -> impl Future<Output = Start> + Send;

    /// Whether world and store are as `operation.state` says: everything done, or nothing left.
    ///
    /// # Errors
    /// What is wrong.
    fn verify(
        &self,
        store: &Store,
        operation: &Operation,
    ) -> impl Future<Output = Result<(), String>> + Send;
}

/// What to ask for.
#[derive(Debug, Default)]
pub struct Start {
    /// The operation's input.
    pub input: Value,
    /// What it is about.
    pub resources: Vec<String>,
    /// The caller's part of the first transaction.
    pub txn: Txn,
}

/// How much was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Runs, each with other faults.
    pub cases: usize,
    /// Restarts after crashes, in all runs.
    pub restarts: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Run,
    Undo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    CrashBefore(Crash),
    CrashAfter(Crash),
    FailBefore,
    FailAfter,
    PanicAfter,
    RetryAfter,
    Twice,
    CancelBefore,
    CancelAfter,
}

impl Kind {
    const CRASHES: [Self; 4] = [
        Self::CrashBefore(Crash::Process),
        Self::CrashBefore(Crash::Power),
        Self::CrashAfter(Crash::Process),
        Self::CrashAfter(Crash::Power),
    ];

    const FORWARD: [Self; 7] = [
        Self::FailBefore,
        Self::FailAfter,
        Self::PanicAfter,
        Self::RetryAfter,
        Self::Twice,
        Self::CancelBefore,
        Self::CancelAfter,
    ];

    const BACK: [Self; 5] = [
        Self::FailBefore,
        Self::FailAfter,
        Self::PanicAfter,
        Self::RetryAfter,
        Self::Twice,
    ];

    const fn fails(self) -> bool {
        matches!(self, Self::FailBefore | Self::FailAfter | Self::PanicAfter)
    }

    const fn cancels(self) -> bool {
        matches!(self, Self::CancelBefore | Self::CancelAfter)
    }
}

/// One thing that goes wrong at one place, once.
#[derive(Debug, Clone, Copy)]
struct Fault {
    step: usize,
    way: Way,
    kind: Kind,
}

/// A crash at the n-th commit after the operation was logged.
#[derive(Debug, Clone, Copy)]
struct CommitCrash {
    nth: usize,
    point: Point,
    crash: Crash,
}

/// Everything that goes wrong in one run. A fault is armed when the one before it happened.
#[derive(Debug, Clone, Default)]
struct Case {
    faults: Vec<Fault>,
    at_commit: Option<CommitCrash>,
    before_launch: bool,
    /// Later faults may become unreachable by the earlier ones.
    all_must_happen: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.faults {
            write!(f, "[{:?} {:?} {}] ", fault.kind, fault.way, fault.step)?;
        }
        if let Some(CommitCrash { nth, point, crash }) = self.at_commit {
            write!(f, "[{crash:?} {point:?} {nth}] ")?;
        }
        if self.before_launch {
            write!(f, "[Power before launch]")?;
        }
        Ok(())
    }
}

/// What wrapped steps and the loop around them share in one run.
struct Shared {
    memory: Memory,
    state: Mutex<Happened>,
}

#[derive(Default)]
struct Happened {
    remaining: Vec<Fault>,
    done: Vec<Fault>,
    engine: Option<Engine>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Happened> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault armed for this place; it will not happen again.
    fn take(&self, step: usize, way: Way) -> Option<Kind> {
        let mut state = self.state();
        let armed = *state.remaining.first()?;
        if armed.step != step || armed.way != way {
            return None;
        }
        state.remaining.remove(0);
        state.done.push(armed);
        Some(armed.kind)
    }

    async fn crash(&self, crash: Crash) {
        self.memory.crash(crash);
        // A process that died does not go on.
        std::future::pending::<()>().await;
    }

    async fn cancel(&self, id: OperationId) {
        let engine = self.state().engine.clone();
        if let Some(engine) = engine {
            // It may have ended already, or the store be gone.
            let _ = engine.cancel(id).await;
        }
    }
}

/// A step with faults around it.
struct Faulty {
    inner: Box<dyn AnyStep>,
    index: usize,
    shared: Arc<Shared>,
}

impl Faulty {
    async fn work(&self, way: Way, ctx: &Context) -> Result<(), StepError> {
        match way {
            Way::Run => self.inner.run(ctx).await,
            Way::Undo => self.inner.undo(ctx).await,
        }
    }

    async fn perform(&self, way: Way, ctx: &Context) -> Result<(), StepError> {
        let fault = self.shared.take(self.index, way);
        match fault {
            Some(Kind::CrashBefore(crash)) => self.shared.crash(crash).await,
            Some(Kind::FailBefore) => return Err(StepError::permanent("planned failure")),
            Some(Kind::CancelBefore) => self.shared.cancel(ctx.id()).await,
            Some(Kind::Twice) => self.work(way, ctx).await?,
            _ => {}
        }
        self.work(way, ctx).await?;
        match fault {
            Some(Kind::CrashAfter(crash)) => self.shared.crash(crash).await,
            Some(Kind::FailAfter) => return Err(StepError::permanent("planned failure")),
            Some(Kind::PanicAfter) => std::panic::resume_unwind(Box::new("planned")),
            Some(Kind::RetryAfter) => {
                return Err(StepError::retry(Duration::from_millis(1), "planned hiccup"));
            }
            Some(Kind::CancelAfter) => self.shared.cancel(ctx.id()).await,
            _ => {}
        }
        Ok(())
    }
}

impl AnyStep for Faulty {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn attempts(&self) -> u32 {
        // A planned hiccup must not be the last straw.
        self.inner.attempts().max(2)
    }

    fn run<'a>(&'a self, ctx: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(self.perform(Way::Run, ctx))
    }

    fn undo<'a>(&'a self, ctx: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(self.perform(Way::Undo, ctx))
    }
}

/// Runs the operation once with each fault; `make` gives a fresh world each time.
///
/// # Panics
/// When an operation does not end as it must, or the scenario finds its world in between. The
/// message names the faults.
pub async fn for_each_fault<S: Scenario, F: Future<Output = S>>(make: impl Fn() -> F) -> Report {
    let definition = make().await.definition(&Memory::new().store());
    let (steps, policy) = (definition.steps.len(), definition.on_failure);
    drop(definition);
    let mut report = Report::default();
    for case in cases(steps, policy) {
        run(&make().await, &case, steps, policy, &mut report).await;
    }
    // Crashes at commits, on the way forward and on the way back, until there are no more commits.
    let failing = Fault {
        step: steps - 1,
        way: Way::Run,
        kind: Kind::FailAfter,
    };
    for faults in [vec![], vec![failing]] {
        for point in [Point::BeforeCommit, Point::AfterCommit] {
            for crash in [Crash::Process, Crash::Power] {
                for nth in 0.. {
                    let at_commit = Some(CommitCrash { nth, point, crash });
                    let case = Case {
                        faults: faults.clone(),
                        at_commit,
                        ..Case::default()
                    };
                    if !run(&make().await, &case, steps, policy, &mut report).await {
                        break;
                    }
                }
            }
        }
    }
    report
}

/// Every fault by itself, and crashes followed by another fault.
fn cases(steps: usize, policy: OnFailure) -> Vec<Case> {
    let mut cases = vec![
        Case::default(),
        Case {
            before_launch: true,
            ..Case::default()
        },
    ];
    cases.extend((0..steps).flat_map(|step| forward_cases(step, steps)));
    if policy == OnFailure::Undo {
        cases.extend((0..steps).flat_map(back_cases));
    }
    cases
}

const fn fault(step: usize, way: Way, kind: Kind) -> Fault {
    Fault { step, way, kind }
}

/// What can go wrong at one step on the way forward.
fn forward_cases(step: usize, steps: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in Kind::CRASHES.into_iter().chain(Kind::FORWARD) {
        let faults = vec![fault(step, Way::Run, kind)];
        cases.push(Case {
            faults,
            all_must_happen: true,
            ..Case::default()
        });
    }
    // A crash that loses records, then a failure or a cancel at an earlier or later step.
    for crash in Kind::CRASHES {
        for (later, end) in
            (0..steps).flat_map(|n| [(n, Kind::FailBefore), (n, Kind::CancelBefore)])
        {
            let faults = vec![fault(step, Way::Run, crash), fault(later, Way::Run, end)];
            cases.push(Case {
                faults,
                ..Case::default()
            });
        }
    }
    cases
}

/// What can go wrong on the way back from a step that failed after it did its work.
fn back_cases(failing: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for step in 0..=failing {
        for kind in Kind::CRASHES.into_iter().chain(Kind::BACK) {
            let fail = fault(failing, Way::Run, Kind::FailAfter);
            let faults = vec![fail, fault(step, Way::Undo, kind)];
            cases.push(Case {
                faults,
                all_must_happen: true,
                ..Case::default()
            });
        }
    }
    cases
}

/// Builds the engine of one life, with faults around every step.
fn engine<S: Scenario>(scenario: &S, store: &Store, shared: &Arc<Shared>) -> Engine {
    let mut definition = scenario.definition(store);
    let steps = std::mem::take(&mut definition.steps);
    let wrap = |(index, inner)| {
        Box::new(Faulty {
            inner,
            index,
            shared: Arc::clone(shared),
        }) as Box<dyn AnyStep>
    };
    definition.steps = steps.into_iter().enumerate().map(wrap).collect();
    let built = Engine::builder(store.clone()).register(definition).build();
    let engine = built.expect("the scenario's definition is sound");
    shared.state().engine = Some(engine.clone());
    engine
}

/// One run; says whether everything planned happened.
async fn run<S: Scenario>(
    scenario: &S,
    case: &Case,
    steps: usize,
    policy: OnFailure,
    report: &mut Report,
) -> bool {
    report.cases += 1;
    let memory = Memory::new();
    let state = Happened {
        remaining: case.faults.clone(),
        ..Happened::default()
    };
    let shared = Arc::new(Shared {
        memory: memory.clone(),
        state: Mutex::new(state),
    });
    let mut store = memory.store();
    let start = scenario.prepare(&store).await;
    let engine_now = engine(scenario, &store, &shared);
    let kind = scenario.definition(&store).kind;
    let mut planned = engine_now
        .plan(kind, &start.input, start.resources)
        .expect("the operation can be planned");
    let id = planned.operation.id;
    planned.txn.append(start.txn);
    store
        .commit(planned.txn)
        .await
        .expect("the first transaction commits");
    let crashed_at_commit = arm(&memory, case.at_commit);
    if case.before_launch {
        memory.crash(Crash::Power);
    } else {
        // A crash is seen below.
        let _ = engine_now.launch(id).await;
    }

    let operation = to_its_end(
        scenario,
        case,
        policy,
        &shared,
        id,
        (&mut store, engine_now),
        report,
    )
    .await;
    let done = std::mem::take(&mut shared.state().done);
    let at_commit = crashed_at_commit.map(|crashed| *crashed.lock().expect("not poisoned"));
    let happened = done.len() == case.faults.len() && at_commit != Some(false);
    assert!(
        happened || !case.all_must_happen,
        "{case}: only {done:?} happened"
    );
    expect_state(case, &done, &operation, steps, policy);
    if let Err(wrong) = scenario.verify(&store, &operation).await {
        panic!(
            "{case}: {:?}, but {wrong}; error: {:?}",
            operation.state, operation.error
        );
    }
    settled_for_good(scenario, case, &memory, &shared, &operation).await;
    happened
}

/// Restarts what crashed and retries what is stuck until the operation ends.
async fn to_its_end<S: Scenario>(
    scenario: &S,
    case: &Case,
    policy: OnFailure,
    shared: &Arc<Shared>,
    id: OperationId,
    (store, mut engine_now): (&mut Store, Engine),
    report: &mut Report,
) -> Operation {
    let memory = &shared.memory;
    for _ in 0..MOST_LIVES {
        match tokio::time::timeout(HANG, settle(&engine_now, memory, id)).await {
            Ok(Some(operation)) => {
                if !retry(&engine_now, memory, &operation, policy).await {
                    return operation;
                }
            }
            Ok(None) => {
                report.restarts += 1;
                engine_now.abort().await;
                *store = memory.restart();
                engine_now = engine(scenario, store, shared);
                // Another crash is seen in the next round.
                let _ = engine_now.recover().await;
            }
            Err(_) => panic!("{case}: the operation neither ended nor crashed"),
        }
    }
    panic!(
        "{case}: still not at its end: {:?}",
        engine_now.get(id).await
    )
}

/// Crashes at the planned commit; the flag says whether it came to that.
fn arm(memory: &Memory, at_commit: Option<CommitCrash>) -> Option<Arc<Mutex<bool>>> {
    let planned = at_commit?;
    let crashed = Arc::new(Mutex::new(false));
    let flag = Arc::clone(&crashed);
    let mut seen = 0;
    memory.set_hook(Box::new(move |point, _| {
        if point != planned.point {
            return None;
        }
        seen += 1;
        let now = seen == planned.nth + 1;
        if now {
            *flag.lock().expect("not poisoned") = true;
        }
        now.then_some(planned.crash)
    }));
    Some(crashed)
}

/// Waits until the operation ended, or the store crashed.
async fn settle(engine: &Engine, memory: &Memory, id: OperationId) -> Option<Operation> {
    loop {
        let ended = tokio::time::timeout(Duration::from_millis(1), engine.wait(id)).await;
        if memory.crashed() {
            return None;
        }
        if let Ok(Ok(operation)) = ended
            && operation.state.is_final()
        {
            return Some(operation);
        }
    }
}

/// What is stuck is retried, as a person would; what failed forward-only too.
async fn retry(engine: &Engine, memory: &Memory, operation: &Operation, policy: OnFailure) -> bool {
    let stuck = operation.state == State::Stuck;
    let failed = operation.state == State::Failed && policy == OnFailure::Stop;
    if stuck || failed {
        let told = operation.stuck.as_ref().or(operation.error.as_ref());
        assert!(
            told.is_some_and(|f| !f.message.is_empty()),
            "what needs a person says why"
        );
        let retried = engine.retry(operation.id).await;
        let fine = retried.is_ok() || memory.crashed();
        assert!(fine, "what is stuck or failed can be retried: {retried:?}");
    }
    stuck || failed
}

/// The final states a case may lead to.
fn expect_state(
    case: &Case,
    done: &[Fault],
    operation: &Operation,
    steps: usize,
    policy: OnFailure,
) {
    let forward = || done.iter().filter(|fault| fault.way == Way::Run);
    let failed = forward().any(|fault| fault.kind.fails());
    let cancelled = forward().any(|fault| fault.kind.cancels());
    // What happened at the last step may come too late; what a crash took back does not count.
    let open = case.at_commit.is_some()
        || forward().any(|fault| fault.kind.cancels() && fault.step + 1 == steps);
    let expected = match (failed, cancelled) {
        (true, _) if policy == OnFailure::Undo => State::Undone,
        (_, true) => State::Cancelled,
        _ => State::Succeeded,
    };
    let right = operation.state == expected || open && operation.state == State::Succeeded;
    assert!(
        right,
        "{case}: {:?} instead of {expected:?}: {operation:?}",
        operation.state
    );
}

/// An end is an end: after another power cut nothing begins again.
async fn settled_for_good<S: Scenario>(
    scenario: &S,
    case: &Case,
    memory: &Memory,
    shared: &Arc<Shared>,
    operation: &Operation,
) {
    memory.clear_hook();
    memory.crash(Crash::Power);
    let store = memory.restart();
    let engine = engine(scenario, &store, shared);
    let recovery = engine.recover().await.expect("recovers");
    assert!(
        recovery.resumed.is_empty(),
        "{case}: an ended operation was taken up again"
    );
    let kept = engine.get(operation.id).await.expect("the record is kept");
    assert_eq!(
        kept.state, operation.state,
        "{case}: the end was not durable"
    );
    if let Err(wrong) = scenario.verify(&store, &kept).await {
        panic!("{case}: after another restart {wrong}");
    }
    engine.abort().await;
    shared.state().engine = None;
}
