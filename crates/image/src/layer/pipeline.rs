//! Moving a layer's bytes: every stage a thread, bounded queues between them.
//!
//! ```text
//!   from a registry or archive          from a local tar
//!   source ─▶ hash, blob file           source ─┬▶ hash ─▶ diff id
//!          └▶ inflate ─┬▶ hash                  ├▶ unpack ─▶ layers/…/fs
//!                      └▶ unpack                └▶ compress, hash ─▶ blob file
//! ```
//! Nothing is visible in the store before all digests agree. On failure the work directory is left to
//! the lease. The caller's thread is the source stage; it blocks.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, ScopedJoinHandle},
};

use bytes::Bytes;

use super::{LayerError, compression, tree, unpack};
use crate::{
    digest::{Digest, Hasher},
    error::at,
    job::Job,
    layer::Compression,
    store::{BlobWriter, LayerRecord, Lease, Part, SealedBlob, Store},
    tar::TarError,
};

/// Size of the pieces that travel between stages.
pub(crate) const CHUNK: usize = 256 << 10;
/// Pieces that may wait between two stages.
const QUEUE: usize = 8;

/// Where a layer's bytes come from: the next piece, or `None` at the end.
pub(crate) type Source<'a> = dyn FnMut() -> Result<Option<Bytes>, LayerError> + Send + 'a;

/// What was promised about a layer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Expected {
    /// Digest and length as transferred.
    pub blob: Option<(Digest, u64)>,
    /// Digest of the uncompressed tar.
    pub diff_id: Option<Digest>,
}

/// A layer that is now in the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ingested {
    pub blob: Digest,
    pub blob_bytes: u64,
    pub diff_id: Digest,
    pub compression: Compression,
}

type Piece = io::Result<Bytes>;

/// Takes in a layer as transferred, keeping its blob and unpacking it.
pub(crate) fn ingest_blob(
    store: &Store,
    lease: &Lease,
    expected: Expected,
    source: &mut Source<'_>,
    job: &Job,
) -> Result<Ingested, LayerError> {
    let blob = BlobWriter::create(lease)?;
    ingest_into(blob, store, lease, expected, source, job)
}

/// As [`ingest_blob`], for one that is being received. What was received stays in the lease when the
/// source breaks off or ends too early, and only then: all else that fails says that it is of no use.
pub(crate) fn ingest_part(
    part: Part,
    store: &Store,
    lease: &Lease,
    expected: Expected,
    source: &mut Source<'_>,
    job: &Job,
) -> Result<Ingested, LayerError> {
    let path = part.writer.path().to_owned();
    let mut there = read_source(part.there);
    let mut source = || match there()? {
        Some(piece) => Ok(Some(piece)),
        None => source(),
    };
    let result = ingest_into(part.writer, store, lease, expected, &mut source, job);
    match &result {
        Ok(_) | Err(LayerError::Source(_) | LayerError::Cancelled(_)) => {}
        Err(LayerError::Size { expected, found }) if found < expected => {}
        // Gone already if it was published before the failure.
        Err(_) => drop(fs::remove_file(&path)),
    }
    result
}

fn ingest_into(
    mut blob: BlobWriter,
    store: &Store,
    lease: &Lease,
    expected: Expected,
    source: &mut Source<'_>,
    job: &Job,
) -> Result<Ingested, LayerError> {
    let work = Work::create(store, lease)?;
    let outcome = thread::scope(|scope| {
        let (to_inflate, compressed) = sync_channel(QUEUE);
        let stages = work.spawn(scope, job);
        let inflate = scope
            .spawn(move || inflate(Pieces::new(compressed), &stages.feed).map(|c| (c, stages)));
        let fed = feed(store, &expected, source, job, &mut blob, to_inflate);
        let inflated = join(inflate);
        (
            fed,
            inflated.and_then(|(compression, stages)| Ok((compression, stages.finish()?))),
        )
    });
    let (fed, unpacked) = outcome;
    // The order of blame: a broken source explains everything after it, a wrong digest explains bad content.
    fed?;
    let sealed = blob.seal()?;
    if let Some((digest, size)) = expected.blob {
        if sealed.size != size {
            return Err(LayerError::Size {
                expected: size,
                found: sealed.size,
            });
        }
        check("compressed", digest, sealed.digest)?;
    }
    let (compression, done) = unpacked?;
    if let Some(diff_id) = expected.diff_id {
        check("uncompressed", diff_id, done.diff_id)?;
    }
    work.publish(store, sealed, compression, &done)
}

