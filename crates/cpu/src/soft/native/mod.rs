//! User instructions executed by the host's own units: x87, MMX, SSE, AVX, and what of the rest
//! `integer` leaves over (BMI, ADX, CRC32, ...).
//!
//! ```text
//!  Instruction ─ allow ─► plan ─► stub: load what it reads      ─ arena ─► Op { imm: address }
//!                                       the instruction itself
//!                                       store what it writes
//! ```
//! Guest and host are the same architecture, so an instruction is its own best description. A stub
//! is that instruction with its memory operand at `[rsi]`, its vector registers where they were and
//! its general-purpose ones where they do not disturb, made once however many times it is met.
//!
//! [`select`] is called by the decoder of blocks. What becomes a stub is on a list
//! ([`supports`] says by feature what may be): it never branches, needs no privilege, and touches
//! no memory but its one operand, which the handler found for it. What touches more
//! (`fxsave`, gathers) or only control registers is written in Rust.
//!
//! The pointers to the last x87 instruction and its operand read as zero. After a stub the host's
//! own units have the controls they had; only flags of exceptions may be left in `mxcsr`.

pub(super) mod allow;
mod arena;
mod bulk;
mod control;
mod emit;
#[doc(hidden)]
pub mod fuzzing;
mod masked;
mod plan;
mod run;
mod save;
mod template;
mod x87;

use std::io;

use iced_x86::Instruction;

use self::arena::Arena;
use super::{Op, op::Width};

pub use allow::supports;

/// Maps the memory for stubs. A process that is about to give up mapping executable memory calls it
/// before; otherwise the first instruction does.
///
/// # Errors
/// When the kernel refuses.
pub fn prepare() -> io::Result<()> {
    Arena::get().map(drop)
}

/// The op for an instruction; `None` when it is not one of this module.
#[must_use]
pub fn select(instruction: &Instruction, width: Width) -> Option<Op> {
    const WRITTEN: [fn(&Instruction, Width) -> Option<Op>; 4] =
        [control::select, x87::select, save::select, masked::select];
    if let Some(op) = WRITTEN.iter().find_map(|it| it(instruction, width)) {
        return Some(op);
    }
    template::op(instruction, width)
}

#[cfg(test)]
mod tests;
