//! A thread that serves queues: woken by what it watches, stopped from outside, started again.
//!
//! ```text
//!            start(handler)                 stop
//!   Idle ─────────────────────► Serving ──────────► Idle, the handler handed back
//!                                  │ a queue breaks the rules
//!                                  ▼
//!                               Broken ── stop ───► Idle
//! ```
//! The thread is made with the device, so that it can have its own seccomp filter before a guest
//! runs, and sleeps while it has no handler.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::mpsc::{Receiver, Sender, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::event::epoll::{self, EventData, EventFlags};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{ActivateError, DeviceEvent, Host, Interrupt, QueueError};

/// The token of the bell that stops a handler.
const STOP: u64 = u64::MAX;
/// How many events are taken at once.
const BATCH: usize = 32;

/// An eventfd as a file to watch.
pub fn fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the file is open as long as its owner lives, which outlives the result.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// What a worker watches for its handler.
#[derive(Debug)]
pub struct Events {
    epoll: OwnedFd,
    /// Numbers of the files watched for the handler; some may be closed by now.
    watched: HashSet<RawFd>,
    deadline: Option<Instant>,
}

impl Events {
    fn new(stop: &EventFd) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, fd(stop), EventData::new_u64(STOP), EventFlags::IN)?;
        Ok(Self {
            epoll,
            watched: HashSet::new(),
            deadline: None,
        })
    }

    /// Forgets all that was watched for a handler: a thread in a jail could not make a new one.
    fn clear(&mut self) {
        self.deadline = None;
        for file in self.watched.drain() {
            // SAFETY: touches no memory of ours. Where the file is closed, or its number another's,
            // the kernel knows of nothing to forget.
            unsafe {
                libc::epoll_ctl(
                    self.epoll.as_raw_fd(),
                    libc::EPOLL_CTL_DEL,
                    file,
                    std::ptr::null_mut(),
                );
            }
        }
    }

    /// Watches a file; `token` comes back with its events. Not `u64::MAX`.
    ///
    /// # Errors
    /// When the kernel refuses, as for a file that is watched already.
    pub fn watch(&mut self, file: impl AsFd, token: u64, events: EventFlags) -> io::Result<()> {
        let file = file.as_fd();
        epoll::add(&self.epoll, file, EventData::new_u64(token), events)?;
        self.watched.insert(file.as_raw_fd());
        Ok(())
    }

    /// Changes what a watched file is watched for.
    ///
    /// # Errors
    /// When it is not watched.
    pub fn change(&self, file: impl AsFd, token: u64, events: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(
            &self.epoll,
            file,
            EventData::new_u64(token),
            events,
        )?)
    }

    /// Watches a file no more. A closed file needs no call.
    pub fn forget(&self, file: impl AsFd) {
        // Fails only when it is not watched.
        let _ = epoll::delete(&self.epoll, file);
    }

    /// Calls [`Handler::timeout`] after `wait`, unless asked for something else until then. An
    /// earlier call that is due sooner stands.
    pub fn wake_after(&mut self, wait: Duration) {
        let at = Instant::now() + wait;
        self.deadline = Some(self.deadline.map_or(at, |it| it.min(at)));
    }
}

/// What a worker does.
pub trait Handler: Send + 'static {
    /// Called on the thread before anything else: watches its files. Whatever happened before is to
    /// be looked for here.
    ///
    /// # Errors
    /// When it cannot serve.
    fn start(&mut self, events: &mut Events) -> Result<(), QueueError>;

    /// A watched file has something.
    ///
    /// # Errors
    /// When a queue breaks the rules: the device then needs a reset.
    fn ready(
        &mut self,
        token: u64,
        flags: EventFlags,
        events: &mut Events,
    ) -> Result<(), QueueError>;

    /// The time asked for by [`Events::wake_after`] has come.
    ///
    /// # Errors
    /// As [`Handler::ready`].
    fn timeout(&mut self, _events: &mut Events) -> Result<(), QueueError> {
        Ok(())
    }

    /// The last call before it is handed back: finishes what it has under way in guest memory.
    fn stop(&mut self) {}

    /// How its device interrupts.
    fn interrupt(&self) -> &dyn Interrupt;
}

