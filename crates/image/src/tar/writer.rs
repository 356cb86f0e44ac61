//! Writing: the same entries give the same bytes.
//!
//! Plain ustar where the values fit, pax records before the entry where they do not; no user names, no
//! access times, nothing of the host.

use std::io::{self, Write};

use super::{BLOCK, Entry, Kind, Segment, header::flag};

/// Largest number of an 8-byte octal field.
const OCTAL_7: u64 = 0o7_777_777;
/// Largest number of a 12-byte octal field.
const OCTAL_11: u64 = 0o77_777_777_777;

/// A tar writer.
pub struct Writer<W> {
    output: W,
    /// Data of the current file still to come, and its padding.
    remaining: u64,
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// A writer to `output`.
    pub fn new(output: W) -> Self {
        Self {
            output,
            remaining: 0,
            padding: 0,
        }
    }

    /// Begins an entry. For a file exactly `entry.size` bytes of [`Writer::data`] must follow; for one
    /// with holes, the bytes of its segments.
    ///
    /// # Errors
    /// When `output` fails, or data and size do not agree.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        if self.remaining != 0 {
            return Err(io::Error::other(
                "a file is shorter than when its header was written",
            ));
        }
        let records = pax_records(entry);
        if !records.is_empty() {
            let header = Entry {
                path: b"PaxHeaders/0".to_vec(),
                mode: 0o644,
                ..Entry::default()
            };
            self.output
                .write_all(&block(&header, flag::PAX, records.len() as u64))?;
            self.output.write_all(&records)?;
            self.pad(padding(records.len() as u64))?;
        }
        let map = sparse_map(entry);
        let stored = stored_bytes(entry);
        let size = stored - map.len() as u64;
        self.output
            .write_all(&block(entry, type_flag(entry.kind), stored))?;
        self.output.write_all(&map)?;
        (self.remaining, self.padding) = (size, padding(size));
        Ok(())
    }

    /// Writes a part of the current file's content.
    ///
    /// # Errors
    /// When `output` fails, or data and size do not agree.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let left = self.remaining.checked_sub(bytes.len() as u64);
        self.remaining = left
            .ok_or_else(|| io::Error::other("a file is longer than when its header was written"))?;
        self.output.write_all(bytes)?;
        if self.remaining == 0 {
            let padding = std::mem::take(&mut self.padding);
            self.pad(padding)?;
        }
        Ok(())
    }

    /// A whole file in memory.
    ///
    /// # Errors
    /// When `output` fails, or data and size do not agree.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(&Entry {
            path: path.as_bytes().to_vec(),
            mode,
            size: content.len() as u64,
            ..Entry::default()
        })?;
        self.data(content)
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// When `output` fails, or data and size do not agree.
    pub fn finish(mut self) -> io::Result<W> {
        if self.remaining != 0 {
            return Err(io::Error::other(
                "a file is shorter than when its header was written",
            ));
        }
        self.output.write_all(&[0; 2 * BLOCK])?;
        Ok(self.output)
    }

    fn pad(&mut self, count: usize) -> io::Result<()> {
        self.output.write_all(&[0; BLOCK][..count])
    }
}

fn padding(size: u64) -> usize {
    let over = size % BLOCK as u64;
    if over == 0 {
        0
    } else {
        BLOCK - usize::try_from(over).expect("smaller than a block")
    }
}

fn type_flag(kind: Kind) -> u8 {
    match kind {
        Kind::File => flag::FILE,
        Kind::HardLink => flag::HARD_LINK,
        Kind::Symlink => flag::SYMLINK,
        Kind::Char => flag::CHAR,
        Kind::Block => flag::BLOCK,
        Kind::Directory => flag::DIRECTORY,
        Kind::Fifo => flag::FIFO,
    }
}

/// The bytes that follow the header.
fn stored_bytes(entry: &Entry) -> u64 {
    match (&entry.sparse, entry.kind) {
        (Some(segments), Kind::File) => {
            let data: u64 = segments.iter().map(|it| it.length).sum();
            data + sparse_map(entry).len() as u64
        }
        (None, Kind::File) => entry.size,
        _ => 0,
    }
}

