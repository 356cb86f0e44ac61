//! In: an archive below a directory of the guest.

use std::{
    io::{BufRead, BufReader, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use engine::RootView;
use image::{
    Limits,
    tar::{Entry, Kind, Reader, Segment, display},
};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags},
    io::Errno,
};

use super::{
    FilesError, MAX_DEPTH, MAX_ENTRIES, MAX_PATH, PIECE, beneath, check_path,
    hidden::Hidden,
    ids::Ids,
    names, resolve,
    target::{self, Former, Temporary},
};

/// Longest name of a file (`NAME_MAX`).
const MAX_NAME: usize = 255;
/// Zeros of this length in a file become a hole.
const HOLE: usize = 4096;

/// Unpacks a tar archive below the directory `path`, which is absolute inside. What is there
/// under the name of an entry is replaced, except that a directory is kept and gets the entry's
/// attributes; a file never takes the place of a directory, nor a directory that of a file.
///
/// # Errors
/// At the first entry that is refused or cannot be written; what came before it stays.
pub fn unpack(view: &RootView, path: &str, input: impl Read + Send) -> Result<(), FilesError> {
    check_path(path)?;
    let hidden = Hidden::of(view);
    hidden.check(&names(path), path)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = resolve(view.directory.as_fd(), path, flags)?;
    let unpacker = Unpacker {
        path: names(path).into_iter().map(str::to_owned).collect(),
        top,
        open: Vec::new(),
        ids: Ids::new(view.idmap),
        hidden,
    };
    unpacker.enter_check(None, path.as_bytes())?;
    let limits = Limits {
        layer_bytes: u64::MAX,
        file_bytes: 1 << 44,
        path_bytes: MAX_PATH,
        ..Limits::default()
    };
    // Of its own, because it is another user from here on.
    let unpacked = std::thread::scope(|scope| {
        let unpack = move || {
            let become_root = unpacker.ids.become_root();
            become_root.map_err(|errno| FilesError::io("write to", path.as_bytes(), errno))?;
            let reader = Reader::new(BufReader::with_capacity(PIECE, input), &limits);
            unpacker.run(reader)
        };
        scope.spawn(unpack).join()
    });
    unpacked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A directory on the way to the current entry.
struct Level {
    name: Vec<u8>,
    directory: OwnedFd,
    /// When the archive says it was last written; set when it is left.
    time: Option<(i64, u32)>,
}

struct Unpacker {
    /// Names of the target, for refusals.
    path: Vec<String>,
    top: OwnedFd,
    open: Vec<Level>,
    ids: Ids,
    hidden: Hidden,
}

impl Unpacker {
    fn run<R: BufRead>(mut self, mut reader: Reader<R>) -> Result<(), FilesError> {
        let mut entries = 0;
        while let Some(entry) = reader.next_entry()? {
            entries += 1;
            if entries > MAX_ENTRIES {
                return Err(FilesError::Limit {
                    path: display(&entry.path),
                    what: "files",
                    limit: MAX_ENTRIES,
                });
            }
            self.entry(&mut reader, entry)?;
        }
        self.leave(0)?;
        // Whoever sends it wants to get rid of its padding too.
        Ok(reader.drain()?)
    }

    fn entry<R: BufRead>(
        &mut self,
        reader: &mut Reader<R>,
        mut entry: Entry,
    ) -> Result<(), FilesError> {
        let whole = entry.path.clone();
        let parts = parts(&whole, &whole)?;
        // The target itself stays as it is.
        let Some((name, parents)) = parts.split_last() else {
            return Ok(());
        };
        self.check_hidden(&parts, &whole)?;
        self.descend(parents, &whole)?;
        match entry.kind {
            Kind::Directory => self.directory(name, &mut entry),
            Kind::File => self.file(name, &mut entry, reader),
            Kind::Symlink => self.symlink(name, &entry),
            Kind::HardLink => self.hard_link(name, &entry),
            Kind::Char | Kind::Block => Err(FilesError::entry(&whole, "it is a device")),
            Kind::Fifo => Err(FilesError::entry(&whole, "it is a pipe")),
        }
    }

    /// The directory the current entry goes into.
    fn parent(&self) -> BorrowedFd<'_> {
        let innermost = self.open.last().map_or(&self.top, |level| &level.directory);
        innermost.as_fd()
    }

    /// Makes the directory at `path` the current one: leaves those it is not in, makes those that
    /// are missing.
    fn descend(&mut self, path: &[&[u8]], entry: &[u8]) -> Result<(), FilesError> {
        let both = self.open.iter().zip(path);
        let common = both
            .take_while(|(level, name)| level.name == **name)
            .count();
        self.leave(common)?;
        for name in &path[common..] {
            let made = self.make_directory(name, entry)?;
            if made {
                let mode = Mode::from_raw_mode(0o755);
                let changed = rustix::fs::fchmod(self.parent(), mode);
                changed.map_err(|errno| FilesError::io("make a directory for", entry, errno))?;
            }
        }
        Ok(())
    }

    /// Leaves directories until `depth` are open.
    fn leave(&mut self, depth: usize) -> Result<(), FilesError> {
        while self.open.len() > depth {
            let Some(level) = self.open.pop() else { break };
            if let Some(time) = level.time {
                let set = rustix::fs::futimens(&level.directory, &target::times(time));
                set.map_err(|errno| FilesError::io("set the time of", &level.name, errno))?;
            }
        }
        Ok(())
    }

    /// Enters a directory of the current one, made if it is missing; says whether it was.
    fn make_directory(&mut self, name: &[u8], entry: &[u8]) -> Result<bool, FilesError> {
        let failed = |errno| FilesError::io("make a directory for", entry, errno);
        let made = match rustix::fs::mkdirat(self.parent(), name, Mode::from_raw_mode(0o700)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            // A read-only file system says so also of what is there already.
            Err(Errno::ROFS) if target::former(self.parent(), name) == Ok(Former::Directory) => {
                false
            }
            Err(errno) => return Err(failed(errno)),
        };
        let directory = match target::open_directory(self.parent(), name) {
            Ok(directory) => directory,
            Err(Errno::LOOP | Errno::NOTDIR) => {
                let reason = "on its way is something else than a directory, or a symbolic link";
                return Err(FilesError::entry(entry, reason));
            }
            Err(errno) => return Err(failed(errno)),
        };
        self.enter_check(Some(&directory), entry)?;
        self.open.push(Level {
            name: name.to_vec(),
            directory,
            time: None,
        });
        Ok(made)
    }

    fn directory(&mut self, name: &[u8], entry: &mut Entry) -> Result<(), FilesError> {
        self.make_directory(name, &entry.path)?;
        target::dress(self.parent(), entry, self.ids)?;
        if let Some(level) = self.open.last_mut() {
            level.time = Some(entry.mtime);
        }
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        name: &[u8],
        entry: &mut Entry,
        reader: &mut Reader<R>,
    ) -> Result<(), FilesError> {
        let path = entry.path.clone();
        let failed = |errno| FilesError::io("write", &path, errno);
        let parent = self.parent();
        if self.free(name, entry)? == Former::Mounted {
            let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(failed)?;
            let stat = rustix::fs::fstat(&file).map_err(failed)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(FilesError::entry(&path, "it was exchanged meanwhile"));
            }
            rustix::fs::ftruncate(&file, 0).map_err(failed)?;
            return fill(&file, entry, reader);
        }
        let (temporary, file) = target::create(parent).map_err(failed)?;
        fill(&file, entry, reader)?;
        target::dress(file.as_fd(), entry, self.ids)?;
        rustix::fs::futimens(&file, &target::times(entry.mtime)).map_err(failed)?;
        temporary.place(name).map_err(failed)
    }

    fn symlink(&self, name: &[u8], entry: &Entry) -> Result<(), FilesError> {
        if entry.link.is_empty() || entry.link.contains(&0) {
            return Err(FilesError::entry(&entry.path, "it is a link to nothing"));
        }
        self.free(name, entry)?;
        let failed = |errno| FilesError::io("write", &entry.path, errno);
        let (uid, gid) = target::owner(entry, self.ids)?;
        let parent = self.parent();
        let made = Temporary::make(parent, |name| {
            rustix::fs::symlinkat(&entry.link[..], parent, name)
        });
        let (temporary, ()) = made.map_err(failed)?;
        let (at, nofollow) = (temporary.name(), AtFlags::SYMLINK_NOFOLLOW);
        rustix::fs::chownat(parent, at, Some(uid), Some(gid), nofollow).map_err(failed)?;
        let times = target::times(entry.mtime);
        rustix::fs::utimensat(parent, at, &times, nofollow).map_err(failed)?;
        temporary.place(name).map_err(failed)
    }

    fn hard_link(&self, name: &[u8], entry: &Entry) -> Result<(), FilesError> {
        let refused = |reason| FilesError::entry(&entry.path, reason);
        let parts = parts(&entry.link, &entry.path)?;
        if parts.is_empty() {
            return Err(refused("it is a link to a directory"));
        }
        self.check_hidden(&parts, &entry.path)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match beneath(self.top.as_fd(), &parts.join(&b'/'), flags) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Err(refused("what it is a link to is not there")),
            Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {
                return Err(refused("it is a link through a symbolic link"));
            }
            Err(errno) => return Err(FilesError::io("link", &entry.path, errno)),
        };
        let failed = |errno| FilesError::io("link", &entry.path, errno);
        let stat = rustix::fs::fstat(&file).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refused("it is a link to something else than a file"));
        }
        if self.free(name, entry)? == Former::Mounted {
            return Err(refused("something is mounted in its place"));
        }
        let (temporary, ()) = target::link(self.parent(), &file).map_err(failed)?;
        temporary.place(name).map_err(failed)
    }

    /// What an entry that is no directory would replace.
    fn free(&self, name: &[u8], entry: &Entry) -> Result<Former, FilesError> {
        let former = target::former(self.parent(), name);
        match former.map_err(|errno| FilesError::io("look at", &entry.path, errno))? {
            Former::Directory => Err(FilesError::entry(
                &entry.path,
                "there is a directory of that name",
            )),
            former => Ok(former),
        }
    }

    /// Refuses to enter a directory where a guest at rest has something mounted when it runs.
    fn enter_check(&self, directory: Option<&OwnedFd>, shown: &[u8]) -> Result<(), FilesError> {
        if self.hidden.is_empty() {
            return Ok(());
        }
        let stat = rustix::fs::fstat(directory.unwrap_or(&self.top));
        let stat = stat.map_err(|errno| FilesError::io("look at", shown, errno))?;
        self.hidden.check_file(&stat, shown)
    }

    fn check_hidden(&self, parts: &[&[u8]], shown: &[u8]) -> Result<(), FilesError> {
        if self.hidden.is_empty() {
            return Ok(());
        }
        let relative: Option<Vec<&str>> = parts.iter().map(|it| str::from_utf8(it).ok()).collect();
        // Mount points are text: what is none is no mount point.
        let Some(relative) = relative else {
            return Ok(());
        };
        let mut whole: Vec<&str> = self.path.iter().map(String::as_str).collect();
        whole.extend(relative);
        self.hidden.check(&whole, &display(shown))
    }
}

