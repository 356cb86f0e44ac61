//! A service in memory, for tests of both ends of the API: the server's own and the command
//! line's. It keeps what it is told, moves through states at once, and runs two programs: `cat`
//! (echoes its input) and anything else (prints its command line and exits with 0, or with the
//! number after `exit`).
//!
//! It is no model of the daemon: it validates little and forgets everything with the process.

mod made;
mod programs;
mod service;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use api::{Event, Image, InstanceDetail, Login, Network, Operation, Problem, Token, Volume};
use bytes::Bytes;
use model::token::Scope;
use tokio::sync::{Semaphore, broadcast, watch};

/// A service in memory. Clones share what they hold.
#[derive(Clone)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    events: broadcast::Sender<Event>,
}

#[derive(Default)]
struct State {
    instances: BTreeMap<String, InstanceDetail>,
    logs: BTreeMap<String, Vec<Bytes>>,
    /// Unpacked archives, by instance and path.
    files: BTreeMap<(String, String), Vec<u8>>,
    images: BTreeMap<String, Image>,
    networks: BTreeMap<String, Network>,
    volumes: BTreeMap<String, Volume>,
    operations: Vec<Operation>,
    /// By registry.
    logins: BTreeMap<String, Login>,
    /// By secret.
    tokens: BTreeMap<String, Token>,
    history: Vec<Event>,
    next_id: u64,
    /// Answered instead of the next call's own answer.
    fail_next: Option<Problem>,
    /// Whether the next call panics.
    panic_next: bool,
    /// What the next stop waits for.
    held: Option<Hold>,
}

/// A stop that was begun and goes on when told to.
#[derive(Clone)]
pub struct Hold {
    begun: Arc<Semaphore>,
    released: Arc<Semaphore>,
}

impl Hold {
    /// Waits until the stop has begun.
    pub async fn begun(&self) {
        let _ = self.begun.acquire().await;
    }

    /// Lets it go on.
    pub fn release(&self) {
        self.released.add_permits(1);
    }
}

impl Default for Fake {
    fn default() -> Self {
        Self::new()
    }
}

impl Fake {
    /// One that holds the network `default` and the images `busybox` and `debian`.
    #[must_use]
    pub fn new() -> Self {
        let fake = Self {
            state: Arc::default(),
            changed: watch::Sender::new(0),
            events: broadcast::Sender::new(1024),
        };
        {
            let mut state = fake.lock();
            let network = made::network("default", "10.77.0.0/24", "10.77.0.1");
            state.networks.insert("default".into(), network);
            for name in ["busybox", "debian"] {
                state.images.insert(name.into(), made::image(name));
            }
        }
        fake
    }

    /// Adds `count` running instances, `box-0` and so on.
    pub fn populate(&self, count: usize) {
        for n in 0..count {
            let spec = api::InstanceSpec {
                image: "busybox".into(),
                ..Default::default()
            };
            let detail = made::instance(&format!("box-{n}"), n as u64, spec, "running");
            self.lock()
                .instances
                .insert(detail.instance.name.clone(), detail);
        }
    }

    /// Makes a secret valid.
    pub fn allow(&self, secret: &str, scope: Scope) {
        let token = made::token(&format!("token-{secret}"), scope.as_str());
        self.lock().tokens.insert(secret.to_owned(), token);
    }

    /// The next call, whatever it is, fails with this.
    pub fn fail_next(&self, problem: Problem) {
        self.lock().fail_next = Some(problem);
    }

    /// The next call, whatever it is, panics.
    pub fn panic_next(&self) {
        self.lock().panic_next = true;
    }

    /// The next stop begins and then waits to be released.
    #[must_use]
    pub fn hold_next_stop(&self) -> Hold {
        let closed = || Arc::new(Semaphore::new(0));
        let hold = Hold {
            begun: closed(),
            released: closed(),
        };
        self.lock().held = Some(hold.clone());
        hold
    }

    /// Adds to what an instance's program wrote.
    pub fn log(&self, name: &str, text: &str) {
        let text = Bytes::copy_from_slice(text.as_bytes());
        self.lock()
            .logs
            .entry(name.to_owned())
            .or_default()
            .push(text);
        self.changed.send_modify(|version| *version += 1);
    }

    /// The archive last unpacked below a path of an instance.
    #[must_use]
    pub fn unpacked(&self, name: &str, path: &str) -> Option<Vec<u8>> {
        let key = (name.to_owned(), path.to_owned());
        self.lock().files.get(&key).cloned()
    }

    /// Says that something happened.
    pub fn event(&self, kind: &str, resource: &str) {
        let mut state = self.lock();
        let event = Event {
            sequence: state.history.len() as u64 + 1,
            at: made::NOW.into(),
            kind: kind.into(),
            resource: resource.into(),
            message: String::new(),
            attributes: BTreeMap::new(),
        };
        state.history.push(event.clone());
        // Under the lock, so that whoever subscribes under it misses none and sees none twice.
        let _ = self.events.send(event);
        drop(state);
        self.changed.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
