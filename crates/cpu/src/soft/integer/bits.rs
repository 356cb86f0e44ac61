//! Single bits, bit scans and bit counts.

use iced_x86::{Instruction, Mnemonic};

use super::{
    Kind, by_wide_size, bytes,
    host::{Host, Wide},
    kinds,
    operand::modify,
};
use crate::soft::{
    Core, Fault, Flow, Op,
    flags::{CF, Status, ZF},
    op::{Handler, Mem},
};

/// What is done to the tested bit.
trait Change {
    /// Whether anything: `bt` reads only.
    const WRITES: bool = true;
    fn change(value: u64, bit: u64) -> u64;
}

macro_rules! changes {
    ($($operation:ident($value:ident, $bit:ident) = $changed:expr;)*) => { $(
        struct $operation;
        impl Change for $operation {
            #[inline(always)]
            fn change($value: u64, $bit: u64) -> u64 { $changed }
        }
    )* };
}

changes! {
    Set(value, bit) = value | bit;
    Reset(value, bit) = value & !bit;
    Complement(value, bit) = value ^ bit;
}

struct Keep;

impl Change for Keep {
    const WRITES: bool = false;
    #[inline(always)]
    fn change(value: u64, _bit: u64) -> u64 {
        value
    }
}

/// How a bit is found, or bits are counted.
trait Scan {
    /// Whether the target stays as it was, with its upper half, when the source is zero.
    const KEEPS: bool = false;
    fn scan<T: Wide>(target: T, source: T, old: Status) -> (T, Status);
}

struct Bsf;
struct Bsr;
struct Tzcnt;
struct Lzcnt;
struct Popcnt;

impl Scan for Bsf {
    const KEEPS: bool = true;
    #[inline(always)]
    fn scan<T: Wide>(target: T, source: T, old: Status) -> (T, Status) {
        target.bsf(source, old)
    }
}

impl Scan for Bsr {
    const KEEPS: bool = true;
    #[inline(always)]
    fn scan<T: Wide>(target: T, source: T, old: Status) -> (T, Status) {
        target.bsr(source, old)
    }
}

/// A count with its flags: carry for a zero source, zero for a zero count.
#[inline(always)]
fn counted<T: Wide>(count: u32, carry: bool) -> (T, Status) {
    let zero = if count == 0 { ZF } else { 0 };
    let carry = if carry { CF } else { 0 };
    (T::low(u64::from(count)), Status::from_image(zero | carry))
}

impl Scan for Tzcnt {
    #[inline(always)]
    fn scan<T: Wide>(_target: T, source: T, _old: Status) -> (T, Status) {
        let count = source.wide().trailing_zeros().min(T::BITS);
        counted(count, source.wide() == 0)
    }
}

impl Scan for Lzcnt {
    #[inline(always)]
    fn scan<T: Wide>(_target: T, source: T, _old: Status) -> (T, Status) {
        let count = source.wide().leading_zeros() - (64 - T::BITS);
        counted(count, source.wide() == 0)
    }
}

impl Scan for Popcnt {
    #[inline(always)]
    fn scan<T: Wide>(_target: T, source: T, _old: Status) -> (T, Status) {
        counted(source.wide().count_ones(), false)
    }
}

/// The handler of a bit instruction.
pub fn select(instruction: &Instruction) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::Bt => bit::<Keep>(instruction),
        Mnemonic::Bts => bit::<Set>(instruction),
        Mnemonic::Btr => bit::<Reset>(instruction),
        Mnemonic::Btc => bit::<Complement>(instruction),
        Mnemonic::Bsf => scan::<Bsf>(instruction),
        Mnemonic::Bsr => scan::<Bsr>(instruction),
        Mnemonic::Tzcnt => scan::<Tzcnt>(instruction),
        Mnemonic::Lzcnt => scan::<Lzcnt>(instruction),
        Mnemonic::Popcnt => scan::<Popcnt>(instruction),
        _ => None,
    }
}

