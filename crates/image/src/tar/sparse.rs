//! Maps of sparse files in the two places outside pax records: GNU's old header and pax 1.0's data.

use std::io::BufRead;

use super::{BLOCK, Segment, TarError, header, pax, reader::Reader};

/// Reads the map in a GNU sparse header and the blocks that continue it.
pub(super) fn old_gnu<R: BufRead>(
    reader: &mut Reader<R>,
    header: &header::Header,
) -> Result<(Vec<Segment>, u64), TarError> {
    let mut map = Vec::new();
    let mut more = parse_pairs(reader, &header.0[386..482], &mut map)? && header.0[482] != 0;
    let real_size = header::number(&header.0[483..495]).and_then(|size| u64::try_from(size).ok());
    let real_size = real_size.ok_or_else(|| reader.bad("sparse size"))?;
    while more {
        let mut block = [0; BLOCK];
        reader.exact(&mut block)?;
        more = parse_pairs(reader, &block[..504], &mut map)? && block[504] != 0;
    }
    Ok((map, real_size))
}

/// Appends pairs of (offset, length); tells whether the field was full, so that more may follow.
fn parse_pairs<R: BufRead>(
    reader: &Reader<R>,
    field: &[u8],
    map: &mut Vec<Segment>,
) -> Result<bool, TarError> {
    for pair in field.chunks_exact(24) {
        if pair[0] == 0 {
            return Ok(false);
        }
        let part = |range: std::ops::Range<usize>| {
            header::number(&pair[range]).and_then(|number| u64::try_from(number).ok())
        };
        let (Some(offset), Some(length)) = (part(0..12), part(12..24)) else {
            return Err(reader.bad("sparse map"));
        };
        push(reader, map, Segment { offset, length })?;
    }
    Ok(true)
}

/// Reads the decimal map before the data of a pax 1.0 sparse file; answers it and its padded length.
pub(super) fn pax_1_0<R: BufRead>(
    reader: &mut Reader<R>,
    stored: u64,
) -> Result<(Vec<Segment>, u64), TarError> {
    let mut lines = Lines {
        block: [0; BLOCK],
        at: BLOCK,
        taken: 0,
        stored,
    };
    let count = lines.number(reader)?;
    let mut map = Vec::new();
    for _ in 0..count {
        let offset = lines.number(reader)?;
        let length = lines.number(reader)?;
        push(reader, &mut map, Segment { offset, length })?;
    }
    Ok((map, lines.taken))
}

struct Lines {
    block: [u8; BLOCK],
    at: usize,
    taken: u64,
    stored: u64,
}

impl Lines {
    fn number<R: BufRead>(&mut self, reader: &mut Reader<R>) -> Result<u64, TarError> {
        let mut digits = Vec::with_capacity(20);
        loop {
            if self.at == BLOCK {
                if self.taken + BLOCK as u64 > self.stored {
                    return Err(reader.bad("sparse map"));
                }
                reader.exact(&mut self.block)?;
                self.taken += BLOCK as u64;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            if byte == b'\n' {
                return pax::decimal(&digits).map_err(|_| reader.bad("sparse map"));
            }
            if digits.len() == 20 {
                return Err(reader.bad("sparse map"));
            }
            digits.push(byte);
        }
    }
}

fn push<R: BufRead>(
    reader: &Reader<R>,
    map: &mut Vec<Segment>,
    segment: Segment,
) -> Result<(), TarError> {
    let limit = reader.limits().sparse_segments;
    if map.len() >= limit {
        return Err(reader.over("segments of a sparse file", limit as u64));
    }
    map.push(segment);
    Ok(())
}

/// Checks that segments are in order, inside the file, and as long together as the stored data.
pub(super) fn check(map: &[Segment], real_size: u64, stored: u64) -> Option<()> {
    let mut end = 0;
    let mut total: u64 = 0;
    for segment in map {
        if segment.offset < end {
            return None;
        }
        end = segment.offset.checked_add(segment.length)?;
        total = total.checked_add(segment.length)?;
    }
    (end <= real_size && total == stored).then_some(())
}
