//! An engine that keeps its guests in memory: for tests of whoever drives engines, and proof that
//! the conformance suite asks nothing of a particular implementation.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use model::{
    InstanceId, Timestamp,
    instance::{
        Limits,
        status::{Exit, Usage},
    },
};
use tokio::sync::{broadcast, mpsc};

use crate::{
    Capabilities, Changed, Engine, EngineError, Guest, GuestProcess, GuestProcessInfo, GuestState,
    GuestStats, Input, LogLine, LogRequest, Observed, Output, RootView, Session, SessionEnd,
    Target, conformance,
};

#[derive(Debug)]
struct Entry {
    observed: Observed,
    limits: Limits,
    command: String,
    attached: Vec<mpsc::Sender<Output>>,
}

/// The fake. A program `true` ends at once with 0, `false` with 1; any other runs until it gets
/// a signal, which ends it. An exec of `cat` answers what it is sent. A root is the guest's directory
/// of changes alone.
#[derive(Debug)]
pub struct FakeEngine {
    guests: Mutex<BTreeMap<InstanceId, Entry>>,
    events: broadcast::Sender<Changed>,
    refuse: Mutex<Option<String>>,
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self {
            guests: Mutex::default(),
            events: broadcast::channel(1024).0,
            refuse: Mutex::default(),
        }
    }
}

impl FakeEngine {
    /// Makes every later `ensure` fail with `message`, until called with `None`.
    pub fn refuse(&self, message: Option<&str>) {
        *lock(&self.refuse) = message.map(str::to_owned);
    }

    /// The limits a guest has, as last set.
    #[must_use]
    pub fn limits(&self, id: InstanceId) -> Option<Limits> {
        lock(&self.guests)
            .get(&id)
            .map(|entry| entry.limits.clone())
    }

    /// Ends a guest's program as if by itself.
    pub fn end(&self, id: InstanceId, code: i32) {
        self.finish(id, code, None);
    }

    fn finish(&self, id: InstanceId, code: i32, signal: Option<i32>) {
        if let Some(entry) = lock(&self.guests).get_mut(&id) {
            entry.observed.state = GuestState::Exited;
            entry.observed.pid = None;
            entry.observed.exit = Some(Exit {
                code,
                signal,
                oom_killed: false,
                at: Timestamp::from_millis(2),
            });
            entry.observed.usage = Usage {
                cpu_ns: 1_000_000,
                ..Usage::default()
            };
            for output in entry.attached.drain(..) {
                // A full or closed channel is an attacher that has gone.
                let _ = output.try_send(Output::End(SessionEnd::Exited { code }));
            }
        }
        self.tell(id);
    }

    fn tell(&self, id: InstanceId) {
        // Nobody listening is no error.
        let _ = self.events.send(Changed { id });
    }

    fn start(&self, id: InstanceId) {
        let command = {
            let mut guests = lock(&self.guests);
            let Some(entry) = guests.get_mut(&id) else {
                return;
            };
            entry.observed.state = GuestState::Running;
            entry.observed.started_at = Some(Timestamp::from_millis(1));
            entry.command.clone()
        };
        self.tell(id);
        match command.as_str() {
            "true" => self.finish(id, 0, None),
            "false" => self.finish(id, 1, None),
            _ => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Engine for FakeEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            pause: true,
            live_limits: true,
            exec: true,
        }
    }

    async fn ensure(&self, guest: &Guest, target: Target) -> Result<Observed, EngineError> {
        if let Some(message) = lock(&self.refuse).clone() {
            return Err(EngineError::Refused { message });
        }
        find(&guest.process)?;
        let state = {
            let mut guests = lock(&self.guests);
            let entry = guests.entry(guest.id).or_insert_with(|| Entry {
                observed: Observed {
                    state: GuestState::Prepared,
                    pid: Some(4242),
                    ..Observed::absent(guest.id)
                },
                limits: Limits::default(),
                command: guest.process.args.first().cloned().unwrap_or_default(),
                attached: Vec::new(),
            });
            if guest.generation < entry.observed.generation {
                let (given, current) = (guest.generation, entry.observed.generation);
                return Err(EngineError::Stale {
                    id: guest.id,
                    given,
                    current,
                });
            }
            entry.observed.generation = guest.generation;
            entry.limits = guest.limits.clone();
            match (entry.observed.state, target) {
                (GuestState::Running, Target::Paused) => entry.observed.state = GuestState::Paused,
                (GuestState::Paused, Target::Running) => entry.observed.state = GuestState::Running,
                _ => {}
            }
            entry.observed.state
        };
        if state == GuestState::Prepared && target != Target::Prepared {
            self.start(guest.id);
        }
        self.observe(guest.id).await
    }

    async fn observe(&self, id: InstanceId) -> Result<Observed, EngineError> {
        let guests = lock(&self.guests);
        Ok(guests
            .get(&id)
            .map_or_else(|| Observed::absent(id), |entry| entry.observed.clone()))
    }

    async fn list(&self) -> Result<Vec<Observed>, EngineError> {
        Ok(lock(&self.guests)
            .values()
            .map(|entry| entry.observed.clone())
            .collect())
    }

