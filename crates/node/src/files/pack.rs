//! Out: one path of the guest, and all below it, as an archive.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
};

use engine::RootView;
use image::tar::{Entry, Kind, Writer, display};
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat},
    io::Errno,
};

use super::{
    FilesError, MAX_DEPTH, MAX_ENTRIES, MAX_PATH, PIECE, attributes, check_path,
    hidden::{Hidden, Identity},
    ids::Ids,
    names, reopen, resolve,
};

/// Files with several names that are remembered; more are copied once for each name.
const MAX_LINKED: usize = 100_000;

/// Names of file systems that show the kernel's state and hold no files (`linux/magic.h`).
const PSEUDO: [i64; 13] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x27_e0eb,   // cgroup
    0x6367_7270, // cgroup2
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x6265_6570, // configfs
    0xcafe_4a11, // bpf
    0x4249_4e4d, // binfmt_misc
    0x6e73_6673, // nsfs
];

/// A path of the guest, found and ready to be archived.
#[derive(Debug)]
pub struct Source {
    file: OwnedFd,
    stat: Stat,
    name: Vec<u8>,
    ids: Ids,
    hidden: Hidden,
}

impl Source {
    /// Finds `path`, which is absolute inside. A symbolic link is meant itself, unless the path
    /// ends in a slash: then it must lead to a directory.
    ///
    /// # Errors
    /// When it is not there, or is nothing that can be copied.
    pub fn open(view: &RootView, path: &str) -> Result<Self, FilesError> {
        check_path(path)?;
        let hidden = Hidden::of(view);
        hidden.check(&names(path), path)?;
        let follow = ["/", "/.", "/.."].iter().any(|end| path.ends_with(end));
        let flags = if follow {
            OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY
        } else {
            OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW
        };
        let file = resolve(view.directory.as_fd(), path, flags)?;
        let stat = stat(&file, path.as_bytes())?;
        hidden.check_file(&stat, path.as_bytes())?;
        let what = match FileType::from_raw_mode(stat.st_mode) {
            _ if is_pseudo(&file) => Some("a file of the kernel"),
            FileType::RegularFile | FileType::Directory | FileType::Symlink => None,
            FileType::Fifo => Some("a pipe"),
            FileType::Socket => Some("a socket"),
            _ => Some("a device"),
        };
        if let Some(what) = what {
            let path = path.to_owned();
            return Err(FilesError::Kind { path, what });
        }
        // How it reads; the root itself has no name.
        let name = names(path).last().map_or(".", |name| *name);
        Ok(Self {
            file,
            stat,
            name: name.as_bytes().to_vec(),
            ids: Ids::new(view.idmap),
            hidden,
        })
    }

    /// Writes the archive. Its first entry has the last name of the path (`.` for the root), all
    /// others are below it. A file that shrinks meanwhile ends in zeros, one that grows is cut.
    ///
    /// # Errors
    /// When the output fails, a file cannot be read, or there is more than is copied at once.
    pub fn write_to(self, output: impl Write) -> Result<(), FilesError> {
        let mut packer = Packer {
            output: Writer::new(output),
            ids: self.ids,
            hidden: self.hidden,
            linked: HashMap::new(),
            entries: 0,
            piece: vec![0; PIECE],
        };
        let mut path = self.name;
        packer.node(&self.file, &self.stat, &mut path, 0)?;
        packer.output.finish().map_err(FilesError::Output)?;
        Ok(())
    }
}

struct Packer<W: Write> {
    output: Writer<W>,
    ids: Ids,
    hidden: Hidden,
    /// First path of files with several names.
    linked: HashMap<Identity, Vec<u8>>,
    entries: u64,
    piece: Vec<u8>,
}

