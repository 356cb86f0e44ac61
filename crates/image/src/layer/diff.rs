//! Directories read back into a tar: an overlay's upper directory as a layer, or whole layers merged.
//!
//! The reverse of `unpack`: device 0/0 becomes `.wh.name`, an opaque directory gets its marker. The
//! directory may belong to a running container, so it is walked by descriptors and no link is followed.
//! Entries are sorted, so the same changes give the same tar.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, major, minor},
    io::Errno,
};

use super::{
    tree::OPAQUE,
    unpack::{OPAQUE_MARKER, WHITEOUT, passes},
};
use crate::{
    job::Job,
    tar::{Entry, Kind, Writer, display},
};

/// Writes everything below `upper` as a layer.
pub(crate) fn write_diff<W: Write>(
    upper: &Path,
    output: W,
    depth: usize,
    job: &Job,
) -> io::Result<W> {
    Walk::new(output, false, depth, job).run(&[upper])
}

/// Writes what an overlay of `layers` (topmost first) shows.
pub(crate) fn write_merged<W: Write>(
    layers: &[impl AsRef<Path>],
    output: W,
    depth: usize,
    job: &Job,
) -> io::Result<W> {
    Walk::new(output, true, depth, job).run(layers)
}

struct Walk<'a, W> {
    tar: Writer<W>,
    /// Whiteouts hide what is below instead of being written.
    merge: bool,
    /// First path of each file with several links.
    links: HashMap<(u64, u64), Vec<u8>>,
    depth: usize,
    job: &'a Job,
}

impl<'a, W: Write> Walk<'a, W> {
    fn new(output: W, merge: bool, depth: usize, job: &'a Job) -> Self {
        Self {
            tar: Writer::new(output),
            merge,
            links: HashMap::new(),
            depth,
            job,
        }
    }

    fn run(mut self, roots: &[impl AsRef<Path>]) -> io::Result<W> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &Path| rustix::fs::open(path, flags, Mode::empty());
        let dirs: rustix::io::Result<Vec<OwnedFd>> =
            roots.iter().map(|root| open(root.as_ref())).collect();
        self.directory(&dirs?, &[], 0)?;
        self.tar.finish()
    }

    /// Writes the content of a directory, given as its versions, topmost first.
    fn directory(&mut self, dirs: &[OwnedFd], prefix: &[u8], depth: usize) -> io::Result<()> {
        if depth > self.depth {
            return Err(refuse(prefix, "is nested too deeply for a layer"));
        }
        let mut names: BTreeMap<CString, usize> = BTreeMap::new();
        for (level, dir) in dirs.iter().enumerate() {
            for entry in Dir::read_from(dir)? {
                let entry = entry?;
                if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                    names.entry(entry.file_name().to_owned()).or_insert(level);
                }
            }
        }
        for (name, level) in names {
            self.job.check().map_err(io::Error::other)?;
            let path = [prefix, name.to_bytes()].concat();
            match self.entry(&dirs[level..], &name, path, depth) {
                // Gone since it was listed, or replaced by something else meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dirs: &[OwnedFd],
        name: &CStr,
        path: Vec<u8>,
        depth: usize,
    ) -> io::Result<()> {
        let dir = dirs[0].as_fd();
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if name.to_bytes().starts_with(WHITEOUT) {
            return Err(refuse(
                &path,
                "has a name that means a removed file in a layer",
            ));
        }
        let mut entry = describe(&stat, path);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return self.subdirectory(dirs, name, entry, depth),
            FileType::RegularFile => return self.file(dir, name, entry, &stat),
            FileType::Symlink => {
                entry.kind = Kind::Symlink;
                entry.link = rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes();
            }
            FileType::CharacterDevice if stat.st_rdev == 0 && self.merge => return Ok(()),
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                let cut = entry.path.len() - name.to_bytes().len();
                let path = [&entry.path[..cut], WHITEOUT, name.to_bytes()].concat();
                entry = Entry {
                    path,
                    ..Entry::default()
                };
            }
            FileType::CharacterDevice => entry.kind = Kind::Char,
            FileType::BlockDevice => entry.kind = Kind::Block,
            FileType::Fifo => entry.kind = Kind::Fifo,
            // A socket is the trace of a process, not content; tar has no form for it.
            _ => return Ok(()),
        }
        // Whiteouts share one inode without being one file.
        if entry.kind != Kind::File {
            self.linked(&mut entry, &stat);
        }
        self.tar.entry(&entry)
    }

    fn subdirectory(
        &mut self,
        dirs: &[OwnedFd],
        name: &CStr,
        mut entry: Entry,
        depth: usize,
    ) -> io::Result<()> {
        let top = open_directory(dirs[0].as_fd(), name)?;
        let attributes = Attributes::read(top.as_fd(), &entry.path)?;
        entry.kind = Kind::Directory;
        entry.xattrs = attributes.passing;
        entry.path.push(b'/');
        self.tar.entry(&entry)?;
        if attributes.opaque && !self.merge {
            let path = [&entry.path, OPAQUE_MARKER].concat();
            self.tar.entry(&Entry {
                path,
                ..Entry::default()
            })?;
        }
        let mut versions = vec![top];
        let mut opaque = attributes.opaque;
        for dir in &dirs[1..] {
            if opaque {
                break;
            }
            match open_directory(dir.as_fd(), name) {
                Ok(below) => {
                    opaque = Attributes::read(below.as_fd(), &entry.path)?.opaque;
                    versions.push(below);
                }
                Err(Errno::NOENT) => {}
                // A whiteout or a file: what is further below is hidden.
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        self.directory(&versions, &entry.path, depth + 1)
    }

    fn file(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        mut entry: Entry,
        stat: &Stat,
    ) -> io::Result<()> {
        if self.linked(&mut entry, stat) {
            return self.tar.entry(&entry);
        }
        // Not blocking: by now it could be a FIFO.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Err(Errno::LOOP | Errno::NXIO) => return Err(io::ErrorKind::NotFound.into()),
            file => file?,
        };
        let now = rustix::fs::fstat(&file)?;
        if (now.st_dev, now.st_ino) != (stat.st_dev, stat.st_ino) {
            return Err(io::ErrorKind::NotFound.into());
        }
        entry.xattrs = Attributes::read(file.as_fd(), &entry.path)?.passing;
        entry.size = now.st_size.unsigned_abs();
        self.tar.entry(&entry)?;
        let mut file = File::from(file).take(entry.size);
        let mut buffer = vec![0; super::pipeline::CHUNK];
        let mut left = entry.size;
        while left > 0 {
            self.job.check().map_err(io::Error::other)?;
            let mut count = file.read(&mut buffer)?;
            if count == 0 {
                // Cut short while being read; the header stands, so zeros fill the rest.
                buffer.fill(0);
                count = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            }
            self.tar.data(&buffer[..count])?;
            left -= count as u64;
        }
        Ok(())
    }

    /// Turns the second and later names of a file into hard links.
    fn linked(&mut self, entry: &mut Entry, stat: &Stat) -> bool {
        if stat.st_nlink < 2 {
            return false;
        }
        match self.links.entry((stat.st_dev, stat.st_ino)) {
            std::collections::hash_map::Entry::Occupied(first) => {
                entry.kind = Kind::HardLink;
                entry.link.clone_from(first.get());
                true
            }
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(entry.path.clone());
                false
            }
        }
    }
}

