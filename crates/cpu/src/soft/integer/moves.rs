//! Moves, conversions, conditions into registers, single flags, and what does nothing.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{
    Kind, by_condition, by_size, by_wide_size, bytes,
    host::{Host, Wide},
    kinds,
};
use crate::soft::{
    Core, Fault, Flow, Op,
    core::{Access, Word},
    flags::{CF, DF, SF, STATUS, Status},
    op::{Handler, Mem, ZERO},
};

/// Number of the accumulator.
const A: u8 = 0;
/// Number of `dx`, which takes the upper half of what is widened.
const D: u8 = 2;
/// Number of `ah` as an operand.
const AH: u8 = crate::soft::op::HIGH_BYTES;

/// The handler of a move or the like.
pub fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti => return mov(instruction),
        Mnemonic::Lea => by_wide_size!(instruction.op0_register().size(), lea),
        Mnemonic::Movzx => return widen::<Zero>(instruction),
        Mnemonic::Movsx | Mnemonic::Movsxd => return widen::<Sign>(instruction),
        Mnemonic::Bswap => by_wide_size!(bytes(instruction, 0), bswap),
        Mnemonic::Movbe if kinds(instruction).0 == Kind::Register => {
            by_wide_size!(bytes(instruction, 0), movbe_load)
        }
        Mnemonic::Movbe => by_wide_size!(bytes(instruction, 1), movbe_store),
        Mnemonic::Cbw => convert::<u8, u16>,
        Mnemonic::Cwde => convert::<u16, u32>,
        Mnemonic::Cdqe => convert::<u32, u64>,
        Mnemonic::Cwd => spread::<u16>,
        Mnemonic::Cdq => spread::<u32>,
        Mnemonic::Cqo => spread::<u64>,
        Mnemonic::Xlatb => xlat,
        Mnemonic::Lahf => lahf,
        Mnemonic::Sahf => sahf,
        Mnemonic::Cmc => cmc,
        Mnemonic::Clc => put_flag::<CF, false>,
        Mnemonic::Stc => put_flag::<CF, true>,
        Mnemonic::Cld => put_flag::<DF, false>,
        Mnemonic::Std => put_flag::<DF, true>,
        Mnemonic::Nop
        | Mnemonic::Reservednop
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchit0
        | Mnemonic::Prefetchit1
        | Mnemonic::Cldemote
        | Mnemonic::Lfence
        | Mnemonic::Sfence => nop,
        Mnemonic::Mfence => fence,
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => flush_line,
        // Of what depends on a condition, branches have an operand of no kind that counts here.
        _ => match (kinds(instruction), instruction.op_count()) {
            ((Kind::Register, _), 2) => return cmov(instruction),
            ((Kind::Register | Kind::Memory, _), 1) => return setcc(instruction),
            _ => return None,
        },
    })
}

fn mov(instruction: &Instruction) -> Option<Handler> {
    let size = bytes(instruction, 0);
    Some(match kinds(instruction) {
        (Kind::Register, Kind::Register) => by_size!(size, mov_register),
        (Kind::Register, Kind::Immediate) => by_size!(size, mov_immediate),
        (Kind::Register, Kind::Memory) => by_size!(size, load),
        (Kind::Memory, Kind::Register) => by_size!(size, store),
        (Kind::Memory, Kind::Immediate) => by_size!(size, store_immediate),
        (Kind::Register, Kind::Other) => segment_read(instruction, size)?,
        (Kind::Memory, Kind::Other) => segment_store(instruction)?,
        _ => return None,
    })
}

/// `mov` from a segment register: one handler for each, as operands hold no segment register.
fn segment_read(instruction: &Instruction, size: usize) -> Option<Handler> {
    Some(match source_segment(instruction)? {
        0 => by_wide_size!(size, get_segment, Segment<0>),
        1 => by_wide_size!(size, get_segment, Segment<1>),
        2 => by_wide_size!(size, get_segment, Segment<2>),
        3 => by_wide_size!(size, get_segment, Segment<3>),
        4 => by_wide_size!(size, get_segment, Segment<4>),
        _ => by_wide_size!(size, get_segment, Segment<5>),
    })
}

fn segment_store(instruction: &Instruction) -> Option<Handler> {
    Some(match source_segment(instruction)? {
        0 => store_segment::<0>,
        1 => store_segment::<1>,
        2 => store_segment::<2>,
        3 => store_segment::<3>,
        4 => store_segment::<4>,
        _ => store_segment::<5>,
    })
}

