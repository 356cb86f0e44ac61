//! What only a file on a disk can do wrong: processes that die, logs that are cut, damaged pages.
//!
//! The processes that die are this test binary again, running [`child`].

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use store::sqlite::{self, Check, OpenError, Options};
use store::{CommitError, Durability, Revision, Store, Txn};

const WRITERS: usize = 4;
/// Commits that are made one after the other while syncs are counted.
const COMMITS: usize = 100;

fn open(path: &Path) -> Store {
    sqlite::open(path, Options::default()).expect("the store opens")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn put(key: &str, value: &str, durability: Durability) -> Txn {
    let mut txn = if durability == Durability::Durable {
        Txn::new()
    } else {
        Txn::relaxed()
    };
    txn.put(key, value.to_owned());
    txn
}

/// This binary again, as the process that does `mode` to the store at `path`.
fn child_command(mode: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args([
        "--exact",
        "child",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command
        .env("STORE_CHILD_MODE", mode)
        .env("STORE_CHILD_PATH", path);
    command
}

#[test]
#[ignore = "run by the other tests of this file, as the process that dies"]
fn child() {
    let mode = std::env::var("STORE_CHILD_MODE").expect("a mode");
    let path = std::env::var_os("STORE_CHILD_PATH").expect("a path");
    let store = open(Path::new(&path));
    runtime().block_on(async {
        match mode.as_str() {
            "write" => write_forever(&store).await,
            "durable" | "relaxed" => {
                let durability = if mode == "durable" {
                    Durability::Durable
                } else {
                    Durability::Relaxed
                };
                for n in 0..COMMITS {
                    let txn = put("key", &n.to_string(), durability);
                    store.commit(txn).await.expect("commits");
                }
            }
            "group" => {
                let one = |n: usize| {
                    let store = store.clone();
                    async move {
                        let txn = put(&format!("key/{n}"), "v", Durability::Durable);
                        store.commit(txn).await.expect("commits");
                    }
                };
                let all: Vec<_> = (0..64).map(|n| tokio::spawn(one(n))).collect();
                for task in all {
                    task.await.expect("ends");
                }
            }
            "full" => fill_the_disk(&store, Path::new(&path)).await,
            other => panic!("no mode {other}"),
        }
    });
}

/// Writers that each put numbered pairs, half of them durably, and say so when acknowledged.
async fn write_forever(store: &Store) {
    let write = |writer: usize, store: Store| async move {
        let head = format!("head/{writer}");
        let first = match store.get(head.as_str()).await.expect("reads") {
            Some(record) => String::from_utf8_lossy(&record.value)
                .parse()
                .expect("a number"),
            None => 0_usize,
        };
        for n in first.. {
            let mut txn = if n % 2 == 0 {
                Txn::new()
            } else {
                Txn::relaxed()
            };
            let value = format!("{n}").repeat(1 + n % 700);
            txn.put(format!("left/{writer}/{n:06}"), value.clone());
            txn.put(head.as_str(), (n + 1).to_string());
            txn.put(format!("right/{writer}/{n:06}"), value);
            store.commit(txn).await.expect("commits");
            let mut out = std::io::stdout().lock();
            writeln!(out, "ACK {writer} {n}")
                .and_then(|()| out.flush())
                .expect("writes");
        }
    };
    let tasks: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(writer, store.clone())))
        .collect();
    for task in tasks {
        task.await.expect("never ends by itself");
    }
}

/// Writes until there is no room, then makes room.
async fn fill_the_disk(store: &Store, path: &Path) {
    let large = |n: usize| {
        put(
            &format!("key/{n:04}"),
            &"v".repeat(100_000),
            Durability::Durable,
        )
    };
    let mut kept = 0;
    let error = loop {
        match store.commit(large(kept)).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 1000, "the disk must become full");
    };
    assert!(matches!(error, CommitError::Full), "{error:?}");
    assert!(
        matches!(store.commit(large(kept)).await, Err(CommitError::Full)),
        "it stays full"
    );
    assert_eq!(
        store.list("key/").await.expect("reads go on").records.len(),
        kept
    );
    let disk = path.parent().expect("a directory");
    let grown = Command::new("mount")
        .args(["-o", "remount,size=64m"])
        .arg(disk)
        .status()
        .expect("runs");
    assert!(grown.success(), "the disk grows");
    store
        .commit(large(kept))
        .await
        .expect("with room it goes on");
    assert_eq!(
        store.list("key/").await.expect("reads").records.len(),
        kept + 1
    );
}

