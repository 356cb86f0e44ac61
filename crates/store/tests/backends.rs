//! Both backends keep the contract, and do the same under random transactions.

use proptest::prelude::*;
use store::memory::Memory;
use store::{CommitError, Durability, Expect, Range, ReadError, Revision, Store, Txn, sqlite};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

#[test]
fn memory_conforms() {
    runtime().block_on(store::conformance::run(|| async { Memory::new().store() }));
}

#[test]
fn sqlite_conforms() {
    let dir = tempfile::tempdir().expect("a directory");
    let next = std::sync::atomic::AtomicU32::new(0);
    runtime().block_on(store::conformance::run(|| {
        let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = dir.path().join(format!("{n}.db"));
        async move { sqlite::open(path, sqlite::Options::default()).expect("opens") }
    }));
}

/// One step of a random history. Keys are few, so that they collide.
#[derive(Debug, Clone)]
enum Act {
    Commit {
        guards: Vec<(u8, u8)>,
        ops: Vec<(u8, Option<u16>)>,
        relaxed: bool,
    },
    Read {
        prefix: u8,
        after: Option<u8>,
        limit: usize,
        back: u64,
    },
    Compact {
        back: u64,
    },
    Restart,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let guard = (0..8_u8, 0..4_u8);
    let op = (0..8_u8, prop::option::weighted(0.7, 0..2000_u16));
    let commit = (
        prop::collection::vec(guard, 0..2),
        prop::collection::vec(op, 0..5),
        any::<bool>(),
    )
        .prop_map(|(guards, ops, relaxed)| Act::Commit {
            guards,
            ops,
            relaxed,
        });
    let read = (0..3_u8, prop::option::of(0..8_u8), 1..6_usize, 0..12_u64).prop_map(
        |(prefix, after, limit, back)| Act::Read {
            prefix,
            after,
            limit,
            back,
        },
    );
    let act = prop_oneof![
        12 => commit,
        6 => read,
        1 => (0..10_u64).prop_map(|back| Act::Compact { back }),
        1 => Just(Act::Restart),
    ];
    prop::collection::vec(act, 1..60)
}

fn key(n: u8) -> String {
    format!("{}/{n}", ["a", "b"][usize::from(n % 2)])
}

/// The same transaction for both: guards are by the position of the key's revision.
async fn transaction(store: &Store, act: &Act) -> Option<Txn> {
    let Act::Commit {
        guards,
        ops,
        relaxed,
    } = act
    else {
        return None;
    };
    let mut txn = if *relaxed { Txn::relaxed() } else { Txn::new() };
    for (n, kind) in guards {
        let found = store
            .get(key(*n))
            .await
            .expect("reads")
            .map(|record| record.modified);
        txn.expect(
            key(*n),
            match (kind, found) {
                (0, _) => Expect::Absent,
                (1, _) => Expect::Present,
                (2, Some(revision)) => Expect::At(revision),
                (_, found) => Expect::At(found.unwrap_or(Revision(7)).next()),
            },
        );
    }
    let mut used = Vec::new();
    for (n, value) in ops {
        if !used.contains(n) {
            used.push(*n);
            match value {
                Some(size) => txn.put(key(*n), vec![*n; usize::from(*size)]),
                None => txn.delete(key(*n)),
            };
        }
    }
    assert_eq!(txn.durability() == Durability::Relaxed, *relaxed);
    Some(txn)
}

/// Errors by what they say; the rest by value.
fn told<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

async fn same(acts: &[Act]) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    let memory = Memory::new();
    // Two restarts each, so that both revision counters have jumped equally often.
    let mut model = memory.restart();
    let mut real = sqlite::open(&path, sqlite::Options::default()).expect("opens");
    let mut watchers = (
        model
            .watch("a/", model.revision().expect("alive"))
            .expect("watches"),
        real.watch("a/", real.revision().expect("alive"))
            .expect("watches"),
    );
    for act in acts {
        match act {
            Act::Commit { .. } => {
                let txn = transaction(&model, act).await.expect("a commit");
                let results: (Result<_, CommitError>, _) =
                    (model.commit(txn.clone()).await, real.commit(txn).await);
                assert_eq!(told(results.0), told(results.1), "{act:?}");
            }
            Act::Read {
                prefix,
                after,
                limit,
                back,
            } => {
                let newest = model.revision().expect("alive").0;
                let mut range = Range::prefix(["", "a/", "b/"][usize::from(*prefix)]).limit(*limit);
                if let Some(after) = after {
                    range = range.after(key(*after));
                }
                if *back < 8 {
                    // One beyond the newest too.
                    range = range.at(Revision((newest + 1).saturating_sub(*back)));
                }
                let results: (Result<_, ReadError>, _) =
                    (model.range(range.clone()).await, real.range(range).await);
                assert_eq!(told(results.0), told(results.1), "{act:?}");
            }
            Act::Compact { back } => {
                let through = Revision(model.revision().expect("alive").0.saturating_sub(*back));
                model.compact(through);
                real.compact(through);
            }
            Act::Restart => {
                model = memory.restart();
                drop(real);
                real = sqlite::open(&path, sqlite::Options::default()).expect("opens again");
            }
        }
        assert_eq!(
            model.revision().expect("alive"),
            real.revision().expect("alive")
        );
        // Watchers agree too: same batches, or the same reason for none.
        if !matches!(act, Act::Read { .. }) {
            loop {
                let soon = std::time::Duration::ZERO;
                let a = tokio::time::timeout(soon, watchers.0.next()).await;
                let b = tokio::time::timeout(soon, watchers.1.next()).await;
                assert_eq!(a.is_ok(), b.is_ok(), "{act:?}");
                let (Ok(a), Ok(b)) = (a, b) else { break };
                assert_eq!(a, b, "{act:?}");
                if a.is_err() {
                    let from = model.revision().expect("alive");
                    watchers = (
                        model.watch("a/", from).expect("watches"),
                        real.watch("a/", from).expect("watches"),
                    );
                }
            }
        }
    }
    assert_eq!(
        model.list("").await.expect("lists").records,
        real.list("").await.expect("lists").records,
        "the same state in the end"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn sqlite_does_what_the_model_does(acts in acts()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()
            .expect("a runtime");
        runtime.block_on(same(&acts));
    }

    #[test]
    fn any_bytes_can_be_decoded_or_refused(data in prop::collection::vec(any::<u8>(), 0..200)) {
        store::fuzzing::fuzz(&data);
    }

    #[test]
    fn almost_records_can_be_decoded_or_refused(
        data in r#"\{"v":[0-3],"data":(null|[0-9]{1,30}|\{"[a-z]{0,3}":"\PC{0,8}"\}|\[{1,300})\}"#
    ) {
        store::fuzzing::fuzz(data.as_bytes());
    }
}
