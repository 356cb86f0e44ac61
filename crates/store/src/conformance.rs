//! What every backend must do, as one suite all of them run.
//!
//! Called from tests with a factory that gives a new, empty store with the default history each
//! time. Panics, naming the promise that was broken. Never asserts how long anything takes.

use std::future::Future;
use std::time::Duration;

use crate::error::{CommitError, LeaseError, ReadError, WatchError};
use crate::handle::Store;
use crate::limits::{MAX_PAGE_BYTES, MAX_TXN_OPS, MAX_VALUE_BYTES};
use crate::record::{LeaseId, Page, Range, Revision};
use crate::txn::{Expect, Txn};

/// Runs every check, each on a store of its own.
pub async fn run<F, Fut>(factory: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Store>,
{
    puts_and_deletes_make_revisions(factory().await).await;
    guards_are_checked_before_anything_happens(factory().await).await;
    transactions_that_change_nothing_make_no_revision(factory().await).await;
    limits_are_enforced(factory().await).await;
    ranges_are_ordered_and_paged(factory().await).await;
    pages_are_bounded_in_bytes(factory().await).await;
    the_past_can_be_read_until_compacted(factory().await).await;
    watchers_see_whole_transactions_in_order(factory().await).await;
    slow_watchers_are_told(factory().await).await;
    leases_take_their_keys_along(factory().await).await;
    leases_expire_unless_kept(factory().await).await;
    concurrent_writers_never_lose_an_update(factory().await).await;
}

fn put(key: &str, value: &str) -> Txn {
    let mut txn = Txn::new();
    txn.put(key, value.to_owned());
    txn
}

async fn commit(store: &Store, txn: Txn) -> Revision {
    store.commit(txn).await.expect("the transaction commits")
}

async fn range(store: &Store, range: Range) -> Page {
    store.range(range).await.expect("the range can be read")
}

fn keys(page: &Page) -> Vec<&str> {
    page.records
        .iter()
        .map(|record| record.key.as_str())
        .collect()
}

async fn puts_and_deletes_make_revisions(store: Store) {
    assert_eq!(
        store.get("a").await.expect("reads"),
        None,
        "an empty store has no keys"
    );
    let start = store.revision().expect("a revision");
    let first = commit(&store, put("a", "1")).await;
    assert!(first > start, "a change makes a later revision");
    let second = commit(&store, put("a", "2")).await;
    assert!(second > first, "each change makes a later revision");
    let record = store
        .get("a")
        .await
        .expect("reads")
        .expect("the key exists");
    assert_eq!(&record.value[..], b"2", "the last value counts");
    assert_eq!(
        (record.created, record.modified),
        (first, second),
        "both revisions are kept"
    );

    let mut both = Txn::new();
    both.delete("a").put("b", "3");
    let third = commit(&store, both).await;
    assert_eq!(store.get("a").await.expect("reads"), None, "deleted");
    let record = store
        .get("b")
        .await
        .expect("reads")
        .expect("the key exists");
    assert_eq!(record.created, third, "all operations share one revision");
    let again = commit(&store, put("a", "4")).await;
    let record = store
        .get("a")
        .await
        .expect("reads")
        .expect("the key exists again");
    assert_eq!(record.created, again, "a key created anew is a new key");
    assert_eq!(
        store.revision().expect("a revision"),
        again,
        "commits are visible when answered"
    );
}

async fn guards_are_checked_before_anything_happens(store: Store) {
    let first = commit(&store, put("a", "1")).await;
    let cases = [
        ("a", Expect::Absent, Some(first)),
        ("b", Expect::Present, None),
        ("b", Expect::At(first), None),
        ("a", Expect::At(first.next()), Some(first)),
    ];
    for (key, expect, actual) in cases {
        let mut txn = put("c", "x");
        txn.expect("a", Expect::Present)
            .expect(key, expect)
            .delete("a");
        match store.commit(txn).await {
            Err(CommitError::Conflict {
                key: k,
                expect: e,
                actual: a,
            }) => {
                assert_eq!(
                    (k.as_str(), e, a),
                    (key, expect, actual),
                    "the guard is named"
                );
            }
            other => panic!("{expect:?} on {key} must be a conflict, not {other:?}"),
        }
        assert_eq!(
            store.get("c").await.expect("reads"),
            None,
            "a conflict changes nothing"
        );
        assert_eq!(
            store.revision().expect("a revision"),
            first,
            "and makes no revision"
        );
    }
    let mut txn = Txn::new();
    txn.expect("a", Expect::At(first))
        .expect("b", Expect::Absent)
        .put("a", "2")
        .put("b", "2");
    commit(&store, txn).await;
    assert!(
        store.get("b").await.expect("reads").is_some(),
        "guards that hold let it pass"
    );
}

async fn transactions_that_change_nothing_make_no_revision(store: Store) {
    let first = commit(&store, put("a", "1")).await;
    let mut nothing = Txn::new();
    nothing.expect_present("a").delete("not-there");
    assert_eq!(
        commit(&store, nothing).await,
        first,
        "the current revision is the answer"
    );
    assert_eq!(
        commit(&store, Txn::new()).await,
        first,
        "also for the empty transaction"
    );
}

async fn limits_are_enforced(store: Store) {
    let mut most = Txn::new();
    for n in 0..MAX_TXN_OPS {
        most.expect_absent(format!("k{n}"))
            .put(format!("k{n}"), "v");
    }
    commit(&store, most.clone()).await;
    most.put("one-more", "v");
    let error = store.commit(most).await.expect_err("too many operations");
    assert!(matches!(error, CommitError::Limit(_)), "{error}");
    let mut largest = Txn::new();
    largest.put("large", vec![7_u8; MAX_VALUE_BYTES]);
    commit(&store, largest).await;
    let record = store.get("large").await.expect("reads").expect("is there");
    assert_eq!(
        record.value.len(),
        MAX_VALUE_BYTES,
        "the largest value survives whole"
    );
    assert!(
        matches!(store.get("").await, Err(ReadError::Limit(_))),
        "no empty key"
    );
}

async fn ranges_are_ordered_and_paged(store: Store) {
    let all = [
        "a",
        "p/",
        "p/a",
        "p/a/b",
        "p/b",
        "p/\u{e9}",
        "p/\u{10FFFF}",
        "p0",
        "q",
    ];
    for key in all.iter().rev() {
        commit(&store, put(key, key)).await;
    }
    let whole = range(&store, Range::prefix("")).await;
    assert_eq!(keys(&whole), all, "byte order, everything");
    assert_eq!(
        whole.revision,
        store.revision().expect("a revision"),
        "at the newest revision"
    );
    let under = range(&store, Range::prefix("p/")).await;
    assert_eq!(keys(&under), all[1..7], "only the prefix");
    assert_eq!(under.more, None, "nothing was cut");
    let exact = range(&store, Range::prefix("p/").limit(6)).await;
    assert_eq!(exact.more, None, "a limit that is just enough cuts nothing");

    let mut got = Vec::new();
    let mut next = Range::prefix("p/").limit(2);
    loop {
        let page = range(&store, next).await;
        assert!(page.records.len() <= 2, "no page is longer than asked");
        got.extend(page.records.iter().map(|record| record.key.clone()));
        let Some(more) = page.more else { break };
        next = Range::prefix("p/").limit(2).after(more);
    }
    assert_eq!(got, all[1..7], "pages join without gap or overlap");
    let behind = range(&store, Range::prefix("p/").after("p/a/a")).await;
    assert_eq!(
        keys(&behind),
        all[3..7],
        "the key to continue after need not exist"
    );
    let before = range(&store, Range::prefix("p/").after("a")).await;
    assert_eq!(
        keys(&before),
        all[1..7],
        "a key before the prefix skips nothing"
    );
    assert_eq!(
        keys(&range(&store, Range::prefix("x")).await),
        [""; 0],
        "nothing there"
    );
}

async fn pages_are_bounded_in_bytes(store: Store) {
    let count = MAX_PAGE_BYTES / MAX_VALUE_BYTES + 3;
    for n in 0..count {
        let mut txn = Txn::relaxed();
        txn.put(format!("big/{n:04}"), vec![0_u8; MAX_VALUE_BYTES]);
        commit(&store, txn).await;
    }
    let page = range(&store, Range::prefix("big/")).await;
    assert!(
        page.more.is_some() && page.records.len() < count,
        "the page is cut"
    );
    let whole = store.list("big/").await.expect("lists");
    assert_eq!(whole.records.len(), count, "the list joins the pages");
}

async fn the_past_can_be_read_until_compacted(store: Store) {
    let mut first = Txn::new();
    first
        .put("a", "1")
        .put("b", "1")
        .put("c", "1")
        .put("d", "1");
    let one = commit(&store, first).await;
    let mut second = Txn::new();
    second.put("a", "2").delete("b").put("bb", "2");
    let two = commit(&store, second).await;
    let mut third = Txn::new();
    third.delete("c").put("a", "3");
    let three = commit(&store, third).await;

    let view = |page: &Page| -> Vec<String> {
        let show = |r: &crate::Record| format!("{}={}", r.key, String::from_utf8_lossy(&r.value));
        page.records.iter().map(show).collect()
    };
    let expected = [
        (one, vec!["a=1", "b=1", "c=1", "d=1"]),
        (two, vec!["a=2", "bb=2", "c=1", "d=1"]),
        (three, vec!["a=3", "bb=2", "d=1"]),
    ];
    for (at, state) in &expected {
        let page = range(&store, Range::prefix("").at(*at)).await;
        assert_eq!(
            (&view(&page), page.revision),
            (&to_owned(state), *at),
            "as it was"
        );
        let mut joined = Vec::new();
        let mut next = Some(Range::prefix("").at(*at).limit(1));
        while let Some(range_of_one) = next.take() {
            let page = range(&store, range_of_one).await;
            joined.extend(view(&page));
            next = page
                .more
                .map(|more| Range::prefix("").at(*at).limit(1).after(more));
        }
        assert_eq!(joined, to_owned(state), "page by page too");
    }
    let future = store.range(Range::prefix("").at(three.next())).await;
    assert!(
        matches!(future, Err(ReadError::Future { .. })),
        "the future cannot be read"
    );
    store.compact(two);
    let gone = store.range(Range::prefix("").at(one)).await;
    assert!(
        matches!(gone, Err(ReadError::Compacted { .. })),
        "compacted is said, not guessed"
    );
    let kept = range(&store, Range::prefix("").at(two)).await;
    assert_eq!(
        view(&kept),
        to_owned(&expected[1].1),
        "what compaction kept is right"
    );
    let watch = store.watch("", one);
    assert!(
        matches!(watch, Err(WatchError::Compacted { .. })),
        "watches are told as well"
    );
    let ahead = store.watch("", Revision(three.0 + 1000));
    assert!(
        matches!(ahead, Err(WatchError::Compacted { .. })),
        "an unknown revision too"
    );
}

fn to_owned(state: &[&str]) -> Vec<String> {
    state.iter().map(|&s| s.to_owned()).collect()
}

async fn watchers_see_whole_transactions_in_order(store: Store) {
    let start = commit(&store, put("w/0", "0")).await;
    let mut live = store.watch("w/", start).expect("watches");
    let mut txn = Txn::new();
    txn.put("w/a", "1")
        .put("elsewhere", "1")
        .put("w/b", "1")
        .delete("w/0");
    let one = commit(&store, txn).await;
    let batch = live.next().await.expect("events");
    assert_eq!(batch.revision, one, "everything up to the commit is seen");
    let seen: Vec<_> = batch
        .events
        .iter()
        .map(|e| (e.key.as_str(), e.record.is_some()))
        .collect();
    assert_eq!(
        seen,
        [("w/a", true), ("w/b", true), ("w/0", false)],
        "one transaction, in order"
    );
    assert_eq!(
        batch.events[2].previous_revision(),
        start,
        "what was there before is known"
    );
    assert_eq!(
        batch.events[0].previous_revision(),
        Revision::ZERO,
        "or that nothing was"
    );
    assert!(
        batch.events.iter().all(|event| event.revision == one),
        "one revision for all"
    );

    commit(&store, put("elsewhere", "2")).await;
    let mut last = Revision::ZERO;
    for n in 0..20 {
        last = commit(&store, put("w/a", &n.to_string())).await;
    }
    let mut late = store
        .watch("w/", one)
        .expect("the recent past can be watched");
    for watcher in [&mut live, &mut late] {
        let mut values = Vec::new();
        let mut previous = one;
        while watcher.revision() < last {
            for event in watcher.next().await.expect("events").events {
                assert!(event.revision > previous, "in order");
                assert_eq!(
                    event.previous.is_some(),
                    event.key == "w/a",
                    "with what was before"
                );
                previous = event.revision;
                let record = event.record.expect("only puts");
                values.push(String::from_utf8_lossy(&record.value).into_owned());
            }
        }
        let expected: Vec<_> = (0..20).map(|n: i32| n.to_string()).collect();
        assert_eq!(values, expected, "every change once, live or late");
    }
    drop(store);
}

async fn slow_watchers_are_told(store: Store) {
    let start = commit(&store, put("s/a", "0")).await;
    let mut slow = store.watch("s/", start).expect("watches");
    let mut last = start;
    for n in 0..10 {
        last = commit(&store, put("s/a", &n.to_string())).await;
    }
    store.compact(Revision(last.0 - 2));
    let told = slow.next().await;
    assert!(
        matches!(told, Err(WatchError::Compacted { .. })),
        "missed events are announced"
    );
    let page = range(&store, Range::prefix("s/")).await;
    let mut again = store
        .watch("s/", page.revision)
        .expect("watches from the listing");
    let newest = commit(&store, put("s/a", "new")).await;
    let batch = again.next().await.expect("events");
    assert_eq!(
        (batch.revision, batch.events.len()),
        (newest, 1),
        "nothing missed after it"
    );
}

async fn leases_take_their_keys_along(store: Store) {
    const LONG: Duration = Duration::from_secs(3600);
    let lease = store.grant(LONG).await.expect("a lease");
    let other = store.grant(LONG).await.expect("another lease");
    assert_ne!(lease, other, "leases are told apart");
    let mut txn = Txn::new();
    txn.put_leased("l/a", "1", lease)
        .put_leased("l/b", "1", lease)
        .put_leased("l/c", "1", other);
    let start = commit(&store, txn).await;
    let record = store.get("l/a").await.expect("reads").expect("is there");
    assert_eq!(record.lease, Some(lease), "the record names its lease");
    commit(&store, put("l/b", "2")).await;
    let mut watcher = store.watch("l/", start.next()).expect("watches");
    store.keep_alive(lease).await.expect("it lives");
    store.revoke(lease).await.expect("it lived");
    let batch = watcher.next().await.expect("events");
    let gone: Vec<_> = batch
        .events
        .iter()
        .map(|e| (e.key.as_str(), e.record.is_none()))
        .collect();
    assert_eq!(
        gone,
        [("l/a", true)],
        "put again without a lease, l/b no longer hangs on it"
    );
    let left = range(&store, Range::prefix("l/")).await;
    assert_eq!(keys(&left), ["l/b", "l/c"], "the keys of other leases stay");
    for result in [store.revoke(lease).await, store.keep_alive(lease).await] {
        assert!(
            matches!(result, Err(LeaseError::NotFound { .. })),
            "an ended lease is unknown"
        );
    }
    let mut txn = Txn::new();
    txn.put_leased("l/d", "1", lease).put("l/e", "1");
    let error = store.commit(txn).await.expect_err("the lease has ended");
    assert!(
        matches!(error, CommitError::LeaseNotFound { lease: l } if l == lease),
        "{error}"
    );
    assert_eq!(
        store.get("l/e").await.expect("reads"),
        None,
        "and nothing was changed"
    );
    let never = store.keep_alive(LeaseId(u64::from(u32::MAX))).await;
    assert!(
        matches!(never, Err(LeaseError::NotFound { .. })),
        "nor one never granted"
    );
}

async fn leases_expire_unless_kept(store: Store) {
    let short = store
        .grant(Duration::from_millis(20))
        .await
        .expect("a lease");
    let long = store
        .grant(Duration::from_secs(3600))
        .await
        .expect("a lease");
    let start = store.revision().expect("a revision");
    let mut txn = Txn::new();
    txn.put_leased("e/short", "1", short)
        .put_leased("e/long", "1", long);
    let mut watcher = store.watch("e/", start).expect("watches");
    match store.commit(txn).await {
        Ok(_) => {}
        // On a very busy machine it may be over before it was used.
        Err(CommitError::LeaseNotFound { .. }) => return,
        Err(error) => panic!("{error}"),
    }
    let put = watcher.next().await.expect("the puts");
    let deleted = |batch: &crate::Batch| batch.events.iter().any(|e| e.record.is_none());
    let end = if deleted(&put) {
        put
    } else {
        watcher.next().await.expect("the end")
    };
    let over = end.events.last().expect("never empty");
    assert_eq!(
        (over.key.as_str(), over.record.is_none()),
        ("e/short", true),
        "it expired"
    );
    assert!(
        store.get("e/long").await.expect("reads").is_some(),
        "the other did not"
    );
    let kept = store.keep_alive(short).await;
    assert!(
        matches!(kept, Err(LeaseError::NotFound { .. })),
        "what expired cannot be kept"
    );
}

async fn concurrent_writers_never_lose_an_update(store: Store) {
    const WRITERS: usize = 8;
    const ROUNDS: usize = 10;
    commit(&store, put("count", "0")).await;
    let write = |store: Store| async move {
        let mut done = 0;
        while done < ROUNDS {
            let record = store.get("count").await.expect("reads").expect("is there");
            let count: usize = String::from_utf8_lossy(&record.value)
                .parse()
                .expect("a number");
            let mut txn = put("count", &(count + 1).to_string());
            txn.expect_revision("count", record.modified);
            match store.commit(txn).await {
                Ok(_) => done += 1,
                Err(error) => assert!(error.is_conflict(), "{error}"),
            }
        }
    };
    let tasks: Vec<_> = (0..WRITERS)
        .map(|_| tokio::spawn(write(store.clone())))
        .collect();
    for task in tasks {
        task.await.expect("the writer ends");
    }
    let record = store.get("count").await.expect("reads").expect("is there");
    assert_eq!(&record.value[..], b"80", "every increment counts once");
}
