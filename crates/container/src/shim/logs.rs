//! Reading a container's log: its end, what came since a time, and what comes, over file changes.
//!
//! For the daemon and the command line, with or without a shim alive. The files may be torn at
//! their very end by a crash; such a line is left out. Format: see `log`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify;

use super::clock::Timestamp;
use super::durable::FileError;
use super::log::{MAX_TEXT, Stream, aside};

/// The longest line of the file that is read; the writer's are shorter.
const MAX_LINE: u64 = MAX_TEXT as u64 + 128;
/// How many older files are looked for.
const MAX_FILES: u32 = 1000;

/// One record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it was read from the container.
    pub at: Timestamp,
    /// From which output.
    pub stream: Stream,
    /// Whether a newline follows the text.
    pub whole: bool,
    /// The text, without newline.
    pub text: Vec<u8>,
}

impl Record {
    /// Reads one line of the file, without its newline.
    pub fn parse(line: &[u8]) -> Option<Record> {
        let mut parts = line.splitn(4, |&b| b == b' ');
        let at = Timestamp::from_bytes(parts.next()?)?;
        let stream = match parts.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let whole = match parts.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Record {
            at,
            stream,
            whole,
            text: parts.next()?.to_vec(),
        })
    }

    /// The output as the container wrote it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.text.clone();
        if self.whole {
            bytes.push(b'\n');
        }
        bytes
    }
}

/// Where to begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct From {
    /// Only the last so many lines (pieces of a line count as one with its end).
    pub tail: Option<usize>,
    /// Only what is not older.
    pub since: Option<Timestamp>,
    /// Only one stream.
    pub stream: Option<Stream>,
}

/// Reads a log from its oldest file on, then waits for more if asked.
#[derive(Debug)]
pub struct Logs {
    path: PathBuf,
    /// Older files still to be read, oldest first.
    older: VecDeque<File>,
    current: Option<BufReader<File>>,
    inode: u64,
    partial: Vec<u8>,
    since: Option<Timestamp>,
    stream: Option<Stream>,
    /// Records read ahead to find the tail.
    ready: VecDeque<Record>,
    changes: Option<OwnedFd>,
}

impl Logs {
    /// Opens the log at `path` (the current file's).
    ///
    /// # Errors
    /// When a file is there and cannot be read. A log that does not exist yet is empty.
    pub fn open(path: &Path, from: From) -> Result<Logs, FileError> {
        let fail = |e| FileError::new("read the log", path, e);
        let mut logs = Logs {
            path: path.to_owned(),
            older: VecDeque::new(),
            current: None,
            inode: 0,
            partial: Vec::new(),
            since: from.since,
            stream: from.stream,
            ready: VecDeque::new(),
            changes: None,
        };
        // The current one first: if files change over meanwhile, one is seen twice rather than
        // never, and left out by its inode.
        let current = open(path).map_err(fail)?;
        let mut seen: Vec<u64> = current.iter().map(|(_, inode)| *inode).collect();
        for n in 1..MAX_FILES {
            let Some((file, inode)) = open(&aside(path, n)).map_err(fail)? else {
                break;
            };
            if !seen.contains(&inode) {
                seen.push(inode);
                logs.older.push_front(file);
            }
        }
        if let Some((file, inode)) = current {
            logs.older.push_back(file);
            logs.inode = inode;
        }
        logs.current = logs.older.pop_front().map(BufReader::new);
        if let Some(tail) = from.tail {
            logs.skip_to_tail(tail)?;
        }
        Ok(logs)
    }

