//! The shim proper: one event loop over the container's streams, its clients and its children.
//!
//! [`Server::create`] makes the container and the socket; [`Server::run`] serves until the container
//! is over and told. Everything is bounded: clients, execs, what is held for each.

mod connection;
mod create;
mod ending;
mod poll;
mod requests;
mod session;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::SocketFlags;
use rustix::process::WaitOptions;

use super::SOCKET_FILE;
use super::clock::Timestamp;
use super::exit::ExitRecord;
use super::launch::{Launched, Task};
use super::log::Log;
use super::protocol::{Exited, Reply};
use crate::{Container, Created, Delete};

use connection::{Connection, HOLD_BACK, Role};
use create::system;
use poll::{Flags, Poller, Token, Watched};
use session::{Session, Taken, stream_of};

pub(super) use create::ServerError;

/// Clients at a time.
const MAX_CONNECTIONS: usize = 64;
/// The container's own session; execs have higher numbers.
const MAIN: usize = 0;

/// What of the configuration is needed to the end.
#[derive(Debug)]
struct Identity {
    dir: PathBuf,
    instance: String,
    generation: u64,
    exit_record: PathBuf,
    log_path: Option<PathBuf>,
}

/// A shim at work.
#[derive(Debug)]
pub(super) struct Server {
    identity: Identity,
    container: Option<Container>,
    poller: Poller,
    listener: OwnedFd,
    children: OwnedFd,
    connections: Vec<Option<Connection>>,
    /// [`MAIN`], then execs.
    sessions: Vec<Option<Session>>,
    log: Option<Log>,
    started_at: Option<Timestamp>,
    paused: bool,
    /// Set once the record is durable.
    exited: Option<Exited>,
    /// The record that is not durable yet, since when, and when it is tried again.
    unsaved: Option<(ExitRecord, Instant, Instant)>,
    /// Held until the container is over; the directory may then be used anew.
    lock: Option<File>,
    /// When the container was over and told; the shim lingers for clients that still read.
    told: Option<Instant>,
}

impl Server {
    /// Makes the container and listens. On failure nothing is left.
    pub(super) fn create(
        dir: &Path,
        task: Task,
        lock: File,
    ) -> Result<(Server, Launched), ServerError> {
        let children = poll::children().map_err(system("watch for its children"))?;
        let poller = Poller::new().map_err(system("make an event queue"))?;
        let Task {
            config,
            bundle,
            spec,
            descriptors,
        } = task;
        let log = config.log.clone().map(Log::open).transpose()?;
        let (created, ours) = create::container(&config, bundle, spec, descriptors)?;
        let Created {
            container,
            pid,
            console,
            warnings,
            ..
        } = created;
        let ready = create::listen(&dir.join(SOCKET_FILE)).and_then(|listener| {
            let mut session =
                Session::new(pid, ours, console).map_err(system("prepare the streams"))?;
            session.anchor().map_err(system("hold the terminal"))?;
            if !config.stdin_open {
                // A terminal would take input otherwise.
                session.input = None;
            }
            Ok((listener, session))
        });
        let (listener, session) = match ready {
            Ok(ready) => ready,
            Err(error) => {
                let _ = container.delete(Delete::Force);
                return Err(error);
            }
        };
        let shim_pid = rustix::process::getpid().as_raw_nonzero().get();
        let identity = Identity {
            dir: dir.to_owned(),
            instance: config.instance,
            generation: config.generation,
            exit_record: config.exit_record,
            log_path: config.log.map(|log| log.path),
        };
        let server = Server {
            identity,
            container: Some(container),
            poller,
            listener,
            children,
            connections: Vec::new(),
            sessions: vec![Some(session)],
            log,
            started_at: None,
            paused: false,
            exited: None,
            unsaved: None,
            lock: Some(lock),
            told: None,
        };
        Ok((
            server,
            Launched {
                pid,
                shim_pid,
                warnings,
            },
        ))
    }

    /// Serves until the container is over and everybody was told.
    pub(super) fn run(mut self) {
        let mut watched = (Watched::default(), Watched::default());
        self.poller
            .watch(&self.listener, Token::Listener, &mut watched.0, Flags::IN);
        self.poller
            .watch(&self.children, Token::Children, &mut watched.1, Flags::IN);
        while !self.may_leave() {
            self.state_interests();
            let events = self.poller.wait(self.timeout());
            let mut children = false;
            for (token, flags) in events {
                match token {
                    Token::Listener => self.accept(),
                    Token::Children => children = true,
                    Token::Connection(i) => self.serve_connection(i, flags),
                    Token::Stream(i, 0) => self.serve_input(i, flags),
                    Token::Stream(i, n) => self.serve_output(i, n - 1),
                }
            }
            if children {
                self.reap();
            }
            self.save_exit();
            self.sweep();
        }
    }

    /// Whether all is told and nobody is owed anything, or was given time enough.
    fn may_leave(&self) -> bool {
        let Some(told) = self.told else { return false };
        let waited = told.elapsed();
        self.connections
            .iter()
            .flatten()
            .all(|c| c.behind() == 0 || waited >= c.patience())
    }

    fn timeout(&self) -> Option<Duration> {
        if let Some((_, _, again)) = &self.unsaved {
            return Some(again.saturating_duration_since(Instant::now()));
        }
        let told = self.told?;
        let left = |c: &Connection| c.patience().saturating_sub(told.elapsed());
        self.connections
            .iter()
            .flatten()
            .filter(|c| c.behind() > 0)
            .map(left)
            .min()
    }