/// The names of a path in the archive.
fn parts<'a>(path: &'a [u8], entry: &[u8]) -> Result<Vec<&'a [u8]>, FilesError> {
    let refused = |reason| Err(FilesError::entry(entry, reason));
    if path.is_empty() || path.contains(&0) {
        return refused("it has no path");
    }
    if path.starts_with(b"/") {
        return refused("its path is absolute");
    }
    let mut parts = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return refused("its path leads outside"),
            part if part.len() > MAX_NAME => return refused("a name is longer than 255 bytes"),
            part => parts.push(part),
        }
        if parts.len() > MAX_DEPTH {
            return refused("it is deeper than 256 directories");
        }
    }
    Ok(parts)
}

/// Writes an entry's data to an empty file, holes as holes.
fn fill<R: BufRead>(
    file: &OwnedFd,
    entry: &Entry,
    reader: &mut Reader<R>,
) -> Result<(), FilesError> {
    let failed = |errno| FilesError::io("write", &entry.path, errno);
    let whole = [Segment {
        offset: 0,
        length: entry.size,
    }];
    for segment in entry.sparse.as_deref().unwrap_or(&whole) {
        let (mut offset, end) = (segment.offset, segment.offset + segment.length);
        while offset < end {
            let data = reader.data()?;
            let most = usize::try_from(end - offset).map_or(PIECE, |left| left.min(PIECE));
            let data = &data[..data.len().min(most)];
            if data.is_empty() {
                // The map promises more than there is: the reader has refused such before.
                return Err(FilesError::entry(&entry.path, "its data ends early"));
            }
            let hole = data.len() >= HOLE && data.iter().all(|&byte| byte == 0);
            let count = if hole {
                data.len()
            } else {
                rustix::io::pwrite(file, data, offset).map_err(failed)?
            };
            offset += count as u64;
            reader.consume(count)?;
        }
    }
    rustix::fs::ftruncate(file, entry.size).map_err(failed)
}
