//! Near branches, calls and returns.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{
    Kind, by_condition,
    stack::{pop, push, set_stack_pointer},
};
use crate::soft::{
    Core, Fault, Flow, Op,
    core::Word,
    op::{Handler, Width},
    opcode::Opcode,
};

/// Number of the count register of loops.
const C: u8 = 1;
/// Number of `cs`.
const CS: usize = 1;

/// A branch with its operands packed. In 64-bit mode all operands are of 64 bits, and handlers do
/// not look; elsewhere the operand size is a type, and the limit of `cs` is checked.
pub fn select(instruction: &Instruction, width: Width) -> Option<Op> {
    let long = width == Width::Code64;
    let code = instruction.code();
    let narrow = operand_bytes(instruction) == 2;
    let run: Handler = match instruction.mnemonic() {
        _ if code.is_jcc_short_or_near() && long => {
            by_condition!(instruction.condition_code(), jump_if)
        }
        _ if code.is_jcc_short_or_near() && narrow => {
            by_condition!(instruction.condition_code(), narrow_jump_if, u16)
        }
        _ if code.is_jcc_short_or_near() => {
            by_condition!(instruction.condition_code(), narrow_jump_if, u32)
        }
        Mnemonic::Jmp if code.is_jmp_short_or_near() && long => jump,
        Mnemonic::Jmp if code.is_jmp_short_or_near() && narrow => narrow_jump::<u16>,
        Mnemonic::Jmp if code.is_jmp_short_or_near() => narrow_jump::<u32>,
        Mnemonic::Jmp if code.is_jmp_near_indirect() => {
            match (Kind::of(instruction, 0), long, narrow) {
                (Kind::Register, true, _) => jump_register::<u64>,
                (Kind::Register, false, true) => jump_register::<u16>,
                (Kind::Register, false, false) => jump_register::<u32>,
                (_, true, _) => jump_memory::<u64>,
                (_, false, true) => jump_memory::<u16>,
                (_, false, false) => jump_memory::<u32>,
            }
        }
        Mnemonic::Call if code.is_call_near() => match (long, narrow) {
            (true, _) => call::<u64>,
            (false, true) => call::<u16>,
            (false, false) => call::<u32>,
        },
        Mnemonic::Call if code.is_call_near_indirect() => {
            match (Kind::of(instruction, 0), long, narrow) {
                (Kind::Register, true, _) => call_register::<u64>,
                (Kind::Register, false, true) => call_register::<u16>,
                (Kind::Register, false, false) => call_register::<u32>,
                (_, true, _) => call_memory::<u64>,
                (_, false, true) => call_memory::<u16>,
                (_, false, false) => call_memory::<u32>,
            }
        }
        Mnemonic::Ret => match (long, narrow) {
            (true, _) => ret::<u64>,
            (false, true) => ret::<u16>,
            (false, false) => ret::<u32>,
        },
        mnemonic => return looping(instruction, width, mnemonic),
    };
    Some(Op::new(instruction, width, run))
}

/// The operand size of a branch outside 64-bit mode.
fn operand_bytes(instruction: &Instruction) -> usize {
    match instruction.op0_kind() {
        _ if instruction.mnemonic() == Mnemonic::Ret => {
            Opcode::of(instruction.code()).operand_bytes.into()
        }
        OpKind::NearBranch16 => 2,
        OpKind::Register => instruction.op0_register().size(),
        OpKind::Memory => instruction.memory_size().size(),
        _ => 4,
    }
}

/// `loop` and its kin, and `jcxz`: the address size says which count.
fn looping(instruction: &Instruction, width: Width, mnemonic: Mnemonic) -> Option<Op> {
    macro_rules! by_count {
        ($handler:ident $(, $parameter:ty)*) => {
            match Opcode::of(instruction.code()).address_bits {
                16 => $handler::<$($parameter,)* u16> as Handler,
                32 => $handler::<$($parameter,)* u32>,
                _ => $handler::<$($parameter,)* u64>,
            }
        };
    }
    let run = match mnemonic {
        Mnemonic::Loop => by_count!(loop_while, Always),
        Mnemonic::Loope => by_count!(loop_while, Equal),
        Mnemonic::Loopne => by_count!(loop_while, NotEqual),
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => by_count!(jump_if_no_count),
        _ => return None,
    };
    let mut op = Op::new(instruction, width, run);
    op.extra = match (width, operand_bytes(instruction)) {
        (Width::Code64, _) => 8,
        (_, 2) => 2,
        _ => 4,
    };
    Some(op)
}