    /// Tells the kernel what each descriptor is waited for now. Here backpressure happens: input
    /// that a process does not take holds its clients back, and slow clients that may do so hold
    /// a process back.
    fn state_interests(&mut self) {
        let Server {
            poller,
            connections,
            sessions,
            ..
        } = self;
        let lagging = |session: usize, connection: &Connection| {
            let owns = matches!(connection.role,
                Role::Stream { session: s, lossless: true, .. } if s == session);
            owns && !connection.closing && connection.behind() > HOLD_BACK
        };
        for (i, session) in sessions.iter_mut().enumerate() {
            let Some(session) = session else { continue };
            let held = connections
                .iter()
                .flatten()
                .any(|connection| lagging(i, connection));
            if let Some(input) = &mut session.input {
                let wanted = if input.pending.is_empty() {
                    Flags::empty()
                } else {
                    Flags::OUT
                };
                poller.watch(&input.fd, Token::Stream(i, 0), &mut input.watched, wanted);
            }
            for (n, output) in session.outputs.iter_mut().enumerate() {
                let Some(output) = output else { continue };
                let wanted = if held { Flags::empty() } else { Flags::IN };
                poller.watch(
                    &output.fd,
                    Token::Stream(i, n + 1),
                    &mut output.watched,
                    wanted,
                );
            }
        }
        for (i, connection) in connections.iter_mut().enumerate() {
            let Some(connection) = connection else {
                continue;
            };
            let may_send = match connection.role {
                Role::Stream {
                    session,
                    stdin: true,
                    ..
                } => sessions
                    .get(session)
                    .and_then(Option::as_ref)
                    .is_none_or(Session::takes_input),
                _ => true,
            };
            let mut wanted = if may_send { Flags::IN } else { Flags::empty() };
            if connection.behind() > 0 {
                wanted |= Flags::OUT;
            }
            poller.watch(
                &connection.fd,
                Token::Connection(i),
                &mut connection.watched,
                wanted,
            );
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(fd) = rustix::net::accept_with(&self.listener, flags) else {
            return;
        };
        // The directory and the socket admit their owner only; the kernel's word is asked too.
        let own = rustix::process::geteuid();
        let trusted = rustix::net::sockopt::socket_peercred(&fd)
            .is_ok_and(|peer| peer.uid.is_root() || peer.uid == own);
        let slot = self.connections.iter().position(Option::is_none);
        if !trusted || (slot.is_none() && self.connections.len() >= MAX_CONNECTIONS) {
            return;
        }
        let connection = Some(Connection::new(fd));
        match slot {
            Some(i) => self.connections[i] = connection,
            None => self.connections.push(connection),
        }
    }

    fn serve_input(&mut self, i: usize, flags: Flags) {
        let Some(session) = self.sessions.get_mut(i).and_then(Option::as_mut) else {
            return;
        };
        session.flush_input();
        if flags.intersects(Flags::ERR) && !session.has_terminal() {
            session.input = None;
        }
    }

    /// Takes output of a session and gives it to the log and to whoever listens.
    fn serve_output(&mut self, i: usize, n: usize) {
        let Some(session) = self.sessions.get_mut(i).and_then(Option::as_mut) else {
            return;
        };
        match session.take(n) {
            Taken::Data(data) => self.distribute(i, n, &data),
            Taken::Nothing => {}
            Taken::End => self.end_exec(i),
        }
    }

    fn distribute(&mut self, i: usize, n: usize, data: &[u8]) {
        if i == MAIN
            && let Some(log) = &mut self.log
        {
            log.write(stream_of(n), data, Timestamp::now());
        }
        for connection in self.connections.iter_mut().flatten() {
            if let Role::Stream {
                session, lossless, ..
            } = connection.role
                && session == i
            {
                connection.output(stream_of(n), data, !lossless);
            }
        }
    }

    /// Collects children that ended: the container's process, execs, and orphans.
    fn reap(&mut self) {
        let mut buffer = [0u8; 1024];
        while rustix::io::read(&self.children, &mut buffer).is_ok_and(|n| n > 0) {}
        let mut main = None;
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            let signal = status.terminating_signal();
            let code = status
                .exit_status()
                .or(signal.map(|s| 128 + s))
                .unwrap_or(255);
            let known = self.sessions.iter_mut().enumerate().find_map(|(i, s)| {
                let session = s.as_mut().filter(|s| s.pid == pid && s.ended.is_none())?;
                session.end(code, signal);
                Some(i)
            });
            match known {
                Some(MAIN) => main = Some((code, signal)),
                Some(exec) => self.drain_exec(exec),
                None => {}
            }
        }
        // Last: the kernel ends the others first, and their clients should hear it first.
        if let Some((code, signal)) = main {
            self.container_ended(code, signal);
        }
    }

    /// Removes connections that are done, and what only they needed.
    fn sweep(&mut self) {
        for i in 0..self.connections.len() {
            if self.connections[i]
                .as_ref()
                .is_some_and(Connection::is_done)
            {
                self.connections[i] = None;
                self.abandon(i);
            }
        }
        while self.connections.last().is_some_and(Option::is_none) {
            self.connections.pop();
        }
    }

    /// A client left: its exec lives on without it, but a terminal hangs up.
    fn abandon(&mut self, connection: usize) {
        for slot in self.sessions.iter_mut().skip(1) {
            let Some(session) = slot.as_mut().filter(|s| s.owner == Some(connection)) else {
                continue;
            };
            session.owner = None;
            session.input = None;
            if session.has_terminal() {
                session.hang_up();
            }
        }
    }

    fn exited_reply(&self) -> Option<Reply> {
        self.exited.map(Reply::Exited)
    }
}
