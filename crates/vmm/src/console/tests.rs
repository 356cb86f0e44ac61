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

/// Longest that anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

struct Fixture {
    directory: tempfile::TempDir,
    output: Output,
    typed: Arc<Mutex<Vec<u8>>>,
    running: Running,
}

/// With a guest that takes so many bytes at a time.
fn start(at_once: usize) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let output = Output::new().unwrap();
    let typed = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&typed);
    let console = Console {
        output: output.clone(),
        input: Box::new(move |data| {
            let taken = data.len().min(at_once);
            sink.lock().unwrap().extend(&data[..taken]);
            taken
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
    let fixture = start(1);
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
    let fixture = start(1);
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

#[test]
fn what_is_typed_by_clients_that_hang_up_at_once_arrives_whole_and_in_order() {
    let fixture = start(512);
    // They are behind from the start: a reader would get this first.
    fixture.output.push(&[b'x'; 4096]);
    let mut first = attach(fixture.directory.path());
    expect(&mut first, b"x");
    drop(first);

    let mut expected = Vec::new();
    for round in 0..12u8 {
        // More than waits for the guest at a time, so that some of it is read after the end.
        let line = vec![b'a' + round; 1 + 700 * usize::from(round)];
        let mut client = attach(fixture.directory.path());
        client.write_all(&line).unwrap();
        drop(client);
        expected.extend(line);
    }
    let begun = std::time::Instant::now();
    while fixture.typed.lock().unwrap().len() < expected.len() {
        assert!(begun.elapsed() < PATIENCE, "some of it is lost");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(*fixture.typed.lock().unwrap() == expected);
    fixture.running.finish();
}

#[test]
fn what_a_machine_says_at_its_end_reaches_who_reads_late() {
    let fixture = start(1);
    let mut late = attach(fixture.directory.path());
    fixture.output.push(b"hello");
    expect(&mut late, b"hello");
    // More than a socket holds.
    for _ in 0..4 {
        fixture.output.push(&[b'x'; PENDING_BYTES]);
    }
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        let mut rest = Vec::new();
        late.read_to_end(&mut rest).unwrap();
        rest.len()
    });
    fixture.running.finish();
    assert_eq!(reader.join().unwrap(), 4 * PENDING_BYTES);
}
