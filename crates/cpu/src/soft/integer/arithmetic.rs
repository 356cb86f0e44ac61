//! Arithmetic and logic on two operands and on one.

use iced_x86::{Instruction, Mnemonic};

use super::{
    Kind, by_size, by_wide_size, bytes,
    host::{Host, Wide},
    kinds,
    operand::modify,
};
use crate::soft::{Core, Fault, Flow, Op, flags::Status, op::Handler};

/// What a two-operand instruction computes.
trait Binary {
    fn compute<T: Host>(a: T, b: T, old: Status) -> (T, Status);
}

/// What a two-operand instruction leaves in the flags, if it writes nothing else.
trait Compare {
    fn compare<T: Host>(a: T, b: T) -> Status;
}

/// What a one-operand instruction computes.
trait Unary {
    fn compute<T: Host>(a: T, old: Status) -> (T, Status);
}

macro_rules! operations {
    ($($operation:ident: $kind:ident $name:ident ($($argument:ident),*) = $value:expr;)*) => { $(
        struct $operation;
        impl $kind for $operation {
            operations!(@$kind $name ($($argument),*) $value);
        }
    )* };
    (@Binary $name:ident ($a:ident, $b:ident, $old:ident) $value:expr) => {
        #[inline(always)]
        fn $name<T: Host>($a: T, $b: T, $old: Status) -> (T, Status) { $value }
    };
    (@Compare $name:ident ($a:ident, $b:ident) $value:expr) => {
        #[inline(always)]
        fn $name<T: Host>($a: T, $b: T) -> Status { $value }
    };
    (@Unary $name:ident ($a:ident, $old:ident) $value:expr) => {
        #[inline(always)]
        fn $name<T: Host>($a: T, $old: Status) -> (T, Status) { $value }
    };
}

operations! {
    Add: Binary compute(a, b, _old) = a.add(b);
    Or: Binary compute(a, b, _old) = a.or(b);
    Adc: Binary compute(a, b, old) = a.adc(b, old);
    Sbb: Binary compute(a, b, old) = a.sbb(b, old);
    And: Binary compute(a, b, _old) = a.and(b);
    Sub: Binary compute(a, b, _old) = a.sub(b);
    Xor: Binary compute(a, b, _old) = a.xor(b);
    Cmp: Compare compare(a, b) = a.cmp_status(b);
    Test: Compare compare(a, b) = a.test_status(b);
    Inc: Unary compute(a, old) = a.inc(old);
    Dec: Unary compute(a, old) = a.dec(old);
    Neg: Unary compute(a, _old) = a.neg();
    Not: Unary compute(a, old) = (T::low(!a.wide()), old);
}

/// The handler of an arithmetic or logical instruction.
pub fn select(instruction: &Instruction) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::Add => binary::<Add>(instruction),
        Mnemonic::Or => binary::<Or>(instruction),
        Mnemonic::Adc => binary::<Adc>(instruction),
        Mnemonic::Sbb => binary::<Sbb>(instruction),
        Mnemonic::And => binary::<And>(instruction),
        Mnemonic::Sub => binary::<Sub>(instruction),
        Mnemonic::Xor => binary::<Xor>(instruction),
        Mnemonic::Cmp => compare::<Cmp>(instruction),
        Mnemonic::Test => compare::<Test>(instruction),
        Mnemonic::Inc => unary::<Inc>(instruction),
        Mnemonic::Dec => unary::<Dec>(instruction),
        Mnemonic::Neg => unary::<Neg>(instruction),
        Mnemonic::Not => unary::<Not>(instruction),
        _ => None,
    }
}

fn binary<O: Binary>(instruction: &Instruction) -> Option<Handler> {
    let size = bytes(instruction, 0);
    let locked = instruction.has_lock_prefix();
    Some(match kinds(instruction) {
        (Kind::Register, Kind::Register) if is_zeroing(instruction) => {
            by_wide_size!(size, zero_register)
        }
        (Kind::Register, Kind::Register) => by_size!(size, register_register, O),
        (Kind::Register, Kind::Immediate) => by_size!(size, register_immediate, O),
        (Kind::Register, Kind::Memory) => by_size!(size, register_memory, O),
        (Kind::Memory, Kind::Register) if locked => by_size!(size, locked_register, O),
        (Kind::Memory, Kind::Register) => by_size!(size, memory_register, O),
        (Kind::Memory, Kind::Immediate) if locked => by_size!(size, locked_immediate, O),
        (Kind::Memory, Kind::Immediate) => by_size!(size, memory_immediate, O),
        _ => return None,
    })
}

/// `xor` of a register with itself, as all compilers clear one.
fn is_zeroing(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Xor
        && instruction.op0_register() == instruction.op1_register()
        && instruction.op0_register().size() >= 4
}

