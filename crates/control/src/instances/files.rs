//! Files in and out of an instance: a path inside as a tar archive, and an archive below a
//! directory inside.
//!
//! The work is the node's, on threads that may block; here it is joined to the request's streams,
//! so that it ends when the client goes, and when the instance is started or removed meanwhile.

use std::io::{self, Read, Write};

use api::{ErrorCode, Problem, service::ByteStream};
use bytes::Bytes;
use futures::{StreamExt, stream};
use model::record::InstanceRecord;
use node::{
    Access, NodeError, OpenRoot,
    files::{self, FilesError, Source},
};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    Control,
    error::{chain, from_engine, internal, joined},
};

/// Pieces of an archive in flight.
const IN_FLIGHT: usize = 8;
/// Bytes of a piece.
const PIECE: usize = 128 << 10;

impl Control {
    /// A path inside as an archive. What can be said of the path is said at once; what fails later
    /// ends the stream.
    pub(crate) async fn read_files(&self, name: &str, path: &str) -> Result<ByteStream, Problem> {
        let record = self.find(name).await?.value;
        if record.spec.machine.is_some() {
            let pieces = self.engine().read_files(record.id, path).await;
            let pieces = pieces.map_err(|error| from_engine(name, error))?;
            let name = name.to_owned();
            return Ok(stream::unfold(pieces, |mut pieces| async move {
                pieces.recv().await.map(|piece| (piece, pieces))
            })
            .map(move |piece| piece.map_err(|error| from_engine(&name, error)))
            .boxed());
        }
        let root = self.open_root(&record, Access::Read).await?;
        let (name, path) = (name.to_owned(), path.to_owned());
        let found = tokio::task::spawn_blocking(move || {
            let source = Source::open(&root.view, &path);
            source
                .map(|source| (source, root))
                .map_err(|error| from_files(&name, error))
        });
        let (source, root) = joined(found.await)?;
        let (sender, pieces) = mpsc::channel(IN_FLIGHT);
        let pieces_sender = Pieces {
            sender: sender.clone(),
            ended: root.ended.clone(),
            runtime: Handle::current(),
        };
        tokio::task::spawn_blocking(move || {
            let mut output = io::BufWriter::with_capacity(PIECE, pieces_sender);
            let sent = source.write_to(&mut output);
            let sent = sent.and_then(|()| output.flush().map_err(FilesError::Output));
            // A piece left in it would be sent now.
            let (_sender, _rest) = output.into_parts();
            let ended = root.ended.is_cancelled();
            // Let go of before the client, who may be slow, is told.
            drop(root);
            if let Err(error) = sent {
                let problem = if ended {
                    interrupted()
                } else {
                    Problem::new(ErrorCode::Failed, chain(&error))
                };
                // A client that has gone needs no reason.
                let _ = sender.blocking_send(Err(problem));
            }
        });
        Ok(stream::unfold(pieces, |mut pieces| async move {
            pieces.recv().await.map(|piece| (piece, pieces))
        })
        .boxed())
    }

    /// Unpacks an archive below a directory inside.
    pub(crate) async fn write_files(
        &self,
        name: &str,
        path: &str,
        tar: ByteStream,
    ) -> Result<(), Problem> {
        let record = self.find(name).await?.value;
        if record.spec.machine.is_some() {
            return self.write_machine_files(&record, path, tar).await;
        }
        let root = self.open_root(&record, Access::Write).await?;
        let (name, path) = (name.to_owned(), path.to_owned());
        let runtime = Handle::current();
        let unpacked = tokio::task::spawn_blocking(move || {
            let mut input = Archive {
                stream: tar,
                current: Bytes::new(),
                problem: None,
                ended: root.ended.clone(),
                runtime,
            };
            let unpacked = files::unpack(&root.view, &path, &mut input);
            match (unpacked, input.problem) {
                (Ok(()), _) => Ok(()),
                (Err(_), _) if root.ended.is_cancelled() => Err(interrupted()),
                (Err(_), Some(problem)) => Err(problem),
                (Err(error), None) => Err(from_files(&name, error)),
            }
        });
        joined(unpacked.await)
    }

