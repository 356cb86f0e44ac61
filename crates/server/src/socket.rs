//! The stream of an attach or exec over a WebSocket, as [`api::stream`] states it.
//!
//! Two flows run side by side, so that a program that does not read cannot keep its own output
//! from the user: one from the client to the program, one from the program to the client. Each
//! has one message in hand and a bounded channel behind it; who is slow slows the other end.
//!
//! ```text
//! client ── stdin, resize, signal, eof ──► reader ──► Socket::input   ─► program
//! client ◄── stdout, stderr, exit ──────── writer ◄── Socket::output  ◄─ program
//!                                            └─ pings; three without any sign of life end it
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use api::{
    ErrorCode, Problem,
    service::{FromClient, Service, Socket, ToClient},
    stream::{Channel, Control},
};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{
    SinkExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{SplitSink, SplitStream},
};
use hyper::{
    HeaderMap,
    header::{self, HeaderName},
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{
    sync::mpsc,
    time::{Instant, interval_at, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message, Utf8Bytes,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tokio_util::sync::CancellationToken;

use crate::{
    call::{Call, Shared},
    json,
    reply::{Reply, stopping},
};

type Web = WebSocketStream<TokioIo<Upgraded>>;
type Sink = SplitSink<Web, Message>;

/// How long the client may take to answer a close.
const CLOSE_TIME: Duration = Duration::from_secs(5);
/// Pings without any sign of life after which a client is taken for gone.
const MISSED_PINGS: u32 = 3;

/// Answers an upgrade and serves the stream in a task of its own; `start` asks the service for the
/// program's ends once the first message is there.
///
/// # Errors
/// [`ErrorCode::Invalid`] when the request is no WebSocket handshake (RFC 6455 §4.2.1).
pub(crate) fn open<T, F>(mut call: Call, start: F) -> Result<Reply, Problem>
where
    T: DeserializeOwned + Send + 'static,
    F: FnOnce(Arc<dyn Service>, String, T) -> BoxFuture<'static, Result<Socket, Problem>>
        + Send
        + 'static,
{
    let key = handshake_key(&call.headers)?;
    let Some(upgrade) = call.upgrade.take() else {
        return Err(not_a_handshake("the connection cannot be upgraded"));
    };
    let (shared, name) = (call.shared.clone(), std::mem::take(&mut call.name));
    let tasks = shared.tasks.clone();
    tasks.spawn(async move {
        shared.metrics.sockets.fetch_add(1, Relaxed);
        if let Some(web) = upgraded(upgrade, &shared).await {
            let service = Arc::clone(&shared.service);
            converse(web, &shared, |first| start(service, name, first)).await;
        }
        shared.metrics.sockets.fetch_sub(1, Relaxed);
    });
    Ok(Reply::Socket(derive_accept_key(key.as_bytes())))
}

fn handshake_key(headers: &HeaderMap) -> Result<String, Problem> {
    let text = |name: HeaderName| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().trim().to_owned()
    };
    if !text(header::UPGRADE).eq_ignore_ascii_case("websocket") {
        return Err(not_a_handshake("the header Upgrade: websocket is missing"));
    }
    if text(header::SEC_WEBSOCKET_VERSION) != "13" {
        return Err(not_a_handshake("Sec-WebSocket-Version must be 13"));
    }
    let key = text(header::SEC_WEBSOCKET_KEY);
    if key.len() != 24 {
        return Err(not_a_handshake(
            "Sec-WebSocket-Key must be 16 bytes in base64",
        ));
    }
    Ok(key)
}

fn not_a_handshake(why: &str) -> Problem {
    Problem::new(
        ErrorCode::Invalid,
        format!("this route is a WebSocket: {why}"),
    )
    .hint("`berth exec` and `berth attach` speak it")
}

async fn upgraded(upgrade: OnUpgrade, shared: &Shared) -> Option<Web> {
    let io = match timeout(shared.config.handshake_timeout, upgrade).await {
        Ok(Ok(io)) => io,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a stream broke off before it began");
            return None;
        }
        Err(_) => return None,
    };
    let config = WebSocketConfig::default()
        .max_message_size(Some(shared.config.message_bytes))
        .max_frame_size(Some(shared.config.message_bytes));
    Some(WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, Some(config)).await)
}

