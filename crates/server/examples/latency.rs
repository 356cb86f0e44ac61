//! What the server costs over its service: requests on one kept-alive Unix connection, and a list
//! of 5,000 instances. Run with `cargo run --release -p server --features testing --example latency`.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::Arc,
    time::{Duration, Instant},
};

use server::{CancellationToken, Config, Listener, Server, testing::Fake};

fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("berth.sock");
    let fake = Fake::new();
    fake.populate(5000);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let stop = CancellationToken::new();
    let listener = {
        let _inside = runtime.enter();
        Listener::unix(&path, "berth")?
    };
    let server = Server::new(Arc::new(fake), Config::default());
    let task = runtime.spawn(server.run(vec![listener], stop.clone()));

    let mut stream = UnixStream::connect(&path)?;
    let mut out = std::io::stdout().lock();
    for (name, target, rounds) in [
        ("one instance", "/v1/instances/box-17", 5000),
        ("list of 5,000", "/v1/instances", 50),
    ] {
        let mut times = Vec::new();
        for _ in 0..rounds {
            let started = Instant::now();
            write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")?;
            answer(&mut stream)?;
            times.push(started.elapsed());
        }
        times.sort();
        let median: Duration = times[times.len() / 2];
        writeln!(out, "{name}: median {median:?}, least {:?}", times[0])?;
    }
    stop.cancel();
    runtime.block_on(task)?;
    Ok(())
}

fn answer(stream: &mut UnixStream) -> anyhow::Result<()> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let length = stream.read(&mut buffer)?;
        anyhow::ensure!(length > 0, "the server closed the connection");
        all.extend_from_slice(&buffer[..length]);
        let Some(end) = all.windows(4).position(|it| it == b"\r\n\r\n") else {
            continue;
        };
        let head = std::str::from_utf8(&all[..end])?;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.unwrap_or("0").parse()?;
        if all.len() >= end + 4 + length {
            return Ok(());
        }
    }
}
