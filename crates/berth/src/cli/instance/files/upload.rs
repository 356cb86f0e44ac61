//! Into an instance: a file or a tree of this host as an archive.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

use image::tar::{Entry, Kind, Writer};

use super::{is_directory, produce, send, split};
use crate::cli::{
    Context,
    exit::{Exit, Failure, Outcome},
};

/// Permissions that are sent without owners: none that borrow an owner's rights.
const PLAIN: u32 = 0o1777;

/// Copies a path here to a path of an instance: below it if it is a directory, else as it.
pub(super) async fn upload(
    cx: &Context,
    source: &Path,
    name: &str,
    path: &str,
    archived: bool,
) -> Outcome {
    let text = source.as_os_str().as_bytes();
    let contents = text == b"." || text.ends_with(b"/.");
    let followed = contents || text.ends_with(b"/");
    let looked = if followed {
        fs::metadata(source)
    } else {
        fs::symlink_metadata(source)
    };
    let metadata = looked.map_err(|error| {
        let what = format!("{} cannot be read: {error}", source.display());
        match error.kind() {
            io::ErrorKind::NotFound => Failure::said(Exit::NotFound, what),
            _ => Failure::error(what),
        }
    })?;
    let kind = metadata.file_type();
    if !(kind.is_file() || kind.is_dir() || kind.is_symlink()) {
        let what = format!("{} is no file or directory", source.display());
        return Err(Failure::usage(what).advise("devices, pipes and sockets are not copied"));
    }
    let (directory, top) = if is_directory(cx, name, path).await? {
        let top = if contents {
            ".".into()
        } else {
            own_name(source)?
        };
        (path, top)
    } else {
        let (directory, last) = split(path);
        (directory, last.as_bytes().to_vec())
    };
    let source = source.to_owned();
    let parts = produce(move |writer| {
        let mut packer = Packer {
            output: Writer::new(writer),
            archived,
            linked: HashMap::new(),
        };
        packer.node(&source, &metadata, top)?;
        packer.output.finish().map(drop)
    });
    send(cx, name, directory, parts).await
}

/// The name something goes by where it is, also when it is written as `..`.
fn own_name(source: &Path) -> Outcome<Vec<u8>> {
    let name = match source.file_name() {
        Some(name) => name.to_owned(),
        None => fs::canonicalize(source)?
            .file_name()
            .map_or_else(|| ".".into(), OsStr::to_owned),
    };
    Ok(name.as_bytes().to_vec())
}

struct Packer<W: Write> {
    output: Writer<W>,
    archived: bool,
    /// First path in the archive of files with several names.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Packer<W> {
    /// Adds what is at `source`, and all below it, as `path`.
    fn node(&mut self, source: &Path, metadata: &Metadata, path: Vec<u8>) -> io::Result<()> {
        let kind = metadata.file_type();
        if kind.is_dir() {
            return self.directory(source, metadata, path);
        }
        if kind.is_symlink() {
            let link = named(source, fs::read_link(source))?;
            let mut entry = self.entry(Kind::Symlink, metadata, path);
            entry.link = link.as_os_str().as_bytes().to_vec();
            return self.output.entry(&entry);
        }
        if !kind.is_file() {
            return Ok(());
        }
        if metadata.nlink() > 1 {
            let identity = (metadata.dev(), metadata.ino());
            if let Some(first) = self.linked.get(&identity) {
                let link = first.clone();
                let mut entry = self.entry(Kind::HardLink, metadata, path);
                entry.link = link;
                return self.output.entry(&entry);
            }
            self.linked.insert(identity, path.clone());
        }
        self.file(source, metadata, path)
    }

    fn directory(&mut self, source: &Path, metadata: &Metadata, path: Vec<u8>) -> io::Result<()> {
        let mut entry = self.entry(Kind::Directory, metadata, path.clone());
        entry.path.push(b'/');
        self.output.entry(&entry)?;
        let listed = fs::read_dir(source).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut children = named(source, listed)?;
        children.sort_by_key(fs::DirEntry::file_name);
        for child in children {
            let source = child.path();
            let metadata = named(&source, child.metadata())?;
            let path = [&path[..], b"/", child.file_name().as_bytes()].concat();
            self.node(&source, &metadata, path)?;
        }
        Ok(())
    }

    /// A file as long as it was when looked at, whatever happens to it meanwhile.
    fn file(&mut self, source: &Path, metadata: &Metadata, path: Vec<u8>) -> io::Result<()> {
        let mut entry = self.entry(Kind::File, metadata, path);
        entry.size = metadata.len();
        let mut file = named(source, File::open(source))?;
        self.output.entry(&entry)?;
        let mut left = entry.size;
        let mut piece = vec![0; 64 << 10];
        while left > 0 {
            let most = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
            let mut count = named(source, file.read(&mut piece[..most]))?;
            if count == 0 {
                piece[..most].fill(0);
                count = most;
            }
            self.output.data(&piece[..count])?;
            left -= count as u64;
        }
        Ok(())
    }

    fn entry(&self, kind: Kind, metadata: &Metadata, path: Vec<u8>) -> Entry {
        let (uid, gid, kept) = if self.archived {
            (metadata.uid(), metadata.gid(), 0o7777)
        } else {
            (0, 0, PLAIN)
        };
        Entry {
            path,
            kind,
            mode: metadata.mode() & kept,
            uid,
            gid,
            mtime: (
                metadata.mtime(),
                u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
            ),
            ..Entry::default()
        }
    }
}

/// Says which file it was.
fn named<T>(path: &Path, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| {
        let text = format!("{} cannot be read: {error}", path.display());
        io::Error::new(error.kind(), text)
    })
}
