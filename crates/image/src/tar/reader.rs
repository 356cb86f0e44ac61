//! Reading: one entry after the other, limits before belief.

use std::io::{self, BufRead};

use super::{
    BLOCK, Entry, Kind, TarError, display,
    header::{Header, flag},
    pax::{Extended, PaxError},
    sparse,
};
use crate::limits::Limits;

/// A tar reader over a buffered stream. Call [`Reader::next_entry`], then [`Reader::data`] until empty;
/// data not asked for is skipped.
pub struct Reader<R> {
    input: R,
    limits: Limits,
    /// Bytes of the stream consumed so far.
    offset: u64,
    /// Data of the current entry not yet consumed.
    remaining: u64,
    /// Zeros between the data and the next header.
    padding: u64,
    /// The current entry, for messages.
    name: String,
}

impl<R: BufRead> Reader<R> {
    /// A reader of `input` that believes nothing beyond `limits`.
    pub fn new(input: R, limits: &Limits) -> Self {
        let limits = limits.clone();
        Self {
            input,
            limits,
            offset: 0,
            remaining: 0,
            padding: 0,
            name: String::new(),
        }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The current entry's name, for messages.
    #[must_use]
    pub fn current(&self) -> &str {
        &self.name
    }

    /// The next entry, or `None` at the end of the archive.
    ///
    /// # Errors
    /// When the stream breaks, is no tar, or exceeds a limit.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip(self.remaining + self.padding)?;
        (self.remaining, self.padding) = (0, 0);
        let mut extended = Extended::default();
        let mut header_bytes = 0;
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header.size().and_then(|size| u64::try_from(size).ok());
            let size = size.ok_or_else(|| self.bad("size"))?;
            match header.flag() {
                flag::PAX | flag::PAX_SOLARIS => {
                    let data = self.extension(size, &mut header_bytes)?;
                    let parsed = extended.parse(&data, &self.limits);
                    parsed.map_err(|error| self.pax_error(&error))?;
                }
                flag::GNU_LONG_NAME => extended.path = Some(self.long(size, &mut header_bytes)?),
                flag::GNU_LONG_LINK => extended.link = Some(self.long(size, &mut header_bytes)?),
                flag::PAX_GLOBAL | flag::GNU_VOLUME => {
                    self.extension(size, &mut header_bytes)?;
                }
                _ => return self.finish(&header, size, extended).map(Some),
            }
        }
    }

    /// The next piece of the current entry's stored data; empty at its end. Follow with `consume`.
    ///
    /// # Errors
    /// When the stream breaks or ends too early.
    pub fn data(&mut self) -> Result<&[u8], TarError> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        // Twice, because a borrow that may be returned cannot also be dropped in the error path.
        match self.input.fill_buf() {
            Ok([]) => {
                return Err(TarError::Truncated {
                    entry: self.name.clone(),
                });
            }
            Ok(_) => {}
            Err(source) => {
                return Err(TarError::Read {
                    entry: self.name.clone(),
                    source,
                });
            }
        }
        let buffer = self.input.fill_buf().unwrap_or_default();
        let end =
            usize::try_from(self.remaining).map_or(buffer.len(), |left| left.min(buffer.len()));
        Ok(&buffer[..end])
    }

    /// Marks data as used.
    ///
    /// # Errors
    /// When the stream has become longer than its limit.
    pub fn consume(&mut self, bytes: usize) -> Result<(), TarError> {
        self.remaining -= bytes as u64;
        self.advance(bytes)
    }

    /// Reads on to the end of the stream, past the archive's end: what follows still counts in a digest.
    ///
    /// # Errors
    /// When the stream breaks or exceeds its limit.
    pub fn drain(mut self) -> Result<(), TarError> {
        loop {
            let available = match self.input.fill_buf() {
                Ok(buffer) => buffer.len(),
                Err(source) => {
                    return Err(TarError::Read {
                        entry: self.name,
                        source,
                    });
                }
            };
            if available == 0 {
                return Ok(());
            }
            self.advance(available)?;
        }
    }

    /// A header block that is not zeros; `None` at the end.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let at_end = self.input.fill_buf().map(<[u8]>::is_empty);
        if at_end.map_err(|source| TarError::Read {
            entry: self.name.clone(),
            source,
        })? {
            // Go's writer and others leave the zero blocks out; an end between entries is an end.
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        self.exact(&mut block)?;
        let header = Header(block);
        if header.is_zero() {
            return Ok(None);
        }
        if !header.checksum_ok() {
            return Err(self.bad("checksum"));
        }
        Ok(Some(header))
    }

    /// Turns a header and the extensions before it into an entry.
    fn finish(&mut self, header: &Header, size: u64, ext: Extended) -> Result<Entry, TarError> {
        let path = ext
            .sparse
            .name
            .or(ext.path)
            .unwrap_or_else(|| header.name());
        self.name = display(&path);
        let kind = self.kind(header, &path)?;
        let stored = match kind {
            Kind::File => ext.size.unwrap_or(size),
            // Old writers put a link's target size here; no data follows.
            _ => 0,
        };
        let mut entry = Entry {
            kind,
            size: stored,
            path,
            ..Entry::default()
        };
        entry.link = ext.link.unwrap_or_else(|| header.link());
        if entry.path.len() > self.limits.path_bytes || entry.link.len() > self.limits.path_bytes {
            return Err(self.over("path length in bytes", self.limits.path_bytes as u64));
        }
        entry.mode = u32::try_from(header.mode().ok_or_else(|| self.bad("mode"))? & 0o7777)
            .map_err(|_| self.bad("mode"))?;
        entry.uid = self.owner(ext.uid, header.uid())?;
        entry.gid = self.owner(ext.gid, header.gid())?;
        entry.mtime = match ext.mtime {
            Some(mtime) => mtime,
            None => (header.mtime().ok_or_else(|| self.bad("mtime"))?, 0),
        };
        if matches!(kind, Kind::Char | Kind::Block) {
            let (major, minor) = header.device().ok_or_else(|| self.bad("device numbers"))?;
            let number = |n: i64| u32::try_from(n).map_err(|_| self.bad("device numbers"));
            entry.device = (number(major)?, number(minor)?);
        }
        entry.xattrs = ext.xattrs;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
        self.remaining = stored;
        if header.flag() == flag::GNU_SPARSE {
            let (map, real_size) = sparse::old_gnu(self, header)?;
            (entry.sparse, entry.size) = (Some(map), real_size);
        } else if kind == Kind::File && ext.sparse.present {
            let real_size = ext
                .sparse
                .real_size
                .ok_or_else(|| self.bad("sparse size"))?;
            let map = if ext.sparse.major == Some(1) {
                let (map, taken) = sparse::pax_1_0(self, stored)?;
                self.remaining -= taken;
                map
            } else {
                ext.sparse.map
            };
            (entry.sparse, entry.size) = (Some(map), real_size);
        }
        if let Some(map) = &entry.sparse {
            sparse::check(map, entry.size, self.remaining).ok_or_else(|| self.bad("sparse map"))?;
        }
        if entry.size > self.limits.file_bytes {
            return Err(self.over("file length in bytes", self.limits.file_bytes));
        }
        Ok(entry)
    }

    fn kind(&self, header: &Header, path: &[u8]) -> Result<Kind, TarError> {
        Ok(match header.flag() {
            // Before POSIX a directory was a file whose name ends in a slash.
            flag::FILE | 0 if path.ends_with(b"/") => Kind::Directory,
            flag::FILE | 0 | flag::CONTIGUOUS | flag::GNU_SPARSE => Kind::File,
            flag::HARD_LINK => Kind::HardLink,
            flag::SYMLINK => Kind::Symlink,
            flag::CHAR => Kind::Char,
            flag::BLOCK => Kind::Block,
            flag::DIRECTORY => Kind::Directory,
            flag::FIFO => Kind::Fifo,
            other => {
                return Err(TarError::Kind {
                    entry: self.name.clone(),
                    kind: char::from(other),
                });
            }
        })
    }

    fn owner(&self, extended: Option<u64>, field: Option<i64>) -> Result<u32, TarError> {
        let id = extended.or_else(|| field.and_then(|id| u64::try_from(id).ok()));
        // The kernel reads u32::MAX as "leave unchanged".
        id.and_then(|id| u32::try_from(id).ok())
            .filter(|&id| id != u32::MAX)
            .ok_or_else(|| self.bad("owner"))
    }

    /// A GNU long name: text up to its NUL.
    fn long(&mut self, size: u64, total: &mut usize) -> Result<Vec<u8>, TarError> {
        let mut data = self.extension(size, total)?;
        let end = data.iter().position(|&b| b == 0).unwrap_or(data.len());
        data.truncate(end);
        Ok(data)
    }

    /// The data of an extension header, bounded for all extensions of one entry together.
    fn extension(&mut self, size: u64, total: &mut usize) -> Result<Vec<u8>, TarError> {
        let limit = self.limits.header_bytes;
        let fits = usize::try_from(size).ok().filter(|&size| size <= limit);
        let Some(size) = fits.filter(|size| *total + size + BLOCK <= limit) else {
            return Err(self.over("extended header bytes", limit as u64));
        };
        // An empty header costs a block all the same: a chain of them must end too.
        *total += size + BLOCK;
        let mut data = vec![0; size];
        self.exact(&mut data)?;
        self.skip((size.next_multiple_of(BLOCK) - size) as u64)?;
        Ok(data)
    }

    /// Fills a buffer that must be there.
    pub(super) fn exact(&mut self, mut buffer: &mut [u8]) -> Result<(), TarError> {
        while !buffer.is_empty() {
            let available = self.input.fill_buf();
            let available = available.map_err(|source| TarError::Read {
                entry: self.name.clone(),
                source,
            })?;
            if available.is_empty() {
                return Err(TarError::Truncated {
                    entry: self.name.clone(),
                });
            }
            let count = available.len().min(buffer.len());
            buffer[..count].copy_from_slice(&available[..count]);
            buffer = &mut buffer[count..];
            self.advance(count)?;
        }
        Ok(())
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), TarError> {
        while bytes > 0 {
            let available = match self.input.fill_buf() {
                Ok(buffer) => buffer.len(),
                Err(source) => {
                    return Err(TarError::Read {
                        entry: self.name.clone(),
                        source,
                    });
                }
            };
            if available == 0 {
                return Err(TarError::Truncated {
                    entry: self.name.clone(),
                });
            }
            let count = usize::try_from(bytes).map_or(available, |bytes| bytes.min(available));
            self.advance(count)?;
            bytes -= count as u64;
        }
        Ok(())
    }

    fn advance(&mut self, bytes: usize) -> Result<(), TarError> {
        self.input.consume(bytes);
        self.offset += bytes as u64;
        if self.offset > self.limits.layer_bytes {
            return Err(self.over("uncompressed bytes of the layer", self.limits.layer_bytes));
        }
        Ok(())
    }

    pub(super) fn bad(&self, reason: &'static str) -> TarError {
        TarError::Header {
            offset: self.offset,
            entry: self.name.clone(),
            reason,
        }
    }

    pub(super) fn over(&self, what: &'static str, limit: u64) -> TarError {
        TarError::Limit {
            entry: self.name.clone(),
            what,
            limit,
        }
    }

    fn pax_error(&self, error: &PaxError) -> TarError {
        match error {
            PaxError::Malformed => self.bad("pax record"),
            PaxError::Xattrs => {
                self.over("extended attribute bytes", self.limits.xattr_bytes as u64)
            }
            PaxError::Segments => self.over(
                "segments of a sparse file",
                self.limits.sparse_segments as u64,
            ),
        }
    }
}

impl<R: BufRead> Reader<R> {
    /// Streams the current entry's data to `output`.
    ///
    /// # Errors
    /// When the stream breaks, or `output` fails.
    pub fn copy_data(
        &mut self,
        mut output: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), TarError> {
        loop {
            let data = self.data()?;
            let count = data.len();
            if count == 0 {
                return Ok(());
            }
            if let Err(source) = output(data) {
                let entry = self.name.clone();
                return Err(TarError::Write {
                    action: "write",
                    entry,
                    source,
                });
            }
            self.consume(count)?;
        }
    }
}
