//! Tests of `control`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::Arc,
    thread,
    time::Duration,
};

use proptest::prelude::*;

use super::{
    protocol::{RunState, encode},
    *,
};
use crate::exit::StopReason;

const PATIENCE: Option<Duration> = Some(Duration::from_secs(20));

/// A machine that can be paused.
struct Fake(Arc<Events>);

impl Commands for Fake {
    fn name(&self) -> &str {
        "fake"
    }

    fn call(&mut self, request: &Request) -> Reply {
        match request {
            Request::Pause => {
                let state = RunState::Paused;
                self.0.send(Event::State { state });
                Reply::Ok
            }
            _ => Reply::Error {
                message: "it cannot".into(),
            },
        }
    }
}

/// Runs `clients` against a server, which must end with them.
fn with_server(clients: impl FnOnce(&std::path::Path)) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let listener = UnixListener::bind(&path).unwrap();
    let (events, source) = Events::new().unwrap();
    let events = Arc::new(events);
    let mut fake = Fake(Arc::clone(&events));
    let server = thread::spawn(move || serve(Some(&listener), &source, &mut fake));
    clients(&path);
    let reason = StopReason::Killed;
    events.send(Event::Stopped { reason });
    server.join().unwrap();
}

#[test]
fn requests_are_answered_in_order_and_events_reach_who_subscribed() {
    with_server(|path| {
        let mut watcher = Client::connect(path, PATIENCE).unwrap();
        watcher.call(&Request::Subscribe).unwrap();
        let mut other = Client::connect(path, PATIENCE).unwrap();
        assert_eq!(other.call(&Request::Pause).unwrap(), Reply::Ok);
        let refused = other.call(&Request::Resume).unwrap_err();
        assert_eq!(refused.to_string(), "it cannot");
        let state = RunState::Paused;
        assert_eq!(watcher.event().unwrap(), Event::State { state });
    });
}

#[test]
fn who_breaks_the_rules_is_dropped_and_the_others_are_served_on() {
    with_server(|path| {
        let mut rude = UnixStream::connect(path).unwrap();
        rude.set_read_timeout(PATIENCE).unwrap();
        rude.write_all(&encode(&Request::Pause).unwrap()).unwrap();
        let mut answer = [0; 100];
        let count = rude.read(&mut answer).unwrap();
        assert!(String::from_utf8_lossy(&answer[..count]).contains("say hello first"));
        rude.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(rude.read(&mut answer).unwrap(), 0);
        Client::connect(path, PATIENCE).unwrap();
    });
}

#[test]
fn the_end_is_the_last_event() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let listener = UnixListener::bind(&path).unwrap();
    let (events, source) = Events::new().unwrap();
    let events = Arc::new(events);
    let mut fake = Fake(Arc::clone(&events));
    let server = thread::spawn(move || serve(Some(&listener), &source, &mut fake));
    let mut client = Client::connect(&path, PATIENCE).unwrap();
    client.call(&Request::Subscribe).unwrap();
    let reason = StopReason::TripleFault;
    events.send(Event::Stopped {
        reason: reason.clone(),
    });
    assert_eq!(client.event().unwrap(), Event::Stopped { reason });
    assert!(client.event().is_err());
    server.join().unwrap();
}

proptest! {
    #[test]
    fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        crate::fuzzing::control(&bytes);
    }
}
