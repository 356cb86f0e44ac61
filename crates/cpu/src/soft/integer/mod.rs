//! General-purpose instructions that need no privilege.
//!
//! [`select`] picks the handler; `soft::select` asks it first. Handlers are generic over the word
//! they work on and over what they compute, one per form of operands, so that none of them decides
//! anything that was known when the instruction was decoded.
//!
//! | module | instructions |
//! |---|---|
//! | [`arithmetic`] | two operands and one: `add` to `xor`, `cmp`, `test`, `inc`, `neg`... |
//! | [`multiply`] | `mul`, `imul`, `div`, `idiv` |
//! | [`shift`] | shifts and rotates, `shld`, `shrd` |
//! | [`bits`] | `bt` and its kin, bit scans and counts |
//! | [`moves`] | `mov` and its kin, `lea`, `cmovcc`, `setcc`, conversions, flags, hints |
//! | [`exchange`] | `xchg`, `xadd`, `cmpxchg`, `cmpxchg8b`, `cmpxchg16b` |
//! | [`branch`] | near branches, `call`, `ret`, `loop` |
//! | [`stack`] | `push`, `pop`, `enter`, `leave` |
//! | [`strings`] | `movs`, `stos`, `lods`, `scas`, `cmps`, with and without prefixes |
//! | [`legacy`] | decimal arithmetic, `bound`, `salc`: what 64-bit mode has no more |
//!
//! [`host`] computes, [`operand`] changes memory operands in place. Segment register loads, `popf`,
//! far branches and everything that needs privilege are not here.

mod arithmetic;
mod bits;
mod branch;
mod exchange;
mod host;
mod legacy;
mod moves;
mod multiply;
mod operand;
mod shift;
mod stack;
mod strings;

use iced_x86::{Instruction, OpKind};

use super::op::{Handler, Op, Width};

/// A handler for each size of word, chosen by a size in bytes.
macro_rules! by_size {
    ($bytes:expr, $handler:ident $(, $parameter:ty)*) => {
        match $bytes {
            1 => $handler::<$($parameter,)* u8> as $crate::soft::op::Handler,
            2 => $handler::<$($parameter,)* u16>,
            4 => $handler::<$($parameter,)* u32>,
            8 => $handler::<$($parameter,)* u64>,
            _ => return None,
        }
    };
}

/// A handler for each size of word but the byte.
macro_rules! by_wide_size {
    ($bytes:expr, $handler:ident $(, $parameter:ty)*) => {
        match $bytes {
            2 => $handler::<$($parameter,)* u16> as $crate::soft::op::Handler,
            4 => $handler::<$($parameter,)* u32>,
            8 => $handler::<$($parameter,)* u64>,
            _ => return None,
        }
    };
}

/// A handler for each condition, as [`super::flags::Status::holds`] numbers them.
macro_rules! by_condition {
    ($code:expr, $handler:ident $(, $parameter:ty)*) => {{
        use iced_x86::ConditionCode as C;
        match $code {
            C::None => return None,
            C::o => $handler::<$($parameter,)* 0> as $crate::soft::op::Handler,
            C::no => $handler::<$($parameter,)* 1>,
            C::b => $handler::<$($parameter,)* 2>,
            C::ae => $handler::<$($parameter,)* 3>,
            C::e => $handler::<$($parameter,)* 4>,
            C::ne => $handler::<$($parameter,)* 5>,
            C::be => $handler::<$($parameter,)* 6>,
            C::a => $handler::<$($parameter,)* 7>,
            C::s => $handler::<$($parameter,)* 8>,
            C::ns => $handler::<$($parameter,)* 9>,
            C::p => $handler::<$($parameter,)* 10>,
            C::np => $handler::<$($parameter,)* 11>,
            C::l => $handler::<$($parameter,)* 12>,
            C::ge => $handler::<$($parameter,)* 13>,
            C::le => $handler::<$($parameter,)* 14>,
            C::g => $handler::<$($parameter,)* 15>,
        }
    }};
}

use by_condition;
use by_size;
use by_wide_size;

/// What kind of operand: all a form depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A general-purpose register.
    Register,
    /// Memory, addressed by a ModRM byte or absolutely.
    Memory,
    /// A number.
    Immediate,
    /// Nothing, or something handlers of two operands have no business with.
    Other,
}

impl Kind {
    fn of(instruction: &Instruction, operand: u32) -> Self {
        if operand >= instruction.op_count() {
            return Self::Other;
        }
        match instruction.op_kind(operand) {
            OpKind::Register if instruction.op_register(operand).is_gpr() => Self::Register,
            OpKind::Memory => Self::Memory,
            OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => Self::Immediate,
            _ => Self::Other,
        }
    }
}

/// The kinds of the first two operands.
fn kinds(instruction: &Instruction) -> (Kind, Kind) {
    (Kind::of(instruction, 0), Kind::of(instruction, 1))
}

/// The size in bytes of an operand in a register or in memory.
fn bytes(instruction: &Instruction, operand: u32) -> usize {
    match Kind::of(instruction, operand) {
        Kind::Register => instruction.op_register(operand).size(),
        Kind::Memory => instruction.memory_size().size(),
        Kind::Immediate | Kind::Other => 0,
    }
}

/// The instruction with its operands packed, if it is one of ours.
#[must_use]
pub fn select(instruction: &Instruction, width: Width) -> Option<Op> {
    let simple = |run: Option<Handler>| run.map(|run| Op::new(instruction, width, run));
    simple(moves::select(instruction))
        .or_else(|| simple(arithmetic::select(instruction)))
        .or_else(|| branch::select(instruction, width))
        .or_else(|| stack::select(instruction, width))
        .or_else(|| simple(shift::select(instruction)))
        .or_else(|| simple(exchange::select(instruction)))
        .or_else(|| simple(multiply::select(instruction)))
        .or_else(|| simple(bits::select(instruction)))
        .or_else(|| strings::select(instruction, width))
        .or_else(|| simple(legacy::select(instruction)))
}