fn bit<C: Change>(instruction: &Instruction) -> Option<Handler> {
    let size = bytes(instruction, 0);
    let locked = instruction.has_lock_prefix();
    Some(match kinds(instruction) {
        (Kind::Register, Kind::Register) => by_wide_size!(size, bit_register_register, C),
        (Kind::Register, Kind::Immediate) => by_wide_size!(size, bit_register_immediate, C),
        (Kind::Memory, Kind::Register) if locked => by_wide_size!(size, bit_locked_register, C),
        (Kind::Memory, Kind::Register) => by_wide_size!(size, bit_memory_register, C),
        (Kind::Memory, Kind::Immediate) if locked => by_wide_size!(size, bit_locked_immediate, C),
        (Kind::Memory, Kind::Immediate) => by_wide_size!(size, bit_memory_immediate, C),
        _ => return None,
    })
}

fn scan<S: Scan>(instruction: &Instruction) -> Option<Handler> {
    let size = bytes(instruction, 0);
    Some(match kinds(instruction).1 {
        Kind::Register => by_wide_size!(size, scan_register, S),
        _ => by_wide_size!(size, scan_memory, S),
    })
}

/// The bit an offset selects in a word.
#[inline(always)]
fn mask<T: Host>(offset: u64) -> u64 {
    1 << (offset & u64::from(T::BITS - 1))
}

#[inline(always)]
fn in_register<C: Change, T: Host>(core: &mut Core, op: &Op, offset: u64) -> Result<Flow, Fault> {
    let (value, bit) = (core.get::<T>(op.a).wide(), mask::<T>(offset));
    if C::WRITES {
        core.put(op.a, T::low(C::change(value, bit)));
    }
    let status = core.flags.status().with_carry(value & bit != 0);
    core.flags.set_status(status);
    Ok(Flow::Next)
}

#[inline(always)]
fn in_memory<C: Change, T: Host, const LOCK: bool>(
    core: &mut Core,
    mem: &Mem,
    offset: u64,
) -> Result<Flow, Fault> {
    let bit = mask::<T>(offset);
    let old = if C::WRITES {
        modify::<T, _, LOCK>(core, mem, |old| (T::low(C::change(old.wide(), bit)), old))?
    } else {
        core.read::<T>(mem)?
    };
    let status = core.flags.status().with_carry(old.wide() & bit != 0);
    core.flags.set_status(status);
    Ok(Flow::Next)
}

/// The word in which a register's bit offset lies: it reaches beyond the operand, both ways.
#[inline(always)]
fn word_at<T: Host>(mem: &Mem, offset: i64) -> Mem {
    let words = offset >> T::BITS.trailing_zeros();
    Mem {
        displacement: mem
            .displacement
            .wrapping_add(words.wrapping_mul(T::BYTES as i64) as u64),
        ..*mem
    }
}

fn bit_register_register<C: Change, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let offset = core.get::<T>(op.b).wide();
    in_register::<C, T>(core, op, offset)
}

fn bit_register_immediate<C: Change, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    in_register::<C, T>(core, op, op.imm)
}

#[inline(always)]
fn by_register<C: Change, T: Host, const LOCK: bool>(
    core: &mut Core,
    op: &Op,
) -> Result<Flow, Fault> {
    let offset = core.get::<T>(op.a);
    let mem = word_at::<T>(&op.mem, offset.signed());
    in_memory::<C, T, LOCK>(core, &mem, offset.wide())
}

fn bit_memory_register<C: Change, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    by_register::<C, T, false>(core, op)
}

fn bit_locked_register<C: Change, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    by_register::<C, T, true>(core, op)
}

fn bit_memory_immediate<C: Change, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    in_memory::<C, T, false>(core, &op.mem, op.imm)
}

fn bit_locked_immediate<C: Change, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    in_memory::<C, T, true>(core, &op.mem, op.imm)
}

#[inline(always)]
fn finish_scan<S: Scan, T: Wide>(core: &mut Core, op: &Op, source: T) -> Result<Flow, Fault> {
    let (value, status) = S::scan(core.get::<T>(op.a), source, core.flags.status());
    if !S::KEEPS || source.wide() != 0 {
        core.put(op.a, value);
    }
    core.flags.set_status(status);
    Ok(Flow::Next)
}

fn scan_register<S: Scan, T: Wide>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let source = core.get::<T>(op.b);
    finish_scan::<S, T>(core, op, source)
}

fn scan_memory<S: Scan, T: Wide>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let source = core.read::<T>(&op.mem)?;
    finish_scan::<S, T>(core, op, source)
}
