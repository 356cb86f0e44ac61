//! Everything that needs privilege or changes how code is run.
//!
//! One file per family of instructions; each names its handlers, [`select`] knows which instruction
//! is whose. What a handler needs of an instruction beyond [`Op`]'s operands is packed into
//! [`Op::extra`] by [`Extra`].

pub mod control;
pub mod events;
pub mod msr;

mod flag;
mod identify;
mod privileged;
mod register;
mod segment;
mod select;
mod syscall;
mod table;
mod transfer;

pub use select::select;

use super::{Core, Fault, Op, core::Segment};

/// A descriptor-table register.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Table {
    /// Linear address of its first entry.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u16,
}

/// The registers that point to tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tables {
    /// Global descriptors.
    pub gdt: Table,
    /// Interrupt descriptors.
    pub idt: Table,
    /// Local descriptors.
    pub ldt: Segment,
    /// The task state segment.
    pub task: Segment,
}

/// What [`Op::extra`] holds for the handlers of this module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Extra {
    /// Number of a segment, control or debug register, or a selector.
    pub(super) number: u16,
    /// Size of the operand, or of one part of a far pointer, in bytes.
    pub(super) bytes: u8,
    /// The operand is in memory.
    pub(super) memory: bool,
    /// Repeated.
    pub(super) repeat: bool,
}

impl Extra {
    fn pack(self) -> u32 {
        u32::from(self.number)
            | u32::from(self.bytes) << 16
            | u32::from(self.memory) << 24
            | u32::from(self.repeat) << 25
    }

    pub(super) fn of(op: &Op) -> Self {
        Self {
            number: op.extra as u16,
            bytes: (op.extra >> 16) as u8,
            memory: op.extra & 1 << 24 != 0,
            repeat: op.extra & 1 << 25 != 0,
        }
    }
}

impl Core {
    /// Refuses what only ring 0 may do.
    fn demand_ring0(&self) -> Result<(), Fault> {
        if self.privilege == 0 {
            Ok(())
        } else {
            Err(Fault::GP0)
        }
    }

    /// The one operand, from register or memory, zero-extended.
    fn operand(&mut self, op: &Op) -> Result<u64, Fault> {
        let extra = Extra::of(op);
        Ok(match (extra.bytes, extra.memory) {
            (2, true) => self.read::<u16>(&op.mem)?.into(),
            (4, true) => self.read::<u32>(&op.mem)?.into(),
            (_, true) => self.read::<u64>(&op.mem)?,
            (2, false) => self.get::<u16>(op.a).into(),
            (4, false) => self.get::<u32>(op.a).into(),
            (_, false) => self.get::<u64>(op.a),
        })
    }

    /// Writes the one operand; in memory always 16 bits, as all instructions with such operands do.
    fn set_operand(&mut self, op: &Op, value: u64) -> Result<(), Fault> {
        let extra = Extra::of(op);
        match (extra.bytes, extra.memory) {
            (_, true) => self.write::<u16>(&op.mem, value as u16)?,
            (2, false) => self.put::<u16>(op.a, value as u16),
            (4, false) => self.put::<u32>(op.a, value as u32),
            (_, false) => self.put::<u64>(op.a, value),
        }
        Ok(())
    }

    /// Where the next instruction begins.
    fn next_rip(&self, op: &Op) -> u64 {
        self.rip().wrapping_add(u64::from(op.len))
    }
}
