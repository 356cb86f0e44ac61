//! `cp`: files between this host and an instance, or two instances, as tar archives in flight.
//!
//! Source and target are read as `cp -a` and `docker cp` read them: below a directory that is
//! there, else under the name given; `DIR/.` is what is in a directory.

mod download;
mod upload;

use std::{
    io::{self, BufRead, Read, Write},
    path::PathBuf,
};

use api::client::ByteStream;
use clap::{Args, ValueHint};
use futures::StreamExt;
use tokio::sync::mpsc;

use crate::cli::{
    Context, complete,
    exit::{Failure, Outcome},
    progress::Transfer,
    suggest::{Noun, on_missing},
};

/// Parts in flight between the network and the archive.
const IN_FLIGHT: usize = 8;

/// Flags of `cp`.
#[derive(Debug, Args)]
pub struct CpArgs {
    /// NAME:PATH inside, a path here, or - for a tar archive on stdin; DIR/. is what is in it
    #[arg(value_hint = ValueHint::AnyPath, add = complete::instances())]
    source: String,
    /// NAME:PATH inside, a path here, or - for a tar archive on stdout
    #[arg(value_hint = ValueHint::AnyPath, add = complete::instances())]
    target: String,
    /// Keep owners and all permissions; else files belong to root inside, and to you here
    #[arg(short, long)]
    archive: bool,
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    /// A path of this host.
    Here(PathBuf),
    /// A path in an instance.
    Inside { name: String, path: String },
    /// An archive on stdin or stdout.
    Archive,
}

/// A colon makes it a path inside, unless a slash or a dot comes before it.
fn side(text: &str) -> Side {
    match text.split_once(':') {
        _ if text == "-" => Side::Archive,
        Some((name, path)) if !name.is_empty() && !name.contains('/') && !name.starts_with('.') => {
            let slash = if path.starts_with('/') { "" } else { "/" };
            Side::Inside {
                name: name.to_owned(),
                path: format!("{slash}{path}"),
            }
        }
        _ => Side::Here(PathBuf::from(text)),
    }
}

impl CpArgs {
    /// Copies.
    pub async fn run(self, cx: &Context) -> Outcome {
        let archived = self.archive;
        let (name, result) = match (side(&self.source), side(&self.target)) {
            (Side::Inside { name, path }, Side::Here(target)) => {
                let result = download::download(cx, &name, &path, target, archived).await;
                (name, result)
            }
            (Side::Inside { name, path }, Side::Archive) => {
                let result = to_stdout(cx, &name, &path).await;
                (name, result)
            }
            (Side::Here(source), Side::Inside { name, path }) => {
                let result = upload::upload(cx, &source, &name, &path, archived).await;
                (name, result)
            }
            (Side::Archive, Side::Inside { name, path }) => {
                let result = from_stdin(cx, &name, &path).await;
                (name, result)
            }
            (Side::Inside { name, path }, Side::Inside { name: to, path: at }) => {
                let result = across(cx, (&name, &path), (&to, &at)).await;
                let first_is_there = cx.client.show_instance(&name).await.is_ok();
                (if first_is_there { to } else { name }, result)
            }
            _ => {
                return Err(Failure::usage("neither side is inside an instance")
                    .advise("write NAME:/path for a path inside"));
            }
        };
        match result {
            // A missing path is also not found: only a missing instance has a nearest name.
            Err(failure)
                if failure.is_not_found() && cx.client.show_instance(&name).await.is_err() =>
            {
                Err(on_missing(cx, Noun::Instance, &name, failure).await)
            }
            result => result,
        }
    }
}

async fn to_stdout(cx: &Context, name: &str, path: &str) -> Outcome {
    if cx.out_is_terminal {
        return Err(Failure::usage("a tar archive would spoil the terminal")
            .advise(format!("send it on: berth cp {name}:{path} - | tar t")));
    }
    let mut bytes = cx.client.get_files(name, path).await?;
    bytes.copy_to(&mut tokio::io::stdout()).await?;
    Ok(())
}