/// Takes in an uncompressed tar made or unwrapped on this host: unpacks it and makes its blob.
pub(crate) fn ingest_tar(
    store: &Store,
    lease: &Lease,
    mut tar: impl Read,
    job: &Job,
) -> Result<Ingested, LayerError> {
    let work = Work::create(store, lease)?;
    let blob = BlobWriter::create(lease)?;
    let (fed, compressed, done) = thread::scope(|scope| {
        let (to_compress, plain) = sync_channel::<Piece>(QUEUE);
        let stages = work.spawn(scope, job);
        let compress = scope.spawn(move || compress(Pieces::new(plain), blob));
        let mut buffer = vec![0; CHUNK];
        let fed = loop {
            if let Err(cancelled) = job.check() {
                break Err(cancelled.into());
            }
            let count = match tar.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => break Err(LayerError::Source(source)),
            };
            let piece = Bytes::copy_from_slice(&buffer[..count]);
            if to_compress.send(Ok(piece.clone())).is_err() || !stages.feed.send(piece) {
                // The stage that gave up has the reason.
                break Ok(());
            }
        };
        if let Err(error) = &fed {
            stages.feed.fail(error);
        }
        drop(to_compress);
        (fed, join(compress), stages.finish())
    });
    fed?;
    let done = done?;
    work.publish(store, compressed?, Compression::Gzip, &done)
}

/// A layer's place while it is incomplete.
struct Work {
    dir: std::path::PathBuf,
    root: std::path::PathBuf,
    limits: crate::limits::Limits,
}

/// The two consumers of the uncompressed tar.
struct Stages<'scope> {
    feed: Feed,
    hash: ScopedJoinHandle<'scope, Digest>,
    unpack: ScopedJoinHandle<'scope, Result<unpack::Unpacked, TarError>>,
}

struct Feed {
    hash: SyncSender<Piece>,
    unpack: SyncSender<Piece>,
}

struct Done {
    diff_id: Digest,
    unpacked: unpack::Unpacked,
}

impl Work {
    fn create(store: &Store, lease: &Lease) -> Result<Self, LayerError> {
        let dir = lease.fresh_path("layer");
        let root = dir.join("fs");
        fs::create_dir(&dir)
            .and_then(|()| tree::create_root(&root))
            .map_err(at("create", &root))?;
        Ok(Self {
            dir,
            root,
            limits: store.limits().clone(),
        })
    }

    fn spawn<'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
        job: &'scope Job,
    ) -> Stages<'scope> {
        let (hash_in, hash_out) = sync_channel::<Piece>(QUEUE);
        let (unpack_in, unpack_out) = sync_channel(QUEUE);
        let hash = scope.spawn(move || {
            let mut hasher = Hasher::default();
            hash_out
                .iter()
                .map_while(Result::ok)
                .for_each(|piece| hasher.update(&piece));
            hasher.finish()
        });
        let unpack = scope
            .spawn(move || unpack::unpack(Pieces::new(unpack_out), &self.root, &self.limits, job));
        Stages {
            feed: Feed {
                hash: hash_in,
                unpack: unpack_in,
            },
            hash,
            unpack,
        }
    }

    fn publish(
        self,
        store: &Store,
        blob: SealedBlob,
        compression: Compression,
        done: &Done,
    ) -> Result<Ingested, LayerError> {
        let ingested = Ingested {
            blob: blob.digest,
            blob_bytes: blob.size,
            diff_id: done.diff_id,
            compression,
        };
        blob.publish(store)?;
        let record = LayerRecord::new(done.diff_id, done.unpacked.bytes, done.unpacked.entries);
        store.publish_layer(&self.dir, &record)?;
        Ok(ingested)
    }
}

impl Feed {
    /// `false` when the unpacker has given up.
    fn send(&self, piece: Bytes) -> bool {
        // The hasher never gives up by itself.
        self.hash.send(Ok(piece.clone())).is_ok() && self.unpack.send(Ok(piece)).is_ok()
    }

    fn fail(&self, error: &dyn std::error::Error) {
        // Nobody left to tell is fine.
        let _ = self.unpack.send(Err(io::Error::other(error.to_string())));
    }
}

impl Stages<'_> {
    fn finish(self) -> Result<Done, LayerError> {
        drop(self.feed);
        let unpacked = join(self.unpack);
        let diff_id = join(self.hash);
        Ok(Done {
            diff_id,
            unpacked: unpacked?,
        })
    }
}

