//! The shim proper: one event loop over the container's streams, its clients and its children.
//!
//! [`Server::create`] makes the container and the socket; [`Server::run`] serves until the container
//! is over and told. Everything is bounded: clients, execs, what is held for each.

mod connection;
mod ending;
mod poll;
mod requests;
mod session;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::WaitOptions;

use super::SOCKET_FILE;
use super::clock::Timestamp;
use super::config::{Rootfs, ShimConfig};
use super::durable::FileError;
use super::exit::ExitRecord;
use super::launch::Launched;
use super::log::Log;
use super::protocol::{Exited, Reply};
use crate::bundle::{self, BundleError};
use crate::{Container, CreateError, CreateRequest, Created, Delete, Launch, Overlay, Runtime};

use connection::{Connection, HOLD_BACK, Role};
use poll::{Flags, Poller, Token, Watched};
use session::{Pipes, Session, Taken, stream_of};

/// Clients at a time.
const MAX_CONNECTIONS: usize = 64;
/// The container's own session; execs have higher numbers.
const MAIN: usize = 0;

/// Why a shim could not begin. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The bundle cannot be used.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// `shim.json` and `config.json` contradict each other.
    #[error(
        "shim.json says {field} is {shim}, and the bundle's config.json says {bundle}; write both alike"
    )]
    Mismatch {
        /// Which field.
        field: &'static str,
        /// In `shim.json`.
        shim: String,
        /// In `config.json`.
        bundle: String,
    },
    /// The container cannot be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A system call failed.
    #[error("the shim cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

fn system(action: &'static str) -> impl Fn(Errno) -> ServerError {
    move |errno| ServerError::System {
        action,
        source: errno.into(),
    }
}

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
        config: ShimConfig,
        lock: File,
    ) -> Result<(Server, Launched), ServerError> {
        let children = poll::children().map_err(system("watch for its children"))?;
        let poller = Poller::new().map_err(system("make an event queue"))?;
        let log = config.log.clone().map(Log::open).transpose()?;
        let (created, ours) = create_container(&config)?;
        let Created {
            container,
            pid,
            console,
            warnings,
            ..
        } = created;
        let ready = listen(&dir.join(SOCKET_FILE)).and_then(|listener| {
            let session =
                Session::new(pid, ours, console).map_err(system("prepare the streams"))?;
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
        if flags.intersects(Flags::ERR) {
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
                session.ended = Some((code, signal));
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

/// Makes the container as configured; returns our ends of its pipes.
fn create_container(config: &ShimConfig) -> Result<(Created, [Option<OwnedFd>; 3]), ServerError> {
    let (bundle, mut spec) = bundle::load(&config.bundle)?;
    if config.default_seccomp {
        let sets = spec
            .process
            .as_ref()
            .and_then(|process| process.capabilities.as_ref());
        let capabilities = sets.map_or(&[][..], |sets| &sets.bounding);
        spec.linux.seccomp = Some(seccomp::default_profile(capabilities));
    }
    let terminal = spec
        .process
        .as_ref()
        .is_some_and(|process| process.terminal);
    check("the terminal", config.terminal, terminal)?;
    check(
        "the control group",
        &config.cgroup,
        &spec.linux.cgroups_path,
    )?;
    let pipes = if terminal {
        Pipes::none()
    } else {
        Pipes::new(config.stdin_open)
    };
    let (theirs, ours) = pipes.map_err(system("make pipes"))?.split();
    let mut request = CreateRequest::new(&config.instance, bundle, spec);
    request.stdio = theirs;
    request.launch = Launch::OnStart;
    request.die_with_parent = true;
    request.rootfs = rootfs(&config.rootfs);
    let created = Runtime::new(&config.state_root).create(request)?;
    Ok((created, ours))
}

fn check<T: PartialEq + ToString>(
    field: &'static str,
    shim: T,
    bundle: T,
) -> Result<(), ServerError> {
    if shim == bundle {
        return Ok(());
    }
    Err(ServerError::Mismatch {
        field,
        shim: shim.to_string(),
        bundle: bundle.to_string(),
    })
}

fn rootfs(rootfs: &Rootfs) -> crate::Rootfs {
    match rootfs {
        Rootfs::Dir => crate::Rootfs::Bundle,
        Rootfs::Overlay {
            lower,
            upper,
            work,
            idmap,
        } => crate::Rootfs::Overlay(Overlay {
            lower: lower.clone(),
            upper: Some(upper.clone()),
            work: Some(work.clone()),
            idmap: *idmap,
            options: Vec::new(),
        }),
    }
}

/// Listens at `path`, in place of a dead shim's socket.
fn listen(path: &Path) -> Result<OwnedFd, ServerError> {
    let fail = system("listen on its socket");
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(&fail)?;
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(fail(errno)),
    }
    let short = crate::container::short_path(path).map_err(|failure| ServerError::System {
        action: "listen on its socket",
        source: failure.source,
    })?;
    let address = SocketAddrUnix::new(short.path()).map_err(&fail)?;
    // The mode counts from the start: nobody else may connect before a chmod.
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&socket, &address);
    rustix::process::umask(umask);
    bound.map_err(&fail)?;
    rustix::net::listen(&socket, 64).map_err(&fail)?;
    Ok(socket)
}
