//! Attach, exec and logs: an engine's channels as the API's.

use std::time::Duration;

use api::{
    ErrorCode, Problem, Process,
    service::{ByteStream, FromClient, LogQuery, Socket, ToClient},
    stream::{Attach, Control as Message},
};
use bytes::{BufMut, Bytes, BytesMut};
use engine::{Input, LogLine, LogRequest, LogStream, Output, Session, SessionEnd};
use futures::{StreamExt, stream};
use model::{
    InstanceId,
    instance::{RestartPolicy, spec::signal_number},
};
use tokio::sync::mpsc;

use crate::{
    Control,
    error::{from_engine, program, wrong_field},
};

/// Messages in flight each way.
const IN_FLIGHT: usize = 32;
/// Most time the end of a program is held back until it is recorded.
const RECORDED: Duration = Duration::from_secs(5);

/// What the end of a session means for the instance.
#[derive(Debug, Clone, Copy)]
enum End {
    /// It stops: told only once that is recorded, so that who hears of it finds it stopped.
    Stops,
    /// It goes away with its program: told at once, and no longer listed.
    Leaves,
    /// Nothing: it was another program's.
    OfExec,
}

impl Control {
    pub(crate) async fn attach(&self, name: &str, request: Attach) -> Result<Socket, Problem> {
        let record = self.find(name).await?.value;
        let session = self
            .engine()
            .attach(record.id, request.stdin)
            .await
            .map_err(|error| from_engine(name, error))?;
        if let Some((rows, cols)) = request.size {
            // One that has ended just now needs no size.
            let _ = session.input.send(Input::Resize { rows, cols }).await;
        }
        if request.start {
            self.start(name, None).await?;
        }
        let goes = record.spec.remove_on_exit && record.spec.restart == RestartPolicy::No;
        let end = if goes { End::Leaves } else { End::Stops };
        Ok(self.socket(record.id, session, end))
    }

    pub(crate) async fn exec(&self, name: &str, process: Process) -> Result<Socket, Problem> {
        if process.command.is_empty() {
            return Err(wrong_field("command", "name a program"));
        }
        let record = self.find(name).await?.value;
        let asked = node::ExecRequest {
            command: process.command,
            env: process.env,
            user: process.user,
            workdir: process.workdir,
            terminal: process.terminal,
            stdin: process.stdin,
            size: process.size,
        };
        let process = self
            .node()
            .exec_process(&record, asked)
            .map_err(crate::error::internal)?;
        let session = self.engine().exec(record.id, &process).await;
        Ok(self.socket(
            record.id,
            session.map_err(|error| from_engine(name, error))?,
            End::OfExec,
        ))
    }

    /// Joins an engine's session to the API's channels.
    fn socket(&self, id: InstanceId, session: Session, end: End) -> Socket {
        let (input, from_client) = mpsc::channel(IN_FLIGHT);
        let (to_client, output) = mpsc::channel(IN_FLIGHT);
        tokio::spawn(carry_input(from_client, session.input));
        let control = self.clone();
        tokio::spawn(async move {
            control
                .carry_output(id, session.output, to_client, end)
                .await;
        });
        Socket { input, output }
    }

    async fn carry_output(
        &self,
        id: InstanceId,
        mut output: mpsc::Receiver<Output>,
        to_client: mpsc::Sender<ToClient>,
        end: End,
    ) {
        while let Some(output) = output.recv().await {
            let message = match output {
                Output::Stdout(bytes) => ToClient::Stdout(bytes),
                Output::Stderr(bytes) => ToClient::Stderr(bytes),
                Output::End(SessionEnd::Exited { code }) => {
                    match end {
                        End::Stops => self.wait_ended(id, RECORDED).await,
                        End::Leaves => self.inner.leaving.add(id),
                        End::OfExec => {}
                    }
                    ToClient::Control(Message::Exited { code })
                }
                Output::End(SessionEnd::Lost(reason)) => ToClient::Control(Message::Problem {
                    problem: self.why_lost(id, reason, end).await,
                }),
            };
            if to_client.send(message).await.is_err() {
                // The client has gone: dropping the session detaches.
                return;
            }
        }
    }

    /// A session that was lost: the instance's own message says more, if it has one.
    async fn why_lost(&self, id: InstanceId, reason: String, end: End) -> Problem {
        if !matches!(end, End::OfExec) {
            self.wait_ended(id, RECORDED).await;
        }
        let Some(status) = self.status(id).await.ok().flatten() else {
            return Problem::new(ErrorCode::Failed, reason);
        };
        match (status.message, status.exit) {
            (Some(message), Some(exit)) => Problem::new(program(exit.code), message),
            (message, _) => Problem::new(ErrorCode::Failed, message.unwrap_or(reason)),
        }
    }

    pub(crate) async fn logs(&self, name: &str, query: LogQuery) -> Result<ByteStream, Problem> {
        let only = match query.stream.as_deref() {
            None => None,
            Some("stdout") => Some(LogStream::Stdout),
            Some("stderr") => Some(LogStream::Stderr),
            Some(other) => {
                let text = format!("{other:?} is neither stdout nor stderr");
                return Err(wrong_field("stream", text));
            }
        };
        let record = self.find(name).await?.value;
        let directory = self.node().parts().paths.instance(record.id);
        let request = LogRequest {
            follow: query.follow,
            tail: query.tail,
            since: query.since,
            stream: only,
        };
        let lines = self
            .engine()
            .logs(record.id, &directory, request)
            .await
            .map_err(|error| from_engine(name, error))?;
        let lines = stream::unfold(lines, |mut lines| async move {
            lines.recv().await.map(|line| (line, lines))
        });
        let timestamps = query.timestamps;
        Ok(lines.map(move |line| Ok(text(&line, timestamps))).boxed())
    }
}

async fn carry_input(mut from: mpsc::Receiver<FromClient>, to: mpsc::Sender<Input>) {
    while let Some(message) = from.recv().await {
        let input = match message {
            FromClient::Stdin(bytes) => Input::Stdin(bytes),
            FromClient::Control(Message::StdinEof) => Input::Eof,
            FromClient::Control(Message::Resize { rows, cols }) => Input::Resize { rows, cols },
            FromClient::Control(Message::Signal { signal }) => match signal_number(&signal) {
                Some(number) => Input::Signal(number),
                None => continue,
            },
            FromClient::Control(Message::Exited { .. } | Message::Problem { .. }) => continue,
        };
        if to.send(input).await.is_err() {
            return;
        }
    }
}

/// A line as text; a part of a long one has no line break.
fn text(line: &LogLine, timestamps: bool) -> Bytes {
    let mut text = BytesMut::with_capacity(line.text.len() + 32);
    if timestamps {
        text.put(format!("{} ", line.at).as_bytes());
    }
    text.put(&line.text[..]);
    if line.complete {
        text.put_u8(b'\n');
    }
    text.freeze()
}