    async fn write_machine_files(
        &self,
        record: &InstanceRecord,
        path: &str,
        mut tar: ByteStream,
    ) -> Result<(), Problem> {
        let (sender, archive) = mpsc::channel(IN_FLIGHT);
        let forward = async move {
            while let Some(piece) = tar.next().await {
                // Whoever takes it no more says why.
                if sender.send(piece?).await.is_err() {
                    break;
                }
            }
            Ok::<(), Problem>(())
        };
        let written = self.engine().write_files(record.id, path, archive);
        let (forwarded, written) = tokio::join!(forward, written);
        written.map_err(|error| from_engine(record.name.as_str(), error))?;
        forwarded
    }

    async fn open_root(
        &self,
        record: &InstanceRecord,
        access: Access,
    ) -> Result<OpenRoot, Problem> {
        let opened = self.node().open_root(record, access).await;
        opened.map_err(|error| match error {
            NodeError::Engine(error) => from_engine(record.name.as_str(), error),
            NodeError::Unusable(text) => Problem::new(ErrorCode::Conflict, text),
            error => internal(error),
        })
    }
}

fn interrupted() -> Problem {
    let text = "the instance was started or removed while its files were copied";
    Problem::new(ErrorCode::Conflict, text).hint("copy them again")
}

fn from_files(name: &str, error: FilesError) -> Problem {
    let text = chain(&error);
    let (code, hint) = match &error {
        FilesError::Missing { path } => {
            let parent = path.trim_end_matches('/').rsplit_once('/');
            let parent = parent.map_or("/", |(parent, _)| parent);
            let hint = match parent {
                "" => format!("look what there is: berth exec {name} ls /"),
                parent => format!("look what there is: berth exec {name} ls {parent}"),
            };
            (ErrorCode::NotFound, Some(hint))
        }
        FilesError::NotADirectory { .. } => (ErrorCode::NotFound, None),
        FilesError::Hidden { .. } => {
            let hint = format!("start it and copy then: berth start {name}");
            (ErrorCode::Conflict, Some(hint))
        }
        FilesError::ReadOnly { .. } => {
            let hint = "copy to a place that can be written to, such as a volume";
            (ErrorCode::Conflict, Some(hint.to_owned()))
        }
        // Only the kernel's files say anything to whoever reads them.
        FilesError::Kind { path, what } => {
            let readable = what.contains("kernel");
            let hint = readable.then(|| format!("read it inside: berth exec {name} cat {path}"));
            (ErrorCode::Invalid, hint)
        }
        FilesError::Path { .. } | FilesError::Entry { .. } => (ErrorCode::Invalid, None),
        FilesError::Archive(_) => {
            let hint = "send a tar archive that is not compressed";
            (ErrorCode::Invalid, Some(hint.to_owned()))
        }
        FilesError::Limit { .. } => {
            let hint = "copy it in parts";
            (ErrorCode::TooLarge, Some(hint.to_owned()))
        }
        FilesError::Io { .. } | FilesError::Output(_) => (ErrorCode::Failed, None),
    };
    let problem = Problem::new(code, text);
    match hint {
        Some(hint) => problem.hint(hint),
        None => problem,
    }
}

/// Sends what is written, from a thread.
struct Pieces {
    sender: mpsc::Sender<Result<Bytes, Problem>>,
    ended: CancellationToken,
    runtime: Handle,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Ok(Bytes::copy_from_slice(bytes));
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.ended.cancelled() => Err(io::ErrorKind::BrokenPipe.into()),
                sent = self.sender.send(piece) => {
                    sent.map_err(|_gone| io::Error::from(io::ErrorKind::BrokenPipe))
                }
            }
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads what arrives, from a thread.
struct Archive {
    stream: ByteStream,
    current: Bytes,
    /// Why the stream broke.
    problem: Option<Problem>,
    ended: CancellationToken,
    runtime: Handle,
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            let stream = &mut self.stream;
            let next = self.runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = self.ended.cancelled() => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
                    next = stream.next() => Ok(next),
                }
            })?;
            match next {
                Some(Ok(piece)) => self.current = piece,
                Some(Err(problem)) => {
                    let text = problem.to_string();
                    self.problem = Some(problem);
                    return Err(io::Error::other(text));
                }
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}
