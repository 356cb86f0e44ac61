//! The stack: `push`, `pop`, `enter`, `leave`, and what branches need of it.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::Kind;
use crate::soft::{
    Core, Fault, Flow, Op,
    core::{Access, Word},
    op::{Handler, Width},
    opcode::Opcode,
};

/// Number of the stack pointer.
const SP: u8 = 4;
/// Number of the frame pointer.
const BP: u8 = 5;
/// Number of `ss`.
const SS: u8 = 2;
/// Bit of a segment's attributes: its stack pointer has 32 bits.
const BIG: u16 = 1 << 14;

/// A stack instruction with its operands packed.
pub fn select(instruction: &Instruction, width: Width) -> Option<Op> {
    let bytes = instruction.stack_pointer_increment().unsigned_abs();
    macro_rules! sized {
        ($bytes:expr, $handler:ident) => {
            match $bytes {
                2 => $handler::<u16> as Handler,
                4 => $handler::<u32>,
                8 => $handler::<u64>,
                _ => return None,
            }
        };
    }
    let run = match (instruction.mnemonic(), Kind::of(instruction, 0)) {
        (Mnemonic::Push, Kind::Register) => sized!(bytes, push_register),
        (Mnemonic::Push, Kind::Immediate) => sized!(bytes, push_immediate),
        (Mnemonic::Push, Kind::Memory) => sized!(bytes, push_memory),
        (Mnemonic::Push, Kind::Other) if instruction.op0_kind() == OpKind::Register => {
            sized!(bytes, push_segment)
        }
        (Mnemonic::Pop, Kind::Register) => sized!(bytes, pop_register),
        (Mnemonic::Pop, Kind::Memory) => sized!(bytes, pop_memory),
        (Mnemonic::Pusha, _) => push_all::<u16>,
        (Mnemonic::Pushad, _) => push_all::<u32>,
        (Mnemonic::Popa, _) => pop_all::<u16>,
        (Mnemonic::Popad, _) => pop_all::<u32>,
        (Mnemonic::Enter, _) => sized!(enter_bytes(instruction), enter),
        (Mnemonic::Leave, _) => sized!(leave_bytes(instruction), leave),
        _ => return None,
    };
    let mut op = Op::new(instruction, width, run);
    match instruction.mnemonic() {
        Mnemonic::Push if instruction.op0_kind() == OpKind::Register => {
            op.extra = u32::from(crate::soft::op::segment(instruction.op0_register()));
        }
        Mnemonic::Enter => {
            op.imm = u64::from(instruction.immediate16());
            op.extra = u32::from(instruction.immediate8_2nd() & 31);
        }
        _ => {}
    }
    Some(op)
}

fn enter_bytes(instruction: &Instruction) -> u32 {
    Opcode::of(instruction.code()).operand_bytes.into()
}

fn leave_bytes(instruction: &Instruction) -> u32 {
    Opcode::of(instruction.code()).operand_bytes.into()
}

/// The bits of the stack pointer that count.
#[inline(always)]
fn stack_mask(core: &Core) -> u64 {
    if core.width == Width::Code64 {
        u64::MAX
    } else if core.segments[SS as usize].attributes & BIG != 0 {
        u64::from(u32::MAX)
    } else {
        u64::from(u16::MAX)
    }
}

/// Moves the stack pointer: the bits that count, and no others.
#[inline(always)]
pub fn set_stack_pointer(core: &mut Core, value: u64) {
    let mask = stack_mask(core);
    let whole = &mut core.regs[SP as usize];
    *whole = *whole & !mask | value & mask;
}

/// The linear address of `bytes` at an offset in the stack segment.
#[inline(always)]
fn stack_address(core: &Core, offset: u64, bytes: usize, access: Access) -> Result<u64, Fault> {
    if core.width == Width::Code64 {
        return Ok(offset);
    }
    core.linear_at(SS, offset & stack_mask(core), bytes, access)
}

/// An address that is not canonical is a `#SS(0)` for the stack.
#[cold]
#[inline(never)]
fn not_canonical(fault: Fault) -> Fault {
    if fault == Fault::GP0 {
        Fault::ss(0)
    } else {
        fault
    }
}

/// Pushes a word.
///
/// # Errors
/// As for a store; nothing was pushed then.
#[inline(always)]
pub fn push<T: Word>(core: &mut Core, value: T) -> Result<(), Fault> {
    let offset = core.regs[SP as usize].wrapping_sub(T::BYTES as u64);
    let linear = stack_address(core, offset, T::BYTES, Access::Write)?;
    core.store(linear, value).map_err(not_canonical)?;
    set_stack_pointer(core, offset);
    Ok(())
}

