//! What clients ask, and the answers.

use super::connection::Role;
use super::poll::Flags;
use super::session::{Pipes, Session};
use super::{MAIN, Server};
use crate::shim::clock::Timestamp;
use crate::shim::logs;
use crate::shim::protocol::{
    self, Attach, ErrorCode, Exec, Failure, Frame, Kind, Phase, Reply, Request, State, VERSION,
};
use crate::{Container, ExecRequest, PROGRAM_NOT_FOUND, chain, program_status};

/// Execs at a time.
const MAX_EXECS: usize = 256;
/// The most of the log that an attacher gets first, in bytes.
const MAX_TAIL: u32 = 512 << 10;

type Answer = Result<Reply, Failure>;

fn failure(code: ErrorCode, message: impl Into<String>) -> Failure {
    Failure {
        code,
        message: message.into(),
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    let code = match program_status(error) {
        Some(PROGRAM_NOT_FOUND) => ErrorCode::ProgramNotFound,
        Some(_) => ErrorCode::ProgramNotExecutable,
        None => ErrorCode::Failed,
    };
    failure(code, chain(error))
}

impl Server {
    /// Reads and writes one connection.
    pub(super) fn serve_connection(&mut self, i: usize, flags: Flags) {
        let Some(connection) = self.connections.get_mut(i).and_then(Option::as_mut) else {
            return;
        };
        if flags.intersects(Flags::OUT) {
            connection.flush();
        }
        if !flags.intersects(Flags::IN | Flags::HUP | Flags::ERR) {
            return;
        }
        connection.fill();
        loop {
            let Some(connection) = self.connections.get_mut(i).and_then(Option::as_mut) else {
                return;
            };
            if connection.closing || connection.dead {
                return;
            }
            match connection.decoder.next_frame() {
                Ok(Some(frame)) => self.serve_frame(i, &frame),
                Ok(None) => return,
                Err(error) => {
                    connection.refuse(ErrorCode::Invalid, error.to_string());
                    connection.closing = true;
                }
            }
        }
    }

    fn serve_frame(&mut self, i: usize, frame: &Frame) {
        let Some(role) = self.connections[i]
            .as_ref()
            .map(|connection| connection.role)
        else {
            return;
        };
        match (frame.kind, role) {
            (Kind::Message, _) => match protocol::decode_message::<Request>(&frame.payload) {
                Ok(request) => self.serve_request(i, role, request),
                Err(error) => self.refuse(i, failure(ErrorCode::Invalid, error.to_string())),
            },
            (
                Kind::Stdin,
                Role::Stream {
                    session,
                    stdin: true,
                    ..
                },
            ) => {
                if let Some(session) = self.sessions.get_mut(session).and_then(Option::as_mut) {
                    session.feed(&frame.payload);
                }
            }
            (
                Kind::StdinEof,
                Role::Stream {
                    session,
                    stdin: true,
                    ..
                },
            ) => {
                if let Some(session) = self.sessions.get_mut(session).and_then(Option::as_mut) {
                    session.end_input();
                }
            }
            _ => self.refuse(
                i,
                failure(ErrorCode::Invalid, "this connection sends no input"),
            ),
        }
    }

    fn refuse(&mut self, i: usize, failure: Failure) {
        if let Some(connection) = &mut self.connections[i] {
            connection.say(&Reply::Error(failure));
        }
    }

    fn serve_request(&mut self, i: usize, role: Role, request: Request) {
        let streaming = matches!(role, Role::Stream { .. });
        let answer = match (role, request) {
            (Role::New, Request::Hello { version }) => Some(self.hello(i, version)),
            (Role::New, _) => Some(Err(failure(ErrorCode::Invalid, "say hello first"))),
            (Role::Waiting, _) => Some(Err(failure(
                ErrorCode::Invalid,
                "this connection waits for the end",
            ))),
            (Role::Stream { .. }, request) => match self.on_stream(request) {
                Ok(()) => None,
                Err(failure) => Some(Err(failure)),
            },
            (Role::Control, Request::Attach(attach)) => return self.attach(i, &attach),
            (Role::Control, Request::Exec(exec)) => return self.exec(i, *exec),
            (Role::Control, Request::Wait) if self.exited.is_none() => {
                if let Some(connection) = &mut self.connections[i] {
                    connection.role = Role::Waiting;
                }
                None
            }
            (Role::Control, request) => Some(self.answer(request)),
        };
        let Some(connection) = &mut self.connections[i] else {
            return;
        };
        match answer {
            Some(Ok(reply)) => connection.say(&reply),
            Some(Err(failure)) => {
                connection.closing |= failure.code == ErrorCode::Version;
                connection.say(&Reply::Error(failure));
            }
            None => debug_assert!(streaming || connection.role == Role::Waiting),
        }
    }

    fn hello(&mut self, i: usize, version: u32) -> Answer {
        if version != VERSION {
            let message = format!(
                "the client speaks version {version} of the shim protocol and this shim {VERSION}; \
                 the container keeps running, use a client of its version"
            );
            return Err(failure(ErrorCode::Version, message));
        }
        if let Some(connection) = &mut self.connections[i] {
            connection.role = Role::Control;
        }
        Ok(Reply::Welcome {
            version: VERSION,
            shim_pid: rustix::process::getpid().as_raw_nonzero().get(),
            instance: self.identity.instance.clone(),
            generation: self.identity.generation,
        })
    }

    /// Requests that may come on a stream, where success is silent.
    fn on_stream(&mut self, request: Request) -> Result<(), Failure> {
        match request {
            Request::Resize { .. }
            | Request::Signal { .. }
            | Request::ExecResize { .. }
            | Request::ExecSignal { .. } => self.answer(request).map(drop),
            _ => Err(failure(
                ErrorCode::Invalid,
                "a stream takes input, sizes and signals only",
            )),
        }
    }

    fn answer(&mut self, request: Request) -> Answer {
        match request {
            Request::State => return Ok(Reply::State(Box::new(self.state()))),
            Request::Start => self.start()?,
            Request::Signal { signal, all } => {
                check_signal(signal)?;
                self.container()?
                    .kill(signal, all)
                    .map_err(|e| failed(&e))?;
            }
            Request::Resize { rows, cols } => self.resize(MAIN, rows, cols)?,
            Request::ExecResize { pid, rows, cols } => {
                let exec = self.find_exec(pid)?;
                self.resize(exec, rows, cols)?;
            }
            Request::ExecSignal { pid, signal } => self.signal_exec(pid, signal)?,
            Request::Pause => {
                self.container()?.pause().map_err(|e| failed(&e))?;
                self.paused = true;
            }
            Request::Resume => {
                self.container()?.resume().map_err(|e| failed(&e))?;
                self.paused = false;
            }
            Request::Update { resources } => {
                let resources = serde_json::from_value(resources).map_err(|e| {
                    failure(
                        ErrorCode::Invalid,
                        format!("the limits cannot be understood: {e}"),
                    )
                })?;
                self.container()?
                    .update(&resources)
                    .map_err(|e| failed(&e))?;
            }
            Request::Stats => {
                let stats = self.container()?.stats().map_err(|e| failed(&e))?;
                return Ok(Reply::Stats(Box::new(stats)));
            }
            Request::Wait => {
                let over = failure(
                    ErrorCode::Failed,
                    "the end of the container is not recorded yet",
                );
                return self.exited_reply().ok_or(over);
            }
            Request::Hello { .. } | Request::Attach(_) | Request::Exec(_) => {
                return Err(failure(ErrorCode::Invalid, "this was said already"));
            }
        }
        Ok(Reply::Ok)
    }

    fn container(&self) -> Result<&Container, Failure> {
        let ended = self.main().is_none_or(|main| main.ended.is_some());
        self.container.as_ref().filter(|_| !ended).ok_or_else(|| {
            failure(
                ErrorCode::Conflict,
                "the container has exited; nothing can be done to it any more",
            )
        })
    }

    pub(super) fn main(&self) -> Option<&Session> {
        self.sessions.first().and_then(Option::as_ref)
    }

    fn start(&mut self) -> Result<(), Failure> {
        if self.started_at.is_some() {
            return Err(failure(
                ErrorCode::Conflict,
                "the container was started already",
            ));
        }
        self.container()?.start().map_err(|e| failed(&e))?;
        self.started_at = Some(Timestamp::now());
        Ok(())
    }

    fn state(&self) -> State {
        let ended = self.main().is_none_or(|main| main.ended.is_some());
        let phase = match (ended, self.started_at, self.paused) {
            (true, ..) => Phase::Exited,
            (_, None, _) => Phase::Created,
            (_, _, true) => Phase::Paused,
            _ => Phase::Running,
        };
        let on_main = |role| matches!(role, Role::Stream { session: MAIN, .. });
        State {
            instance: self.identity.instance.clone(),
            generation: self.identity.generation,
            phase,
            pid: self.main().map_or(0, |main| main.pid),
            started_at: self.started_at,
            attached: self
                .connections
                .iter()
                .flatten()
                .filter(|c| on_main(c.role))
                .count() as u32,
            execs: self.sessions.iter().skip(1).flatten().count() as u32,
            log_dropped_bytes: self.log.as_ref().map_or(0, |log| log.dropped_bytes()),
            exited: self.exited,
        }
    }

    fn attach(&mut self, i: usize, attach: &Attach) {
        if let Some((rows, cols)) = attach.size {
            // A container without a terminal has no size; the client need not know.
            let _ = self.resize(MAIN, rows, cols);
        }
        let exited = self.exited_reply();
        let tail = match (&self.identity.log_path, attach.tail_bytes.min(MAX_TAIL)) {
            (None, _) | (_, 0) => Vec::new(),
            (Some(path), bytes) => logs::end_of(path, bytes.into()).unwrap_or_default(),
        };
        let Some(connection) = &mut self.connections[i] else {
            return;
        };
        connection.role = Role::Stream {
            session: MAIN,
            stdin: attach.stdin,
            lossless: attach.lossless,
            end_at_once: attach.end_at_once,
        };
        connection.say(&Reply::Ok);
        for record in &tail {
            connection.output(record.stream, &record.bytes(), false);
        }
        if let Some(exited) = exited {
            connection.say(&exited);
            connection.closing = true;
        }
    }

    fn exec(&mut self, i: usize, exec: Exec) {
        let stdin = exec.stdin;
        let detach = exec.detach;
        let answer = self.run_exec(exec, i);
        let Some(connection) = &mut self.connections[i] else {
            return;
        };
        match answer {
            Err(failure) => connection.say(&Reply::Error(failure)),
            Ok((session, pid)) => {
                if !detach {
                    connection.role = Role::Stream {
                        session,
                        stdin,
                        lossless: true,
                        end_at_once: false,
                    };
                }
                connection.say(&Reply::Started { pid });
            }
        }
    }

    fn run_exec(&mut self, exec: Exec, owner: usize) -> Result<(usize, i32), Failure> {
        let invalid = |e: serde_json::Error| {
            failure(
                ErrorCode::Invalid,
                format!("the process to run cannot be understood: {e}"),
            )
        };
        let container = self.container()?;
        if self.sessions.iter().skip(1).flatten().count() >= MAX_EXECS {
            return Err(failure(
                ErrorCode::Limit,
                "too many execs run in this container already",
            ));
        }
        // What the client leaves out is as the container's own process has it.
        let mut process = serde_json::to_value(container.process()).map_err(invalid)?;
        if let (Some(base), serde_json::Value::Object(wanted)) =
            (process.as_object_mut(), exec.process)
        {
            base.extend(wanted);
        }
        let process: crate::spec::Process = serde_json::from_value(process).map_err(invalid)?;
        let pipes = match process.terminal || exec.detach {
            true => Pipes::none(),
            false => Pipes::new(exec.stdin),
        };
        let (theirs, ours) = pipes.map_err(|e| failed(&e))?.split();
        let mut request = ExecRequest::new(process);
        request.stdio = theirs;
        let executed = container.exec(request).map_err(|e| failed(&e))?;
        let pid = executed.pid;
        let mut session = Session::new(pid, ours, executed.console).map_err(|e| failed(&e))?;
        session.owner = (!exec.detach).then_some(owner);
        if exec.detach {
            session.input = None;
        }
        let slot = self
            .sessions
            .iter()
            .skip(1)
            .position(Option::is_none)
            .map(|i| i + 1);
        match slot {
            Some(i) => self.sessions[i] = Some(session),
            None => self.sessions.push(Some(session)),
        }
        Ok((slot.unwrap_or(self.sessions.len() - 1), pid))
    }

    fn find_exec(&self, pid: i32) -> Result<usize, Failure> {
        let running = |s: &Option<Session>| {
            s.as_ref()
                .is_some_and(|s| s.pid == pid && s.ended.is_none())
        };
        let found = self.sessions.iter().skip(1).position(running);
        found.map(|i| i + 1).ok_or_else(|| {
            failure(
                ErrorCode::NotFound,
                format!("no exec with process id {pid} runs in this container"),
            )
        })
    }

    fn resize(&self, session: usize, rows: u16, cols: u16) -> Result<(), Failure> {
        let session = self.sessions.get(session).and_then(Option::as_ref);
        session
            .map_or(Ok(()), |session| session.resize(rows, cols))
            .map_err(|errno| match errno {
                rustix::io::Errno::NOTTY => {
                    failure(ErrorCode::Conflict, "the process has no terminal")
                }
                other => failed(&other),
            })
    }

    fn signal_exec(&self, pid: i32, signal: i32) -> Result<(), Failure> {
        check_signal(signal)?;
        let pid = self.find_exec(pid).map(|_| pid)?;
        // SAFETY: kill takes integers. The process is our child and not reaped, so the id is its.
        match unsafe { libc::kill(pid, signal) } {
            0 => Ok(()),
            _ => Err(failed(&std::io::Error::last_os_error())),
        }
    }
}

fn check_signal(signal: i32) -> Result<(), Failure> {
    match signal {
        1..=64 => Ok(()),
        other => Err(failure(
            ErrorCode::Invalid,
            format!("{other} is no signal; use 1 to 64"),
        )),
    }
}