fn compare<O: Compare>(instruction: &Instruction) -> Option<Handler> {
    let size = bytes(instruction, 0);
    Some(match kinds(instruction) {
        (Kind::Register, Kind::Register) => by_size!(size, compare_registers, O),
        (Kind::Register, Kind::Immediate) => by_size!(size, compare_register_immediate, O),
        (Kind::Register, Kind::Memory) => by_size!(size, compare_register_memory, O),
        (Kind::Memory, Kind::Register) => by_size!(size, compare_memory_register, O),
        (Kind::Memory, Kind::Immediate) => by_size!(size, compare_memory_immediate, O),
        _ => return None,
    })
}

fn unary<O: Unary>(instruction: &Instruction) -> Option<Handler> {
    let size = bytes(instruction, 0);
    Some(match Kind::of(instruction, 0) {
        Kind::Register => by_size!(size, unary_register, O),
        Kind::Memory if instruction.has_lock_prefix() => by_size!(size, unary_locked, O),
        Kind::Memory => by_size!(size, unary_memory, O),
        Kind::Immediate | Kind::Other => return None,
    })
}

/// Completes a two-operand instruction whose first operand is a register.
#[inline(always)]
fn to_register<O: Binary, T: Host>(core: &mut Core, op: &Op, b: T) -> Result<Flow, Fault> {
    let (value, status) = O::compute(core.get::<T>(op.a), b, core.flags.status());
    core.put(op.a, value);
    core.flags.set_status(status);
    Ok(Flow::Next)
}

/// Completes a two-operand instruction whose first operand is in memory.
#[inline(always)]
fn to_memory<O: Binary, T: Host, const LOCK: bool>(
    core: &mut Core,
    op: &Op,
    b: T,
) -> Result<Flow, Fault> {
    let old = core.flags.status();
    let status = modify::<T, _, LOCK>(core, &op.mem, |a| O::compute(a, b, old))?;
    core.flags.set_status(status);
    Ok(Flow::Next)
}

fn register_register<O: Binary, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let b = core.get(op.b);
    to_register::<O, T>(core, op, b)
}

fn register_immediate<O: Binary, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    to_register::<O, T>(core, op, T::low(op.imm))
}

fn register_memory<O: Binary, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let b = core.read(&op.mem)?;
    to_register::<O, T>(core, op, b)
}

fn memory_register<O: Binary, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let b = core.get(op.a);
    to_memory::<O, T, false>(core, op, b)
}

fn memory_immediate<O: Binary, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    to_memory::<O, T, false>(core, op, T::low(op.imm))
}

fn locked_register<O: Binary, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let b = core.get(op.a);
    to_memory::<O, T, true>(core, op, b)
}

fn locked_immediate<O: Binary, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    to_memory::<O, T, true>(core, op, T::low(op.imm))
}

fn zero_register<T: Wide>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.put(op.a, T::low(0));
    core.flags.set_status(Status::ZERO_RESULT);
    Ok(Flow::Next)
}

fn compare_registers<O: Compare, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let status = O::compare(core.get::<T>(op.a), core.get(op.b));
    core.flags.set_status(status);
    Ok(Flow::Next)
}

fn compare_register_immediate<O: Compare, T: Host>(
    core: &mut Core,
    op: &Op,
) -> Result<Flow, Fault> {
    let status = O::compare(core.get::<T>(op.a), T::low(op.imm));
    core.flags.set_status(status);
    Ok(Flow::Next)
}

fn compare_register_memory<O: Compare, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let b = core.read::<T>(&op.mem)?;
    core.flags.set_status(O::compare(core.get(op.a), b));
    Ok(Flow::Next)
}

fn compare_memory_register<O: Compare, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let a = core.read::<T>(&op.mem)?;
    core.flags.set_status(O::compare(a, core.get(op.a)));
    Ok(Flow::Next)
}

fn compare_memory_immediate<O: Compare, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let a = core.read::<T>(&op.mem)?;
    core.flags.set_status(O::compare(a, T::low(op.imm)));
    Ok(Flow::Next)
}

fn unary_register<O: Unary, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let (value, status) = O::compute(core.get::<T>(op.a), core.flags.status());
    core.put(op.a, value);
    core.flags.set_status(status);
    Ok(Flow::Next)
}

fn unary_memory<O: Unary, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let old = core.flags.status();
    let status = modify::<T, _, false>(core, &op.mem, |a| O::compute(a, old))?;
    core.flags.set_status(status);
    Ok(Flow::Next)
}

fn unary_locked<O: Unary, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let old = core.flags.status();
    let status = modify::<T, _, true>(core, &op.mem, |a| O::compute(a, old))?;
    core.flags.set_status(status);
    Ok(Flow::Next)
}
