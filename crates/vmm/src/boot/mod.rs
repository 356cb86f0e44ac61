//! Putting a kernel and all it is told into the memory of a machine that has not run yet.
//!
//! ```text
//!  file ── bzimage ──► elf ──► kernel ──► RAM ◄── pvh or linux64: memory map,
//!                                          ▲       command line, initrd, ACPI
//!                                 initrd ──┘
//! ```
//! The machine calls [`load`] once per boot, on fresh memory, and starts vCPU 0 where it says. It
//! runs no guest code and knows no device; what it reads is the user's or an image's and hostile.
//!
//! ```text
//!  0x1000  GDT                         0x2_0000  command line
//!  0x2000  hvm_start_info (PVH)        0xe_0000  ACPI tables
//!  0x3000  boot_params (64-bit)        0xf_fff0  reset vector
//!  0x4000  page tables (64-bit)        wherever the kernel wants, from 1 MiB
//!                                      below 2 GiB, at the end of RAM: initrd
//! ```

mod elf;
mod entry;
mod initrd;
mod kernel;
mod linux64;
mod map;
mod pvh;
mod ram_file;
mod source;
#[cfg(test)]
mod tests;

use std::{fs::File, io, ops::Range};

use memory::Ram;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

pub use elf::{Elf, Segment};
pub use entry::Entry;
pub use kernel::{Kernel, KernelError, Loaded, Protocol};
pub use map::{ACPI_END, ACPI_START};
pub use source::Source;

/// What to boot.
pub struct Boot<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The pieces of the initial RAM file system, which the guest sees as one.
    pub initrd: &'a [File],
    /// The kernel's command line.
    pub command_line: &'a str,
    /// ACPI tables, made to lie at [`ACPI_START`], and where the RSDP is.
    pub acpi: Option<(&'a [u8], u64)>,
}

/// Why a machine cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel cannot be loaded.
    #[error("the kernel cannot be booted")]
    Kernel(#[from] KernelError),
    /// The command line is too long for the kernel, or not text.
    #[error(
        "the kernel's command line has {bytes} bytes; at most {} without a NUL are taken",
        map::COMMAND_LINE_BYTES - 1
    )]
    CommandLine {
        /// Its length.
        bytes: usize,
    },
    /// There is no room for the initial RAM file system.
    #[error(
        "the initrd of {bytes} bytes does not fit between the kernel and the end of memory; give \
         the machine more"
    )]
    InitrdRoom {
        /// Its size.
        bytes: u64,
    },
    /// It cannot be read.
    #[error("read the initrd")]
    Initrd(#[source] io::Error),
    /// More ACPI tables than there is room for.
    #[error("{bytes} bytes of ACPI tables do not fit below 1 MiB; give the machine fewer vCPUs")]
    Acpi {
        /// Their size.
        bytes: usize,
    },
    /// There is not even room for the tables.
    #[error("write the boot tables: the machine has too little memory")]
    Tables(#[from] GuestMemoryError),
}

/// All the firmware there is: `mov al, 0xfe; out 0x64, al` resets the machine by the keyboard
/// controller, and `hlt; jmp $-1` waits for it.
///
/// Linux on a machine with hardware-reduced ACPI resets by EFI and, where there is none, jumps here
/// from real mode (`native_machine_emergency_restart`); it never comes to the reset register.
const RESET: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];

/// What the kernel is told, by whichever protocol.
struct Handover {
    initrd: Option<Range<u64>>,
    rsdp: Option<u64>,
}

/// Puts everything into memory and says how vCPU 0 begins.
///
/// # Errors
/// When something is damaged or does not fit; memory is then in no defined state.
pub fn load(ram: &Ram, boot: &Boot<'_>) -> Result<Entry, BootError> {
    let memory = ram.guest_memory();
    let line = boot.command_line.as_bytes();
    if line.len() >= map::COMMAND_LINE_BYTES || line.contains(&0) {
        return Err(BootError::CommandLine { bytes: line.len() });
    }
    let loaded = boot.kernel.load(ram)?;
    memory.write_slice(line, GuestAddress(map::COMMAND_LINE))?;
    memory.write_obj(0u8, GuestAddress(map::COMMAND_LINE + line.len() as u64))?;
    if let Some((tables, _)) = boot.acpi {
        if tables.len() as u64 > ACPI_END - ACPI_START {
            let bytes = tables.len();
            return Err(BootError::Acpi { bytes });
        }
        memory.write_slice(tables, GuestAddress(ACPI_START))?;
    }
    memory.write_slice(&RESET, GuestAddress(map::RESET_VECTOR))?;
    let handover = Handover {
        initrd: initrd::load(ram, boot.initrd, loaded.end)?,
        rsdp: boot.acpi.map(|(_, rsdp)| rsdp),
    };
    match loaded.protocol {
        Protocol::Pvh => pvh::write(memory, ram.bytes(), &handover)?,
        Protocol::Linux64 => {
            linux64::write(memory, ram.bytes(), &handover, boot.kernel.setup_header())?;
        }
    }
    Ok(Entry::prepare(memory, &loaded)?)
}
