//! `xchg`, `xadd`, and compare-and-exchange.

use iced_x86::{Instruction, Mnemonic};

use super::{
    Kind, by_size, bytes,
    host::Host,
    kinds,
    operand::{compare_exchange_16, modify},
};
use crate::soft::{
    Core, Fault, Flow, Op,
    core::{Access, Word},
    flags::ZF,
    op::Handler,
};

/// Numbers of the registers the wide forms imply.
const A: u8 = 0;
const C: u8 = 1;
const D: u8 = 2;
const B: u8 = 3;

/// The handler of an exchange.
pub fn select(instruction: &Instruction) -> Option<Handler> {
    let (first, second) = kinds(instruction);
    let locked = instruction.has_lock_prefix();
    let size = bytes(instruction, 0);
    let memory = first == Kind::Memory || second == Kind::Memory;
    Some(match instruction.mnemonic() {
        Mnemonic::Xchg if memory => by_size!(size, exchange_memory),
        Mnemonic::Xchg => by_size!(size, exchange_registers),
        Mnemonic::Xadd if locked => by_size!(size, add_locked),
        Mnemonic::Xadd if memory => by_size!(size, add_memory),
        Mnemonic::Xadd => by_size!(size, add_registers),
        Mnemonic::Cmpxchg if locked => by_size!(size, compare_locked),
        Mnemonic::Cmpxchg if memory => by_size!(size, compare_memory),
        Mnemonic::Cmpxchg => by_size!(size, compare_registers),
        Mnemonic::Cmpxchg8b => compare_8,
        Mnemonic::Cmpxchg16b => compare_16,
        _ => return None,
    })
}

fn exchange_registers<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let (a, b) = (core.get::<T>(op.a), core.get::<T>(op.b));
    core.put(op.a, b);
    core.put(op.b, a);
    Ok(Flow::Next)
}

/// Locked also without a prefix.
fn exchange_memory<T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let new = core.get::<T>(op.a);
    let old = modify::<T, _, true>(core, &op.mem, |old| (new, old))?;
    core.put(op.a, old);
    Ok(Flow::Next)
}

fn add_registers<T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let (a, b) = (core.get::<T>(op.a), core.get::<T>(op.b));
    let (sum, status) = a.add(b);
    core.put(op.b, a);
    core.put(op.a, sum);
    core.flags.set_status(status);
    Ok(Flow::Next)
}

#[inline(always)]
fn add<T: Host, const LOCK: bool>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let b = core.get::<T>(op.a);
    let (old, status) = modify::<T, _, LOCK>(core, &op.mem, |old| {
        let (sum, status) = old.add(b);
        (sum, (old, status))
    })?;
    core.put(op.a, old);
    core.flags.set_status(status);
    Ok(Flow::Next)
}

fn add_memory<T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    add::<T, false>(core, op)
}

fn add_locked<T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    add::<T, true>(core, op)
}

fn compare_registers<T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let (expected, old, new) = (core.get::<T>(A), core.get::<T>(op.a), core.get::<T>(op.b));
    let to = if old == expected { op.a } else { A };
    core.put(to, if old == expected { new } else { old });
    core.flags.set_status(expected.cmp_status(old));
    Ok(Flow::Next)
}

/// The operand is written in any case, with what it held when it is not what was expected.
#[inline(always)]
fn compare<T: Host, const LOCK: bool>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let (expected, new) = (core.get::<T>(A), core.get::<T>(op.a));
    let old = modify::<T, _, LOCK>(core, &op.mem, |old| {
        (if old == expected { new } else { old }, old)
    })?;
    if old != expected {
        core.put(A, old);
    }
    core.flags.set_status(expected.cmp_status(old));
    Ok(Flow::Next)
}

fn compare_memory<T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    compare::<T, false>(core, op)
}

fn compare_locked<T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    compare::<T, true>(core, op)
}

/// `cmpxchg8b`, always locked: nobody uses it but for that.
fn compare_8(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let pair = |core: &Core, high, low| {
        u64::from(core.get::<u32>(high)) << 32 | u64::from(core.get::<u32>(low))
    };
    let (expected, new) = (pair(core, D, A), pair(core, C, B));
    let old = modify::<u64, _, true>(core, &op.mem, |old| {
        (if old == expected { new } else { old }, old)
    })?;
    if old != expected {
        core.put(A, old as u32);
        core.put(D, (old >> 32) as u32);
    }
    core.flags.replace(ZF, if old == expected { ZF } else { 0 });
    Ok(Flow::Next)
}

/// `cmpxchg16b`, always locked.
fn compare_16(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let pair = |core: &Core, high, low| {
        u128::from(core.get::<u64>(high)) << 64 | u128::from(core.get::<u64>(low))
    };
    let (expected, new) = (pair(core, D, A), pair(core, C, B));
    let linear = core.linear(&op.mem, 16, Access::Write)?;
    let old = compare_exchange_16(core, linear, expected, new)?;
    if old != expected {
        core.put(A, old as u64);
        core.put(D, (old >> 64) as u64);
    }
    core.flags.replace(ZF, if old == expected { ZF } else { 0 });
    Ok(Flow::Next)
}