impl<W: Write> Packer<W> {
    fn node(
        &mut self,
        file: &OwnedFd,
        stat: &Stat,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), FilesError> {
        self.entries += 1;
        let too_many = |what, limit| FilesError::Limit {
            path: display(path),
            what,
            limit,
        };
        if self.entries > MAX_ENTRIES {
            return Err(too_many("files", MAX_ENTRIES));
        }
        if path.len() > MAX_PATH {
            return Err(too_many("bytes of a path", MAX_PATH as u64));
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                if depth >= MAX_DEPTH {
                    let what = "directories inside one another";
                    return Err(too_many(what, MAX_DEPTH as u64));
                }
                self.directory(file, stat, path, depth)
            }
            FileType::RegularFile => self.file(file, stat, path),
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(file, "", Vec::new());
                let link = link.map_err(|errno| FilesError::io("read the link", path, errno))?;
                let mut entry = self.entry(Kind::Symlink, stat, path);
                entry.link = link.into_bytes();
                self.output.entry(&entry).map_err(FilesError::Output)
            }
            // Nothing that an archive could carry.
            _ => Ok(()),
        }
    }

    fn directory(
        &mut self,
        directory: &OwnedFd,
        stat: &Stat,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), FilesError> {
        let failed = |path: &[u8], errno| FilesError::io("list", path, errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(directory, ".", flags, Mode::empty());
        let opened = opened.map_err(|errno| failed(path, errno))?;
        let mut entry = self.entry(Kind::Directory, stat, path);
        entry.path.push(b'/');
        entry.xattrs = attributes::read(opened.as_fd(), self.ids);
        self.output.entry(&entry).map_err(FilesError::Output)?;
        if is_pseudo(directory) || self.hidden.at(stat).is_some() {
            return Ok(());
        }
        let mut listing = Dir::new(opened).map_err(|errno| failed(path, errno))?;
        while let Some(found) = listing.read() {
            let found = found.map_err(|errno| failed(path, errno))?;
            let name = found.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let child = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
                Ok(child) => child,
                // It went meanwhile.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(FilesError::io("open", path, errno)),
            };
            let length = path.len();
            path.push(b'/');
            path.extend_from_slice(name.to_bytes());
            let stat = self::stat(&child, path)?;
            self.node(&child, &stat, path, depth + 1)?;
            path.truncate(length);
        }
        Ok(())
    }

    fn file(&mut self, file: &OwnedFd, stat: &Stat, path: &[u8]) -> Result<(), FilesError> {
        if self.hidden.at(stat).is_some() || is_pseudo(file) {
            return Ok(());
        }
        let identity = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&identity) {
                let mut entry = self.entry(Kind::HardLink, stat, path);
                entry.link.clone_from(first);
                return self.output.entry(&entry).map_err(FilesError::Output);
            }
            if self.linked.len() < MAX_LINKED {
                self.linked.insert(identity, path.to_vec());
            }
        }
        let failed = |errno| FilesError::io("read", path, errno);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = reopen(file, flags).map_err(failed)?;
        let mut entry = self.entry(Kind::File, stat, path);
        entry.size = u64::try_from(stat.st_size).unwrap_or(0);
        entry.xattrs = attributes::read(opened.as_fd(), self.ids);
        self.output.entry(&entry).map_err(FilesError::Output)?;
        let mut left = entry.size;
        let mut opened = File::from(opened);
        while left > 0 {
            let most = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
            let mut count = match opened.read(&mut self.piece[..most]) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    let (action, path) = ("read", display(path));
                    return Err(FilesError::Io {
                        action,
                        path,
                        source,
                    });
                }
            };
            if count == 0 {
                self.piece[..most].fill(0);
                count = most;
            }
            self.output
                .data(&self.piece[..count])
                .map_err(FilesError::Output)?;
            left -= count as u64;
        }
        Ok(())
    }

    fn entry(&self, kind: Kind, stat: &Stat, path: &[u8]) -> Entry {
        Entry {
            path: path.to_vec(),
            kind,
            mode: stat.st_mode & 0o7777,
            uid: self.ids.inside(stat.st_uid),
            gid: self.ids.inside(stat.st_gid),
            mtime: (
                stat.st_mtime,
                u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            ),
            ..Entry::default()
        }
    }
}

fn stat(file: &OwnedFd, path: &[u8]) -> Result<Stat, FilesError> {
    let stat = rustix::fs::statat(file, "", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW);
    stat.map_err(|errno| FilesError::io("look at", path, errno))
}

fn is_pseudo(file: &OwnedFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|found| PSEUDO.contains(&{ found.f_type }))
}