/// Kills what it holds, whatever happens.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets writers write until `acks` answers were seen, then kills them; gives the highest
/// acknowledged number of each.
fn write_and_kill(path: &Path, acks: usize) -> BTreeMap<usize, usize> {
    let mut command = child_command("write", path);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut child = Killed(child);
    let mut lines = BufReader::new(child.0.stdout.take().expect("its output")).lines();
    let mut highest = BTreeMap::new();
    let mut seen = 0;
    let mut note = |line: &str| {
        let mut words = line
            .split("ACK ")
            .nth(1)?
            .split(' ')
            .map(str::parse::<usize>);
        let (writer, n) = (words.next()?.ok()?, words.next()?.ok()?);
        highest.insert(writer, n);
        Some(())
    };
    while seen < acks {
        let line = lines.next().expect("it goes on writing").expect("text");
        seen += usize::from(note(&line).is_some());
    }
    child.0.kill().expect("dies");
    // What it said before it died counts too; a line that was cut does not.
    let rest: Vec<_> = lines.map_while(Result::ok).collect();
    for line in &rest[..rest.len().saturating_sub(1)] {
        note(line);
    }
    highest
}

/// Every pair is whole and no writer has a gap; gives how many each has.
fn check_whole(store: &Store) -> BTreeMap<usize, usize> {
    let lists = |prefix: &'static str| async move { store.list(prefix).await.expect("lists") };
    let (left, right) = runtime().block_on(async { (lists("left/").await, lists("right/").await) });
    let strip = |page: &store::Page| -> Vec<(String, Revision, bytes::Bytes)> {
        let tail = |key: &str| key.split_once('/').expect("a slash").1.to_owned();
        page.records
            .iter()
            .map(|r| (tail(&r.key), r.modified, r.value.clone()))
            .collect()
    };
    let (left, right) = (strip(&left), strip(&right));
    assert_eq!(
        left, right,
        "both halves of every transaction, at one revision"
    );
    let mut count = BTreeMap::new();
    for (key, ..) in left {
        let (writer, n) = key.split_once('/').expect("a slash");
        let next = count.entry(writer.parse().expect("a number")).or_insert(0);
        assert_eq!(
            n.parse::<usize>().expect("a number"),
            *next,
            "in order, without a gap"
        );
        *next += 1;
    }
    count
}

#[test]
fn acknowledged_commits_survive_kill_9_and_none_is_torn() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    for round in 1..=4 {
        let acknowledged = write_and_kill(&path, 150 * round);
        let store = open(&path);
        let kept = check_whole(&store);
        for (writer, n) in acknowledged {
            let kept = kept.get(&writer).copied().unwrap_or(0);
            assert!(
                kept > n,
                "writer {writer} was told of {n}, {kept} are there"
            );
        }
    }
}

#[test]
fn a_log_cut_or_garbled_anywhere_gives_whole_transactions_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    write_and_kill(&path, 200);
    let database = std::fs::read(&path).expect("the database");
    let log = std::fs::read(dir.path().join("store.db-wal")).expect("its log");
    assert!(log.len() > 100_000, "the log has something to cut");
    let mut counts = Vec::new();
    for part in 0..=24 {
        // Uneven, so that cuts fall inside of frames.
        let cut = log.len() * part / 24;
        let cut = cut.saturating_sub(part * 97);
        let copy = dir.path().join(format!("{part}.db"));
        let mut log = log.clone();
        if part % 2 == 0 {
            log.truncate(cut);
        } else {
            let end = log.len().min(cut + 512);
            log[cut..end].fill(0xA5);
        }
        std::fs::write(&copy, &database).expect("writes");
        std::fs::write(dir.path().join(format!("{part}.db-wal")), log).expect("writes");
        match sqlite::open(
            &copy,
            Options {
                check: Check::Full,
                ..Options::default()
            },
        ) {
            Ok(store) => counts.push(check_whole(&store).values().sum::<usize>()),
            Err(error) => panic!("a log cut at {cut} must not keep the store closed: {error}"),
        }
    }
    assert!(
        counts.is_sorted(),
        "the longer the log, the more is there: {counts:?}"
    );
    assert!(counts.last() > counts.first(), "and it matters: {counts:?}");
}

/// How often a process that does `mode` asks the kernel to sync. `None` where strace cannot trace.
fn syncs(mode: &str, dir: &Path) -> Option<usize> {
    let trace = dir.join(format!("{mode}.trace"));
    let child = child_command(mode, &dir.join(format!("{mode}.db")));
    let status = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=fsync,fdatasync", "-o"])
        .arg(&trace)
        .arg(child.get_program())
        .args(child.get_args())
        .envs(
            child
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        )
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !status.is_ok_and(|status| status.success()) {
        return None;
    }
    let trace = std::fs::read_to_string(trace).expect("the trace");
    Some(
        trace
            .lines()
            .filter(|line| line.contains("sync(") && !line.contains("resumed"))
            .count(),
    )
}