/// The number of the segment register that is read, if that is what is read.
fn source_segment(instruction: &Instruction) -> Option<u8> {
    let register = instruction.op1_register();
    (instruction.op1_kind() == OpKind::Register && register.is_segment_register())
        .then(|| crate::soft::op::segment(register))
}

fn mov_register<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let value = core.get::<T>(op.b);
    core.put(op.a, value);
    Ok(Flow::Next)
}

fn mov_immediate<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.put(op.a, T::low(op.imm));
    Ok(Flow::Next)
}

fn load<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let value = core.read::<T>(&op.mem)?;
    core.put(op.a, value);
    Ok(Flow::Next)
}

fn store<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let value = core.get::<T>(op.a);
    core.write(&op.mem, value)?;
    Ok(Flow::Next)
}

fn store_immediate<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.write(&op.mem, T::low(op.imm))?;
    Ok(Flow::Next)
}

/// A segment register, as a type.
struct Segment<const NUMBER: usize>;

/// See [`Segment`].
trait SegmentNumber {
    const NUMBER: usize;
}

impl<const NUMBER: usize> SegmentNumber for Segment<NUMBER> {
    const NUMBER: usize = NUMBER;
}

fn get_segment<S: SegmentNumber, T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let selector = core.segments[S::NUMBER].selector;
    core.put(op.a, T::low(u64::from(selector)));
    Ok(Flow::Next)
}

fn store_segment<const NUMBER: usize>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let selector = core.segments[NUMBER].selector;
    core.write(&op.mem, selector)?;
    Ok(Flow::Next)
}

fn lea<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let offset = core.offset(&op.mem);
    core.put(op.a, T::low(offset));
    Ok(Flow::Next)
}

/// How a small word becomes a large one.
trait Widen {
    fn widen<From: Word>(value: From) -> u64;
}

struct Zero;
struct Sign;

impl Widen for Zero {
    #[inline(always)]
    fn widen<From: Word>(value: From) -> u64 {
        value.wide()
    }
}

impl Widen for Sign {
    #[inline(always)]
    fn widen<From: Word>(value: From) -> u64 {
        value.signed() as u64
    }
}

fn widen<W: Widen>(instruction: &Instruction) -> Option<Handler> {
    let (to, from) = (bytes(instruction, 0), bytes(instruction, 1));
    Some(match (kinds(instruction).1, from) {
        (Kind::Register, 1) => by_wide_size!(to, widen_register, W, u8),
        (Kind::Register, 2) => by_wide_size!(to, widen_register, W, u16),
        (Kind::Register, 4) => by_wide_size!(to, widen_register, W, u32),
        (Kind::Memory, 1) => by_wide_size!(to, widen_memory, W, u8),
        (Kind::Memory, 2) => by_wide_size!(to, widen_memory, W, u16),
        (Kind::Memory, 4) => by_wide_size!(to, widen_memory, W, u32),
        _ => return None,
    })
}

fn widen_register<W: Widen, From: Word, To: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let value = core.get::<From>(op.b);
    core.put(op.a, To::low(W::widen(value)));
    Ok(Flow::Next)
}

fn widen_memory<W: Widen, From: Word, To: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let value = core.read::<From>(&op.mem)?;
    core.put(op.a, To::low(W::widen(value)));
    Ok(Flow::Next)
}

fn bswap<T: Wide>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    // Of 16 bits the result is undefined; processors clear them.
    let value = match T::BYTES {
        2 => T::low(0),
        _ => core.get::<T>(op.a).swapped(),
    };
    core.put(op.a, value);
    Ok(Flow::Next)
}

fn movbe_load<T: Wide>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let value = core.read::<T>(&op.mem)?;
    core.put(op.a, value.swapped());
    Ok(Flow::Next)
}

fn movbe_store<T: Wide>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let value = core.get::<T>(op.a).swapped();
    core.write(&op.mem, value)?;
    Ok(Flow::Next)
}

/// `cbw`, `cwde`, `cdqe`.
fn convert<From: Word, To: Word>(core: &mut Core, _op: &Op) -> Result<Flow, Fault> {
    let value = core.get::<From>(A).signed();
    core.put(A, To::low(value as u64));
    Ok(Flow::Next)
}

