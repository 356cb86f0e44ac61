//! A program run by the agent as an engine's session.

use ::agent::protocol::{self, Exit, Frame, Kind, Program, Reply, Size, ToProgram, Verb};
use bytes::Bytes;
use engine::{GuestProcess, GuestProcessInfo, Input, Output, Session, SessionEnd};
use tokio::sync::mpsc;

use super::agent::{Agent, AgentError, Reader, Writer};

/// Messages in flight each way.
const IN_FLIGHT: usize = 32;
/// The process whose children are the kernel's own threads.
const KTHREADD: u32 = 2;
/// The size of a terminal nobody has said the size of.
const USUAL_SIZE: Size = Size { rows: 24, cols: 80 };

/// A program as the agent is told it.
pub(super) fn program(process: &GuestProcess) -> Program {
    let size = |(rows, cols)| Size { rows, cols };
    Program {
        args: process.args.clone(),
        env: process.env.clone(),
        user: process.user.clone(),
        cwd: process.cwd.clone(),
        terminal: process
            .terminal
            .then(|| process.size.map_or(USUAL_SIZE, size)),
        stdin: process.stdin,
    }
}

/// Runs a program inside and joins its streams.
pub(crate) async fn exec(mut agent: Agent, process: &GuestProcess) -> Result<Session, AgentError> {
    match agent.ask(Verb::Exec(program(process))).await? {
        Reply::Started { .. } => {}
        _ => return Err(AgentError::Unexpected),
    }
    let (reader, writer) = agent.split();
    let (input, from_client) = mpsc::channel(IN_FLIGHT);
    let (to_client, output) = mpsc::channel(IN_FLIGHT);
    let sender = tokio::spawn(send(writer, from_client));
    tokio::spawn(async move {
        receive(reader, to_client).await;
        sender.abort();
    });
    Ok(Session { input, output })
}

/// The processes inside, as the agent tells them. It counts by their ids inside: on the host, there is
/// only the machine's own process.
pub(crate) async fn processes(mut agent: Agent) -> Result<Vec<GuestProcessInfo>, AgentError> {
    let Reply::Processes(list) = agent.ask(Verb::Processes).await? else {
        return Err(AgentError::Unexpected);
    };
    let one = |process: protocol::Process| GuestProcessInfo {
        pid: process.pid,
        inner_pid: process.pid,
        uid: process.uid,
        cpu_ms: process.cpu_us / 1000,
        rss_bytes: process.memory_bytes,
        state: process.state,
        command: process.command,
    };
    Ok(list
        .into_iter()
        .take(protocol::MAX_PROCESSES)
        .filter(|process| ![process.pid, process.parent].contains(&KTHREADD))
        .map(one)
        .collect())
}

async fn send(mut writer: Writer, mut input: mpsc::Receiver<Input>) {
    while let Some(message) = input.recv().await {
        let sent = match message {
            Input::Stdin(bytes) if bytes.is_empty() => Ok(()),
            Input::Stdin(bytes) => writer.data(Kind::Stdin, &bytes).await,
            Input::Eof => writer.data(Kind::Stdin, &[]).await,
            Input::Resize { rows, cols } => {
                let size = Size { rows, cols };
                writer.control(&ToProgram::Resize(size)).await
            }
            Input::Signal(signal) => writer.control(&ToProgram::Signal(signal)).await,
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
            frame = reader.frame() => match frame {
                Ok(Some(frame)) => message(frame),
                Ok(None) => Some(lost(&AgentError::Closed)),
                Err(error) => Some(lost(&error)),
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

fn lost(error: &AgentError) -> Output {
    Output::End(SessionEnd::Lost(model::chain(error)))
}

fn message(frame: Frame) -> Option<Output> {
    match frame.kind {
        Kind::Stdout => Some(Output::Stdout(Bytes::from(frame.payload))),
        Kind::Stderr => Some(Output::Stderr(Bytes::from(frame.payload))),
        Kind::Stdin | Kind::Data => None,
        Kind::Control => match protocol::decode_control(&frame.payload) {
            Ok(Reply::Exited(exit)) => Some(ended(exit)),
            // A resize or a signal that came too late ends nothing.
            Ok(_) => None,
            Err(error) => Some(lost(&error.into())),
        },
    }
}

fn ended(exit: Exit) -> Output {
    Output::End(SessionEnd::Exited { code: exit.code() })
}