#[test]
fn durable_commits_sync_once_each_or_together_and_relaxed_ones_do_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(durable) = syncs("durable", dir.path()) else {
        let mut err = std::io::stderr().lock();
        let reason = "strace is missing or may not trace here";
        writeln!(err, "SKIP durable_commits_sync_once_each: {reason}").expect("writes");
        return;
    };
    let traced = |mode| syncs(mode, dir.path()).expect("traced before");
    let (relaxed, group) = (traced("relaxed"), traced("group"));
    // Opening, closing and a checkpoint of a slow run sync some ten times too.
    assert!(
        (COMMITS..COMMITS + 30).contains(&durable),
        "one by one: {durable} syncs"
    );
    assert!(relaxed < 30, "{COMMITS} relaxed commits: {relaxed} syncs");
    assert!(group < 45, "64 durable commits at once: {group} syncs");
}

#[test]
fn a_file_that_cannot_be_trusted_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    let store = open(&path);
    assert!(matches!(
        sqlite::open(&path, Options::default()),
        Err(OpenError::Locked { .. })
    ));
    runtime().block_on(async {
        for n in 0..200 {
            let txn = put(
                &format!("key/{n:03}"),
                &"v".repeat(1500),
                Durability::Relaxed,
            );
            store.commit(txn).await.expect("commits");
        }
    });
    drop(store);
    let whole = std::fs::read(&path).expect("the database");
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("writes");
        sqlite::open(&path, Options::default()).err()
    };
    let mut found = 0;
    for page in 0..whole.len() / 4096 {
        let mut damaged = whole.clone();
        damaged[page * 4096..page * 4096 + 64].fill(0xFF);
        match refused(&damaged) {
            Some(error @ OpenError::Damaged { .. }) => {
                assert!(error.to_string().contains("berth recover"), "{error}");
                found += 1;
            }
            Some(other) => panic!("page {page}: {other:?}"),
            None => {}
        }
    }
    assert!(
        found * 10 >= whole.len() / 4096 * 9,
        "damaged pages are found: {found}"
    );
    assert!(matches!(
        refused(&whole[..whole.len() / 2]),
        Some(OpenError::Damaged { .. })
    ));
    assert!(matches!(
        refused(&[0x42; 8192]),
        Some(OpenError::Damaged { .. })
    ));
    assert!(refused(&whole).is_none(), "the undamaged file opens again");

    let other = dir.path().join("other.db");
    let foreign = rusqlite::Connection::open(&other).expect("opens");
    foreign
        .execute_batch("CREATE TABLE contacts (name TEXT)")
        .expect("creates");
    drop(foreign);
    assert!(matches!(
        sqlite::open(&other, Options::default()),
        Err(OpenError::NotOurs { .. })
    ));
    let nowhere = dir.path().join("missing/store.db");
    assert!(matches!(
        sqlite::open(nowhere, Options::default()),
        Err(OpenError::Io { .. })
    ));
}

#[test]
fn a_restart_keeps_records_and_leases_and_never_reuses_a_revision() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    runtime().block_on(async {
        let store = open(&path);
        let lease = store
            .grant(Duration::from_secs(3600))
            .await
            .expect("a lease");
        let mut txn = Txn::new();
        txn.put_leased("leased", "1", lease).put("plain", "1");
        let before = store.commit(txn).await.expect("commits");
        drop(store);

        let store = open(&path);
        let revision = store.revision().expect("a revision");
        assert!(
            revision.0 > before.0 + 1024,
            "more than relaxed commits can lose is skipped"
        );
        assert!(
            store.watch("", before).is_err(),
            "the history before is not pretended"
        );
        let record = store.get("leased").await.expect("reads").expect("is there");
        assert_eq!((record.modified, record.lease), (before, Some(lease)));
        store.keep_alive(lease).await.expect("the lease lives on");
        assert_ne!(
            store.grant(Duration::from_secs(1)).await.expect("another"),
            lease
        );
        store.revoke(lease).await.expect("and can be revoked");
        assert_eq!(store.get("leased").await.expect("reads"), None);
        assert!(store.get("plain").await.expect("reads").is_some());
    });
}

#[test]
fn a_full_disk_refuses_commits_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    // A small disk that only the child sees, and that is gone with it.
    let unshare = |command: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "sh", "-c"]);
        unshare.arg(format!(
            "mount -t tmpfs -o size=4m none \"$DISK\" && {command}"
        ));
        unshare.env("DISK", dir.path());
        unshare
    };
    if !unshare("true")
        .output()
        .is_ok_and(|output| output.status.success())
    {
        let mut err = std::io::stderr().lock();
        let reason = "no mount namespace of its own can be made here";
        writeln!(err, "SKIP a_full_disk_refuses_commits: {reason}").expect("writes");
        return;
    }
    let child = child_command("full", &dir.path().join("store.db"));
    let output = unshare("exec \"$0\" \"$@\"")
        .arg(child.get_program())
        .args(child.get_args())
        .envs(
            child
                .get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        )
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
}