/// Checks the target of a branch of operand size `T`.
#[inline(always)]
fn checked<T: Word>(core: &Core, target: u64) -> Result<u64, Fault> {
    let valid = if T::BYTES == 8 {
        (target << 16) as i64 >> 16 == target as i64
    } else {
        core.width == Width::Code64 || target <= u64::from(core.segments[CS].limit)
    };
    if valid { Ok(target) } else { Err(Fault::GP0) }
}

/// The target of a direct branch.
#[inline(always)]
fn direct<T: Word>(core: &Core, op: &Op) -> u64 {
    T::low(core.rip().wrapping_add(op.imm)).wide()
}

#[inline(always)]
fn branch_to<T: Word>(core: &mut Core, target: u64) -> Result<Flow, Fault> {
    let target = checked::<T>(core, target)?;
    core.set_rip(target);
    Ok(Flow::Branch)
}

fn jump_if<const CONDITION: u8>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    if !core.flags.status().holds::<CONDITION>() {
        return Ok(Flow::Next);
    }
    core.set_rip(core.rip().wrapping_add(op.imm));
    Ok(Flow::Branch)
}

fn narrow_jump_if<T: Word, const CONDITION: u8>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    if !core.flags.status().holds::<CONDITION>() {
        return Ok(Flow::Next);
    }
    narrow_jump::<T>(core, op)
}

fn jump(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.set_rip(core.rip().wrapping_add(op.imm));
    Ok(Flow::Branch)
}

fn narrow_jump<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    branch_to::<T>(core, direct::<T>(core, op))
}

fn jump_register<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let target = core.get::<T>(op.a).wide();
    branch_to::<T>(core, target)
}

fn jump_memory<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let target = core.read::<T>(&op.mem)?.wide();
    branch_to::<T>(core, target)
}

#[inline(always)]
fn call_to<T: Word>(core: &mut Core, op: &Op, target: u64) -> Result<Flow, Fault> {
    let target = checked::<T>(core, target)?;
    let next = T::low(core.rip().wrapping_add(u64::from(op.len)));
    push(core, next)?;
    core.set_rip(target);
    Ok(Flow::Branch)
}

fn call<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let target = direct::<T>(core, op);
    call_to::<T>(core, op, target)
}

fn call_register<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let target = core.get::<T>(op.a).wide();
    call_to::<T>(core, op, target)
}

fn call_memory<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let target = core.read::<T>(&op.mem)?.wide();
    call_to::<T>(core, op, target)
}

/// With an immediate operand, which is zero without one, that many bytes more are popped.
fn ret<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let (target, after) = pop::<T>(core)?;
    let target = checked::<T>(core, target.wide())?;
    set_stack_pointer(core, after.wrapping_add(op.imm));
    core.set_rip(target);
    Ok(Flow::Branch)
}

/// What `loop` wants of the flags.
trait While {
    fn goes_on(core: &Core) -> bool;
}

struct Always;
struct Equal;
struct NotEqual;

impl While for Always {
    fn goes_on(_core: &Core) -> bool {
        true
    }
}

impl While for Equal {
    fn goes_on(core: &Core) -> bool {
        core.flags.status().holds::<4>()
    }
}

impl While for NotEqual {
    fn goes_on(core: &Core) -> bool {
        core.flags.status().holds::<5>()
    }
}

/// Takes a direct branch whose operand size is in `extra`.
fn take(core: &Core, op: &Op) -> Result<u64, Fault> {
    match op.extra {
        8 => checked::<u64>(core, direct::<u64>(core, op)),
        4 => checked::<u32>(core, direct::<u32>(core, op)),
        _ => checked::<u16>(core, direct::<u16>(core, op)),
    }
}

fn loop_while<W: While, T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let count = T::low(core.get::<T>(C).wide().wrapping_sub(1));
    if count.wide() == 0 || !W::goes_on(core) {
        core.put(C, count);
        return Ok(Flow::Next);
    }
    let target = take(core, op)?;
    core.put(C, count);
    core.set_rip(target);
    Ok(Flow::Branch)
}

fn jump_if_no_count<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    if core.get::<T>(C).wide() != 0 {
        return Ok(Flow::Next);
    }
    let target = take(core, op)?;
    core.set_rip(target);
    Ok(Flow::Branch)
}