fn open_directory(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

fn describe(stat: &Stat, path: Vec<u8>) -> Entry {
    Entry {
        path,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (
            stat.st_mtime,
            u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        ),
        device: (major(stat.st_rdev), minor(stat.st_rdev)),
        ..Entry::default()
    }
}

/// Extended attributes of a file in an upper directory.
struct Attributes {
    passing: Vec<(Vec<u8>, Vec<u8>)>,
    opaque: bool,
}

impl Attributes {
    fn read(file: BorrowedFd<'_>, path: &[u8]) -> io::Result<Self> {
        let mut found = Self {
            passing: Vec::new(),
            opaque: false,
        };
        let mut list = vec![0; 64 << 10];
        let count = match rustix::fs::flistxattr(file, &mut list) {
            Err(Errno::OPNOTSUPP) => 0,
            count => count?,
        };
        for name in list[..count]
            .split(|&b| b == 0)
            .filter(|name| !name.is_empty())
        {
            match name {
                b"trusted.overlay.redirect" | b"trusted.overlay.metacopy" => {
                    return Err(refuse(
                        path,
                        "was moved or only partly copied by the overlay; mount with redirect_dir=off,metacopy=off",
                    ));
                }
                _ => {}
            }
            let opaque = name == OPAQUE.as_bytes();
            if !opaque && !passes(name) {
                continue;
            }
            let mut value = vec![0; 64 << 10];
            let length = match rustix::fs::fgetxattr(file, name, &mut value) {
                Err(Errno::NODATA) => continue,
                length => length?,
            };
            value.truncate(length);
            if opaque {
                found.opaque = value == b"y";
            } else {
                found.passing.push((name.to_vec(), value));
            }
        }
        found.passing.sort();
        Ok(found)
    }
}

fn refuse(path: &[u8], reason: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{:?} {reason}", display(path)),
    )
}
