//! Shifts and rotates.

use iced_x86::{Instruction, Mnemonic};

use super::{
    Kind, by_size, by_wide_size, bytes,
    host::{Host, Wide},
    operand::modify,
};
use crate::soft::{Core, Fault, Flow, Op, flags::Status, op::Handler};

/// A shift or rotate by a count.
trait Shift {
    fn shift<T: Host>(value: T, count: u8, old: Status) -> (T, Status);
}

/// A shift that fills from a second operand.
trait DoubleShift {
    fn shift<T: Wide>(value: T, other: T, count: u8, old: Status) -> (T, Status);
}

macro_rules! shifts {
    ($($operation:ident $name:ident)*) => { $(
        struct $operation;
        impl Shift for $operation {
            #[inline(always)]
            fn shift<T: Host>(value: T, count: u8, old: Status) -> (T, Status) {
                value.$name(count, old)
            }
        }
    )* };
}

shifts!(Shl shl Shr shr Sar sar Rol rol Ror ror Rcl rcl Rcr rcr);

struct Shld;

impl DoubleShift for Shld {
    #[inline(always)]
    fn shift<T: Wide>(value: T, other: T, count: u8, old: Status) -> (T, Status) {
        value.shld(other, count, old)
    }
}

struct Shrd;

impl DoubleShift for Shrd {
    #[inline(always)]
    fn shift<T: Wide>(value: T, other: T, count: u8, old: Status) -> (T, Status) {
        value.shrd(other, count, old)
    }
}

/// Where the count comes from.
trait Count {
    fn count(core: &Core, op: &Op) -> u8;
}

struct Immediate;

impl Count for Immediate {
    #[inline(always)]
    fn count(_core: &Core, op: &Op) -> u8 {
        op.imm as u8
    }
}

struct Cl;

impl Count for Cl {
    #[inline(always)]
    fn count(core: &Core, _op: &Op) -> u8 {
        core.get(1)
    }
}

/// The handler of a shift or rotate.
pub fn select(instruction: &Instruction) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => single::<Shl>(instruction),
        Mnemonic::Shr => single::<Shr>(instruction),
        Mnemonic::Sar => single::<Sar>(instruction),
        Mnemonic::Rol => single::<Rol>(instruction),
        Mnemonic::Ror => single::<Ror>(instruction),
        Mnemonic::Rcl => single::<Rcl>(instruction),
        Mnemonic::Rcr => single::<Rcr>(instruction),
        Mnemonic::Shld => double::<Shld>(instruction),
        Mnemonic::Shrd => double::<Shrd>(instruction),
        _ => None,
    }
}

fn single<O: Shift>(instruction: &Instruction) -> Option<Handler> {
    let size = bytes(instruction, 0);
    let immediate = Kind::of(instruction, 1) == Kind::Immediate;
    Some(match (Kind::of(instruction, 0), immediate) {
        (Kind::Register, true) => by_size!(size, shift_register, O, Immediate),
        (Kind::Register, false) => by_size!(size, shift_register, O, Cl),
        (Kind::Memory, true) => by_size!(size, shift_memory, O, Immediate),
        (Kind::Memory, false) => by_size!(size, shift_memory, O, Cl),
        _ => return None,
    })
}

fn double<O: DoubleShift>(instruction: &Instruction) -> Option<Handler> {
    let size = bytes(instruction, 0);
    let immediate = Kind::of(instruction, 2) == Kind::Immediate;
    Some(match (Kind::of(instruction, 0), immediate) {
        (Kind::Register, true) => by_wide_size!(size, double_register, O, Immediate),
        (Kind::Register, false) => by_wide_size!(size, double_register, O, Cl),
        (Kind::Memory, true) => by_wide_size!(size, double_memory, O, Immediate),
        (Kind::Memory, false) => by_wide_size!(size, double_memory, O, Cl),
        _ => return None,
    })
}

fn shift_register<O: Shift, C: Count, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let count = C::count(core, op);
    let (value, status) = O::shift(core.get::<T>(op.a), count, core.flags.status());
    core.put(op.a, value);
    core.flags.set_status(status);
    Ok(Flow::Next)
}

fn shift_memory<O: Shift, C: Count, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let (count, old) = (C::count(core, op), core.flags.status());
    let status = modify::<T, _, false>(core, &op.mem, |value| O::shift(value, count, old))?;
    core.flags.set_status(status);
    Ok(Flow::Next)
}

fn double_register<O: DoubleShift, C: Count, T: Wide>(
    core: &mut Core,
    op: &Op,
) -> Result<Flow, Fault> {
    let (count, other) = (C::count(core, op), core.get(op.b));
    let (value, status) = O::shift(core.get::<T>(op.a), other, count, core.flags.status());
    core.put(op.a, value);
    core.flags.set_status(status);
    Ok(Flow::Next)
}

fn double_memory<O: DoubleShift, C: Count, T: Wide>(
    core: &mut Core,
    op: &Op,
) -> Result<Flow, Fault> {
    let (count, other, old) = (C::count(core, op), core.get(op.a), core.flags.status());
    let status = modify::<T, _, false>(core, &op.mem, |value| O::shift(value, other, count, old))?;
    core.flags.set_status(status);
    Ok(Flow::Next)
}