    async fn signal(&self, id: InstanceId, signal: i32) -> Result<(), EngineError> {
        let runs = lock(&self.guests)
            .get(&id)
            .is_some_and(|entry| matches!(entry.observed.state, GuestState::Running));
        if runs {
            self.finish(id, 128 + signal, Some(signal));
        }
        Ok(())
    }

    async fn remove(&self, id: InstanceId) -> Result<(), EngineError> {
        if lock(&self.guests).remove(&id).is_some() {
            self.tell(id);
        }
        Ok(())
    }

    fn events(&self) -> broadcast::Receiver<Changed> {
        self.events.subscribe()
    }

    async fn stats(&self, id: InstanceId) -> Result<Option<GuestStats>, EngineError> {
        let guests = lock(&self.guests);
        let runs = guests
            .get(&id)
            .is_some_and(|entry| entry.observed.pid.is_some());
        Ok(runs.then(|| GuestStats {
            cpu_ns: 1,
            pids: 1,
            ..GuestStats::default()
        }))
    }

    async fn set_limits(&self, id: InstanceId, limits: &Limits) -> Result<(), EngineError> {
        if let Some(entry) = lock(&self.guests).get_mut(&id) {
            entry.limits = limits.clone();
        }
        Ok(())
    }

    async fn attach(&self, id: InstanceId, _stdin: bool) -> Result<Session, EngineError> {
        let (input, _dropped) = mpsc::channel(8);
        let (sender, output) = mpsc::channel(8);
        let mut guests = lock(&self.guests);
        match guests.get_mut(&id) {
            Some(entry) if entry.observed.pid.is_some() => entry.attached.push(sender),
            _ => return Err(EngineError::NotRunning { id }),
        }
        Ok(Session { input, output })
    }

    async fn exec(&self, id: InstanceId, process: &GuestProcess) -> Result<Session, EngineError> {
        if self.observe(id).await?.state != GuestState::Running {
            return Err(EngineError::NotRunning { id });
        }
        find(process)?;
        let (input, mut to_program) = mpsc::channel(8);
        let (from_program, output) = mpsc::channel(8);
        let program = process.args.first().cloned().unwrap_or_default();
        tokio::spawn(async move {
            let code = match program.as_str() {
                "cat" => echo(&mut to_program, &from_program).await,
                "false" => 1,
                _ => 0,
            };
            // A receiver that has gone has detached.
            let _ = from_program
                .send(Output::End(SessionEnd::Exited { code }))
                .await;
        });
        Ok(Session { input, output })
    }

    async fn logs(
        &self,
        _id: InstanceId,
        _directory: &Path,
        _request: LogRequest,
    ) -> Result<mpsc::Receiver<LogLine>, EngineError> {
        let (_nothing_written, lines) = mpsc::channel(1);
        Ok(lines)
    }

    async fn processes(&self, id: InstanceId) -> Result<Vec<GuestProcessInfo>, EngineError> {
        let guests = lock(&self.guests);
        let entry = guests.get(&id).ok_or(EngineError::NotRunning { id })?;
        Ok(vec![GuestProcessInfo {
            pid: entry.observed.pid.ok_or(EngineError::NotRunning { id })?,
            inner_pid: 1,
            uid: 0,
            cpu_ms: 0,
            rss_bytes: 4096,
            state: 'S',
            command: entry.command.clone(),
        }])
    }

    async fn open_root(&self, guest: &Guest) -> Result<RootView, EngineError> {
        let opened = std::fs::File::open(&guest.root.upper);
        let directory = opened.map_err(|source| EngineError::Failed {
            id: guest.id,
            action: "opening its root".to_owned(),
            source: source.into(),
        })?;
        let hidden = if self.observe(guest.id).await?.pid.is_some() {
            Vec::new()
        } else {
            guest.mounts.iter().map(|it| it.target.clone()).collect()
        };
        Ok(RootView {
            directory: directory.into(),
            idmap: None,
            hidden,
        })
    }
}

/// Every program exists but one.
fn find(process: &GuestProcess) -> Result<(), EngineError> {
    match process.args.first() {
        Some(program) if program == conformance::NO_PROGRAM => Err(EngineError::Program {
            message: format!("cannot run `{program}`: there is no such file"),
            code: 127,
        }),
        _ => Ok(()),
    }
}

/// Answers what it is sent until there is no more; the exit code.
async fn echo(input: &mut mpsc::Receiver<Input>, output: &mpsc::Sender<Output>) -> i32 {
    loop {
        match input.recv().await {
            Some(Input::Stdin(bytes)) => {
                if output.send(Output::Stdout(bytes)).await.is_err() {
                    return 0;
                }
            }
            Some(Input::Signal(signal)) => return 128 + signal,
            Some(Input::Resize { .. }) => {}
            Some(Input::Eof) | None => return 0,
        }
    }
}

/// Bytes as a program would write them; a convenience for tests.
#[must_use]
pub fn stdout(text: &str) -> Output {
    Output::Stdout(Bytes::copy_from_slice(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_fake_conforms() {
        let engine = FakeEngine::default();
        let directory = tempfile::tempdir().unwrap();
        let mut guests = conformance::plain_guests(directory.path());
        conformance::run(&engine, &mut guests).await;
    }
}
