//! Pax extended records: `length keyword=value\n` (POSIX pax, "pax Extended Header").

use super::Segment;
use crate::limits::Limits;

/// What extended records said about the next entry.
#[derive(Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Sparse,
}

/// GNU's sparse records, three generations of them.
#[derive(Default)]
pub(super) struct Sparse {
    pub(super) major: Option<u64>,
    pub(super) real_size: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// Versions 0.0 and 0.1.
    pub(super) map: Vec<Segment>,
    pending_offset: Option<u64>,
    pub(super) present: bool,
}

/// Why records were refused.
pub(super) enum PaxError {
    Malformed,
    Xattrs,
    Segments,
}

impl Extended {
    /// Reads a block of records on top of what earlier ones said.
    pub(super) fn parse(&mut self, mut data: &[u8], limits: &Limits) -> Result<(), PaxError> {
        while !data.is_empty() {
            // Some writers pad the block with NULs.
            if data.iter().all(|&b| b == 0) {
                return Ok(());
            }
            let space = data
                .iter()
                .take(20)
                .position(|&b| b == b' ')
                .ok_or(PaxError::Malformed)?;
            let length =
                usize::try_from(decimal(&data[..space])?).map_err(|_| PaxError::Malformed)?;
            if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
                return Err(PaxError::Malformed);
            }
            let record = &data[space + 1..length - 1];
            let equals = record
                .iter()
                .position(|&b| b == b'=')
                .ok_or(PaxError::Malformed)?;
            self.record(&record[..equals], &record[equals + 1..], limits)?;
            data = &data[length..];
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<(), PaxError> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            return self.xattr(name, value, limits);
        }
        // An empty value takes an earlier record back.
        let some = !value.is_empty();
        match key {
            b"path" => self.path = some.then(|| value.to_vec()),
            b"linkpath" => self.link = some.then(|| value.to_vec()),
            b"size" => self.size = some.then(|| decimal(value)).transpose()?,
            b"uid" => self.uid = some.then(|| decimal(value)).transpose()?,
            b"gid" => self.gid = some.then(|| decimal(value)).transpose()?,
            b"mtime" => self.mtime = some.then(|| timestamp(value)).transpose()?,
            _ => {
                if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.record(name, value, limits)?;
                }
            }
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8], limits: &Limits) -> Result<(), PaxError> {
        self.xattrs.retain(|(known, _)| known != name);
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err(PaxError::Malformed);
        }
        let total: usize = self
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if total + name.len() + value.len() > limits.xattr_bytes {
            return Err(PaxError::Xattrs);
        }
        let at = self
            .xattrs
            .partition_point(|(known, _)| known.as_slice() < name);
        self.xattrs.insert(at, (name.to_vec(), value.to_vec()));
        Ok(())
    }
}

impl Sparse {
    fn record(&mut self, name: &[u8], value: &[u8], limits: &Limits) -> Result<(), PaxError> {
        self.present = true;
        match name {
            b"major" => self.major = Some(decimal(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.real_size = Some(decimal(value)?),
            b"offset" => self.pending_offset = Some(decimal(value)?),
            b"numbytes" => {
                let offset = self.pending_offset.take().ok_or(PaxError::Malformed)?;
                self.push(
                    Segment {
                        offset,
                        length: decimal(value)?,
                    },
                    limits,
                )?;
            }
            b"map" if !value.is_empty() => {
                let mut numbers = value.split(|&b| b == b',');
                while let Some(offset) = numbers.next() {
                    let length = numbers.next().ok_or(PaxError::Malformed)?;
                    let segment = Segment {
                        offset: decimal(offset)?,
                        length: decimal(length)?,
                    };
                    self.push(segment, limits)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, segment: Segment, limits: &Limits) -> Result<(), PaxError> {
        if self.map.len() >= limits.sparse_segments {
            return Err(PaxError::Segments);
        }
        self.map.push(segment);
        Ok(())
    }
}

pub(super) fn decimal(text: &[u8]) -> Result<u64, PaxError> {
    if text.is_empty() || text.len() > 20 || !text.iter().all(u8::is_ascii_digit) {
        return Err(PaxError::Malformed);
    }
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(PaxError::Malformed)
}

/// `[-]seconds[.fraction]` to seconds rounded down and nanoseconds.
fn timestamp(text: &[u8]) -> Result<(i64, u32), PaxError> {
    let (negative, rest) = text
        .strip_prefix(b"-")
        .map_or((false, text), |rest| (true, rest));
    let mut parts = rest.splitn(2, |&b| b == b'.');
    let whole = decimal(parts.next().unwrap_or_default())?;
    let mut seconds = i64::try_from(whole).map_err(|_| PaxError::Malformed)?;
    let mut nanos = 0;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(PaxError::Malformed);
    }
    for i in 0..9 {
        nanos = nanos * 10 + fraction.get(i).map_or(0, |&b| u32::from(b - b'0'));
    }
    if negative {
        seconds = -seconds;
        if nanos > 0 {
            seconds -= 1;
            nanos = 1_000_000_000 - nanos;
        }
    }
    Ok((seconds, nanos))
}