    /// The next record; `None` when there is no more for now.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn next_record(&mut self) -> Result<Option<Record>, FileError> {
        if let Some(record) = self.ready.pop_front() {
            return Ok(Some(record));
        }
        loop {
            let record = self
                .read_record()
                .map_err(|e| FileError::new("read the log", &self.path, e))?;
            match record {
                Some(record) if self.since.is_some_and(|since| record.at < since) => {}
                Some(record) if self.stream.is_some_and(|one| record.stream != one) => {}
                other => return Ok(other),
            }
        }
    }

    /// A descriptor that becomes readable when the log changes; then call
    /// [`Logs::acknowledge`] and [`Logs::next_record`] until `None`.
    ///
    /// # Errors
    /// When the directory cannot be watched.
    pub fn watch(&mut self) -> Result<BorrowedFd<'_>, FileError> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let fail =
            |e: rustix::io::Errno| FileError::new("watch the log's directory", dir, e.into());
        if self.changes.is_none() {
            let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
            let changes = inotify::init(flags).map_err(fail)?;
            use inotify::WatchFlags as W;
            let mask = W::MODIFY | W::CREATE | W::MOVED_TO | W::MOVED_FROM | W::DELETE;
            inotify::add_watch(&changes, dir, mask).map_err(fail)?;
            self.changes = Some(changes);
        }
        match &self.changes {
            Some(changes) => Ok(changes.as_fd()),
            None => Err(fail(rustix::io::Errno::BADF)),
        }
    }

    /// Takes the notices of [`Logs::watch`].
    pub fn acknowledge(&mut self) {
        let mut buffer = [0u8; 4096];
        if let Some(changes) = &self.changes {
            while rustix::io::read(changes, &mut buffer).is_ok_and(|n| n > 0) {}
        }
    }

    /// Drops all but the last `tail` lines of what is there now. Pieces at the very end are a line.
    fn skip_to_tail(&mut self, tail: usize) -> Result<(), FileError> {
        let mut lines: VecDeque<Vec<Record>> = VecDeque::new();
        let mut pieces = Vec::new();
        while let Some(record) = self.next_record()? {
            let whole = record.whole;
            pieces.push(record);
            if whole {
                lines.push_back(std::mem::take(&mut pieces));
            }
            if lines.len() > tail {
                lines.pop_front();
            }
        }
        if !pieces.is_empty() {
            lines.push_back(pieces);
        }
        let surplus = lines.len().saturating_sub(tail);
        self.ready = lines.into_iter().skip(surplus).flatten().collect();
        Ok(())
    }

    fn read_record(&mut self) -> io::Result<Option<Record>> {
        loop {
            let Some(file) = &mut self.current else {
                match open(&self.path)? {
                    Some((file, inode)) => {
                        self.inode = inode;
                        self.current = Some(BufReader::new(file));
                        continue;
                    }
                    None => return Ok(None),
                }
            };
            let room = MAX_LINE.saturating_sub(self.partial.len() as u64);
            file.by_ref()
                .take(room)
                .read_until(b'\n', &mut self.partial)?;
            match self.partial.last() {
                Some(b'\n') => {
                    self.partial.pop();
                    let record = Record::parse(&self.partial);
                    self.partial.clear();
                    match record {
                        Some(record) => return Ok(Some(record)),
                        None => continue,
                    }
                }
                _ if self.partial.len() as u64 >= MAX_LINE => {
                    // No line of ours is that long: damage, read over it.
                    self.partial.clear();
                    continue;
                }
                _ => {}
            }
            // The end of this file; go on with the next one if there is one.
            if let Some(next) = self.older.pop_front() {
                self.partial.clear();
                self.current = Some(BufReader::new(next));
            } else if !self.follow_change()? {
                return Ok(None);
            }
        }
    }

    /// Whether the current file was put aside or cut, and reading goes on in what follows it.
    fn follow_change(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.current else {
            return Ok(false);
        };
        let position = file.stream_position()?;
        let own = file.get_ref().metadata()?;
        if own.len() < position {
            file.seek(SeekFrom::Start(own.len()))?;
            self.partial.clear();
        }
        let latest = match std::fs::metadata(&self.path) {
            Ok(latest) => latest.ino(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if latest == own.ino() {
            return Ok(false);
        }
        // It may have been written to between our read and its being put aside.
        if own.len() > position {
            return Ok(true);
        }
        // Several changes may have happened: the one right after ours comes next.
        let mut next: Vec<(File, u64)> = Vec::new();
        for n in 0..MAX_FILES {
            let path = if n == 0 {
                self.path.clone()
            } else {
                aside(&self.path, n)
            };
            match open(&path)? {
                Some((_, inode)) if inode == own.ino() => break,
                Some(found) => next.push(found),
                None if n == 0 => {}
                None => break,
            }
        }
        self.partial.clear();
        self.older = next.into_iter().rev().map(|(file, _)| file).collect();
        match self.older.pop_front() {
            Some(file) => {
                self.inode = file.metadata()?.ino();
                self.current = Some(BufReader::new(file));
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

/// The records in the last `bytes` bytes of the current file, for a client that attaches.
pub(crate) fn end_of(path: &Path, bytes: u64) -> io::Result<Vec<Record>> {
    let Some((mut file, _)) = open(path)? else {
        return Ok(Vec::new());
    };
    let len = file.metadata()?.len();
    let start = len.saturating_sub(bytes);
    file.seek(SeekFrom::Start(start))?;
    let mut text = Vec::new();
    file.take(bytes).read_to_end(&mut text)?;
    // The first line is cut, unless the file begins there.
    let cut = usize::from(start > 0);
    Ok(text
        .split(|&b| b == b'\n')
        .skip(cut)
        .filter_map(Record::parse)
        .collect())
}

fn open(path: &Path) -> io::Result<Option<(File, u64)>> {
    match File::open(path) {
        Ok(file) => {
            let inode = file.metadata()?.ino();
            Ok(Some((file, inode)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::config::LogConfig;
    use crate::shim::log::Log;

    fn log(dir: &Path, max_bytes: u64, max_files: u32) -> Log {
        Log::open(LogConfig {
            path: dir.join("log"),
            max_bytes,
            max_files,
        })
        .unwrap()
    }

    fn rest(logs: &mut Logs) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(record) = logs.next_record().unwrap() {
            all.extend(record.bytes());
        }
        all
    }

    #[test]
    fn output_survives_byte_by_byte_and_tail_and_since_cut_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path(), 0, 1);
        let time = |seconds| Timestamp { seconds, nanos: 0 };
        let long = [b'x'; 3 * MAX_TEXT + 5];
        log.write(Stream::Stdout, b"one\ntwo", time(1));
        log.write(Stream::Stdout, b" and a half\n\n", time(2));
        log.write(Stream::Stdout, &long, time(3));
        log.write(Stream::Stdout, b"\nlast piece", time(4));
        let path = dir.path().join("log");
        let all = rest(&mut Logs::open(&path, From::default()).unwrap());
        let want = [b"one\ntwo and a half\n\n", &long[..], b"\nlast piece"].concat();
        assert_eq!(all, want);
        let tail = |n| {
            rest(
                &mut Logs::open(
                    &path,
                    From {
                        tail: Some(n),
                        ..From::default()
                    },
                )
                .unwrap(),
            )
        };
        assert_eq!(tail(1), b"last piece");
        assert_eq!(tail(2), [&long[..], b"\nlast piece"].concat());
        assert_eq!(
            tail(4),
            [b"two and a half\n\n", &long[..], b"\nlast piece"].concat()
        );
        assert_eq!((tail(0), tail(99)), (vec![], want));
        let since = From {
            since: Some(time(4)),
            ..From::default()
        };
        assert_eq!(
            rest(&mut Logs::open(&path, since).unwrap()),
            b"\nlast piece"
        );
    }

    #[test]
    fn a_follower_sees_every_line_over_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut follower = Logs::open(&path, From::default()).unwrap();
        follower.watch().unwrap();
        let mut log = log(dir.path(), 500, 4);
        let (mut want, mut got) = (Vec::new(), Vec::new());
        for i in 0..200 {
            let line = format!("line {i}\n");
            want.extend(line.as_bytes());
            log.write(Stream::Stderr, line.as_bytes(), Timestamp::now());
            if i % 17 == 0 {
                follower.acknowledge();
                got.extend(rest(&mut follower));
            }
        }
        got.extend(rest(&mut follower));
        assert_eq!(
            String::from_utf8(got).unwrap(),
            String::from_utf8(want.clone()).unwrap()
        );
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, 4, "no more files than asked for");
        let kept = rest(&mut Logs::open(&path, From::default()).unwrap());
        assert!(want.ends_with(&kept) && kept.len() > 100);
        for file in std::fs::read_dir(dir.path()).unwrap() {
            assert!(file.unwrap().metadata().unwrap().len() <= 500);
        }
    }

    #[test]
    fn a_full_disk_drops_whole_records_counts_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path(), 0, 1);
        log.write(Stream::Stdout, b"before\n", Timestamp::now());
        log.redirect(Path::new("/dev/full"));
        log.write(Stream::Stdout, b"lost\n", Timestamp::now());
        assert_eq!(log.dropped_bytes(), 5);
        log.redirect(&dir.path().join("log"));
        log.write(Stream::Stdout, b"after\n", Timestamp::now());
        let all = rest(&mut Logs::open(&dir.path().join("log"), From::default()).unwrap());
        let all = String::from_utf8(all).unwrap();
        assert_eq!(
            all,
            "before\n[berth: 5 bytes of output were lost, the log was full]\nafter\n"
        );
    }

    proptest::proptest! {
        #[test]
        fn hostile_lines_never_panic(bytes in proptest::collection::vec(0u8..128, 0..80)) {
            let _ = Record::parse(&bytes);
        }
    }
}
