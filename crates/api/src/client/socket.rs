//! The stream of an attach or an exec (see [`crate::stream`]), from the client's side.

use bytes::Bytes;
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use hyper::{StatusCode, header, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error as SocketError, Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};

use super::{
    MAX_MESSAGE,
    address::Address,
    error::{ClientError, Result},
    request::{Call, Client},
};
use crate::{
    Problem,
    stream::{Channel, Control},
};

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What comes from the program.
#[derive(Debug)]
pub enum StreamEvent {
    /// Standard output; all output when there is a terminal.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// The program ended; nothing follows.
    Exited(i32),
    /// The stream ended for another reason; nothing follows.
    Problem(Problem),
}

/// An open stream.
#[derive(Debug)]
pub struct Session {
    /// To the program.
    pub input: SessionInput,
    /// From the program.
    pub output: SessionOutput,
}

/// The way to the program.
#[derive(Debug)]
pub struct SessionInput {
    address: Address,
    sink: SplitSink<Socket, Message>,
}

/// The way from the program.
#[derive(Debug)]
pub struct SessionOutput {
    address: Address,
    stream: SplitStream<Socket>,
}

impl Client {
    /// Opens a stream whose first message is `first`.
    pub(super) async fn open(&self, call: Call, first: &impl Serialize) -> Result<Session> {
        let key = generate_key();
        let call = call
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, key.clone());
        let pending = self.send(call).await?;
        if pending.response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.nonsense("it is not a WebSocket"));
        }
        let accept = pending.response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        if accept
            .is_none_or(|accept| accept.as_bytes() != derive_accept_key(key.as_bytes()).as_bytes())
        {
            return Err(self.nonsense("it accepts another WebSocket than this one"));
        }
        let upgraded = hyper::upgrade::on(pending.response)
            .await
            .map_err(|error| super::connect::broken(self.address(), &error))?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config))
                .await;
        let (sink, stream) = socket.split();
        let address = self.address().clone();
        let mut input = SessionInput {
            address: address.clone(),
            sink,
        };
        input.text(first).await?;
        Ok(Session {
            input,
            output: SessionOutput { address, stream },
        })
    }
}

impl SessionInput {
    /// Sends bytes to the program's standard input.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn stdin(&mut self, bytes: &[u8]) -> Result<()> {
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(Channel::Stdin as u8);
        message.extend_from_slice(bytes);
        self.send(Message::binary(message)).await
    }

    /// Says that there is no more input.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn stdin_eof(&mut self) -> Result<()> {
        self.text(&Control::StdinEof).await
    }

    /// Says that the terminal has another size.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn resize(&mut self, rows: u16, cols: u16) -> Result<()> {
        self.text(&Control::Resize { rows, cols }).await
    }

    /// Sends the program a signal, by name or number.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn signal(&mut self, signal: &str) -> Result<()> {
        let signal = signal.to_owned();
        self.text(&Control::Signal { signal }).await
    }

    /// Leaves; the program goes on.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn close(&mut self) -> Result<()> {
        self.send(Message::Close(None)).await
    }

    async fn text(&mut self, document: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(document).map_err(|error| ClientError::Protocol {
            address: self.address.to_string(),
            what: format!("a message cannot be written as JSON: {error}"),
        })?;
        self.send(Message::text(text)).await
    }

    async fn send(&mut self, message: Message) -> Result<()> {
        self.sink
            .send(message)
            .await
            .map_err(|error| broken(&self.address, &error))
    }
}

impl SessionOutput {
    /// What comes next, or `None` when the daemon closed the stream without saying how the
    /// program ended. Safe to cancel.
    ///
    /// # Errors
    /// When the connection breaks, or a message is not one of this protocol.
    pub async fn next(&mut self) -> Result<Option<StreamEvent>> {
        while let Some(message) = self.stream.next().await {
            let message = message.map_err(|error| broken(&self.address, &error))?;
            match message {
                Message::Binary(bytes) => return self.data(bytes).map(Some),
                Message::Text(text) => match serde_json::from_str(&text) {
                    Ok(Control::Exited { code }) => return Ok(Some(StreamEvent::Exited(code))),
                    Ok(Control::Problem { problem }) => {
                        return Ok(Some(StreamEvent::Problem(problem)));
                    }
                    Ok(_) => return Err(self.nonsense("a message that only clients send".into())),
                    Err(error) => return Err(self.nonsense(error.to_string())),
                },
                Message::Close(_) => return Ok(None),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        Ok(None)
    }

    fn data(&self, mut bytes: Bytes) -> Result<StreamEvent> {
        let channel = bytes.first().copied().and_then(Channel::from_byte);
        match channel {
            Some(Channel::Stdout) => Ok(StreamEvent::Stdout(bytes.split_off(1))),
            Some(Channel::Stderr) => Ok(StreamEvent::Stderr(bytes.split_off(1))),
            Some(Channel::Stdin) | None => Err(self.nonsense("data on an unknown channel".into())),
        }
    }

    fn nonsense(&self, what: String) -> ClientError {
        ClientError::Protocol {
            address: self.address.to_string(),
            what,
        }
    }
}

fn broken(address: &Address, error: &SocketError) -> ClientError {
    super::connect::broken(address, error)
}
