//! A request, parsed once (virtio 1.2, 5.2.6).

use std::ops::Range;

use memory::GuestMemory;

use super::config::{DISCARD_SECTORS, RANGES, REQUEST_BYTES, SECTOR, ZERO_SECTORS};
use crate::virtio::{Buffers, Chain};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// A range may be given back when zeroed.
const FLAG_UNMAP: u32 = 1;

/// What became of a request (5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What is asked for; ranges are in bytes and within the disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read { offset: u64, data: Buffers },
    Write { offset: u64, data: Buffers },
    Flush,
    GetId { data: Buffers },
    Discard(Vec<Range<u64>>),
    WriteZeroes(Vec<(Range<u64>, bool)>),
}

/// Which rate limit a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// It takes from the disk.
    Read,
    /// It changes the disk, or waits until changes are durable.
    Write,
}

impl Direction {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Read, Self::Write];
}

/// A request and where its status goes.
#[derive(Debug)]
pub(super) struct Request {
    /// What to do, or what to answer without doing anything.
    pub(super) command: Result<Command, Status>,
    pub(super) status: Buffers,
}

/// What the disk is to a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub(super) bytes: u64,
    pub(super) read_only: bool,
}

impl Request {
    /// Parses a chain. What cannot even be answered is an error: the name of the missing part.
    pub(super) fn parse(
        memory: &GuestMemory,
        chain: &mut Chain,
        disk: Geometry,
    ) -> Result<Self, &'static str> {
        let mut header = [0; 16];
        let status = chain.writable.take_last(1).map_err(|_| "status")?;
        chain
            .readable
            .read(memory, &mut header)
            .map_err(|_| "header")?;
        let [kind, _reserved, low, high] = dwords(header);
        let sector = u64::from(high) << 32 | u64::from(low);
        Ok(Self {
            command: command(memory, chain, disk, kind, sector),
            status,
        })
    }

    /// Which limit it is for; what is refused or only asks counts as a read.
    pub(super) fn direction(&self) -> Direction {
        match &self.command {
            Err(_) | Ok(Command::Read { .. } | Command::GetId { .. }) => Direction::Read,
            Ok(
                Command::Write { .. }
                | Command::Flush
                | Command::Discard(_)
                | Command::WriteZeroes(_),
            ) => Direction::Write,
        }
    }

    /// Bytes of data, for rate limits.
    pub(super) fn data_bytes(&self) -> u64 {
        match &self.command {
            Ok(Command::Read { data, .. } | Command::Write { data, .. }) => data.bytes(),
            _ => 0,
        }
    }
}

fn dwords(bytes: [u8; 16]) -> [u32; 4] {
    std::array::from_fn(|it| {
        let at = it * 4;
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    })
}

fn command(
    memory: &GuestMemory,
    chain: &mut Chain,
    disk: Geometry,
    kind: u32,
    sector: u64,
) -> Result<Command, Status> {
    match kind {
        IN => {
            let data = std::mem::take(&mut chain.writable);
            let offset = transfer(disk, sector, data.bytes())?;
            Ok(Command::Read { offset, data })
        }
        OUT if disk.read_only => Err(Status::IoError),
        OUT => {
            let data = std::mem::take(&mut chain.readable);
            let offset = transfer(disk, sector, data.bytes())?;
            Ok(Command::Write { offset, data })
        }
        FLUSH => Ok(Command::Flush),
        GET_ID => Ok(Command::GetId {
            data: std::mem::take(&mut chain.writable),
        }),
        DISCARD | WRITE_ZEROES if disk.read_only => Err(Status::IoError),
        DISCARD => {
            let ranges = ranges(memory, &mut chain.readable, disk, DISCARD_SECTORS, 0)?;
            Ok(Command::Discard(
                ranges.into_iter().map(|it| it.0).collect(),
            ))
        }
        WRITE_ZEROES => {
            let readable = &mut chain.readable;
            let ranges = ranges(memory, readable, disk, ZERO_SECTORS, FLAG_UNMAP)?;
            Ok(Command::WriteZeroes(ranges))
        }
        _ => Err(Status::Unsupported),
    }
}

/// Offset in bytes of a transfer, if it is one of whole sectors within the disk.
fn transfer(disk: Geometry, sector: u64, bytes: u64) -> Result<u64, Status> {
    if !bytes.is_multiple_of(SECTOR) || bytes > REQUEST_BYTES {
        return Err(Status::IoError);
    }
    Ok(range(disk, sector, bytes / SECTOR)?.start)
}

fn range(disk: Geometry, sector: u64, sectors: u64) -> Result<Range<u64>, Status> {
    let start = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
    let bytes = sectors.checked_mul(SECTOR).ok_or(Status::IoError)?;
    let end = start.checked_add(bytes).ok_or(Status::IoError)?;
    if end > disk.bytes {
        return Err(Status::IoError);
    }
    Ok(start..end)
}

/// The ranges of a discard or write-zeroes request; flags beyond `flags` are not supported (5.2.6.2).
fn ranges(
    memory: &GuestMemory,
    readable: &mut Buffers,
    disk: Geometry,
    most_sectors: u32,
    flags: u32,
) -> Result<Vec<(Range<u64>, bool)>, Status> {
    let bytes = readable.bytes();
    if bytes == 0 || !bytes.is_multiple_of(16) || bytes > 16 * RANGES as u64 {
        return Err(Status::IoError);
    }
    let mut found = Vec::new();
    while readable.bytes() > 0 {
        let mut entry = [0; 16];
        readable
            .read(memory, &mut entry)
            .map_err(|_| Status::IoError)?;
        let [low, high, sectors, set] = dwords(entry);
        if set & !flags != 0 {
            return Err(Status::Unsupported);
        }
        if sectors > most_sectors {
            return Err(Status::IoError);
        }
        let sector = u64::from(high) << 32 | u64::from(low);
        found.push((range(disk, sector, sectors.into())?, set & FLAG_UNMAP != 0));
    }
    Ok(found)
}
