//! `cp`: files between this host and an instance, as tar archives in flight.
//!
//! What comes out of an instance is hostile: it is unpacked below the target only, without
//! devices, owners or set-user-id bits, and never through a symbolic link that it brought itself.

use std::{
    ffi::OsStr,
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
};

use api::client::ByteStream;
use clap::{Args, ValueHint};
use tokio::sync::mpsc;

use crate::cli::{
    Context, complete,
    exit::{Failure, Outcome},
    suggest::{Noun, on_missing},
};

/// Entries an archive may have.
const MAX_ENTRIES: u64 = 10_000_000;

/// Parts in flight between the network and the archive.
const IN_FLIGHT: usize = 8;

/// Flags of `cp`.
#[derive(Debug, Args)]
pub struct CpArgs {
    /// NAME:PATH inside, a path here, or - for a tar archive on stdin
    #[arg(value_hint = ValueHint::AnyPath, add = complete::instances())]
    source: String,
    /// NAME:PATH inside, a path here, or - for a tar archive on stdout
    #[arg(value_hint = ValueHint::AnyPath, add = complete::instances())]
    target: String,
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
        let (name, result) = match (side(&self.source), side(&self.target)) {
            (Side::Inside { name, path }, Side::Here(target)) => {
                let result = download(cx, &name, &path, target).await;
                (name, result)
            }
            (Side::Inside { name, path }, Side::Archive) => {
                let result = to_stdout(cx, &name, &path).await;
                (name, result)
            }
            (Side::Here(source), Side::Inside { name, path }) => {
                let result = upload(cx, &source, &name, &path).await;
                (name, result)
            }
            (Side::Archive, Side::Inside { name, path }) => {
                let result = from_stdin(cx, &name, &path).await;
                (name, result)
            }
            (Side::Inside { .. }, Side::Inside { .. }) => {
                return Err(Failure::usage("both sides are inside instances")
                    .advise("copy in two steps: berth cp A:/path - | berth cp - B:/path"));
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
    let parts = produce(|writer| {
        io::copy(&mut io::stdin().lock(), writer)?;
        Ok(())
    });
    Ok(cx.client.put_files(name, path, parts).await?)
}

// Out of an instance.

async fn download(cx: &Context, name: &str, path: &str, target: PathBuf) -> Outcome {
    let mut bytes = cx.client.get_files(name, path).await?;
    let (send, receive) = mpsc::channel(IN_FLIGHT);
    // Into a directory that is there, under its own name; else under the name given.
    let (below, rename) = if target.is_dir() {
        (target, None)
    } else {
        let parent = match target.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let Some(file_name) = target.file_name() else {
            return Err(Failure::usage(format!(
                "{} cannot be a target",
                target.display()
            )));
        };
        if !parent.is_dir() {
            return Err(
                Failure::usage(format!("there is no directory {}", parent.display()))
                    .advise(format!("make it first: mkdir -p {}", parent.display())),
            );
        }
        (parent, Some(file_name.to_owned()))
    };
    let unpacking = tokio::task::spawn_blocking(move || {
        let reader = Parts {
            parts: receive,
            current: bytes::Bytes::new(),
        };
        unpack(reader, &below, rename.as_deref())
    });
    let received = feed(&mut bytes, send).await;
    let unpacked = unpacking
        .await
        .map_err(|error| Failure::error(format!("unpacking failed: {error}")))?;
    // A broken connection explains a broken archive, not the other way round.
    received?;
    unpacked
        .map_err(|error| Failure::error(format!("{name}:{path} cannot be written here: {error}")))
}

async fn feed(bytes: &mut ByteStream, send: mpsc::Sender<bytes::Bytes>) -> Outcome {
    while let Some(part) = bytes.next().await? {
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

/// Unpacks an archive below a directory; `rename` replaces the first part of every path.
fn unpack(reader: impl Read, below: &Path, rename: Option<&OsStr>) -> io::Result<()> {
    let mut archive = tar::Archive::new(reader);
    let mut directories = Vec::new();
    for (count, entry) in archive.entries()?.enumerate() {
        if count as u64 >= MAX_ENTRIES {
            return Err(io::Error::other(format!("more than {MAX_ENTRIES} files")));
        }
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if !(kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link()) {
            // Devices, sockets and pipes mean nothing here.
            continue;
        }
        let found = entry.path()?.into_owned();
        let Some(relative) = place(&found, rename)? else {
            continue;
        };
        entry.set_preserve_permissions(false);
        if kind.is_dir() {
            directories.push(relative);
            continue_directory(below, directories.last().map(PathBuf::as_path))?;
            continue;
        }
        let target = below.join(&relative);
        inside(below, &relative)?;
        if kind.is_hard_link() {
            let linked = entry.link_name()?.map(std::borrow::Cow::into_owned);
            let Some(linked) = linked
                .map(|path| place(&path, rename))
                .transpose()?
                .flatten()
            else {
                continue;
            };
            inside(below, &linked)?;
            copy_link(&below.join(linked), &target)?;
            continue;
        }
        entry.unpack(&target)?;
    }
    Ok(())
}

/// A hard link becomes a copy, of nothing but a plain file and over no symbolic link: both could
/// be ours.
fn copy_link(from: &Path, to: &Path) -> io::Result<()> {
    if !std::fs::symlink_metadata(from)?.is_file() {
        return Err(io::Error::other(format!(
            "{} is not a file to link to",
            from.display()
        )));
    }
    match std::fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::copy(from, to).map(drop)
}

fn continue_directory(below: &Path, relative: Option<&Path>) -> io::Result<()> {
    let Some(relative) = relative else {
        return Ok(());
    };
    inside(below, relative)?;
    match std::fs::symlink_metadata(below.join(relative)) {
        Ok(there) if there.is_dir() => Ok(()),
        _ => std::fs::create_dir(below.join(relative)),
    }
}

/// Where an entry goes below the target; `None` for the top itself.
fn place(found: &Path, rename: Option<&OsStr>) -> io::Result<Option<PathBuf>> {
    let mut placed = PathBuf::new();
    let mut first = true;
    for part in found.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => {
                placed.push(rename.filter(|_| first).unwrap_or(name));
                first = false;
            }
            _ => {
                return Err(io::Error::other(format!(
                    "the path {found:?} leads outside"
                )));
            }
        }
    }
    Ok((!first).then_some(placed))
}

/// Makes sure that no directory on the way to an entry is a symbolic link; makes those missing.
fn inside(below: &Path, relative: &Path) -> io::Result<()> {
    let mut path = below.to_owned();
    for part in relative.parent().into_iter().flat_map(Path::components) {
        path.push(part);
        match std::fs::symlink_metadata(&path) {
            Ok(there) if there.is_dir() => {}
            Ok(_) => {
                return Err(io::Error::other(format!(
                    "{} is in the way",
                    path.display()
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::create_dir(&path)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

// Into an instance.

async fn upload(cx: &Context, source: &Path, name: &str, path: &str) -> Outcome {
    let metadata = std::fs::metadata(source).map_err(|error| {
        Failure::said(
            crate::cli::exit::Exit::NotFound,
            format!("{} cannot be read: {error}", source.display()),
        )
    })?;
    let own_name = std::fs::canonicalize(source)?
        .file_name()
        .map_or_else(|| "root".into(), OsStr::to_owned);
    // Into a directory that is there, under its own name; else under the name given.
    let (directory, entry_name) = if path.ends_with('/') || is_directory(cx, name, path).await? {
        (path.to_owned(), own_name)
    } else {
        match path.rsplit_once('/') {
            Some((parent, last)) => (format!("{parent}/"), last.into()),
            None => (path.to_owned(), own_name),
        }
    };
    let source = source.to_owned();
    let parts = produce(move |writer| {
        let mut archive = tar::Builder::new(writer);
        archive.follow_symlinks(false);
        if metadata.is_dir() {
            archive.append_dir_all(&entry_name, &source)?;
        } else {
            archive.append_file(&entry_name, &mut std::fs::File::open(&source)?)?;
        }
        archive.finish()
    });
    Ok(cx.client.put_files(name, &directory, parts).await?)
}

/// Whether a path inside is a directory: what the first entry of its archive says.
async fn is_directory(cx: &Context, name: &str, path: &str) -> Outcome<bool> {
    let mut bytes = match cx.client.get_files(name, path).await {
        Ok(bytes) => bytes,
        Err(error) if error.code() == Some(api::ErrorCode::NotFound) => {
            // The instance itself may be what is missing.
            cx.client.show_instance(name).await?;
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    };
    let mut head = Vec::new();
    while head.len() < 512 {
        match bytes.next().await? {
            Some(part) => head.extend_from_slice(&part),
            None => return Ok(false),
        }
    }
    // The type flag of a ustar header; `x` and `g` headers come before long names only.
    Ok(matches!(head[156], b'5')
        || (matches!(head[156], b'x' | b'g' | b'L') && path.ends_with('/')))
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

    fn archive(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        fill(&mut builder);
        builder.into_inner().unwrap()
    }

    fn entry(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &[u8], link: &str) {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        header.set_size(if kind.is_file() { 4 } else { 0 });
        header.set_cksum();
        builder
            .append(&header, &b"evil"[..if kind.is_file() { 4 } else { 0 }])
            .unwrap();
    }

    #[test]
    fn nothing_gets_out_of_the_target() {
        use std::os::unix::fs::PermissionsExt;
        use tar::EntryType as Type;
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        let link = outside.to_str().unwrap().to_owned();
        type Fill<'a> = Box<dyn Fn(&mut tar::Builder<Vec<u8>>) + 'a>;
        let hostile: Vec<Fill<'_>> = vec![
            Box::new(|b| entry(b, Type::Regular, b"../outside/x", "")),
            Box::new(|b| entry(b, Type::Regular, b"/outside/x", "")),
            Box::new(|b| {
                entry(b, Type::Symlink, b"d", &link);
                entry(b, Type::Regular, b"d/x", "");
            }),
            Box::new(|b| {
                entry(b, Type::Symlink, b"d", &link);
                entry(b, Type::Directory, b"d/sub", "");
            }),
            Box::new(|b| {
                entry(b, Type::Regular, b"a/f", "");
                entry(b, Type::Symlink, b"a/d", &link);
                entry(b, Type::Link, b"a/d/x", "a/f");
            }),
            Box::new(|b| entry(b, Type::Link, b"stolen", "../secret")),
            Box::new(|b| {
                entry(b, Type::Symlink, b"l", &format!("{link}/../secret"));
                entry(b, Type::Link, b"stolen", "l");
            }),
        ];
        std::fs::write(dir.path().join("secret"), "mine").unwrap();
        for (number, fill) in hostile.iter().enumerate() {
            let target = dir.path().join(format!("t{number}"));
            std::fs::create_dir(&target).unwrap();
            assert!(
                unpack(&archive(fill)[..], &target, None).is_err(),
                "{number}"
            );
            assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{number}");
            assert!(!target.join("stolen").exists());
        }
        // Over a symbolic link that it brought: the link goes, what it leads to stays.
        let target = dir.path().join("over");
        std::fs::create_dir(&target).unwrap();
        let over = archive(|b| {
            entry(b, Type::Regular, b"f", "");
            for name in [b"l", b"m"] {
                entry(b, Type::Symlink, name, &format!("{link}/../secret"));
            }
            entry(b, Type::Link, b"l", "f");
            entry(b, Type::Regular, b"m", "");
        });
        unpack(&over[..], &target, None).unwrap();
        assert_eq!(
            std::fs::read_to_string(dir.path().join("secret")).unwrap(),
            "mine"
        );

        let target = dir.path().join("good");
        std::fs::create_dir(&target).unwrap();
        let good = archive(|b| {
            entry(b, Type::Directory, b"etc/", "");
            entry(b, Type::Regular, b"etc/f", "");
            entry(b, Type::Char, b"etc/null", "");
            entry(b, Type::Link, b"etc/g", "etc/f");
        });
        unpack(&good[..], &target, Some(OsStr::new("conf"))).unwrap();
        let file = target.join("conf/f");
        assert_eq!(
            std::fs::read_to_string(target.join("conf/g")).unwrap(),
            "evil"
        );
        assert_eq!(
            std::fs::metadata(file).unwrap().permissions().mode() & 0o7000,
            0
        );
        assert!(!target.join("conf/null").exists());
    }

    #[test]
    fn a_cut_archive_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let whole = archive(|b| entry(b, tar::EntryType::Regular, b"f", ""));
        assert!(unpack(&whole[..514], dir.path(), None).is_err());
    }
}
