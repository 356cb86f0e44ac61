//! One connection: reads requests and the frames that belong to them.
//!
//! The thread of the connection is its only reader; what a program says is written by the session's
//! threads through a shared [`Writer`]. So a program that does not read its input holds up its own
//! connection and no other.

use std::{
    fs::File,
    io::{self, Read, Write},
    sync::{Arc, Mutex, PoisonError},
};

use agent::protocol::{
    self, Decoder, ErrorKind, Failure, Frame, Info, Kind, Reply, Request, ToProgram, Verb,
    decode_control, encode, encode_control,
};

use super::{
    application, disk, files, power,
    session::{Session, Sink},
    usage,
};
use crate::{console::chain, vsock};

/// The writing half, shared by the threads of a connection.
#[derive(Clone)]
pub struct Writer(Arc<Mutex<File>>);

impl Writer {
    /// Sends a frame whole.
    pub fn frame(&self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(payload.len() + 8);
        encode(kind, payload, &mut bytes).map_err(io::Error::other)?;
        self.bytes(&bytes)
    }

    /// Sends a message.
    pub fn reply(&self, reply: &Reply) -> io::Result<()> {
        self.bytes(&encode_control(reply).map_err(io::Error::other)?)
    }

    fn bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(bytes)
    }
}

/// Forwards what a program says to the connection that started it.
impl Sink for Writer {
    fn output(&self, kind: Kind, bytes: &[u8]) -> bool {
        self.frame(kind, bytes).is_ok()
    }
}

/// Frames as they come.
pub struct Reader<'a> {
    file: &'a File,
    decoder: Decoder,
}

impl Reader<'_> {
    /// The next frame; `None` at the end, or when what comes is no frame.
    pub fn frame(&mut self) -> Option<Frame> {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => {}
                Err(_) => return None,
            }
            match self.file.read(&mut buffer) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.decoder.push(&buffer[..count]),
            }
        }
    }
}

/// Serves a connection to its end.
pub fn serve(stream: &File) {
    let Ok(writing) = stream.try_clone() else {
        return;
    };
    let writer = Writer(Arc::new(Mutex::new(writing)));
    let mut reader = Reader {
        file: stream,
        decoder: Decoder::default(),
    };
    let mut session: Option<Arc<Session>> = None;
    while let Some(frame) = reader.frame() {
        if let Some(running) = session.as_ref().filter(|it| !it.ended()) {
            to_program(running, &frame);
            continue;
        }
        session = None;
        if frame.kind != Kind::Control {
            // Input that crossed with the end of its program.
            continue;
        }
        match request(&frame.payload, &mut reader, &writer) {
            Ok(Answer::Reply(reply)) => {
                if writer.reply(&reply).is_err() {
                    break;
                }
            }
            Ok(Answer::Session(started)) => session = Some(started),
            Err(failure) => {
                if writer.reply(&Reply::Failed(failure)).is_err() {
                    break;
                }
            }
        }
    }
    if let Some(session) = session {
        session.detach();
    }
    vsock::shutdown(stream);
}

/// How a request goes on.
enum Answer {
    Reply(Reply),
    Session(Arc<Session>),
}

fn to_program(session: &Session, frame: &Frame) {
    match frame.kind {
        Kind::Stdin => session.stdin(&frame.payload),
        Kind::Control => match decode_control(&frame.payload) {
            Ok(ToProgram::Resize(size)) => session.resize(size),
            Ok(ToProgram::Signal(signal)) => session.signal(signal),
            // A request before the end of the last one: the host's mistake, and its own loss.
            Err(_) => {}
        },
        Kind::Stdout | Kind::Stderr | Kind::Data => {}
    }
}

fn request(payload: &[u8], reader: &mut Reader<'_>, writer: &Writer) -> Result<Answer, Failure> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let invalid = |error| failure(ErrorKind::Invalid, &error);
    let Versioned { version } = decode_control(payload).map_err(invalid)?;
    if version != protocol::VERSION {
        return Err(Failure {
            kind: ErrorKind::Version,
            message: format!(
                "this agent speaks version {} of the protocol, not {version}",
                protocol::VERSION
            ),
        });
    }
    let request: Request = decode_control(payload).map_err(invalid)?;
    let reply = match request.verb {
        Verb::Exec(program) => {
            let sink = Arc::new(writer.clone());
            let session = Session::start(&program, sink, started(writer)).map_err(io_failure)?;
            end_with(&session, writer);
            return Ok(Answer::Session(session));
        }
        Verb::Attach => {
            let session = application::attach(writer)?;
            return Ok(Answer::Session(session));
        }
        Verb::Wait => Reply::Exited(application::running()?.wait()),
        Verb::Signal { signal } => {
            power::signal(signal).map_err(io_failure)?;
            Reply::Done
        }
        Verb::Info => Reply::Info(info()),
        Verb::Usage => Reply::Usage(usage::usage().map_err(io_failure)?),
        Verb::Processes => Reply::Processes(usage::processes().map_err(io_failure)?),
        Verb::ReadFiles { path, follow } => {
            files::send(&path, follow, writer).map_err(io_failure)?;
            Reply::Done
        }
        Verb::WriteFiles { directory } => {
            files::receive(&directory, reader).map_err(io_failure)?;
            Reply::Done
        }
        Verb::Shutdown { reboot, grace_ms } => {
            power::shutdown(reboot, grace_ms).map_err(io_failure)?;
            Reply::Done
        }
        Verb::SetTime { unix_ns } => {
            power::set_time(unix_ns).map_err(io_failure)?;
            Reply::Done
        }
        Verb::Freeze { timeout_ms } => {
            disk::freeze(timeout_ms).map_err(io_failure)?;
            Reply::Done
        }
        Verb::Thaw => {
            disk::thaw();
            Reply::Done
        }
        Verb::GrowRoot => {
            disk::grow_root().map_err(io_failure)?;
            Reply::Done
        }
    };
    Ok(Answer::Reply(reply))
}

/// Announces a program before anything it says.
fn started(writer: &Writer) -> impl FnOnce(u32) + use<'_> {
    move |pid| {
        // A host that is gone is noticed by the reader.
        let _ = writer.reply(&Reply::Started { pid });
    }
}

/// Sends the program's end when it comes.
pub fn end_with(session: &Arc<Session>, writer: &Writer) {
    let writer = writer.clone();
    session.on_end(move |exit| {
        let _ = writer.reply(&Reply::Exited(exit));
    });
}

fn failure(kind: ErrorKind, error: &dyn std::error::Error) -> Failure {
    let message = chain(error);
    Failure { kind, message }
}

fn io_failure(error: io::Error) -> Failure {
    let kind = match error.kind() {
        // A directory was asked for, and there is none.
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::NotExecutable,
        io::ErrorKind::InvalidInput => ErrorKind::Invalid,
        _ if error.raw_os_error() == Some(libc::ENOEXEC) => ErrorKind::NotExecutable,
        _ => ErrorKind::Other,
    };
    failure(kind, &error)
}

fn info() -> Info {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let os = read("/etc/os-release");
    let pretty = os
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let uptime = read("/proc/uptime");
    let seconds: f64 = uptime
        .split(' ')
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0.0);
    let name = rustix::system::uname();
    Info {
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: protocol::VERSION,
        kernel: name.release().to_string_lossy().into_owned(),
        os: pretty.unwrap_or_default().trim_matches('"').to_owned(),
        hostname: name.nodename().to_string_lossy().into_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
        uptime_ms: (seconds * 1000.0) as u64,
        ready: std::path::Path::new(crate::READY_PATH).exists(),
    }
}