/// The whole life of a stream.
async fn converse<T: DeserializeOwned>(
    mut web: Web,
    shared: &Shared,
    start: impl FnOnce(T) -> BoxFuture<'static, Result<Socket, Problem>>,
) {
    let started = match first_message(&mut web, shared).await {
        Ok(first) => tokio::select! {
            result = start(first) => result,
            () = shared.stop.cancelled() => Err(stopping()),
        },
        Err(problem) => Err(problem),
    };
    let socket = match started {
        Ok(socket) => socket,
        Err(problem) => {
            let (mut sink, mut stream) = web.split();
            finish(&mut sink, Control::Problem { problem }).await;
            let _ = timeout(CLOSE_TIME, until_closed(&mut stream)).await;
            return;
        }
    };
    let (mut sink, mut stream) = web.split();
    let life = Life::default();
    let end = tokio::select! {
        end = write(socket.output, &mut sink, &life, shared) => end,
        end = read(&mut stream, &socket.input, &life) => end,
    };
    drop(socket.input);
    match end {
        End::Gone => {}
        End::Said(control) => {
            finish(&mut sink, control).await;
            let _ = timeout(CLOSE_TIME, until_closed(&mut stream)).await;
        }
    }
}

async fn first_message<T: DeserializeOwned>(web: &mut Web, shared: &Shared) -> Result<T, Problem> {
    let wait = shared.config.body_timeout;
    let next = async {
        loop {
            match web.next().await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => return other,
            }
        }
    };
    match timeout(wait, next).await {
        Ok(Some(Ok(Message::Text(text)))) => json::parse(text.as_bytes()),
        Ok(Some(Ok(_))) => Err(invalid("the first message must be text")),
        Ok(Some(Err(error))) => Err(invalid(&format!("the first message broke off: {error}"))),
        Ok(None) => Err(invalid("the stream ended before its first message")),
        Err(_) => Err(Problem::new(
            ErrorCode::Timeout,
            format!("no first message came within {} s", wait.as_secs()),
        )),
    }
}

/// How a stream ends.
enum End {
    /// The client is gone; there is nobody to tell.
    Gone,
    /// The client is told.
    Said(Control),
}

/// Signs of life of a client.
#[derive(Default)]
struct Life {
    /// Pings sent since the client last said anything.
    silent_pings: AtomicU32,
    /// The program does not take what the client sent, so nothing more is read from the client
    /// and its silence means nothing.
    held: AtomicBool,
}

/// From the client to the program, until the client closes.
async fn read(stream: &mut SplitStream<Web>, input: &mpsc::Sender<FromClient>, life: &Life) -> End {
    while let Some(message) = stream.next().await {
        life.silent_pings.store(0, Relaxed);
        let parsed = match message {
            Ok(Message::Binary(bytes)) => parse_binary(bytes),
            Ok(Message::Text(text)) => parse_control(&text),
            Ok(Message::Close(_)) => return End::Gone,
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
            Err(tungstenite::Error::Capacity(error)) => Err(invalid(&error.to_string())),
            Err(error) => {
                tracing::debug!(%error, "a client broke off");
                return End::Gone;
            }
        };
        match parsed {
            Ok(message) => {
                life.held.store(true, Relaxed);
                // A program that has ended takes nothing more; its exit is on its way.
                let _ = input.send(message).await;
                life.held.store(false, Relaxed);
            }
            Err(problem) => return End::Said(Control::Problem { problem }),
        }
    }
    End::Gone
}

/// From the program to the client, until the program's last message.
async fn write(
    mut output: mpsc::Receiver<ToClient>,
    sink: &mut Sink,
    life: &Life,
    shared: &Shared,
) -> End {
    let period = shared.config.ping_interval;
    let mut pings = interval_at(Instant::now() + period, period);
    let stop: &CancellationToken = &shared.stop;
    loop {
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => return End::Said(Control::Problem { problem: stopping() }),
            next = output.recv() => next,
            _ = pings.tick() => {
                if life.silent_pings.fetch_add(1, Relaxed) >= MISSED_PINGS
                    && !life.held.load(Relaxed)
                {
                    tracing::debug!("a client gave no sign of life");
                    return End::Gone;
                }
                if sink.send(Message::Ping(Bytes::new())).await.is_err() {
                    return End::Gone;
                }
                continue;
            }
        };
        let message = match next {
            Some(ToClient::Stdout(bytes)) => frame(Channel::Stdout, &bytes),
            Some(ToClient::Stderr(bytes)) => frame(Channel::Stderr, &bytes),
            Some(ToClient::Control(control)) => return End::Said(control),
            None => return End::Said(Control::Problem { problem: broken() }),
        };
        // What is already there goes out in one write.
        let sent = match output.is_empty() {
            true => sink.send(message).await,
            false => sink.feed(message).await,
        };
        if sent.is_err() {
            return End::Gone;
        }
    }
}

