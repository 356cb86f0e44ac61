//! A question to a machine's own process, over its control socket.
//!
//! What is said there is `berth-vmm`'s to define: a little-endian length and as many bytes of JSON.
//! Only what the engine asks is known here, so that the daemon links nothing of what runs guests; a
//! test holds it against the other side. The process serves a guest that nobody trusts: its answers
//! have a limit, and are waited for only so long.

use std::{path::Path, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// Version of the protocol.
const VERSION: u32 = 1;
/// Longest answer, in bytes.
const MAX_ANSWER: u32 = 256 << 10;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a machine's process could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// Nobody listens.
    #[error("the machine's process does not listen")]
    Absent,
    /// It listens, and that is all.
    #[error("the machine's process gave no answer within {} s", PATIENCE.as_secs())]
    Silent,
    /// It did not do it.
    #[error("{0}")]
    Refused(String),
    /// It said something else, or too much.
    #[error(
        "the machine's process speaks otherwise than expected; it may be of another version: restart the machine"
    )]
    Unexpected,
    /// The connection broke.
    #[error("the connection to the machine's process broke")]
    Io(#[from] std::io::Error),
}

/// What is answered, as far as it is understood here.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Reply {
    Welcome { version: u32 },
    Ok,
    Error { message: String },
}

/// Has the process of the machine whose files are in `guest` do something.
pub(super) async fn order(guest: &Path, request: &Value) -> Result<(), ControlError> {
    let answer = match asked(guest, request).await {
        // The guest reset itself just then. Whatever boots it again listens to the same socket.
        Err(ControlError::Io(_)) => asked(guest, request).await?,
        answer => answer?,
    };
    match answer {
        Reply::Ok => Ok(()),
        _ => Err(ControlError::Unexpected),
    }
}

/// Connects, asks, and gives the answer.
async fn asked(guest: &Path, question: &Value) -> Result<Reply, ControlError> {
    let asked = async {
        let mut stream = UnixStream::connect(super::control_socket(guest))
            .await
            .map_err(|_| ControlError::Absent)?;
        let hello = json!({ "type": "hello", "version": VERSION });
        match ask(&mut stream, &hello).await? {
            Reply::Welcome { version: VERSION } => ask(&mut stream, question).await,
            _ => Err(ControlError::Unexpected),
        }
    };
    let asked = tokio::time::timeout(PATIENCE, asked).await;
    asked.unwrap_or(Err(ControlError::Silent))
}

/// Asks, and gives the answer; a refusal is an error.
async fn ask(stream: &mut UnixStream, question: &Value) -> Result<Reply, ControlError> {
    let text = question.to_string();
    let length = u32::try_from(text.len()).map_err(|_| ControlError::Unexpected)?;
    let message = [&length.to_le_bytes(), text.as_bytes()].concat();
    stream.write_all(&message).await?;
    let length = stream.read_u32_le().await?;
    if length > MAX_ANSWER {
        return Err(ControlError::Unexpected);
    }
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).await?;
    match serde_json::from_slice(&answer) {
        Ok(Reply::Error { message }) => Err(ControlError::Refused(message)),
        Ok(reply) => Ok(reply),
        Err(_) => Err(ControlError::Unexpected),
    }
}
