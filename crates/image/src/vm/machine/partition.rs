//! Partition tables: where the file systems of a disk lie, and making the last of them larger.
//!
//! GPT (UEFI specification 2.10, chapter 5) and the MBR it replaced, with sectors of 512 bytes, as virtual
//! disks have. A table comes from strangers: what points outside of the disk is left out, counts are
//! bounded, a GPT with a wrong checksum is refused.

use std::{fs::File, io, os::unix::fs::FileExt};

const SECTOR: u64 = 512;
const GPT_MAGIC: &[u8; 8] = b"EFI PART";
/// Most entries of a GPT that are read; 128 are usual.
const MAX_ENTRIES: u32 = 512;
/// Most logical partitions of an MBR.
const MAX_LOGICAL: usize = 64;
/// An MBR that only guards a GPT.
const PROTECTIVE: u8 = 0xee;
/// Partitions that hold others.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// A partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Partition {
    /// Its number, as in `/dev/vda1`; 0 for a disk without a table.
    pub number: u32,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// The partitions of a disk of `bytes`; the disk itself when it has no table.
pub(super) fn partitions(disk: &File, bytes: u64) -> io::Result<Vec<Partition>> {
    let whole = Partition {
        number: 0,
        offset: 0,
        bytes,
    };
    let Some(mbr) = sector(disk, 0)? else {
        return Ok(vec![whole]);
    };
    if mbr[510..] != [0x55, 0xaa] {
        return Ok(vec![whole]);
    }
    let primary = mbr_entries(&mbr);
    let mut found = if primary.iter().any(|entry| entry.kind == PROTECTIVE) {
        gpt(disk)?
    } else {
        mbr_partitions(disk, &primary)?
    };
    found.retain(|it| {
        it.offset
            .checked_add(it.bytes)
            .is_some_and(|end| end <= bytes)
    });
    if found.is_empty() {
        // The boot sector of a file system has the same mark.
        found.push(whole);
    }
    Ok(found)
}

/// An entry of an MBR or of a link of its chain: kind, first sector, sectors.
#[derive(Debug, Clone, Copy)]
struct MbrEntry {
    kind: u8,
    first: u64,
    sectors: u64,
}

fn mbr_entries(sector: &[u8; SECTOR as usize]) -> [MbrEntry; 4] {
    [0, 1, 2, 3].map(|index| {
        let entry = &sector[446 + 16 * index..][..16];
        MbrEntry {
            kind: entry[4],
            first: u64::from(u32_at(entry, 8)),
            sectors: u64::from(u32_at(entry, 12)),
        }
    })
}

fn mbr_partitions(disk: &File, primary: &[MbrEntry; 4]) -> io::Result<Vec<Partition>> {
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(primary) {
        if entry.kind != 0 && entry.sectors != 0 && !EXTENDED.contains(&entry.kind) {
            found.push(partition(number, entry.first, entry.sectors));
        }
    }
    let extended = primary.iter().find(|it| EXTENDED.contains(&it.kind));
    let mut next = extended.map(|it| it.first);
    for number in 5..5 + MAX_LOGICAL as u32 {
        let Some(at) = next else { break };
        let Some(link) = sector(disk, at)?.filter(|it| it[510..] == [0x55, 0xaa]) else {
            break;
        };
        let [own, further, ..] = mbr_entries(&link);
        if own.kind != 0 && own.sectors != 0 {
            found.push(partition(number, at + own.first, own.sectors));
        }
        let base = extended.map_or(0, |it| it.first);
        next = (further.kind != 0 && further.first != 0).then_some(base + further.first);
    }
    Ok(found)
}

fn partition(number: u32, first: u64, sectors: u64) -> Partition {
    Partition {
        number,
        offset: first.saturating_mul(SECTOR),
        bytes: sectors.saturating_mul(SECTOR),
    }
}

/// A GPT: its header sector, and its entries.
struct Gpt {
    header: [u8; SECTOR as usize],
    entries: Vec<u8>,
    entry_bytes: usize,
}

impl Gpt {
    /// The primary table.
    fn read(disk: &File) -> io::Result<Self> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "its GPT is damaged");
        let header = sector(disk, 1)?.ok_or_else(damaged)?;
        let bytes = u32_at(&header, 12) as usize;
        if header[..8] != *GPT_MAGIC || !(92..=SECTOR as usize).contains(&bytes) {
            return Err(damaged());
        }
        let mut zeroed = header;
        zeroed[16..20].fill(0);
        if crc32(&zeroed[..bytes]) != u32_at(&header, 16) {
            return Err(damaged());
        }
        let (count, entry_bytes) = (u32_at(&header, 80), u32_at(&header, 84));
        if count > MAX_ENTRIES || !matches!(entry_bytes, 128 | 256 | 512) {
            return Err(damaged());
        }
        let mut entries = vec![0; (count * entry_bytes) as usize];
        let offset = u64_at(&header, 72)
            .checked_mul(SECTOR)
            .ok_or_else(damaged)?;
        disk.read_exact_at(&mut entries, offset)
            .map_err(|_| damaged())?;
        if crc32(&entries) != u32_at(&header, 88) {
            return Err(damaged());
        }
        Ok(Self {
            header,
            entries,
            entry_bytes: entry_bytes as usize,
        })
    }
}