/// The last message and the close.
async fn finish(sink: &mut Sink, control: Control) {
    let (code, reason) = match &control {
        Control::Exited { .. } => (CloseCode::Normal, "exited"),
        Control::Problem { problem } => (close_code(problem.code), "see the last message"),
        _ => (CloseCode::Error, ""),
    };
    let last = async {
        if let Ok(text) = serde_json::to_string(&control) {
            sink.feed(Message::text(text)).await?;
        }
        let reason = Utf8Bytes::from_static(reason);
        sink.send(Message::Close(Some(CloseFrame { code, reason })))
            .await
    };
    let _ = timeout(CLOSE_TIME, last).await;
}

/// RFC 6455 §7.4.1.
fn close_code(code: ErrorCode) -> CloseCode {
    match code {
        ErrorCode::Cancelled => CloseCode::Away,
        ErrorCode::Internal => CloseCode::Error,
        ErrorCode::TooLarge => CloseCode::Size,
        _ => CloseCode::Policy,
    }
}

/// Until the client has answered the close, so that it has read what came before.
async fn until_closed(stream: &mut SplitStream<Web>) {
    while let Some(Ok(_)) = stream.next().await {}
}

fn frame(channel: Channel, bytes: &[u8]) -> Message {
    let mut framed = BytesMut::with_capacity(bytes.len() + 1);
    framed.put_u8(channel as u8);
    framed.extend_from_slice(bytes);
    Message::Binary(framed.freeze())
}

/// A binary message of a client.
///
/// # Errors
/// [`ErrorCode::Invalid`] when it is not for standard input.
pub(crate) fn parse_binary(mut bytes: Bytes) -> Result<FromClient, Problem> {
    match bytes.first().copied().and_then(Channel::from_byte) {
        Some(Channel::Stdin) => Ok(FromClient::Stdin(bytes.split_off(1))),
        _ => Err(invalid(
            "a binary message must begin with byte 1, for standard input",
        )),
    }
}

/// A text message of a client.
///
/// # Errors
/// [`ErrorCode::Invalid`] when it is none that a client sends.
pub(crate) fn parse_control(text: &str) -> Result<FromClient, Problem> {
    match json::parse(text.as_bytes())? {
        Control::Exited { .. } | Control::Problem { .. } => {
            Err(invalid("a client sends resize, signal or stdin_eof"))
        }
        control => Ok(FromClient::Control(control)),
    }
}

fn invalid(detail: &str) -> Problem {
    Problem::new(ErrorCode::Invalid, detail)
}

fn broken() -> Problem {
    Problem::new(
        ErrorCode::Failed,
        "the program's stream broke off without an exit code",
    )
    .hint("`berth show` tells whether it still runs")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_of_clients_are_told_apart() {
        let stdin = parse_binary(Bytes::from_static(b"\x01hi")).unwrap();
        assert_eq!(stdin, FromClient::Stdin(Bytes::from_static(b"hi")));
        for bad in [&b""[..], b"\x02out", b"\x00"] {
            assert!(parse_binary(Bytes::copy_from_slice(bad)).is_err());
        }
        let resize = parse_control(r#"{"type":"resize","rows":3,"cols":4}"#).unwrap();
        let wanted = Control::Resize { rows: 3, cols: 4 };
        assert_eq!(resize, FromClient::Control(wanted));
        assert!(parse_control(r#"{"type":"exited","code":0}"#).is_err());
        assert!(parse_control("").is_err());
    }

    proptest! {
        #[test]
        fn any_message_is_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            crate::fuzzing::message(&bytes);
        }
    }
}
