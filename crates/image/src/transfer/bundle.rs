//! An image archive or layout directory as a set of named files.
//!
//! A tar is read once, front to back (it may be a pipe), and its files are kept in the lease until the
//! manifest, which may come last, says what they are.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::ImportError;
use crate::{
    error::at,
    job::Job,
    layer::{LayerError, open_compressed},
    store::{Lease, Store},
    tar::{Kind, Reader, TarError, display},
};

/// Files an archive may have: three a layer in the oldest format, and some hundred images.
const MAX_FILES: usize = 100_000;
/// Links followed from one name.
const MAX_LINKS: usize = 4;

/// Named files of an image in transport.
pub(super) enum Bundle {
    /// A layout directory.
    Directory(OwnedFd),
    /// A tar's files, kept under numbers in the lease.
    Spilled(HashMap<String, Member>),
}

pub(super) enum Member {
    File(std::path::PathBuf),
    /// Old `docker save` links equal layers to each other.
    Link(String),
}

impl Bundle {
    pub(super) fn directory(path: &Path) -> Result<Self, ImportError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(at("open", path))?;
        Ok(Self::Directory(dir))
    }

    /// Reads a tar, compressed or not.
    pub(super) fn spill(
        store: &Store,
        lease: &Lease,
        input: impl Read + Send,
        job: &Job,
    ) -> Result<Self, ImportError> {
        let (_, decoded) = open_compressed(BufReader::with_capacity(256 << 10, input))
            .map_err(|source| ImportError::Read { source })?;
        let mut limits = store.limits().clone();
        limits.layer_bytes = limits.layer_bytes.saturating_mul(4);
        let mut reader = Reader::new(BufReader::with_capacity(256 << 10, decoded), &limits);
        let mut members = HashMap::new();
        while let Some(entry) = reader.next_entry().map_err(LayerError::from)? {
            job.check()?;
            let Some(name) = normal(&entry.path) else {
                let entry = display(&entry.path);
                let reason = "its path is not a plain relative path";
                return Err(LayerError::from(TarError::Unsafe { entry, reason }).into());
            };
            let member = match entry.kind {
                Kind::File if entry.sparse.is_none() => {
                    Member::File(keep(&mut reader, lease, job)?)
                }
                Kind::Symlink | Kind::HardLink => match link(&name, &entry.link, entry.kind) {
                    Some(target) => Member::Link(target),
                    None => continue,
                },
                _ => continue,
            };
            members.insert(name, member);
            if members.len() > MAX_FILES {
                return Err(ImportError::NoImage(format!(
                    "it has more than {MAX_FILES} files"
                )));
            }
        }
        Ok(Self::Spilled(members))
    }

    /// Opens a file by its name in the bundle.
    pub(super) fn open(&self, name: &str) -> Result<Option<File>, ImportError> {
        match self {
            Self::Directory(dir) => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
                let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                match rustix::fs::openat2(dir, name, flags, Mode::empty(), how) {
                    Ok(file) => {
                        let file = File::from(file);
                        let regular = file.metadata().map_err(at("open", name))?.is_file();
                        Ok(regular.then_some(file))
                    }
                    Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
                    Err(errno) => Err(at("open", name)(errno).into()),
                }
            }
            Self::Spilled(members) => {
                let mut name = name;
                for _ in 0..=MAX_LINKS {
                    match members.get(name) {
                        None => return Ok(None),
                        Some(Member::Link(target)) => name = target,
                        Some(Member::File(path)) => {
                            return Ok(Some(File::open(path).map_err(at("open", path))?));
                        }
                    }
                }
                Ok(None)
            }
        }
    }

    /// Reads a document of at most `limit` bytes.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, ImportError> {
        let Some(file) = self.open(name)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(at("read", name))?;
        if bytes.len() as u64 > limit {
            return Err(ImportError::Format(format!(
                "{name:?} has more than {limit} bytes"
            )));
        }
        Ok(Some(bytes))
    }
}

/// Copies the current entry into the lease.
fn keep<R: BufRead>(
    reader: &mut Reader<R>,
    lease: &Lease,
    job: &Job,
) -> Result<std::path::PathBuf, ImportError> {
    let path = lease.fresh_path("member");
    let mut file = File::create_new(&path).map_err(at("create", &path))?;
    let copied = reader.copy_data(|data| {
        job.check().map_err(io::Error::other)?;
        file.write_all(data)
    });
    job.check()?;
    copied.map_err(LayerError::from)?;
    Ok(path)
}

/// `a/./b` as `a/b`; `None` for anything that leads upwards or is not text.
fn normal(path: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(path).ok()?;
    let mut parts = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Where a link inside the archive leads, as a name in the archive.
fn link(name: &str, target: &[u8], kind: Kind) -> Option<String> {
    let target = std::str::from_utf8(target).ok()?;
    let mut parts: Vec<&str> = match kind {
        Kind::Symlink => name.split('/').collect(),
        _ => vec![""],
    };
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}