async fn from_stdin(cx: &Context, name: &str, path: &str) -> Outcome {
    if cx.in_is_terminal {
        return Err(
            Failure::usage("a tar archive is read from stdin, which is the terminal")
                .advise(format!("send one: tar c DIR | berth cp - {name}:{path}")),
        );
    }
    let parts = produce(|writer| {
        io::copy(&mut io::stdin().lock(), writer)?;
        Ok(())
    });
    send(cx, name, path, parts).await
}

/// From one instance to another, owners kept.
async fn across(cx: &Context, from: (&str, &str), to: (&str, &str)) -> Outcome {
    let ((from, source), (to, target)) = (from, to);
    let into = is_directory(cx, to, target).await?;
    let (directory, top) = match contents(source) {
        Some(_) if into => (target, "."),
        None if into => (target, ""),
        _ => split(target),
    };
    let mut bytes = cx.client.get_files(from, source).await?;
    let (sender, receive) = mpsc::channel(IN_FLIGHT);
    let top = top.to_owned();
    let parts = produce(move |writer| match top.as_str() {
        "" => io::copy(&mut Parts::new(receive), writer).map(drop),
        top => renamed(io::BufReader::new(Parts::new(receive)), writer, top),
    });
    let transfer = Transfer::new(cx, format!("from {from}:{source} to {to}:{target}"));
    let (received, sent) = tokio::join!(
        feed(&mut bytes, sender, &transfer),
        cx.client.put_files(to, directory, parts)
    );
    drop(transfer);
    received?;
    Ok(sent?)
}

/// The same archive with another first name in all its paths.
fn renamed(input: impl BufRead, output: impl Write, top: &str) -> io::Result<()> {
    let other = |path: &[u8]| {
        let end = path.iter().position(|&byte| byte == b'/');
        let rest = end.map_or(&[][..], |end| &path[end..]);
        [top.as_bytes(), rest].concat()
    };
    let limits = image::Limits {
        layer_bytes: u64::MAX,
        ..image::Limits::default()
    };
    let mut reader = image::tar::Reader::new(input, &limits);
    let mut writer = image::tar::Writer::new(output);
    while let Some(mut entry) = reader.next_entry().map_err(io::Error::other)? {
        entry.path = other(&entry.path);
        if entry.kind == image::tar::Kind::HardLink {
            entry.link = other(&entry.link);
        }
        if entry.sparse.take().is_some() {
            return Err(io::Error::other("an archive with holes cannot be renamed"));
        }
        writer.entry(&entry)?;
        reader
            .copy_data(|bytes| writer.data(bytes))
            .map_err(io::Error::other)?;
    }
    writer.finish().map(drop)
}

/// What is before `/.`, when a path ends so; empty for the root.
fn contents(path: &str) -> Option<&str> {
    match path {
        "/" => Some(""),
        path => path.strip_suffix("/."),
    }
}

/// A path's directory, and the last name in it.
fn split(path: &str) -> (&str, &str) {
    let slash = path.rfind('/').map_or(0, |slash| slash + 1);
    path.split_at(slash)
}

