//! A file that keeps the console's output and does not grow without bound.
//!
//! Both files are opened before the process locks itself up; afterwards nothing can be renamed or
//! opened, so that a full file is copied to the older one and begun anew.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Unless said otherwise.
pub const DEFAULT_BYTES: u64 = 1 << 20;

/// The file, and the older one.
#[derive(Debug)]
pub struct Log {
    current: File,
    older: File,
    bytes: u64,
    limit: u64,
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(path)
}

impl Log {
    /// Opens `path`, and `path.1` for what was before; what is there is kept. `limit` is the size
    /// of each, 0 for [`DEFAULT_BYTES`].
    ///
    /// # Errors
    /// When one of them cannot be opened.
    pub fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let mut older = path.as_os_str().to_owned();
        older.push(".1");
        let mut current = open(path)?;
        let bytes = current.seek(SeekFrom::End(0))?;
        Ok(Self {
            current,
            older: open(Path::new(&older))?,
            bytes,
            limit: if limit == 0 { DEFAULT_BYTES } else { limit },
        })
    }

    /// Keeps `data`. What a full disk does not take is lost: a guest must not stop for it.
    pub(super) fn write(&mut self, data: &[u8]) {
        for piece in data.chunks(usize::try_from(self.limit).unwrap_or(usize::MAX)) {
            if self.bytes + piece.len() as u64 > self.limit {
                let _lost = self.rotate();
            }
            if self.current.write_all(piece).is_ok() {
                self.bytes += piece.len() as u64;
            } else {
                // Part of it may have been written.
                self.bytes = self.current.stream_position().unwrap_or(self.bytes);
            }
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.older.set_len(0)?;
        self.older.rewind()?;
        self.current.rewind()?;
        let copied = io::copy(&mut (&self.current).take(self.limit), &mut self.older);
        self.current.set_len(0)?;
        self.current.rewind()?;
        self.bytes = 0;
        copied.map(drop)
    }

    /// The last `count` bytes of the current file.
    pub(super) fn tail(&mut self, count: u64) -> Vec<u8> {
        let mut tail = Vec::new();
        let start = self.bytes.saturating_sub(count);
        let read = self
            .current
            .seek(SeekFrom::Start(start))
            .and_then(|_| (&self.current).take(count).read_to_end(&mut tail));
        let _at_end = self.current.seek(SeekFrom::Start(self.bytes));
        if read.is_err() {
            tail.clear();
        }
        tail
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs;

    use super::*;

    #[test]
    fn a_full_file_becomes_the_older_one_and_none_grows_past_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut log = Log::open(&path, 10).unwrap();
        for text in ["one\n", "two\n", "three\n"] {
            log.write(text.as_bytes());
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        let older = directory.path().join("console.log.1");
        assert_eq!(fs::read_to_string(&older).unwrap(), "one\ntwo\n");
        drop(log);

        let mut log = Log::open(&path, 10).unwrap();
        assert_eq!(log.tail(4), b"ree\n");
        log.write(&[b'x'; 25]);
        assert_eq!(fs::read(&path).unwrap(), [b'x'; 5]);
        assert_eq!(fs::read(&older).unwrap(), [b'x'; 10]);
    }

    #[test]
    fn a_full_disk_stops_nobody() {
        let mut log = Log {
            current: OpenOptions::new().write(true).open("/dev/full").unwrap(),
            older: OpenOptions::new().write(true).open("/dev/null").unwrap(),
            bytes: 0,
            limit: 100,
        };
        log.write(b"lost");
    }
}
