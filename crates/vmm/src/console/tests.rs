//! Tests of `console`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{server::Running, *};

struct Fixture {
    directory: tempfile::TempDir,
    output: Output,
    typed: Arc<Mutex<Vec<u8>>>,
    running: Running,
}

fn start() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let output = Output::new().unwrap();
    let typed = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&typed);
    let console = Console {
        output: output.clone(),
        // A guest that takes one byte at a time.
        input: Box::new(move |data| {
            sink.lock().unwrap().push(data[0]);
            1
        }),
        log: Some(Log::open(&directory.path().join("log"), 0).unwrap()),
        listener: Some(UnixListener::bind(directory.path().join("socket")).unwrap()),
        attached: Vec::new(),
    };
    Fixture {
        directory,
        output,
        typed,
        running: console.spawn(|| ()).unwrap(),
    }
}

fn attach(directory: &Path) -> UnixStream {
    let stream = UnixStream::connect(directory.join("socket")).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

fn expect(stream: &mut UnixStream, text: &[u8]) {
    let mut data = vec![0; text.len()];
    stream.read_exact(&mut data).unwrap();
    assert_eq!(data, text);
}

#[test]
fn clients_get_the_history_first_and_one_of_them_types() {
    let fixture = start();
    fixture.output.push(b"hello ");
    let mut first = attach(fixture.directory.path());
    expect(&mut first, b"hello ");
    let mut second = attach(fixture.directory.path());
    expect(&mut second, b"hello ");
    fixture.output.push(b"world");
    expect(&mut first, b"world");
    expect(&mut second, b"world");

    first.write_all(b"abc").unwrap();
    while fixture.typed.lock().unwrap().len() < 3 {
        std::thread::yield_now();
    }
    second.write_all(b"xyz").unwrap();
    first.write_all(b"d").unwrap();
    while fixture.typed.lock().unwrap().len() < 4 {
        std::thread::yield_now();
    }
    assert_eq!(*fixture.typed.lock().unwrap(), b"abcd");

    fixture.output.push(b", last words");
    fixture.running.finish();
    expect(&mut second, b", last words");
    let log = std::fs::read(fixture.directory.path().join("log")).unwrap();
    assert_eq!(log, b"hello world, last words");
}

#[test]
fn a_client_that_does_not_read_is_dropped_and_holds_up_nobody() {
    let fixture = start();
    let mut deaf = attach(fixture.directory.path());
    let mut reader = attach(fixture.directory.path());
    let total = 4 * BACKLOG_BYTES;
    let mut read = vec![0; PENDING_BYTES / 2];
    for _ in 0..total / read.len() {
        fixture.output.push(&vec![b'x'; read.len()]);
        reader.read_exact(&mut read).unwrap();
    }
    let mut rest = Vec::new();
    deaf.read_to_end(&mut rest).unwrap();
    assert!(rest.len() < total);
    fixture.running.finish();
}
