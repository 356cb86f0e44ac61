//! A synchronous client.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use super::protocol::{Event, Reply, Request, VERSION, WireError, decode, encode};

/// Why a call of the control socket failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody answers.
    #[error("the machine's process does not answer")]
    Io(#[from] io::Error),
    /// Nonsense came.
    #[error("the machine's process says what cannot be understood")]
    Wire(#[from] WireError),
    /// It speaks another version.
    #[error("the machine's process speaks version {0} of the protocol, this one {VERSION}")]
    Version(u32),
    /// It did not do it.
    #[error("{0}")]
    Refused(String),
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    received: Vec<u8>,
    events: Vec<Event>,
}

impl Client {
    /// Connects, and agrees on the version. Answers are waited for `patience` long, `None` for
    /// ever.
    ///
    /// # Errors
    /// When there is no machine, or one of another version.
    pub fn connect(path: &Path, patience: Option<Duration>) -> Result<Self, CallError> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(patience)?;
        stream.set_write_timeout(patience)?;
        let mut client = Self {
            stream,
            received: Vec::new(),
            events: Vec::new(),
        };
        match client.call(&Request::Hello { version: VERSION })? {
            Reply::Welcome { version, .. } if version == VERSION => Ok(client),
            Reply::Welcome { version, .. } => Err(CallError::Version(version)),
            other => Err(CallError::Refused(format!("{other:?} is no welcome"))),
        }
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// [`CallError::Refused`] when the answer is [`Reply::Error`], and when there is none.
    pub fn call(&mut self, request: &Request) -> Result<Reply, CallError> {
        self.stream.write_all(&encode(request)?)?;
        loop {
            match self.receive()? {
                Reply::Event(event) => self.events.push(event),
                Reply::Error { message } => return Err(CallError::Refused(message)),
                reply => return Ok(reply),
            }
        }
    }

    /// Waits for the next event, after [`Request::Subscribe`].
    ///
    /// # Errors
    /// When none comes any more.
    pub fn event(&mut self) -> Result<Event, CallError> {
        loop {
            if !self.events.is_empty() {
                return Ok(self.events.remove(0));
            }
            if let Reply::Event(event) = self.receive()? {
                self.events.push(event);
            }
        }
    }

    fn receive(&mut self) -> Result<Reply, CallError> {
        loop {
            if let Some(reply) = decode(&mut self.received)? {
                return Ok(reply);
            }
            let mut data = [0; 4096];
            match self.stream.read(&mut data)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => self.received.extend_from_slice(&data[..count]),
            }
        }
    }
}