/// Reads the word on top of the stack; returns also what the stack pointer is after it. The
/// caller sets that when nothing can fail any more.
///
/// # Errors
/// As for a load.
#[inline(always)]
pub fn pop<T: Word>(core: &mut Core) -> Result<(T, u64), Fault> {
    let offset = core.regs[SP as usize];
    let linear = stack_address(core, offset, T::BYTES, Access::Read)?;
    let value = core.load(linear).map_err(not_canonical)?;
    Ok((value, offset.wrapping_add(T::BYTES as u64)))
}

fn push_register<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let value = core.get::<T>(op.a);
    push(core, value)?;
    Ok(Flow::Next)
}

fn push_immediate<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    push(core, T::low(op.imm))?;
    Ok(Flow::Next)
}

fn push_memory<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let value = core.read::<T>(&op.mem)?;
    push(core, value)?;
    Ok(Flow::Next)
}

/// A selector takes a whole word of the stack; of 32 bits only the selector itself is written, as
/// recent processors do (Intel SDM 2B, `push`).
fn push_segment<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let selector = core.segments[op.extra as usize % 6].selector;
    if T::BYTES != 4 {
        push(core, T::low(u64::from(selector)))?;
        return Ok(Flow::Next);
    }
    let offset = core.regs[SP as usize].wrapping_sub(4);
    let linear = stack_address(core, offset, 4, Access::Write)?;
    core.store(linear, selector)?;
    set_stack_pointer(core, offset);
    Ok(Flow::Next)
}

fn pop_register<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let (value, after) = pop::<T>(core)?;
    set_stack_pointer(core, after);
    core.put(op.a, value);
    Ok(Flow::Next)
}

/// The address of the operand is computed with the stack pointer moved already.
fn pop_memory<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let before = core.regs[SP as usize];
    let (value, after) = pop::<T>(core)?;
    set_stack_pointer(core, after);
    if let Err(fault) = core.write(&op.mem, value) {
        core.regs[SP as usize] = before;
        return Err(fault);
    }
    Ok(Flow::Next)
}

/// `pusha`. The words below the stack pointer are undefined until it is moved, so a fault in the
/// middle needs no undoing.
fn push_all<T: Word>(core: &mut Core, _op: &Op) -> Result<Flow, Fault> {
    let before = core.regs[SP as usize];
    for register in 0..8 {
        let value = match register {
            SP => T::low(before),
            _ => core.get(register),
        };
        if let Err(fault) = push::<T>(core, value) {
            core.regs[SP as usize] = before;
            return Err(fault);
        }
    }
    Ok(Flow::Next)
}

/// `popa`. After a fault in the middle some registers have their new values already, as on
/// processors; the stack pointer has not, so it can be executed again.
fn pop_all<T: Word>(core: &mut Core, _op: &Op) -> Result<Flow, Fault> {
    let before = core.regs[SP as usize];
    for register in (0..8).rev() {
        match pop::<T>(core) {
            Ok((value, after)) => {
                set_stack_pointer(core, after);
                if register != SP {
                    core.put(register, value);
                }
            }
            Err(fault) => {
                core.regs[SP as usize] = before;
                return Err(fault);
            }
        }
    }
    Ok(Flow::Next)
}

/// `enter`: `imm` is the size of the frame, `extra` the level of nesting (Intel SDM 2A).
fn enter<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let before = core.regs[SP as usize];
    enter_frame::<T>(core, op).inspect_err(|_| core.regs[SP as usize] = before)
}

fn enter_frame<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let frame_pointer = core.regs[BP as usize];
    push(core, T::low(frame_pointer))?;
    let frame = core.regs[SP as usize];
    for level in 1..op.extra {
        let offset = frame_pointer.wrapping_sub(u64::from(level) * T::BYTES as u64);
        let linear = stack_address(core, offset, T::BYTES, Access::Read)?;
        let display = core.load::<T>(linear).map_err(not_canonical)?;
        push(core, display)?;
    }
    if op.extra > 0 {
        push(core, T::low(frame))?;
    }
    let top = core.regs[SP as usize].wrapping_sub(op.imm);
    // The processor checks that the new top could be written.
    let linear = stack_address(core, top, T::BYTES, Access::Write)?;
    core.find(linear, T::BYTES, Access::Write)
        .map_err(not_canonical)?;
    set_stack_pointer(core, top);
    core.put(BP, T::low(frame));
    Ok(Flow::Next)
}

fn leave<T: Word>(core: &mut Core, _op: &Op) -> Result<Flow, Fault> {
    let frame = core.regs[BP as usize];
    let linear = stack_address(core, frame, T::BYTES, Access::Read)?;
    let value = core.load::<T>(linear).map_err(not_canonical)?;
    set_stack_pointer(core, frame.wrapping_add(T::BYTES as u64));
    core.put(BP, value);
    Ok(Flow::Next)
}
