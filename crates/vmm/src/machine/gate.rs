//! The state of a machine, and how its vCPU threads follow it.
//!
//! Whoever changes the state kicks the vCPUs; each comes back from guest code, sees the new state
//! here, and waits or ends.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use cpu::Kick;

use crate::exit::StopReason;

/// What a machine does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Built; no guest code has run.
    Created,
    /// Its vCPUs run.
    Running,
    /// They wait; devices keep what they have.
    Paused,
    /// It is over; nothing leads on from here.
    Stopped(StopReason),
}

/// Called once, with the reason, when a machine stops.
pub type OnStop = Box<dyn Fn(&StopReason) + Send + Sync>;

/// The state, shared by vCPU threads, devices and the control socket.
pub struct Gate {
    inner: Mutex<Inner>,
    changed: Condvar,
    kicks: Mutex<Vec<Arc<dyn Kick>>>,
    on_stop: OnStop,
}

struct Inner {
    state: State,
    /// vCPU threads that are in guest code, or about to be.
    executing: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gate {
    /// In front of vCPUs that are still to be [`Gate::add`]ed.
    #[must_use]
    pub fn new(on_stop: OnStop) -> Self {
        Self {
            inner: Mutex::new(Inner {
                state: State::Created,
                executing: 0,
            }),
            changed: Condvar::new(),
            kicks: Mutex::default(),
            on_stop,
        }
    }

    /// One more vCPU that must come back when the state changes.
    pub fn add(&self, kick: Arc<dyn Kick>) {
        lock(&self.kicks).push(kick);
    }

    /// What the machine does now.
    #[must_use]
    pub fn state(&self) -> State {
        lock(&self.inner).state.clone()
    }

    /// For a vCPU thread: waits until it may run guest code; `false` when it never may again.
    /// Follow it by [`Gate::leave`].
    #[must_use]
    pub fn enter(&self) -> bool {
        let mut inner = lock(&self.inner);
        loop {
            match inner.state {
                State::Running => break,
                State::Stopped(_) => return false,
                State::Created | State::Paused => {}
            }
            let waited = self.changed.wait(inner);
            inner = waited.unwrap_or_else(PoisonError::into_inner);
        }
        inner.executing += 1;
        true
    }

    /// For a vCPU thread: it is out of guest code.
    pub fn leave(&self) {
        lock(&self.inner).executing -= 1;
        self.changed.notify_all();
    }

    /// Lets the vCPUs run, for the first time or after a pause. Nothing once stopped.
    pub fn run(&self) {
        let mut inner = lock(&self.inner);
        if !matches!(inner.state, State::Stopped(_)) {
            inner.state = State::Running;
            self.changed.notify_all();
        }
    }

    /// Holds the vCPUs; on return none is in guest code. Nothing unless running.
    pub fn pause(&self) {
        let mut inner = lock(&self.inner);
        if inner.state != State::Running {
            return;
        }
        inner.state = State::Paused;
        drop(inner);
        self.kick();
        let mut inner = lock(&self.inner);
        while inner.executing > 0 && inner.state == State::Paused {
            let waited = self.changed.wait(inner);
            inner = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the machine. Of several reasons the first counts. Never waits: devices call it from
    /// the threads of vCPUs.
    pub fn stop(&self, reason: StopReason) {
        let mut inner = lock(&self.inner);
        if matches!(inner.state, State::Stopped(_)) {
            return;
        }
        inner.state = State::Stopped(reason.clone());
        drop(inner);
        self.changed.notify_all();
        self.kick();
        (self.on_stop)(&reason);
    }

    /// Waits until the machine is over and says why.
    #[must_use]
    pub fn wait(&self) -> StopReason {
        let mut inner = lock(&self.inner);
        loop {
            if let State::Stopped(reason) = &inner.state {
                return reason.clone();
            }
            let waited = self.changed.wait(inner);
            inner = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn kick(&self) {
        for kick in lock(&self.kicks).iter() {
            kick.kick();
        }
    }
}
