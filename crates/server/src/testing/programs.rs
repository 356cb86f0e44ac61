//! The programs that "run" inside: `cat`, and one that prints its command line and exits.

use api::{
    service::{FromClient, Socket, ToClient},
    stream::Control,
};
use bytes::Bytes;
use tokio::sync::mpsc;

/// Runs a program.
pub(super) fn run(command: Vec<String>) -> Socket {
    let (input, from_client) = mpsc::channel(4);
    let (to_client, output) = mpsc::channel(4);
    if command.first().is_some_and(|program| program == "cat") {
        tokio::spawn(cat(from_client, to_client));
    } else {
        tokio::spawn(say(command, to_client));
    }
    Socket { input, output }
}

/// Echoes input to output; what it is told besides, to its error output. Ends with its input, or
/// with 128 plus 15 by any signal.
async fn cat(mut input: mpsc::Receiver<FromClient>, output: mpsc::Sender<ToClient>) {
    let mut code = 0;
    while let Some(message) = input.recv().await {
        let answer = match message {
            FromClient::Stdin(bytes) => ToClient::Stdout(bytes),
            FromClient::Control(Control::StdinEof) => break,
            FromClient::Control(Control::Signal { .. }) => {
                code = 143;
                break;
            }
            FromClient::Control(other) => ToClient::Stderr(format!("{other:?}\n").into()),
        };
        if output.send(answer).await.is_err() {
            return;
        }
    }
    exit(&output, code).await;
}

async fn say(command: Vec<String>, output: mpsc::Sender<ToClient>) {
    let code = match command.as_slice() {
        [exit, code] if exit == "exit" => code.parse().unwrap_or(2),
        _ => 0,
    };
    let line = Bytes::from(command.join(" ") + "\n");
    if output.send(ToClient::Stdout(line)).await.is_ok() {
        exit(&output, code).await;
    }
}

async fn exit(output: &mpsc::Sender<ToClient>, code: i32) {
    let _ = output
        .send(ToClient::Control(Control::Exited { code }))
        .await;
}