/// Whether there is a directory at a path inside, or a link to one.
async fn is_directory(cx: &Context, name: &str, path: &str) -> Outcome<bool> {
    if path.ends_with('/') || path.ends_with("/.") || path.ends_with("/..") {
        return Ok(true);
    }
    // The archive is not read: what it begins with has been found.
    match cx.client.get_files(name, &format!("{path}/")).await {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some(api::ErrorCode::NotFound) => {
            // The instance itself may be what is missing.
            cx.client.show_instance(name).await?;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Sends an archive to be unpacked below a directory, showing how much has gone.
async fn send(
    cx: &Context,
    name: &str,
    directory: &str,
    parts: impl futures::Stream<Item = io::Result<bytes::Bytes>> + Send + 'static,
) -> Outcome {
    let transfer = Transfer::new(cx, format!("to {name}:{directory}"));
    let counter = transfer.counter();
    let parts = parts.inspect(move |part| {
        if let Ok(part) = part {
            counter.add(part.len());
        }
    });
    let sent = cx.client.put_files(name, directory, parts).await;
    drop(transfer);
    Ok(sent?)
}

async fn feed(
    bytes: &mut ByteStream,
    send: mpsc::Sender<bytes::Bytes>,
    transfer: &Transfer,
) -> Outcome {
    let counter = transfer.counter();
    while let Some(part) = bytes.next().await? {
        counter.add(part.len());
        if send.send(part).await.is_err() {
            // The other side has failed and says why.
            break;
        }
    }
    Ok(())
}

/// Reads parts as one stream, in a thread of its own.
struct Parts {
    parts: mpsc::Receiver<bytes::Bytes>,
    current: bytes::Bytes,
}

impl Parts {
    fn new(parts: mpsc::Receiver<bytes::Bytes>) -> Self {
        let current = bytes::Bytes::new();
        Self { parts, current }
    }
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.parts.blocking_recv() {
                Some(part) => self.current = part,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

/// Bytes written by a thread of its own, as a stream.
fn produce(
    write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
) -> impl futures::Stream<Item = io::Result<bytes::Bytes>> + Send + 'static {
    let (send, receive) = mpsc::channel(IN_FLIGHT);
    std::thread::spawn(move || {
        let mut writer = io::BufWriter::with_capacity(64 << 10, Sending(send.clone()));
        let written = write(&mut writer).and_then(|()| writer.flush());
        if let Err(error) = written {
            // When nobody listens any more, the request has failed and says why.
            let _ = send.blocking_send(Err(error));
        }
    });
    futures::stream::unfold(receive, async |mut receive| {
        receive.recv().await.map(|part| (part, receive))
    })
}

/// Sends what is written to it.
struct Sending(mpsc::Sender<io::Result<bytes::Bytes>>);

impl Write for Sending {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Ok(bytes::Bytes::copy_from_slice(buffer)))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_of_a_copy() {
        let inside = |name: &str, path: &str| Side::Inside {
            name: name.into(),
            path: path.into(),
        };
        assert_eq!(side("web:/etc"), inside("web", "/etc"));
        assert_eq!(side("web:etc"), inside("web", "/etc"));
        assert_eq!(side("./a:b"), Side::Here("./a:b".into()));
        assert_eq!(side("/a:b"), Side::Here("/a:b".into()));
        assert_eq!(side("file"), Side::Here("file".into()));
        assert_eq!(side("-"), Side::Archive);
    }

    #[test]
    fn the_end_of_a_path_says_what_is_meant() {
        assert_eq!(contents("/etc"), None);
        assert_eq!(contents("/etc/"), None);
        assert_eq!(contents("/etc/."), Some("/etc"));
        assert_eq!(contents("/"), Some(""));
        assert_eq!(contents("/."), Some(""));
        assert_eq!(split("/srv/page"), ("/srv/", "page"));
        assert_eq!(split("/page"), ("/", "page"));
    }

    #[test]
    fn another_top_for_all_that_is_below_it() {
        let mut writer = image::tar::Writer::new(Vec::new());
        let entry = |path: &str, link: &str, kind| image::tar::Entry {
            path: path.into(),
            link: link.into(),
            kind,
            ..image::tar::Entry::default()
        };
        use image::tar::Kind;
        let list = [
            entry("old/", "", Kind::Directory),
            entry("old/older", "", Kind::File),
            entry("old/same", "old/older", Kind::HardLink),
            entry("old/link", "old/older", Kind::Symlink),
        ];
        for entry in &list {
            writer.entry(entry).unwrap();
        }
        let archive = writer.finish().unwrap();
        let mut other = Vec::new();
        renamed(&archive[..], &mut other, "new").unwrap();
        let mut reader = image::tar::Reader::new(&other[..], &image::Limits::default());
        let found: Vec<_> = std::iter::from_fn(|| reader.next_entry().unwrap()).collect();
        let wanted = [
            entry("new/", "", Kind::Directory),
            entry("new/older", "", Kind::File),
            entry("new/same", "new/older", Kind::HardLink),
            entry("new/link", "old/older", Kind::Symlink),
        ];
        assert_eq!(found, wanted);
    }
}
