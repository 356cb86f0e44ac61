//! A shim's stream as an engine's session.

use ::container::shim::protocol::{self, Attach, Exec, Kind, Reply, Request};
use bytes::Bytes;
use engine::{Input, Output, Session, SessionEnd};
use serde_json::Value;
use tokio::sync::mpsc;

use super::connection::{Connection, ConnectionError, Reader, Writer};

/// Messages in flight each way.
const IN_FLIGHT: usize = 32;

/// Joins the container's own streams.
pub(super) async fn attach(
    mut connection: Connection,
    stdin: bool,
) -> Result<Session, ConnectionError> {
    let request = Attach {
        stdin,
        lossless: true,
        // Whoever needs the record looks for it.
        end_at_once: true,
        ..Attach::default()
    };
    connection.ask(&Request::Attach(request)).await?;
    Ok(stream(connection, None))
}

/// Runs another program and joins its streams.
pub(super) async fn exec(
    mut connection: Connection,
    process: Value,
    stdin: bool,
) -> Result<Session, ConnectionError> {
    let request = Exec {
        process,
        stdin,
        detach: false,
    };
    let reply = connection.ask(&Request::Exec(Box::new(request))).await?;
    let pid = match reply {
        Reply::Started { pid } => Some(pid),
        _ => None,
    };
    Ok(stream(connection, pid))
}

/// `exec` is the other program's process id; without one it is the container's own stream.
fn stream(connection: Connection, exec: Option<i32>) -> Session {
    let (reader, writer) = connection.split();
    let (input, from_client) = mpsc::channel(IN_FLIGHT);
    let (to_client, output) = mpsc::channel(IN_FLIGHT);
    let sender = tokio::spawn(send(writer, from_client, exec));
    tokio::spawn(async move {
        receive(reader, to_client).await;
        sender.abort();
    });
    Session { input, output }
}

async fn send(mut writer: Writer, mut input: mpsc::Receiver<Input>, exec: Option<i32>) {
    while let Some(message) = input.recv().await {
        let sent = match message {
            Input::Stdin(bytes) => writer.data(Kind::Stdin, &bytes).await,
            Input::Eof => writer.data(Kind::StdinEof, &[]).await,
            Input::Resize { rows, cols } => {
                let request = match exec {
                    Some(pid) => Request::ExecResize { pid, rows, cols },
                    None => Request::Resize { rows, cols },
                };
                writer.request(&request).await
            }
            Input::Signal(signal) => {
                let request = match exec {
                    Some(pid) => Request::ExecSignal { pid, signal },
                    None => Request::Signal { signal, all: false },
                };
                writer.request(&request).await
            }
        };
        if sent.is_err() {
            // The reader sees the end and says why.
            return;
        }
    }
    // The client let go of its input only: the stream stays until its output goes too.
    std::future::pending::<()>().await;
}

async fn receive(mut reader: Reader, output: mpsc::Sender<Output>) {
    loop {
        let message = tokio::select! {
            frame = reader.receive() => match frame {
                Ok(frame) => message(frame),
                Err(error) => Some(Output::End(SessionEnd::Lost(error.to_string()))),
            },
            () = output.closed() => return,
        };
        let Some(message) = message else { continue };
        let last = matches!(message, Output::End(_));
        if output.send(message).await.is_err() || last {
            return;
        }
    }
}

fn message(frame: protocol::Frame) -> Option<Output> {
    match frame.kind {
        Kind::Stdout => Some(Output::Stdout(Bytes::from(frame.payload))),
        Kind::Stderr => Some(Output::Stderr(Bytes::from(frame.payload))),
        Kind::Stdin | Kind::StdinEof => None,
        Kind::Message => match protocol::decode_message(&frame.payload) {
            Ok(Reply::Exited(exited)) => {
                Some(Output::End(SessionEnd::Exited { code: exited.code }))
            }
            Ok(Reply::Error(failure)) => {
                use protocol::ErrorCode;
                // A resize or a signal that came too late ends nothing.
                let late = matches!(failure.code, ErrorCode::Conflict | ErrorCode::NotFound);
                (!late).then(|| Output::End(SessionEnd::Lost(failure.message)))
            }
            Ok(_) => None,
            Err(error) => Some(Output::End(SessionEnd::Lost(error.to_string()))),
        },
    }
}
