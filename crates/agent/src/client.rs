//! A blocking client of an agent, over any stream.
//!
//! Called by tests and by programs without an async runtime; the daemon drives the same
//! [`protocol`](crate::protocol) functions from its own tasks. A client trusts nothing it reads: frames
//! are limited by the protocol, text is cut and cleaned of control characters. It never interprets
//! what a guest says and never writes to a file.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::protocol::{
    Decoder, ErrorKind, Exit, Failure, Frame, FrameError, Info, Kind, MAX_COMMAND_BYTES,
    MAX_DATA_BYTES, MAX_PROCESSES, Process, Program, Reply, Request, ToProgram, Usage, Verb,
    decode_control, encode, encode_control,
};

/// Most characters of a text that a guest says about itself.
const MAX_TEXT: usize = 256;

/// Asking an agent failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no way to the guest.
    #[error("cannot reach the guest by {}", path.display())]
    Connect {
        /// The socket of its vsock device.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The guest runs, but nothing in it listens.
    #[error("no agent answers in the guest: it is still booting, or its system ended the agent")]
    NoAgent,
    /// The connection broke.
    #[error("the connection to the guest's agent broke")]
    Io(#[from] io::Error),
    /// It ended in the middle.
    #[error("the guest's agent ended the connection before it had answered")]
    Ended,
    /// What came is not the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The agent answered something else than was asked.
    #[error("the guest's agent gave an answer that does not fit the request")]
    Unexpected,
    /// The agent could not do it.
    #[error("the guest says: {}", .0.message)]
    Refused(Failure),
}

/// Something a program said, or that it has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Bytes from its standard output, or its terminal.
    Stdout(Vec<u8>),
    /// Bytes from its standard error.
    Stderr(Vec<u8>),
    /// How it ended; the last one.
    Exited(Exit),
}

/// Connects to a port of a guest through the socket of its vsock device, which speaks the usual
/// hybrid form: `CONNECT <port>\n` is answered by `OK <port>\n`.
///
/// # Errors
/// [`ClientError::Connect`] when the virtual machine does not run, [`ClientError::NoAgent`] when nothing
/// in it listens.
pub fn connect(socket: &Path, port: u32, timeout: Duration) -> Result<UnixStream, ClientError> {
    let connect = |source| ClientError::Connect {
        path: socket.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(socket).map_err(connect)?;
    stream.set_read_timeout(Some(timeout)).map_err(connect)?;
    stream.set_write_timeout(Some(timeout)).map_err(connect)?;
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .map_err(connect)?;
    let mut line = Vec::new();
    // Byte by byte: what follows the line belongs to the protocol.
    let mut byte = [0];
    while line.len() < 32 {
        match stream.read_exact(&mut byte) {
            Ok(()) if byte == *b"\n" => break,
            Ok(()) => line.extend(byte),
            Err(_) => return Err(ClientError::NoAgent),
        }
    }
    if !line.starts_with(b"OK") {
        return Err(ClientError::NoAgent);
    }
    stream.set_read_timeout(None).map_err(connect)?;
    stream.set_write_timeout(None).map_err(connect)?;
    Ok(stream)
}

/// A connection to an agent.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    decoder: Decoder,
}

impl Client<UnixStream> {
    /// Another handle on the connection, for a second thread to send by. What has been received
    /// and not been asked for stays with this one.
    ///
    /// # Errors
    /// When the process has no more descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            stream: self.stream.try_clone()?,
            decoder: Decoder::default(),
        })
    }
}

