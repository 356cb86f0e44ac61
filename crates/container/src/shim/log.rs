//! Writing a container's output to its log: text lines in the form container tools share.
//!
//! ```text
//! 2026-11-20T10:00:00.123456789Z stdout F a whole line
//! 2026-11-20T10:00:00.123456790Z stderr P a piece of a line, more follows
//! ```
//!
//! Nothing is held back: what was read is written at once, so a killed shim loses nothing it has
//! taken. A full disk never blocks or kills the container: what does not fit is counted, and said
//! in the log once it takes lines again. Files change over only between lines.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::clock::{TIMESTAMP_LEN, Timestamp};
use super::config::LogConfig;
use super::durable::FileError;

/// The longest text of one record; longer lines come in pieces.
pub(crate) const MAX_TEXT: usize = 16 << 10;

/// Which output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// As written in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// An open log.
#[derive(Debug)]
pub(crate) struct Log {
    config: LogConfig,
    /// `None` while no file can be opened.
    file: Option<File>,
    size: u64,
    dropped: u64,
    unreported: u64,
    buffer: Vec<u8>,
}

impl Log {
    pub(crate) fn open(config: LogConfig) -> Result<Log, FileError> {
        let (file, size) =
            open(&config.path).map_err(|e| FileError::new("open the log", &config.path, e))?;
        Ok(Log {
            config,
            file: Some(file),
            size,
            dropped: 0,
            unreported: 0,
            buffer: Vec::new(),
        })
    }

    /// Bytes of output that could not be kept.
    pub(crate) fn dropped_bytes(&self) -> u64 {
        self.dropped
    }

    /// Keeps a piece of output; never fails, see the module.
    pub(crate) fn write(&mut self, stream: Stream, data: &[u8], now: Timestamp) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        if self.unreported > 0 {
            let text = format!(
                "[berth: {} bytes of output were lost, the log was full]",
                self.unreported
            );
            Prefix::new(Stream::Stderr, now).record(&mut buffer, text.as_bytes(), true);
        }
        format(&mut buffer, stream, data, now);
        match self.append(&buffer) {
            Ok(()) => self.unreported = 0,
            Err(_) => {
                self.dropped = self.dropped.saturating_add(data.len() as u64);
                self.unreported = self.unreported.saturating_add(data.len() as u64);
            }
        }
        if buffer.capacity() > 2 * MAX_TEXT {
            buffer = Vec::new();
        }
        self.buffer = buffer;
    }

    /// Writes to another file from now on, such as `/dev/full`.
    #[cfg(test)]
    pub(crate) fn redirect(&mut self, path: &Path) {
        self.file = open(path).ok().map(|(file, _)| file);
    }

    /// Writes whole records, each file as full as it may be.
    fn append(&mut self, mut records: &[u8]) -> io::Result<()> {
        while !records.is_empty() {
            let (fitting, rest) = records.split_at(self.fitting(records));
            self.append_here(fitting)?;
            records = rest;
        }
        Ok(())
    }

    /// How many bytes of `records` go into the current file, which is put aside when it is full. A
    /// record that is longer than a file may be has one of its own.
    fn fitting(&mut self, records: &[u8]) -> usize {
        let max = self.config.max_bytes;
        for _ in 0..2 {
            let room = usize::try_from(max.saturating_sub(self.size)).unwrap_or(usize::MAX);
            if max == 0 || records.len() <= room {
                return records.len();
            }
            let whole = |part: &[u8]| part.iter().rposition(|&byte| byte == b'\n');
            if let Some(end) = whole(&records[..room]) {
                return end + 1;
            }
            if self.size == 0 {
                break;
            }
            self.rotate();
        }
        let first = records.iter().position(|&byte| byte == b'\n');
        first.map_or(records.len(), |end| end + 1)
    }

    fn append_here(&mut self, records: &[u8]) -> io::Result<()> {
        let len = records.len() as u64;
        if self.file.is_none() {
            let (file, size) = open(&self.config.path)?;
            (self.file, self.size) = (Some(file), size);
        }
        let Some(file) = &mut self.file else {
            return Err(io::ErrorKind::NotFound.into());
        };
        match file.write_all(records) {
            Ok(()) => {
                self.size += len;
                Ok(())
            }
            Err(error) => {
                // What did fit ends in the middle of a line: take it back.
                let _ = file.set_len(self.size);
                Err(error)
            }
        }
    }

    /// Puts the current file aside. If a rename fails the log simply grows on.
    fn rotate(&mut self) {
        let path = &self.config.path;
        let keep = self.config.max_files.max(1) - 1;
        let result = if keep == 0 {
            fs::remove_file(path)
        } else {
            (1..keep).rev().for_each(|n| {
                let _ = fs::rename(aside(path, n), aside(path, n + 1));
            });
            fs::rename(path, aside(path, 1))
        };
        if result.is_ok() {
            self.file = None;
            self.size = 0;
        }
    }
}

/// The name of the `n`th older file.
pub(crate) fn aside(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    PathBuf::from(name)
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// Appends the records of `data`: whole lines, and a piece if it does not end in a newline.
fn format(out: &mut Vec<u8>, stream: Stream, data: &[u8], now: Timestamp) {
    let prefix = Prefix::new(stream, now);
    for line in data.split_inclusive(|&b| b == b'\n') {
        let (text, whole) = match line.strip_suffix(b"\n") {
            Some(text) => (text, true),
            None => (line, false),
        };
        if text.len() <= MAX_TEXT {
            prefix.record(out, text, whole);
            continue;
        }
        let last = (text.len() - 1) / MAX_TEXT;
        for (i, piece) in text.chunks(MAX_TEXT).enumerate() {
            prefix.record(out, piece, whole && i == last);
        }
    }
}

/// What comes before the text, made once for all lines that arrive together.
struct Prefix([u8; TIMESTAMP_LEN + 10]);

impl Prefix {
    fn new(stream: Stream, now: Timestamp) -> Prefix {
        let mut bytes = [b' '; TIMESTAMP_LEN + 10];
        bytes[..TIMESTAMP_LEN].copy_from_slice(&now.to_bytes());
        bytes[TIMESTAMP_LEN + 1..TIMESTAMP_LEN + 7].copy_from_slice(stream.as_str().as_bytes());
        Prefix(bytes)
    }

    fn record(&self, out: &mut Vec<u8>, text: &[u8], whole: bool) {
        let start = out.len();
        out.extend_from_slice(&self.0);
        out[start + TIMESTAMP_LEN + 8] = if whole { b'F' } else { b'P' };
        out.extend_from_slice(text);
        out.push(b'\n');
    }
}
