//! A synchronous client of a shim, for tests and simple callers. The daemon has an asynchronous one
//! of its own over the same [`protocol`](super::protocol).

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::SOCKET_FILE;
use super::protocol::{
    Attach, Decoder, ErrorCode, Exec, Exited, Failure, Frame, Kind, ProtocolError, Reply, Request,
    State, VERSION, decode_message, encode, encode_message,
};

/// A connection to a shim.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    decoder: Decoder,
}

/// Why a shim did not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody answers.
    #[error("cannot reach the shim at {}; its container may be over", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("the connection to the shim broke")]
    Io(#[from] std::io::Error),
    /// The shim closed the connection.
    #[error("the shim closed the connection")]
    Closed,
    /// The shim sent something else than the protocol says.
    #[error("the shim cannot be understood")]
    Protocol(#[from] ProtocolError),
    /// The shim answered something that does not fit the question.
    #[error("the shim gave an unexpected answer: {0}")]
    Unexpected(String),
    /// The shim refused.
    #[error("{0}")]
    Refused(Failure),
}

impl Client {
    /// Connects to the shim of `dir` and says hello.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(dir: &Path) -> Result<Client, ClientError> {
        let path = dir.join(SOCKET_FILE);
        let short =
            crate::container::short_path(&path).map_err(|failure| ClientError::Connect {
                path: path.clone(),
                source: failure.source,
            })?;
        let stream = UnixStream::connect(short.path())
            .map_err(|source| ClientError::Connect { path, source })?;
        let mut client = Client {
            stream,
            decoder: Decoder::default(),
        };
        match client.ask(&Request::Hello { version: VERSION })? {
            Reply::Welcome { .. } => Ok(client),
            other => Err(unexpected(&other)),
        }
    }

    /// How long to wait for an answer; `None` for ever.
    ///
    /// # Errors
    /// When the socket refuses.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), ClientError> {
        self.stream.set_read_timeout(timeout)?;
        Ok(self.stream.set_write_timeout(timeout)?)
    }

    /// Sends a request.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut bytes = Vec::new();
        encode_message(request, &mut bytes)?;
        Ok(self.stream.write_all(&bytes)?)
    }

    /// Sends input on a stream.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn send_stdin(&mut self, data: &[u8]) -> Result<(), ClientError> {
        let mut bytes = Vec::new();
        encode(Kind::Stdin, data, &mut bytes);
        Ok(self.stream.write_all(&bytes)?)
    }

    /// Says that there is no more input.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn send_eof(&mut self) -> Result<(), ClientError> {
        let mut bytes = Vec::new();
        encode(Kind::StdinEof, &[], &mut bytes);
        Ok(self.stream.write_all(&bytes)?)
    }

    /// The next frame.
    ///
    /// # Errors
    /// [`ClientError::Closed`] at the end.
    pub fn receive(&mut self) -> Result<Frame, ClientError> {
        let mut buffer = [0u8; 16 << 10];
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            match self.stream.read(&mut buffer)? {
                0 => return Err(ClientError::Closed),
                n => self.decoder.push(&buffer[..n]),
            }
        }
    }

    /// Sends a request and returns the answer; a refusal is an error.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.send(request)?;
        let frame = self.receive()?;
        if frame.kind != Kind::Message {
            return Err(ClientError::Unexpected(format!("{:?}", frame.kind)));
        }
        match decode_message(&frame.payload)? {
            Reply::Error(failure) => Err(ClientError::Refused(failure)),
            reply => Ok(reply),
        }
    }

    /// Asks for something whose answer is just yes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn command(&mut self, request: &Request) -> Result<(), ClientError> {
        match self.ask(request)? {
            Reply::Ok => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Where the container is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn state(&mut self) -> Result<State, ClientError> {
        match self.ask(&Request::State)? {
            Reply::State(state) => Ok(*state),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits for the container's end.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn wait(&mut self) -> Result<Exited, ClientError> {
        match self.ask(&Request::Wait)? {
            Reply::Exited(exited) => Ok(exited),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes this connection a stream of the container.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn attach(&mut self, attach: Attach) -> Result<(), ClientError> {
        self.command(&Request::Attach(attach))
    }

    /// Runs a program in the container; its process id.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn exec(&mut self, exec: Exec) -> Result<i32, ClientError> {
        match self.ask(&Request::Exec(Box::new(exec)))? {
            Reply::Started { pid } => Ok(pid),
            other => Err(unexpected(&other)),
        }
    }

    /// Follows a stream to its end, handing output to `sink`. That a size or a signal sent
    /// meanwhile was refused is passed over.
    ///
    /// # Errors
    /// [`ClientError`]; being dropped for slowness is [`ClientError::Refused`].
    pub fn follow(&mut self, mut sink: impl FnMut(Kind, &[u8])) -> Result<Exited, ClientError> {
        loop {
            let frame = self.receive()?;
            match frame.kind {
                Kind::Message => match decode_message(&frame.payload)? {
                    Reply::Exited(exited) => return Ok(exited),
                    Reply::Error(failure) if failure.code == ErrorCode::Slow => {
                        return Err(ClientError::Refused(failure));
                    }
                    Reply::Error(_) => {}
                    other => return Err(unexpected(&other)),
                },
                kind => sink(kind, &frame.payload),
            }
        }
    }
}

fn unexpected(reply: &Reply) -> ClientError {
    ClientError::Unexpected(format!("{reply:?}").chars().take(200).collect())
}