impl<S: Read + Write> Client<S> {
    /// A client over a connected stream.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
        }
    }

    /// Who answers.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn info(&mut self) -> Result<Info, ClientError> {
        match self.call(Verb::Info)? {
            Reply::Info(mut info) => {
                for text in [
                    &mut info.agent,
                    &mut info.kernel,
                    &mut info.os,
                    &mut info.hostname,
                    &mut info.boot_id,
                ] {
                    *text = clean(text, MAX_TEXT);
                }
                Ok(info)
            }
            _ => Err(ClientError::Unexpected),
        }
    }

    /// What the guest uses.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn usage(&mut self) -> Result<Usage, ClientError> {
        match self.call(Verb::Usage)? {
            Reply::Usage(usage) => Ok(usage),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// The processes inside.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn processes(&mut self) -> Result<Vec<Process>, ClientError> {
        match self.call(Verb::Processes)? {
            Reply::Processes(mut processes) => {
                processes.truncate(MAX_PROCESSES);
                for process in &mut processes {
                    process.command = clean(&process.command, MAX_COMMAND_BYTES);
                }
                Ok(processes)
            }
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Asks for something that is just done: a signal, the clock, freezing, shutting down.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn command(&mut self, verb: Verb) -> Result<(), ClientError> {
        match self.call(verb)? {
            Reply::Done => Ok(()),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Waits until an application's program has ended.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn wait(&mut self) -> Result<Exit, ClientError> {
        match self.call(Verb::Wait)? {
            Reply::Exited(exit) => Ok(exit),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Starts a program; then [`Client::output`] until it has ended. Answers its process id inside.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn exec(&mut self, program: Program) -> Result<u32, ClientError> {
        self.start(Verb::Exec(program))
    }

    /// Joins an application's program; then as [`Client::exec`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn attach(&mut self) -> Result<u32, ClientError> {
        self.start(Verb::Attach)
    }

    fn start(&mut self, verb: Verb) -> Result<u32, ClientError> {
        match self.call(verb)? {
            Reply::Started { pid } => Ok(pid),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Bytes for the program's standard input; none for its end.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stdin(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.send_stream(Kind::Stdin, bytes)
    }

    /// Says something to the program that runs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn tell(&mut self, what: ToProgram) -> Result<(), ClientError> {
        self.stream.write_all(&encode_control(&what)?)?;
        Ok(())
    }

    /// The next thing the program says.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn output(&mut self) -> Result<Output, ClientError> {
        let frame = self.frame()?;
        match frame.kind {
            Kind::Stdout => Ok(Output::Stdout(frame.payload)),
            Kind::Stderr => Ok(Output::Stderr(frame.payload)),
            Kind::Control => match reply(&frame.payload)? {
                Reply::Exited(exit) => Ok(Output::Exited(exit)),
                _ => Err(ClientError::Unexpected),
            },
            Kind::Stdin | Kind::Data => Err(ClientError::Unexpected),
        }
    }

    /// Copies a file or directory out of the guest, as a tar stream. The stream is the guest's word:
    /// whoever unpacks it must not trust its paths.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn read_files(
        &mut self,
        path: &str,
        follow: bool,
        mut tar: impl Write,
    ) -> Result<(), ClientError> {
        let path = path.to_owned();
        self.send(Verb::ReadFiles { path, follow })?;
        loop {
            let frame = self.frame()?;
            match frame.kind {
                Kind::Data => tar.write_all(&frame.payload)?,
                Kind::Control => {
                    return match reply(&frame.payload)? {
                        Reply::Done => Ok(()),
                        _ => Err(ClientError::Unexpected),
                    };
                }
                _ => return Err(ClientError::Unexpected),
            }
        }
    }

    /// Unpacks a tar stream in a directory of the guest.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn write_files(&mut self, directory: &str, mut tar: impl Read) -> Result<(), ClientError> {
        let directory = directory.to_owned();
        self.send(Verb::WriteFiles { directory })?;
        let mut buffer = vec![0; MAX_DATA_BYTES];
        loop {
            let count = tar.read(&mut buffer)?;
            self.send_stream(Kind::Data, &buffer[..count])?;
            if count == 0 {
                break;
            }
        }
        match self.reply()? {
            Reply::Done => Ok(()),
            _ => Err(ClientError::Unexpected),
        }
    }

    fn call(&mut self, verb: Verb) -> Result<Reply, ClientError> {
        self.send(verb)?;
        self.reply()
    }

    fn send(&mut self, verb: Verb) -> Result<(), ClientError> {
        let bytes = encode_control(&Request::new(verb))?;
        self.stream.write_all(&bytes)?;
        Ok(())
    }

    fn send_stream(&mut self, kind: Kind, bytes: &[u8]) -> Result<(), ClientError> {
        let mut frames = Vec::with_capacity(bytes.len() + 64);
        for piece in bytes.chunks(MAX_DATA_BYTES) {
            encode(kind, piece, &mut frames)?;
        }
        if bytes.is_empty() {
            encode(kind, &[], &mut frames)?;
        }
        self.stream.write_all(&frames)?;
        Ok(())
    }

    fn reply(&mut self) -> Result<Reply, ClientError> {
        let frame = self.frame()?;
        if frame.kind != Kind::Control {
            return Err(ClientError::Unexpected);
        }
        reply(&frame.payload)
    }

    fn frame(&mut self) -> Result<Frame, ClientError> {
        let mut buffer = [0; 16 << 10];
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            match self.stream.read(&mut buffer)? {
                0 => return Err(ClientError::Ended),
                count => self.decoder.push(&buffer[..count]),
            }
        }
    }
}

/// Reads a reply; a failure becomes an error.
fn reply(payload: &[u8]) -> Result<Reply, ClientError> {
    match decode_control(payload)? {
        Reply::Failed(Failure { kind, message }) => {
            let message = clean(&message, MAX_TEXT);
            Err(ClientError::Refused(Failure { kind, message }))
        }
        reply => Ok(reply),
    }
}

/// A guest's text, cut to `most` bytes and without control characters, fit to be shown.
#[must_use]
pub fn clean(text: &str, most: usize) -> String {
    let mut clean = String::new();
    for character in text.chars() {
        let shown = if character.is_control() {
            '\u{fffd}'
        } else {
            character
        };
        if clean.len() + shown.len_utf8() > most {
            break;
        }
        clean.push(shown);
    }
    clean
}

impl ClientError {
    /// The kind of failure, when the guest itself refused.
    #[must_use]
    pub fn refusal(&self) -> Option<ErrorKind> {
        match self {
            Self::Refused(failure) => Some(failure.kind),
            _ => None,
        }
    }
}
