//! Files in and out of a guest, as tar streams the agent makes and takes.

use ::agent::protocol::{Kind, Reply, Verb};
use bytes::Bytes;
use engine::EngineError;
use model::InstanceId;
use tokio::sync::mpsc;

use super::agent::{Agent, AgentError, Reader};

/// Pieces in flight.
const IN_FLIGHT: usize = 8;

/// A path inside as an archive. What can be said of the path is said at once; what fails later ends
/// the stream.
pub(crate) async fn read(
    id: InstanceId,
    mut agent: Agent,
    path: &str,
    wrap: fn(InstanceId, AgentError) -> EngineError,
) -> Result<mpsc::Receiver<Result<Bytes, EngineError>>, AgentError> {
    let verb = Verb::ReadFiles {
        path: path.to_owned(),
        follow: path.ends_with('/') || path.ends_with("/."),
    };
    agent.send(verb).await?;
    let (mut reader, writer) = agent.split();
    let first = piece(&mut reader).await?;
    let (sender, pieces) = mpsc::channel(IN_FLIGHT);
    tokio::spawn(async move {
        // The agent looks at its end of the stream: keep ours open until all is read.
        let _writer = writer;
        let mut next = Ok(first);
        while let Ok(Some(bytes)) = next {
            if sender.send(Ok(bytes)).await.is_err() {
                return;
            }
            next = piece(&mut reader).await;
        }
        if let Err(error) = next {
            // Whoever has gone needs no reason.
            let _ = sender.send(Err(wrap(id, error))).await;
        }
    });
    Ok(pieces)
}

/// The next bytes of an archive; `None` at its end.
async fn piece(reader: &mut Reader) -> Result<Option<Bytes>, AgentError> {
    let frame = reader.frame().await?.ok_or(AgentError::Closed)?;
    match frame.kind {
        Kind::Data if frame.payload.is_empty() => Ok(None),
        Kind::Data => Ok(Some(Bytes::from(frame.payload))),
        Kind::Control => match ::agent::protocol::decode_control(&frame.payload)? {
            Reply::Failed(failure) => Err(AgentError::Failed(failure)),
            _ => Err(AgentError::Unexpected),
        },
        _ => Err(AgentError::Unexpected),
    }
}

/// Unpacks an archive below a directory inside.
pub(crate) async fn write(
    mut agent: Agent,
    directory: &str,
    mut archive: mpsc::Receiver<Bytes>,
) -> Result<(), AgentError> {
    let verb = Verb::WriteFiles {
        directory: directory.to_owned(),
    };
    agent.send(verb).await?;
    let (mut reader, mut writer) = agent.split();
    let send = async {
        while let Some(bytes) = archive.recv().await {
            if !bytes.is_empty() {
                writer.data(Kind::Data, &bytes).await?;
            }
        }
        writer.data(Kind::Data, &[]).await
    };
    // It may refuse at any entry: its word comes first, whatever is still to be sent.
    let mut answer = std::pin::pin!(reader.reply());
    let reply = tokio::select! {
        reply = &mut answer => reply?,
        sent = send => match sent {
            Ok(()) | Err(AgentError::Io(_)) => answer.await?,
            Err(error) => return Err(error),
        },
    };
    match reply {
        Reply::Done => Ok(()),
        _ => Err(AgentError::Unexpected),
    }
}
