//! Every fault at every step of model operations whose effects can be counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use store::{Store, Txn};
use workflow::testing::{Scenario, Start, for_each_fault};
use workflow::{
    Context, Definition, Finish, OnFailure, Operation, OperationId, State, Step, StepError,
};

/// The world outside the store: what exists, and for which operation it was made.
type World = Arc<Mutex<BTreeMap<&'static str, OperationId>>>;

const NAMES: [&str; 4] = ["image", "address", "volume", "network"];

/// Makes one thing; finds it when it was made before for the same operation.
struct Make {
    name: &'static str,
    /// What must be there already: the step before.
    needs: Option<&'static str>,
    world: World,
}

impl Step for Make {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn run(&self, ctx: &Context) -> Result<(), StepError> {
        tokio::task::yield_now().await;
        if let Some(needs) = self.needs {
            let made: OperationId = ctx.require(needs)?;
            assert_eq!(made, ctx.id(), "outputs of earlier steps are there");
            let there = self.world.lock().expect("lock").contains_key(needs);
            assert!(there, "{} runs only on top of {needs}", self.name);
        }
        let made = *self
            .world
            .lock()
            .expect("lock")
            .entry(self.name)
            .or_insert(ctx.id());
        assert_eq!(made, ctx.id(), "nothing is left from another operation");
        ctx.set_output(&made)
    }

    async fn undo(&self, ctx: &Context) -> Result<(), StepError> {
        tokio::task::yield_now().await;
        let mut world = self.world.lock().expect("lock");
        // In reverse: what was built on this is gone.
        let after = NAMES.iter().skip_while(|name| **name != self.name).nth(1);
        assert!(
            after.is_none_or(|after| !world.contains_key(after)),
            "undone out of order"
        );
        if world.get(self.name) == Some(&ctx.id()) {
            world.remove(self.name);
        }
        Ok(())
    }
}

/// Writes how it ended into the caller's record.
struct Record;

impl Finish for Record {
    async fn finish(&self, op: &Operation, store: &Store, txn: &mut Txn) -> Result<(), StepError> {
        let claimed = store
            .get("claim")
            .await?
            .ok_or(StepError::permanent("no claim"))?;
        txn.expect_revision("claim", claimed.modified)
            .put("claim", format!("{:?}", op.state));
        Ok(())
    }
}

struct Creation(World);

impl Creation {
    fn define(&self) -> Definition {
        let mut definition = Definition::new("create", 1).finish(Record);
        let mut needs = None;
        for name in NAMES {
            definition = definition.step(Make {
                name,
                needs,
                world: Arc::clone(&self.0),
            });
            needs = Some(name);
        }
        definition
    }
}

impl Scenario for Creation {
    fn definition(&self, _: &Store) -> Definition {
        self.define()
    }

    async fn prepare(&self, _: &Store) -> Start {
        let mut txn = Txn::new();
        txn.expect_absent("claim").put("claim", "claimed");
        Start {
            input: json!({"name": "web"}),
            resources: vec!["instances/web".to_owned()],
            txn,
        }
    }

    async fn verify(&self, store: &Store, op: &Operation) -> Result<(), String> {
        let made: Vec<_> = self.0.lock().expect("lock").keys().copied().collect();
        let mut all = NAMES.to_vec();
        all.sort_unstable();
        let expected = if op.state == State::Succeeded {
            all
        } else {
            vec![]
        };
        if made != expected {
            return Err(format!("the world has {made:?} instead of {expected:?}"));
        }
        let claim = store
            .get("claim")
            .await
            .map_err(|e| e.to_string())?
            .ok_or("the claim is gone")?;
        let expected = format!("{:?}", op.state);
        if claim.value != expected.as_bytes() {
            return Err(format!("the caller's record says {:?}", claim.value));
        }
        Ok(())
    }
}

#[tokio::test]
async fn every_fault_leaves_a_creation_done_or_undone() {
    let report = for_each_fault(|| async { Creation(World::default()) }).await;
    assert!(report.cases > 300 && report.restarts > 150, "{report:?}");
}

/// Removes one thing, and only goes forward.
struct Remove(&'static str, World);

impl Step for Remove {
    fn name(&self) -> &'static str {
        self.0
    }

    async fn run(&self, _: &Context) -> Result<(), StepError> {
        tokio::task::yield_now().await;
        self.1.lock().expect("lock").remove(self.0);
        Ok(())
    }

    async fn undo(&self, _: &Context) -> Result<(), StepError> {
        Err(StepError::permanent("a deletion is never undone"))
    }
}

struct Deletion(World);

impl Scenario for Deletion {
    fn definition(&self, _: &Store) -> Definition {
        let start = Definition::new("delete", 1).on_failure(OnFailure::Stop);
        NAMES.iter().rev().fold(start, |definition, name| {
            definition.step(Remove(name, Arc::clone(&self.0)))
        })
    }

    async fn prepare(&self, store: &Store) -> Start {
        let engine = workflow::Engine::builder(store.clone())
            .register(Creation(World::default()).define())
            .build()
            .expect("builds");
        let id = engine.plan("create", &(), []).expect("plans").operation.id;
        self.0
            .lock()
            .expect("lock")
            .extend(NAMES.map(|name| (name, id)));
        Start::default()
    }

    async fn verify(&self, _: &Store, op: &Operation) -> Result<(), String> {
        let left = self.0.lock().expect("lock").len();
        let wrong = op.state == State::Succeeded && left > 0;
        if wrong {
            Err(format!("{left} things are left"))
        } else {
            Ok(())
        }
    }
}

#[tokio::test]
async fn every_fault_leaves_a_deletion_done_or_cancelled() {
    let report = for_each_fault(|| async { Deletion(World::default()) }).await;
    assert!(report.cases > 100, "{report:?}");
}

/// An operation whose undo forgets something: the harness must notice.
struct Leaky(World);

struct Forgets(World);

impl Step for Forgets {
    fn name(&self) -> &'static str {
        "forgets"
    }

    async fn run(&self, ctx: &Context) -> Result<(), StepError> {
        self.0.lock().expect("lock").insert("image", ctx.id());
        Ok(())
    }

    async fn undo(&self, _: &Context) -> Result<(), StepError> {
        Ok(())
    }
}

impl Scenario for Leaky {
    fn definition(&self, _: &Store) -> Definition {
        Definition::new("leak", 1).step(Forgets(Arc::clone(&self.0)))
    }

    async fn prepare(&self, _: &Store) -> Start {
        Start::default()
    }

    async fn verify(&self, _: &Store, op: &Operation) -> Result<(), String> {
        let left = self.0.lock().expect("lock").len();
        let wrong = op.state != State::Succeeded && left > 0;
        if wrong {
            Err(format!("{left} things are left"))
        } else {
            Ok(())
        }
    }
}

#[tokio::test]
async fn the_harness_notices_an_undo_that_leaks() {
    let run = tokio::spawn(async { for_each_fault(|| async { Leaky(World::default()) }).await });
    let ended = tokio::time::timeout(Duration::from_secs(120), run)
        .await
        .expect("ends");
    assert!(
        ended.is_err_and(|error| error.is_panic()),
        "the leak must be found"
    );
}