/// The source stage: counts, hashes and keeps the bytes, and passes them on while anybody wants them.
fn feed(
    store: &Store,
    expected: &Expected,
    source: &mut Source<'_>,
    job: &Job,
    blob: &mut BlobWriter,
    next: SyncSender<Piece>,
) -> Result<(), LayerError> {
    let limit = expected
        .blob
        .map_or(store.limits().layer_blob_bytes, |(_, size)| size);
    let mut next = Some(next);
    let mut total: u64 = 0;
    let result = loop {
        if let Err(cancelled) = job.check() {
            break Err(cancelled.into());
        }
        let piece = match source() {
            Ok(Some(piece)) => piece,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        total += piece.len() as u64;
        if total > limit {
            break Err(LayerError::Size {
                expected: limit,
                found: total,
            });
        }
        if let Err(source) = blob.write_all(&piece) {
            break Err(at("write", blob.path())(source).into());
        }
        // When unpacking has failed, go on to the end all the same: whether the digest is right decides
        // whether the transfer or the image is at fault.
        if next
            .as_ref()
            .is_some_and(|next| next.send(Ok(piece)).is_err())
        {
            next = None;
        }
    };
    if let (Err(error), Some(next)) = (&result, &next) {
        let _ = next.send(Err(io::Error::other(error.to_string())));
    }
    result
}

/// The inflating stage.
fn inflate(input: Pieces, feed: &Feed) -> Result<Compression, LayerError> {
    let inflated = (|| {
        let (compression, mut reader) = compression::open(input)?;
        loop {
            let mut buffer = vec![0; CHUNK];
            let count = read_full(&mut reader, &mut buffer)?;
            if count == 0 {
                return Ok(compression);
            }
            buffer.truncate(count);
            if !feed.send(Bytes::from(buffer)) {
                return Ok(compression);
            }
        }
    })();
    // The unpacker reports the failure, with the entry it was at.
    inflated.or_else(|error: io::Error| {
        let _ = feed.unpack.send(Err(error));
        Ok(Compression::Plain)
    })
}

/// The compressing stage. Gzip, because every registry client reads it; the level is part of what makes
/// a build reproducible.
fn compress(mut input: Pieces, blob: BlobWriter) -> Result<SealedBlob, LayerError> {
    let path = blob.path().to_owned();
    let mut encoder = flate2::write::GzEncoder::new(blob, flate2::Compression::new(6));
    io::copy(&mut input, &mut encoder).map_err(at("write", &path))?;
    let blob = encoder.finish().map_err(at("write", &path))?;
    Ok(blob.seal()?)
}

/// Reads until the buffer is full or the input ends.
fn read_full(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn check(what: &'static str, expected: Digest, found: Digest) -> Result<(), LayerError> {
    if expected == found {
        Ok(())
    } else {
        Err(LayerError::Digest {
            what,
            expected,
            found,
        })
    }
}

fn join<T>(handle: ScopedJoinHandle<'_, T>) -> T {
    handle
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The receiving end of a queue as a buffered stream; pieces are lent out, not copied.
struct Pieces {
    queue: Receiver<Piece>,
    current: Bytes,
}

impl Pieces {
    fn new(queue: Receiver<Piece>) -> Self {
        Self {
            queue,
            current: Bytes::new(),
        }
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.queue.recv() {
                Ok(piece) => self.current = piece?,
                Err(_) => break,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, count: usize) {
        bytes::Buf::advance(&mut self.current, count);
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// A [`Source`] that reads a stream.
pub(crate) fn read_source<'a>(
    mut input: impl Read + Send + 'a,
) -> impl FnMut() -> Result<Option<Bytes>, LayerError> + Send + 'a {
    move || {
        let mut buffer = vec![0; CHUNK];
        let count = read_full(&mut input, &mut buffer).map_err(LayerError::Source)?;
        buffer.truncate(count);
        Ok((count > 0).then(|| Bytes::from(buffer)))
    }
}

/// Runs `produce` on a thread of its own and hands out what it writes as a stream.
pub(crate) fn piped<T, R>(
    produce: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send,
    consume: impl FnOnce(&mut dyn BufRead) -> Result<T, R>,
) -> Result<T, R> {
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(QUEUE);
        let producer = scope.spawn(move || {
            let mut output = io::BufWriter::with_capacity(CHUNK, PieceWriter(sender));
            let result = produce(&mut output).and_then(|()| output.flush());
            let (PieceWriter(sender), _) = output.into_parts();
            if let Err(error) = result {
                // A consumer that is gone has its own reason.
                let _ = sender.send(Err(error));
            }
        });
        let mut input = BufReader::with_capacity(CHUNK, Pieces::new(receiver));
        let result = consume(&mut input);
        drop(input);
        join(producer);
        result
    })
}

struct PieceWriter(SyncSender<Piece>);

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
