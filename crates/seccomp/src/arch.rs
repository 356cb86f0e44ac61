//! The architectures whose system calls can be filtered.

use serde::{Deserialize, Serialize};

/// A system call ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86, also as 32-bit programs on a 64-bit kernel.
    X86,
    /// 64-bit x86 with 32-bit pointers.
    X32,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM (EABI).
    Arm,
    /// 64-bit RISC-V.
    Riscv64,
}

/// The bit that marks an x32 call; it shares its audit number with x86_64.
pub(crate) const X32_BIT: u32 = 0x4000_0000;

impl Arch {
    /// Every architecture this crate knows.
    pub const ALL: [Arch; 6] = [
        Arch::X86_64,
        Arch::X86,
        Arch::X32,
        Arch::Aarch64,
        Arch::Arm,
        Arch::Riscv64,
    ];

    /// The architecture this program was built for; `None` on one without a table here.
    pub const fn native() -> Option<Arch> {
        if cfg!(target_arch = "x86_64") {
            Some(Arch::X86_64)
        } else if cfg!(target_arch = "x86") {
            Some(Arch::X86)
        } else if cfg!(target_arch = "aarch64") {
            Some(Arch::Aarch64)
        } else if cfg!(target_arch = "arm") {
            Some(Arch::Arm)
        } else if cfg!(target_arch = "riscv64") {
            Some(Arch::Riscv64)
        } else {
            None
        }
    }

    /// The architectures whose programs run on a kernel of this one, itself first.
    pub const fn family(self) -> &'static [Arch] {
        match self {
            Arch::X86_64 => &[Arch::X86_64, Arch::X86, Arch::X32],
            Arch::Aarch64 => &[Arch::Aarch64, Arch::Arm],
            Arch::X86 => &[Arch::X86],
            Arch::X32 => &[Arch::X32],
            Arch::Arm => &[Arch::Arm],
            Arch::Riscv64 => &[Arch::Riscv64],
        }
    }

    /// The OCI specification's name, such as `SCMP_ARCH_X86_64`.
    pub fn from_oci(name: &str) -> Option<Arch> {
        Some(match name {
            "SCMP_ARCH_X86_64" => Arch::X86_64,
            "SCMP_ARCH_X86" => Arch::X86,
            "SCMP_ARCH_X32" => Arch::X32,
            "SCMP_ARCH_AARCH64" => Arch::Aarch64,
            "SCMP_ARCH_ARM" => Arch::Arm,
            "SCMP_ARCH_RISCV64" => Arch::Riscv64,
            _ => return None,
        })
    }

    /// `AUDIT_ARCH_*` as in `struct seccomp_data` (linux/audit.h).
    pub(crate) const fn audit(self) -> u32 {
        match self {
            Arch::X86_64 | Arch::X32 => 0xc000_003e,
            Arch::X86 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
            Arch::Arm => 0x4000_0028,
            Arch::Riscv64 => 0xc000_00f3,
        }
    }

    /// Whether arguments have 64 bits. x32 passes pointers and longs of 32.
    pub(crate) const fn is_64_bit(self) -> bool {
        matches!(self, Arch::X86_64 | Arch::Aarch64 | Arch::Riscv64)
    }

    /// This architecture's column of the table of numbers.
    pub(crate) const fn column(self) -> usize {
        self as usize
    }
}
