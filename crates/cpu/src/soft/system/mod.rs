//! Everything that needs privilege or changes how code is run.

pub mod control;
pub mod events;
pub mod msr;

use iced_x86::{Instruction, Mnemonic};

use super::{Core, Fault, Flow, Op, core::Segment, op::Width};

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

/// The operation for a system instruction.
#[must_use]
pub fn select(instruction: &Instruction, width: Width) -> Option<Op> {
    let run = match instruction.mnemonic() {
        Mnemonic::Hlt => halt,
        _ => return None,
    };
    Some(Op::new(instruction, width, run))
}

fn halt(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    if core.privilege != 0 {
        return Err(Fault::GP0);
    }
    core.events.halted = true;
    Ok(Flow::Sync)
}