fn gpt(disk: &File) -> io::Result<Vec<Partition>> {
    let gpt = Gpt::read(disk)?;
    let entries = gpt.entries.chunks_exact(gpt.entry_bytes);
    Ok((1..)
        .zip(entries)
        .filter(|(_, entry)| entry[..16] != [0; 16])
        .filter_map(|(number, entry)| {
            let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
            let sectors = last.checked_sub(first)?.checked_add(1)?;
            Some(partition(number, first, sectors))
        })
        .collect())
}

/// Makes the partition with this number as large as a disk of `bytes` allows, if nothing lies behind
/// it, as `growpart` does. Answers whether it could.
pub(super) fn grow(disk: &File, number: u32, bytes: u64) -> io::Result<bool> {
    let all = partitions(disk, bytes)?;
    let Some(wanted) = all.iter().find(|it| it.number == number && number != 0) else {
        return Ok(false);
    };
    if all.iter().any(|it| it.offset > wanted.offset) {
        return Ok(false);
    }
    let mbr = sector(disk, 0)?.unwrap_or([0; SECTOR as usize]);
    if mbr_entries(&mbr).iter().any(|it| it.kind == PROTECTIVE) {
        return grow_gpt(disk, number, bytes).map(|()| true);
    }
    if number > 4 {
        return Ok(false);
    }
    let sectors = (bytes - wanted.offset) / SECTOR;
    let sectors = u32::try_from(sectors).unwrap_or(u32::MAX);
    let at = 446 + 16 * (u64::from(number) - 1) + 12;
    disk.write_all_at(&sectors.to_le_bytes(), at)?;
    Ok(true)
}

/// The copy of the table moves to the new end of the disk.
fn grow_gpt(disk: &File, number: u32, bytes: u64) -> io::Result<()> {
    let mut gpt = Gpt::read(disk)?;
    let last = bytes / SECTOR - 1;
    let table_sectors = (gpt.entries.len() as u64).div_ceil(SECTOR);
    let (backup_table, last_usable) = (last - table_sectors, last - table_sectors - 1);
    let entry = &mut gpt.entries[(number as usize - 1) * gpt.entry_bytes..];
    // Ends with a whole MiB, as partitions begin.
    let end = (last_usable + 1) & !2047;
    if u64_at(entry, 40) < end {
        entry[40..48].copy_from_slice(&(end - 1).to_le_bytes());
    }
    let checksum = crc32(&gpt.entries).to_le_bytes();
    let header_bytes = u32_at(&gpt.header, 12) as usize;
    let primary_table = u64_at(&gpt.header, 72);
    gpt.header[48..56].copy_from_slice(&last_usable.to_le_bytes());
    gpt.header[88..92].copy_from_slice(&checksum);
    for (own, other, table) in [(last, 1, backup_table), (1, last, primary_table)] {
        let mut header = gpt.header;
        header[24..32].copy_from_slice(&own.to_le_bytes());
        header[32..40].copy_from_slice(&other.to_le_bytes());
        header[72..80].copy_from_slice(&table.to_le_bytes());
        header[16..20].fill(0);
        let checksum = crc32(&header[..header_bytes]);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        disk.write_all_at(&gpt.entries, table * SECTOR)?;
        disk.write_all_at(&header, own * SECTOR)?;
    }
    Ok(())
}

/// A sector; `None` when the disk has none there.
fn sector(disk: &File, number: u64) -> io::Result<Option<[u8; SECTOR as usize]>> {
    let mut bytes = [0; SECTOR as usize];
    let Some(offset) = number.checked_mul(SECTOR) else {
        return Ok(None);
    };
    match disk.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Whatever a disk holds, what is found lies within it.
pub(crate) fn fuzz(data: &[u8]) {
    let file = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).map(File::from);
    let Ok(file) = file else { return };
    if file.write_all_at(data, 0).is_err() {
        return;
    }
    let bytes = data.len() as u64;
    for it in partitions(&file, bytes).unwrap_or_default() {
        assert!(it.offset + it.bytes <= bytes);
    }
    if file.set_len(bytes + (4 << 20)).is_ok() {
        let _ = grow(&file, 1, bytes + (4 << 20));
    }
}
