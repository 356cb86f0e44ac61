//! What the SQLite store costs here, beside what the disk costs: `figures DIR`.
//!
//! One row per measurement: name, unit, store, floor, what the floor is. Medians. The floor of a
//! durable commit is a plain write and fdatasync of as many bytes in the same directory.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use store::{Store, Table, Txn, sqlite};

const RECORDS: usize = 5000;

#[derive(Serialize, Deserialize)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    spec: String,
    cpus: u32,
    memory: u64,
}

const SAMPLES: Table<Sample> = Table::new("instance/", 1);

fn sample(n: usize) -> Sample {
    let label = |i: usize| {
        (
            format!("label-{i}"),
            format!("value of label {i} of record {n}"),
        )
    };
    Sample {
        name: format!("instance-{n}"),
        labels: (0..20).map(label).collect(),
        spec: "s".repeat(800),
        cpus: 2,
        memory: 1 << 31,
    }
}

/// Microseconds, the median.
fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn micros(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}

/// Write and sync into a file that has its size already, as the WAL has after a checkpoint.
fn floor(dir: &Path, bytes: usize) -> std::io::Result<f64> {
    let path = dir.join("floor");
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .open(&path)?;
    let data = vec![7_u8; bytes];
    let mut times = Vec::new();
    for round in 0..2 {
        for n in 0..200_u64 {
            let start = Instant::now();
            file.write_all_at(&data, n * bytes as u64)?;
            file.sync_data()?;
            if round > 0 {
                times.push(micros(start));
            }
        }
    }
    std::fs::remove_file(path)?;
    Ok(median(times))
}

async fn sequential(store: &Store, count: usize, relaxed: bool) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    for n in 0..count {
        let mut txn = if relaxed { Txn::relaxed() } else { Txn::new() };
        SAMPLES.put(&mut txn, &format!("{n:05}"), &sample(n))?;
        let start = Instant::now();
        store.commit(txn).await?;
        times.push(micros(start));
    }
    Ok(median(times))
}

/// Microseconds per durable commit with so many waiting at once.
async fn together(store: &Store, tasks: usize, each: usize) -> anyhow::Result<f64> {
    let start = Instant::now();
    let write = |task: usize, store: Store| async move {
        for _ in 0..each {
            let mut txn = Txn::new();
            SAMPLES.put(&mut txn, &format!("{task:05}"), &sample(task))?;
            store.commit(txn).await?;
        }
        anyhow::Ok(())
    };
    let all: Vec<_> = (0..tasks)
        .map(|task| tokio::spawn(write(task, store.clone())))
        .collect();
    for task in all {
        task.await??;
    }
    Ok(micros(start) / (tasks * each) as f64)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from);
    let dir = dir.ok_or_else(|| anyhow::anyhow!("usage: figures DIR (an empty directory)"))?;
    let path = dir.join("figures.db");
    let store = sqlite::open(&path, sqlite::Options::default())?;
    let mut out = std::io::stdout().lock();
    let mut row = |name: &str, ours: f64, floor: f64, what: &str| {
        writeln!(out, "{name:32} us {ours:10.1} {floor:10.1}  {what}")
    };
    for n in 0..RECORDS {
        let mut txn = Txn::relaxed();
        SAMPLES.put(&mut txn, &format!("{n:05}"), &sample(n))?;
        store.commit(txn).await?;
    }
    let disk = floor(&dir, 12 << 10)?;
    row(
        "durable commit",
        sequential(&store, 500, false).await?,
        disk,
        "write+fdatasync 12 KiB",
    )?;
    row(
        "durable commit, 64 at once",
        together(&store, 64, 20).await?,
        disk,
        "same, alone",
    )?;
    row(
        "relaxed commit",
        sequential(&store, 1000, true).await?,
        0.0,
        "-",
    )?;

    let (mut raw, mut typed, mut one) = (Vec::new(), Vec::new(), Vec::new());
    let mut bytes = 0;
    for n in 0..21 {
        let start = Instant::now();
        bytes = store
            .list("instance/")
            .await?
            .records
            .iter()
            .map(|r| r.value.len())
            .sum();
        raw.push(micros(start));
        let start = Instant::now();
        SAMPLES.list(&store).await?;
        typed.push(micros(start));
        let start = Instant::now();
        SAMPLES.get(&store, &format!("{:05}", n * 97)).await?;
        one.push(micros(start));
    }
    let note = format!("{RECORDS} records, {} bytes each", bytes / RECORDS);
    row("list", median(raw), 0.0, &note)?;
    row("list, decoded", median(typed), 0.0, &note)?;
    row("get, decoded", median(one), 0.0, "-")?;
    drop(store);
    let start = Instant::now();
    let store = sqlite::open(&path, sqlite::Options::default())?;
    row("open, with quick check", micros(start), 0.0, &note)?;
    drop(store);
    std::fs::remove_file(path)?;
    Ok(())
}
