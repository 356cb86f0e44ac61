//! A kernel as an ELF file (`vmlinux`): what to load where, and how to enter it.
//!
//! Sources: System V ABI, "Program Header" and "Note Section"; Xen's `elfnote.h` and `pvh.pandoc`
//! for the entry point.

use bzimage::is_elf;

use super::{KernelError, Source};

/// Program headers of a kernel are a handful.
const MAX_HEADERS: u16 = 64;
/// Notes of a kernel are some hundred bytes.
const MAX_NOTES: u64 = 64 << 10;
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_X86_64: u16 = 62;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PHYS32_ENTRY: u32 = 18;

/// A piece of the file that belongs into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it is in the file.
    pub offset: u64,
    /// Bytes of it there.
    pub file_bytes: u64,
    /// Guest physical address.
    pub address: u64,
    /// The address the kernel itself knows it by, once it runs.
    pub linear: u64,
    /// Bytes it takes there; what the file does not have is zero.
    pub memory_bytes: u64,
}

/// What was found in the headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// Physical address of the ordinary entry point.
    pub entry: u64,
    /// Physical address of the PVH entry point (32-bit protected mode), if it has one.
    pub pvh_entry: Option<u32>,
    /// What to load; all of them lie within the file.
    pub segments: Vec<Segment>,
}

impl Elf {
    /// Reads the headers of a 64-bit x86 kernel.
    ///
    /// # Errors
    /// When it is not one, or says of itself what cannot be.
    pub fn parse(source: &(impl Source + ?Sized)) -> Result<Self, KernelError> {
        let size = source.size().map_err(KernelError::Read)?;
        let mut header = [0; HEADER_BYTES];
        read(source, 0, &mut header)?;
        if !is_elf(&header) || header[4] != 2 || header[5] != 1 || u16_at(&header, 18) != EM_X86_64
        {
            return Err(KernelError::Format("it is no 64-bit x86 ELF file"));
        }
        let (start, count) = (u64_at(&header, 32), u16_at(&header, 56));
        if usize::from(u16_at(&header, 54)) != PROGRAM_HEADER_BYTES || count > MAX_HEADERS {
            return Err(KernelError::Format("its program headers make no sense"));
        }
        let mut table = vec![0; usize::from(count) * PROGRAM_HEADER_BYTES];
        read(source, start, &mut table)?;

        let mut elf = Self {
            entry: u64_at(&header, 24),
            pvh_entry: None,
            segments: Vec::new(),
        };
        for header in table.chunks_exact(PROGRAM_HEADER_BYTES) {
            let segment = Segment {
                offset: u64_at(header, 8),
                file_bytes: u64_at(header, 32),
                address: u64_at(header, 24),
                linear: u64_at(header, 16),
                memory_bytes: u64_at(header, 40),
            };
            let kind = u32_at(header, 0);
            if kind != PT_LOAD && kind != PT_NOTE {
                continue;
            }
            let end = segment.offset.checked_add(segment.file_bytes);
            if end.is_none_or(|end| end > size) {
                return Err(KernelError::Format("a segment reaches past its end"));
            }
            if kind == PT_NOTE {
                elf.pvh_entry = elf.pvh_entry.or(find_pvh_entry(source, &segment)?);
            } else if segment.memory_bytes > 0 {
                elf.push(segment)?;
            }
        }
        if elf.segments.is_empty() {
            return Err(KernelError::Format("it has nothing to load"));
        }
        Ok(elf)
    }

    fn push(&mut self, segment: Segment) -> Result<(), KernelError> {
        let end = segment.address.checked_add(segment.memory_bytes);
        if end.is_none() || segment.file_bytes > segment.memory_bytes {
            return Err(KernelError::Format("a segment's sizes make no sense"));
        }
        self.segments.push(segment);
        Ok(())
    }

    /// Where what it loads ends, as a guest physical address.
    #[must_use]
    pub fn end(&self) -> u64 {
        let ends = self.segments.iter().map(|it| it.address + it.memory_bytes);
        ends.max().unwrap_or(0)
    }
}

/// Looks for the PVH entry among the notes of one segment.
fn find_pvh_entry(
    source: &(impl Source + ?Sized),
    segment: &Segment,
) -> Result<Option<u32>, KernelError> {
    if segment.file_bytes > MAX_NOTES {
        return Err(KernelError::Format("its notes are too long"));
    }
    let mut notes = vec![0; usize::try_from(segment.file_bytes).unwrap_or(0)];
    read(source, segment.offset, &mut notes)?;
    let mut rest = notes.as_slice();
    while let Some((note, after)) = Note::split_off(rest) {
        if note.kind == NOTE_PHYS32_ENTRY && note.name == b"Xen\0" {
            let entry = note.description.first_chunk();
            return Ok(entry.map(|it| u32::from_le_bytes(*it)));
        }
        rest = after;
    }
    Ok(None)
}

struct Note<'a> {
    kind: u32,
    name: &'a [u8],
    description: &'a [u8],
}

impl<'a> Note<'a> {
    /// The first note, and what comes after it.
    fn split_off(notes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (header, rest) = notes.split_at_checked(12)?;
        let (name, rest) = padded(rest, u32_at(header, 0))?;
        let (description, rest) = padded(rest, u32_at(header, 4))?;
        let note = Note {
            kind: u32_at(header, 8),
            name,
            description,
        };
        Some((note, rest))
    }
}

/// `length` bytes, and what follows their padding to a multiple of four.
fn padded(bytes: &[u8], length: u32) -> Option<(&[u8], &[u8])> {
    let length = length as usize;
    let found = bytes.get(..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((found, rest))
}

fn read(source: &(impl Source + ?Sized), offset: u64, data: &mut [u8]) -> Result<(), KernelError> {
    source.read_at(offset, data).map_err(KernelError::Read)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4]
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
