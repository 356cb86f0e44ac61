//! A kernel file, of whichever kind, ready to be put into memory.

use std::{fs::File, io, ops::Range};

use bzimage::{BzImage, BzImageError, is_elf};
use memory::{Ram, layout};

use super::{
    Source,
    elf::{Elf, Segment},
    ram_file,
};

/// The largest file that is taken for a kernel.
const MAX_FILE: u64 = 256 << 20;
/// Below are the tables that the kernel is given.
const LOWEST: u64 = 1 << 20;
/// Where the 64-bit entry of a decompressor is, from its start (boot protocol 2.12).
const ENTRY64_OFFSET: u64 = 0x200;

/// Why a file is no kernel that can be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It could not be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It is damaged, or something else.
    #[error("{0}; give it an x86-64 bzImage or vmlinux")]
    Format(&'static str),
    /// It is a bzImage, and damaged or too large.
    #[error(transparent)]
    BzImage(#[from] BzImageError),
    /// It is too large to be one.
    #[error("it is larger than {limit} bytes")]
    TooLarge {
        /// What is accepted.
        limit: u64,
    },
    /// It wants to be where there is no memory.
    #[error(
        "it needs memory at {address:#x} up to {end:#x}, and the machine has {bytes} bytes; give \
         the machine more"
    )]
    Memory {
        /// Where.
        address: u64,
        /// Its end.
        end: u64,
        /// What the machine has.
        bytes: u64,
    },
}

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// 32-bit protected mode without paging, `ebx` pointing to `hvm_start_info` (Xen's PVH).
    Pvh,
    /// 64-bit mode with the first 4 GiB mapped, `rsi` pointing to `boot_params` (Linux).
    Linux64,
}

/// A kernel in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// How to enter it.
    pub protocol: Protocol,
    /// Where, as a guest physical address.
    pub entry: u64,
    /// Where it ends, with all it needs before it reads its memory map.
    pub end: u64,
}

/// A kernel file that was looked through.
pub struct Kernel(Form);

enum Form {
    /// To be loaded as its program headers say.
    Elf(Elf, Box<dyn ElfSource>),
    /// A bzImage that decompresses itself, since it does so in a way not known here.
    Raw(BzImage, Vec<u8>),
}

trait ElfSource: Send + Sync {
    fn load(&self, segment: &Segment, ram: &Ram) -> Result<(), KernelError>;
}

impl ElfSource for File {
    fn load(&self, segment: &Segment, ram: &Ram) -> Result<(), KernelError> {
        place(self, segment, ram)
    }
}

impl ElfSource for Vec<u8> {
    fn load(&self, segment: &Segment, ram: &Ram) -> Result<(), KernelError> {
        place(self.as_slice(), segment, ram)
    }
}

impl Kernel {
    /// Looks through a kernel file, and decompresses it if it is a bzImage.
    ///
    /// # Errors
    /// When it is no kernel.
    pub fn open(file: File) -> Result<Self, KernelError> {
        let size = file.size().map_err(KernelError::Read)?;
        let mut start = vec![0; size.min(1024) as usize];
        file.read_at(0, &mut start).map_err(KernelError::Read)?;
        if is_elf(&start) {
            return Ok(Self(Form::Elf(Elf::parse(&file)?, Box::new(file))));
        }
        if size > MAX_FILE {
            return Err(KernelError::TooLarge { limit: MAX_FILE });
        }
        let mut bytes = vec![0; size as usize];
        file.read_at(0, &mut bytes).map_err(KernelError::Read)?;
        Self::parse(bytes)
    }

    /// Looks through the bytes of a kernel file.
    ///
    /// # Errors
    /// When it is no kernel.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, KernelError> {
        if is_elf(&bytes) {
            let elf = Elf::parse(bytes.as_slice())?;
            return Ok(Self(Form::Elf(elf, Box::new(bytes))));
        }
        let image = BzImage::parse(&bytes)?;
        if let Some(vmlinux) = image.vmlinux(&bytes)? {
            let elf = Elf::parse(vmlinux.as_slice())?;
            return Ok(Self(Form::Elf(elf, Box::new(vmlinux))));
        }
        if !image.entry64 {
            return Err(KernelError::Format(
                "it is compressed in a way not known here, and has no 64-bit entry",
            ));
        }
        Ok(Self(Form::Raw(image, bytes)))
    }

    /// The setup header that `boot_params` of the 64-bit protocol begins with, of a kernel that
    /// has one.
    #[must_use]
    pub fn setup_header(&self) -> Option<&[u8]> {
        match &self.0 {
            Form::Elf(..) => None,
            Form::Raw(_, bytes) => bytes.get(bzimage::HEADER..bzimage::HEADER_END),
        }
    }

    /// Puts it into memory.
    ///
    /// # Errors
    /// When it does not fit, or cannot be read.
    pub fn load(&self, ram: &Ram) -> Result<Loaded, KernelError> {
        match &self.0 {
            Form::Elf(elf, source) => {
                for segment in &elf.segments {
                    source.load(segment, ram)?;
                }
                let (protocol, entry) = match elf.pvh_entry {
                    Some(entry) => (Protocol::Pvh, u64::from(entry)),
                    None => (Protocol::Linux64, elf.entry),
                };
                Ok(Loaded {
                    protocol,
                    entry,
                    end: elf.end(),
                })
            }
            Form::Raw(image, bytes) => load_raw(image, bytes, ram),
        }
    }
}

fn load_raw(image: &BzImage, bytes: &[u8], ram: &Ram) -> Result<Loaded, KernelError> {
    let Range { start, end } = image.protected_mode;
    let length = (end - start) as u64;
    let segment = Segment {
        offset: start as u64,
        file_bytes: length,
        address: image.preferred_address,
        linear: image.preferred_address,
        memory_bytes: length.max(u64::from(image.init_bytes)),
    };
    place(bytes, &segment, ram)?;
    Ok(Loaded {
        protocol: Protocol::Linux64,
        entry: segment.address + ENTRY64_OFFSET,
        end: segment.address + segment.memory_bytes,
    })
}

/// Copies a segment into memory below the hole for devices. Memory is zero before.
fn place(source: &(impl Source + ?Sized), segment: &Segment, ram: &Ram) -> Result<(), KernelError> {
    let top = ram.bytes().min(layout::LOW_END);
    let end = segment.address.checked_add(segment.memory_bytes);
    let end = end.filter(|&end| segment.address >= LOWEST && end <= top);
    if end.is_none() {
        return Err(KernelError::Memory {
            address: segment.address,
            end: segment.address.saturating_add(segment.memory_bytes),
            bytes: ram.bytes(),
        });
    }
    ram_file::copy(
        source,
        segment.offset,
        ram,
        segment.address,
        segment.file_bytes,
    )
    .map_err(KernelError::Read)
}
