//! What making, measuring and removing a volume costs.
//!
//! `cargo bench -p volume`. Prints medians; asserts nothing.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::time::{Duration, Instant};

use volume::{DirectoryPool, Kind, Pool, VolumeId, VolumeSpec};

const ROUNDS: usize = 200;

fn main() {
    let dir =
        tempfile::tempdir_in(std::env::var_os("BENCH_DIR").unwrap_or("/var/tmp".into())).unwrap();
    let pool = DirectoryPool::open(dir.path()).unwrap();
    let spec = VolumeSpec {
        size_bytes: Some(1 << 30),
        uid: 0,
        gid: 0,
        mode: 0o755,
    };
    let id = |n: usize| VolumeId::new(Kind::Root, &format!("instance-{n}")).unwrap();
    let mut out = std::io::stdout().lock();
    let mut row = |name: &str, work: &dyn Fn(usize)| {
        let time = |n| {
            let start = Instant::now();
            work(n);
            start.elapsed()
        };
        let mut times: Vec<Duration> = (0..ROUNDS).map(time).collect();
        times.sort();
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        writeln!(
            out,
            "{name:12} {:8.3} ms  (min {:.3})",
            ms(times[ROUNDS / 2]),
            ms(times[0])
        )
        .unwrap();
    };
    row("ensure", &|n| drop(pool.ensure(&id(n), &spec).unwrap()));
    row("ensure again", &|n| {
        drop(pool.ensure(&id(n), &spec).unwrap())
    });
    row("usage", &|n| assert!(pool.usage(&id(n)).is_ok()));
    row("list", &|_| drop(pool.list().unwrap()));
    row("remove", &|n| assert!(pool.remove(&id(n)).unwrap()));
}