/// A worker thread with or without a handler.
#[derive(Debug)]
pub struct Worker<H: Handler> {
    name: String,
    host: Host,
    work: Option<Sender<H>>,
    back: Receiver<H>,
    bell: EventFd,
    serving: bool,
    thread: Option<JoinHandle<()>>,
}

impl<H: Handler> Worker<H> {
    /// Starts the thread, idle. Its name tells people what it serves.
    ///
    /// # Errors
    /// When the host gives no thread or no eventfd.
    pub fn spawn(name: &str, host: &Host) -> io::Result<Self> {
        let (work, inbox) = channel();
        let (outbox, back) = channel();
        let bell = EventFd::new(EFD_NONBLOCK)?;
        let stop = bell.try_clone()?;
        let events = Events::new(&stop)?;
        let started = host.thread_started.clone();
        let thread_name = name.to_owned();
        let thread = std::thread::Builder::new()
            .name(thread_name.chars().take(15).collect())
            .spawn(move || {
                started(&thread_name);
                run(&inbox, &outbox, events, &stop);
            })?;
        Ok(Self {
            name: name.to_owned(),
            host: host.clone(),
            work: Some(work),
            back,
            bell,
            serving: false,
            thread: Some(thread),
        })
    }

    /// Lets it serve.
    ///
    /// # Errors
    /// When its thread died.
    pub fn start(&mut self, handler: H) -> Result<(), ActivateError> {
        let work = self.work.as_ref().ok_or(ActivateError::Worker)?;
        work.send(handler).map_err(|_| ActivateError::Worker)?;
        self.serving = true;
        Ok(())
    }

    /// Stops it and takes the handler back, once it holds still. `None` when there was none, or when
    /// the thread died.
    pub fn stop(&mut self) -> Option<H> {
        if !std::mem::take(&mut self.serving) {
            return None;
        }
        // Fails only when the counter is full: then it rings already.
        let _ = self.bell.write(1);
        let handler = self.back.recv().ok();
        if handler.is_none() {
            (self.host.event)(DeviceEvent::WorkerLost {
                device: self.name.clone(),
            });
        }
        handler
    }
}

impl<H: Handler> Drop for Worker<H> {
    fn drop(&mut self) {
        drop(self.stop());
        self.work = None;
        if let Some(thread) = self.thread.take() {
            // It panicked or not; there is nothing left to save.
            let _ = thread.join();
        }
    }
}

fn run<H: Handler>(inbox: &Receiver<H>, outbox: &Sender<H>, mut events: Events, stop: &EventFd) {
    while let Ok(mut handler) = inbox.recv() {
        if let Err(error) = serve(&mut handler, &mut events, stop) {
            handler.interrupt().needs_reset(&error);
            wait_for_stop(stop);
        }
        handler.stop();
        events.clear();
        if outbox.send(handler).is_err() {
            return;
        }
    }
}

/// Serves until stopped.
fn serve<H: Handler>(
    handler: &mut H,
    events: &mut Events,
    stop: &EventFd,
) -> Result<(), QueueError> {
    handler.start(events)?;
    let mut ready = Vec::with_capacity(BATCH);
    loop {
        ready.clear();
        let timeout = events.deadline.map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            rustix::event::Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let buffer = rustix::buffer::spare_capacity(&mut ready);
        match epoll::wait(&events.epoll, buffer, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                return Err(QueueError::Host {
                    queue: 0,
                    what: "wait for events",
                    source: error.into(),
                });
            }
        }
        if ready.iter().any(|it| it.data.u64() == STOP) {
            let _ = stop.read();
            return Ok(());
        }
        if events.deadline.is_some_and(|at| at <= Instant::now()) {
            events.deadline = None;
            handler.timeout(events)?;
        }
        for event in &ready {
            let (token, flags) = (event.data.u64(), event.flags);
            handler.ready(token, flags, events)?;
        }
    }
}

/// Sleeps until the bell rings.
fn wait_for_stop(stop: &EventFd) {
    loop {
        let mut bell = [rustix::event::PollFd::from_borrowed_fd(
            fd(stop),
            rustix::event::PollFlags::IN,
        )];
        let _ = rustix::event::poll(&mut bell, None);
        if stop.read().is_ok() {
            return;
        }
    }
}
