//! A connection to the agent inside a guest.

use std::{path::Path, time::Duration};

use ::agent::{
    AGENT_PORT,
    protocol::{self, Decoder, Failure, Frame, FrameError, Kind, Reply, Request, Verb},
};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// Pause between two attempts to reach an agent that has not started yet.
const RETRY: Duration = Duration::from_millis(50);
/// How long a guest is given to take a connection.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest line with which a connection is answered.
const MAX_GREETING: usize = 64;

/// Why an agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// Nobody listens: the machine does not run, or its agent not yet or no more.
    #[error("the agent in the guest does not answer")]
    Absent,
    /// It ended before it had answered.
    #[error("the agent in the guest ended the connection")]
    Closed,
    /// It answered something else.
    #[error("the agent in the guest gave an answer to another question")]
    Unexpected,
    /// It could not do it.
    #[error("{}", .0.message)]
    Failed(Failure),
    /// It does not speak the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The connection broke.
    #[error("the connection to the agent in the guest broke")]
    Io(#[from] std::io::Error),
}

/// A connection: one request.
#[derive(Debug)]
pub(crate) struct Agent {
    reader: Reader,
    writer: Writer,
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct Reader {
    stream: OwnedReadHalf,
    decoder: Decoder,
    piece: Box<[u8]>,
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct Writer {
    stream: OwnedWriteHalf,
    buffer: Vec<u8>,
}

impl Agent {
    /// Connects to the agent of the guest whose files are in `guest`.
    pub(crate) async fn connect(guest: &Path) -> Result<Self, AgentError> {
        let stream = UnixStream::connect(super::socket(guest))
            .await
            .map_err(|_| AgentError::Absent)?;
        let (mut reader, mut writer) = stream.into_split();
        let greeting = format!("CONNECT {AGENT_PORT}\n");
        writer.write_all(greeting.as_bytes()).await?;
        // A guest that is just starting may never answer what came before its driver.
        match tokio::time::timeout(PATIENCE, greeted(&mut reader)).await {
            Ok(greeted) => greeted?,
            Err(_elapsed) => return Err(AgentError::Absent),
        }
        Ok(Self {
            reader: Reader {
                stream: reader,
                decoder: Decoder::default(),
                piece: vec![0; 16 << 10].into_boxed_slice(),
            },
            writer: Writer {
                stream: writer,
                buffer: Vec::new(),
            },
        })
    }

    /// Connects, waiting for an agent that has not started yet for as long as `alive` says that it
    /// may come.
    pub(crate) async fn reach<F: Future<Output = bool>>(
        guest: &Path,
        alive: impl Fn() -> F,
    ) -> Result<Self, AgentError> {
        loop {
            match Self::connect(guest).await {
                Err(AgentError::Absent | AgentError::Io(_)) if alive().await => {
                    tokio::time::sleep(RETRY).await;
                }
                connected => return connected,
            }
        }
    }

    /// Asks.
    pub(crate) async fn send(&mut self, verb: Verb) -> Result<(), AgentError> {
        self.writer.control(&Request::new(verb)).await
    }

    /// Asks, and gives the first answer.
    pub(crate) async fn ask(&mut self, verb: Verb) -> Result<Reply, AgentError> {
        self.send(verb).await?;
        self.reader.reply().await
    }

    /// The two halves.
    pub(crate) fn split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }
}

async fn greeted(reader: &mut OwnedReadHalf) -> Result<(), AgentError> {
    let mut line = Vec::new();
    // Byte by byte: what follows the line belongs to the agent.
    while line.last() != Some(&b'\n') {
        match reader.read_u8().await {
            Ok(byte) if line.len() < MAX_GREETING => line.push(byte),
            _ => return Err(AgentError::Absent),
        }
    }
    if line.starts_with(b"OK ") {
        Ok(())
    } else {
        Err(AgentError::Absent)
    }
}

impl Reader {
    /// The next frame; `None` when there are no more.
    pub(crate) async fn frame(&mut self) -> Result<Option<Frame>, AgentError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            let count = self.stream.read(&mut self.piece).await?;
            if count == 0 {
                return Ok(None);
            }
            self.decoder.push(&self.piece[..count]);
        }
    }

    /// The next frame as a reply. A failure is an error.
    pub(crate) async fn reply(&mut self) -> Result<Reply, AgentError> {
        let frame = self.frame().await?.ok_or(AgentError::Closed)?;
        if frame.kind != Kind::Control {
            return Err(AgentError::Unexpected);
        }
        match protocol::decode_control(&frame.payload)? {
            Reply::Failed(failure) => Err(AgentError::Failed(failure)),
            reply => Ok(reply),
        }
    }
}

impl Writer {
    /// Sends a message.
    pub(crate) async fn control(&mut self, message: &impl Serialize) -> Result<(), AgentError> {
        let bytes = protocol::encode_control(message)?;
        Ok(self.stream.write_all(&bytes).await?)
    }

    /// Sends bytes of a stream, in as many frames as they need; none are its end.
    pub(crate) async fn data(&mut self, kind: Kind, bytes: &[u8]) -> Result<(), AgentError> {
        if bytes.is_empty() {
            return self.piece(kind, bytes).await;
        }
        for piece in bytes.chunks(protocol::MAX_DATA_BYTES) {
            self.piece(kind, piece).await?;
        }
        Ok(())
    }

    async fn piece(&mut self, kind: Kind, bytes: &[u8]) -> Result<(), AgentError> {
        self.buffer.clear();
        protocol::encode(kind, bytes, &mut self.buffer)?;
        Ok(self.stream.write_all(&self.buffer).await?)
    }
}