/// `cwd`, `cdq`, `cqo`.
fn spread<T: Word>(core: &mut Core, _op: &Op) -> Result<Flow, Fault> {
    let sign = core.get::<T>(A).signed() >> 63;
    core.put(D, T::low(sign as u64));
    Ok(Flow::Next)
}

fn xlat(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let mem = Mem {
        displacement: u64::from(core.get::<u8>(A)),
        index: ZERO,
        ..op.mem
    };
    let value = core.read::<u8>(&mem)?;
    core.put(A, value);
    Ok(Flow::Next)
}

fn lahf(core: &mut Core, _op: &Op) -> Result<Flow, Fault> {
    let image = core.flags.status().image() as u8 | 2;
    core.put(AH, image);
    Ok(Flow::Next)
}

fn sahf(core: &mut Core, _op: &Op) -> Result<Flow, Fault> {
    let low = SF | (STATUS & 0x7f);
    let image = u64::from(core.get::<u8>(AH)) & low | core.flags.status().image() & !low;
    core.flags.set_status(Status::from_image(image));
    Ok(Flow::Next)
}

fn cmc(core: &mut Core, _op: &Op) -> Result<Flow, Fault> {
    let status = core.flags.status();
    core.flags.set_status(status.with_carry(!status.carry()));
    Ok(Flow::Next)
}

fn put_flag<const FLAG: u64, const VALUE: bool>(core: &mut Core, _op: &Op) -> Result<Flow, Fault> {
    core.flags.replace(FLAG, if VALUE { FLAG } else { 0 });
    Ok(Flow::Next)
}

/// Also fences of loads or stores alone: the host orders them as the guest's processor would.
fn nop(_core: &mut Core, _op: &Op) -> Result<Flow, Fault> {
    Ok(Flow::Next)
}

fn fence(_core: &mut Core, _op: &Op) -> Result<Flow, Fault> {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(Flow::Next)
}

/// Caches are never stale here; but the address must be one that can be read.
fn flush_line(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let linear = core.linear(&op.mem, 1, Access::Read)?;
    core.find(linear, 1, Access::Read)?;
    Ok(Flow::Next)
}

fn cmov(instruction: &Instruction) -> Option<Handler> {
    let condition = instruction.condition_code();
    Some(match (kinds(instruction).1, bytes(instruction, 0)) {
        (Kind::Register, 2) => by_condition!(condition, cmov_register, u16),
        (Kind::Register, 4) => by_condition!(condition, cmov_register, u32),
        (Kind::Register, 8) => by_condition!(condition, cmov_register, u64),
        (Kind::Memory, 2) => by_condition!(condition, cmov_memory, u16),
        (Kind::Memory, 4) => by_condition!(condition, cmov_memory, u32),
        (Kind::Memory, 8) => by_condition!(condition, cmov_memory, u64),
        _ => return None,
    })
}

fn setcc(instruction: &Instruction) -> Option<Handler> {
    let condition = instruction.condition_code();
    Some(match Kind::of(instruction, 0) {
        Kind::Register => by_condition!(condition, set_register),
        _ => by_condition!(condition, set_memory),
    })
}

/// Chosen by a mask, not by a branch the host would have to guess. Writes its register in any
/// case: the upper half of a 32-bit one is cleared.
#[inline(always)]
fn finish_cmov<T: Host, const CONDITION: u8>(core: &mut Core, op: &Op, value: T) {
    let mask = u64::from(core.flags.status().holds::<CONDITION>()).wrapping_neg();
    let chosen = value.wide() & mask | core.get::<T>(op.a).wide() & !mask;
    core.put(op.a, T::low(chosen));
}

fn cmov_register<T: Host, const CONDITION: u8>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let value = core.get::<T>(op.b);
    finish_cmov::<T, CONDITION>(core, op, value);
    Ok(Flow::Next)
}

fn cmov_memory<T: Host, const CONDITION: u8>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let value = core.read::<T>(&op.mem)?;
    finish_cmov::<T, CONDITION>(core, op, value);
    Ok(Flow::Next)
}

fn set_register<const CONDITION: u8>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let value = u8::from(core.flags.status().holds::<CONDITION>());
    core.put(op.a, value);
    Ok(Flow::Next)
}

fn set_memory<const CONDITION: u8>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let value = u8::from(core.flags.status().holds::<CONDITION>());
    core.write(&op.mem, value)?;
    Ok(Flow::Next)
}
