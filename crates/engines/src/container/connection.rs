//! A connection to a shim, without blocking a thread.

use std::path::Path;

use ::container::shim::{
    SOCKET_FILE,
    protocol::{self, Decoder, Failure, Frame, Kind, ProtocolError, Reply, Request},
};
use tokio::{io::AsyncWriteExt, net::UnixStream};

/// Bytes read at once.
const PIECE: usize = 16 << 10;

/// Why a shim was not spoken to.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    /// Nobody listens.
    #[error("no shim listens")]
    Absent,
    /// The shim went away.
    #[error("the shim closed the connection")]
    Closed,
    /// The shim said no.
    #[error(transparent)]
    Refused(Failure),
    /// What it said makes no sense.
    #[error("the shim speaks otherwise than expected")]
    Protocol(#[from] ProtocolError),
    /// The socket failed.
    #[error("the shim's socket failed")]
    Io(#[from] std::io::Error),
}

/// A connection over which hello was said.
pub(super) struct Connection {
    reader: Reader,
    writer: Writer,
}

impl Connection {
    pub(super) async fn open(dir: &Path) -> Result<Self, ConnectionError> {
        use std::io::ErrorKind;
        let stream =
            UnixStream::connect(dir.join(SOCKET_FILE))
                .await
                .map_err(|error| match error.kind() {
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused => ConnectionError::Absent,
                    _ => ConnectionError::Io(error),
                })?;
        let (read, write) = stream.into_split();
        let mut connection = Self {
            reader: Reader {
                stream: read,
                decoder: Decoder::default(),
            },
            writer: Writer { stream: write },
        };
        connection
            .ask(&Request::Hello {
                version: protocol::VERSION,
            })
            .await?;
        Ok(connection)
    }

    /// Sends a request and waits for its answer; a refusal is an error.
    pub(super) async fn ask(&mut self, request: &Request) -> Result<Reply, ConnectionError> {
        self.writer.request(request).await?;
        loop {
            let frame = self.reader.receive().await?;
            if frame.kind == Kind::Message {
                return match protocol::decode_message(&frame.payload)? {
                    Reply::Error(failure) => Err(ConnectionError::Refused(failure)),
                    reply => Ok(reply),
                };
            }
        }
    }

    /// Both halves, to be used at once.
    pub(super) fn split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }
}

/// Receives frames.
pub(super) struct Reader {
    stream: tokio::net::unix::OwnedReadHalf,
    decoder: Decoder,
}

impl Reader {
    /// The next frame.
    pub(super) async fn receive(&mut self) -> Result<Frame, ConnectionError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            // On the stack, and only once something came: hundreds of connections just wait.
            self.stream.readable().await?;
            let mut piece = [0; PIECE];
            match self.stream.try_read(&mut piece) {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(count) => self.decoder.push(&piece[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return Err(ConnectionError::Closed);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Sends frames.
pub(super) struct Writer {
    stream: tokio::net::unix::OwnedWriteHalf,
}

impl Writer {
    /// Sends input of a stream.
    pub(super) async fn data(&mut self, kind: Kind, payload: &[u8]) -> Result<(), ConnectionError> {
        let mut bytes = Vec::with_capacity(payload.len() + protocol::HEADER);
        protocol::encode(kind, payload, &mut bytes);
        self.write(&bytes).await
    }

    /// Sends a request.
    pub(super) async fn request(&mut self, request: &Request) -> Result<(), ConnectionError> {
        let mut bytes = Vec::new();
        protocol::encode_message(request, &mut bytes)?;
        self.write(&bytes).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        use std::io::ErrorKind;
        self.stream
            .write_all(bytes)
            .await
            .map_err(|error| match error.kind() {
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => ConnectionError::Closed,
                _ => ConnectionError::Io(error),
            })
    }
}