/// The map before the data of a file with holes, in GNU's pax format 1.0 (GNU tar's manual,
/// "Storing Sparse Files"): decimal numbers, padded to a whole block. Nothing for other entries.
fn sparse_map(entry: &Entry) -> Vec<u8> {
    let Some(segments) = entry.sparse.as_ref().filter(|_| entry.kind == Kind::File) else {
        return Vec::new();
    };
    let mut map = format!("{}\n", segments.len());
    for Segment { offset, length } in segments {
        map.push_str(&format!("{offset}\n{length}\n"));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

/// What does not fit into the header.
fn pax_records(entry: &Entry) -> Vec<u8> {
    let mut records = Vec::new();
    if split_path(&entry.path).is_none() {
        record(&mut records, b"path", &entry.path);
    }
    if entry.link.len() > 100 {
        record(&mut records, b"linkpath", &entry.link);
    }
    let mut number = |key: &[u8], value: u64, limit: u64| {
        if value > limit {
            record(&mut records, key, value.to_string().as_bytes());
        }
    };
    number(b"uid", entry.uid.into(), OCTAL_7);
    number(b"gid", entry.gid.into(), OCTAL_7);
    number(b"size", stored_bytes(entry), OCTAL_11);
    if entry.sparse.is_some() && entry.kind == Kind::File {
        record(&mut records, b"GNU.sparse.major", b"1");
        record(&mut records, b"GNU.sparse.minor", b"0");
        record(&mut records, b"GNU.sparse.name", &entry.path);
        record(
            &mut records,
            b"GNU.sparse.realsize",
            entry.size.to_string().as_bytes(),
        );
    }
    let (seconds, nanos) = entry.mtime;
    if nanos != 0 || u64::try_from(seconds).map_or(true, |seconds| seconds > OCTAL_11) {
        record(&mut records, b"mtime", timestamp(seconds, nanos).as_bytes());
    }
    for (name, value) in &entry.xattrs {
        record(
            &mut records,
            &[b"SCHILY.xattr.", name.as_slice()].concat(),
            value,
        );
    }
    records
}

/// Decimal seconds; negative times count down from the next whole second.
fn timestamp(seconds: i64, nanos: u32) -> String {
    let (sign, whole, nanos) = if seconds >= 0 {
        ("", seconds.unsigned_abs(), nanos)
    } else if nanos == 0 {
        ("-", seconds.unsigned_abs(), 0)
    } else {
        ("-", seconds.unsigned_abs() - 1, 1_000_000_000 - nanos)
    };
    if nanos == 0 {
        return format!("{sign}{whole}");
    }
    let fraction = format!("{nanos:09}");
    format!("{sign}{whole}.{}", fraction.trim_end_matches('0'))
}

/// `length key=value\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// The path as prefix and name of a ustar header, if it fits.
fn split_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((&[], path));
    }
    let earliest = path.len().checked_sub(101)?;
    let slash = (earliest..path.len().min(156)).find(|&i| path[i] == b'/')?;
    let (prefix, name) = (&path[..slash], &path[slash + 1..]);
    (!prefix.is_empty() && !name.is_empty()).then_some((prefix, name))
}

fn block(entry: &Entry, type_flag: u8, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let (prefix, name) = split_path(&entry.path).unwrap_or_else(|| (&[], &entry.path[..100]));
    block[..name.len()].copy_from_slice(name);
    octal(&mut block[100..108], entry.mode.into());
    octal(&mut block[108..116], u64::from(entry.uid).min(OCTAL_7));
    octal(&mut block[116..124], u64::from(entry.gid).min(OCTAL_7));
    octal(&mut block[124..136], size.min(OCTAL_11));
    octal(
        &mut block[136..148],
        u64::try_from(entry.mtime.0).unwrap_or(0).min(OCTAL_11),
    );
    block[156] = type_flag;
    let link = &entry.link[..entry.link.len().min(100)];
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    octal(&mut block[329..337], entry.device.0.into());
    octal(&mut block[337..345], entry.device.1.into());
    block[345..345 + prefix.len()].copy_from_slice(prefix);
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
    octal(&mut block[148..155], sum);
    block
}

/// Octal digits filling the field up to a NUL.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    field[..digits].copy_from_slice(&text.as_bytes()[text.len() - digits..]);
    field[digits] = 0;
}
