//! A decoded instruction, as the interpreter keeps it: a handler, and operands packed so that the
//! handler need not decode anything.

use iced_x86::{Instruction, OpKind, Register};

use super::{Core, Fault};

/// What an instruction did to the flow of control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on with the next instruction; the interpreter moves `rip`.
    Next,
    /// `rip` was set by the handler; the block ends.
    Branch,
    /// A long instruction did a part (its registers say which) and is to be executed again, after
    /// interrupts had their chance; `rip` stays.
    Again,
    /// As [`Flow::Next`], but how code is run may have changed (mode, paging, interrupts, code
    /// that was written): the block ends, and everything is looked at anew.
    Sync,
    /// As [`Flow::Branch`], but as with [`Flow::Sync`] everything is looked at anew.
    SyncBranch,
}

/// Executes one instruction. `rip` is that of the instruction itself.
pub type Handler = fn(&mut Core, &Op) -> Result<Flow, Fault>;

/// Index into [`Core::regs`] that always reads zero: "no register" of an address.
pub const ZERO: u8 = 16;
/// Index into [`Core::regs`] of `rip`.
pub const RIP: u8 = 17;
/// First of the four legacy high bytes `ah`, `ch`, `dh`, `bh`, as the number of an 8-bit register
/// operand.
pub const HIGH_BYTES: u8 = 20;
/// No register operand.
pub const NONE: u8 = 0xff;
/// No segment base is added.
pub const FLAT: u8 = 0xff;

/// A memory operand: `segment:[(base + index << scale + displacement) & mask]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mem {
    /// Added, truncated with the rest to the address size; for `rip`-relative operands it is
    /// relative to the start of the instruction.
    pub displacement: u64,
    /// Index into [`Core::regs`].
    pub base: u8,
    /// Index into [`Core::regs`].
    pub index: u8,
    /// The index is shifted left by this.
    pub scale: u8,
    /// Number of the segment register (`es`, `cs`, `ss`, `ds`, `fs`, `gs` are 0 to 5); [`FLAT`] in
    /// 64-bit mode for all but `fs` and `gs`.
    pub segment: u8,
    /// The same, as named by the instruction, also where its base is not added: what decides
    /// between `#SS` and `#GP`.
    pub named: u8,
    /// Address size: 2, 4 or 8 bytes.
    pub address_bytes: u8,
}

/// A decoded instruction.
#[derive(Debug, Clone, Copy)]
pub struct Op {
    /// Executes it.
    pub run: Handler,
    /// The memory operand, if it has one.
    pub mem: Mem,
    /// The immediate operand, or the target of a near branch relative to the start of the
    /// instruction, sign-extended as the instruction demands.
    pub imm: u64,
    /// What the handler's module wants to remember.
    pub extra: u32,
    /// Its length in bytes.
    pub len: u8,
    /// First register operand: 0 to 15, or [`HIGH_BYTES`] and up; [`NONE`].
    pub a: u8,
    /// Second register operand.
    pub b: u8,
    /// Third register operand.
    pub c: u8,
}

/// The width of code: what a decoder must know of the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Width {
    /// Real mode and 16-bit segments.
    Code16,
    /// 32-bit segments.
    Code32,
    /// 64-bit mode.
    Code64,
}

impl Width {
    /// In bits, as the decoder wants it.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::Code16 => 16,
            Self::Code32 => 32,
            Self::Code64 => 64,
        }
    }
}

impl Op {
    /// Packs the operands of an instruction; `run` executes it.
    #[must_use]
    pub fn new(instruction: &Instruction, width: Width, run: Handler) -> Self {
        let mut registers = [NONE; 3];
        let mut found = 0;
        let mut imm = 0;
        for operand in 0..instruction.op_count() {
            match instruction.op_kind(operand) {
                OpKind::Register => {
                    if let Some(number) = gpr(instruction.op_register(operand))
                        && found < registers.len()
                    {
                        registers[found] = number;
                        found += 1;
                    }
                }
                OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                    imm = instruction
                        .near_branch_target()
                        .wrapping_sub(instruction.ip());
                }
                OpKind::Immediate8
                | OpKind::Immediate8_2nd
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64 => imm = instruction.immediate(operand),
                _ => {}
            }
        }
        Self {
            run,
            mem: Mem::new(instruction, width),
            imm,
            extra: 0,
            len: u8::try_from(instruction.len()).unwrap_or(15),
            a: registers[0],
            b: registers[1],
            c: registers[2],
        }
    }
}

impl Mem {
    /// The memory operand of an instruction; meaningless when it has none.
    #[must_use]
    pub fn new(instruction: &Instruction, width: Width) -> Self {
        let base = instruction.memory_base();
        let index = instruction.memory_index();
        let segment = segment(instruction.memory_segment());
        let rip_relative = matches!(base, Register::RIP | Register::EIP);
        let displacement = if rip_relative {
            instruction
                .memory_displacement64()
                .wrapping_sub(instruction.ip())
        } else {
            instruction.memory_displacement64()
        };
        let address_bytes = match (base, index, instruction.memory_displ_size()) {
            (base, index, _) if base.size() == 2 || index.size() == 2 => 2,
            (base, index, _) if base.size() == 4 || index.size() == 4 => 4,
            (base, index, _) if base.size() == 8 || index.size() == 8 => 8,
            (_, _, 2) => 2,
            (_, _, 8) => 8,
            (_, _, 4) if width != Width::Code64 => 4,
            (_, _, 4) => 8,
            _ => match width {
                Width::Code16 => 2,
                Width::Code32 => 4,
                Width::Code64 => 8,
            },
        };
        Self {
            displacement,
            base: if rip_relative {
                RIP
            } else {
                gpr(base).unwrap_or(ZERO)
            },
            index: gpr(index).unwrap_or(ZERO),
            scale: u8::try_from(instruction.memory_index_scale().trailing_zeros()).unwrap_or(0),
            segment: if width == Width::Code64 && segment < 4 {
                FLAT
            } else {
                segment
            },
            named: segment,
            address_bytes,
        }
    }
}

/// The number of a segment register: `es`, `cs`, `ss`, `ds`, `fs`, `gs` are 0 to 5; `ds` for none.
#[must_use]
pub fn segment(register: Register) -> u8 {
    match register {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::FS => 4,
        Register::GS => 5,
        _ => 3,
    }
}

/// The number of a general-purpose register of any width; `None` for any other register.
#[must_use]
pub fn gpr(register: Register) -> Option<u8> {
    if !register.is_gpr() {
        return None;
    }
    Some(match register {
        Register::AH => HIGH_BYTES,
        Register::CH => HIGH_BYTES + 1,
        Register::DH => HIGH_BYTES + 2,
        Register::BH => HIGH_BYTES + 3,
        other => u8::try_from(other.full_register().number()).unwrap_or(NONE),
    })
}
