//! Instructions that 64-bit mode has no more: decimal arithmetic, `bound`, `salc`.
//!
//! Flags the manual leaves undefined are set as processors do where that is known, and left alone
//! otherwise (Intel SDM 2).

use iced_x86::{Instruction, Mnemonic};

use super::host::Host;
use crate::soft::{
    Core, Fault, Flow, Op,
    core::Word,
    flags::{AF, CF, Status},
    op::{HIGH_BYTES, Handler, Mem},
};

const AL: u8 = 0;
const AH: u8 = HIGH_BYTES;

/// The handler of an instruction of old.
pub fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Aaa => ascii_adjust::<false>,
        Mnemonic::Aas => ascii_adjust::<true>,
        Mnemonic::Aam => aam,
        Mnemonic::Aad => aad,
        Mnemonic::Daa => decimal_adjust::<false>,
        Mnemonic::Das => decimal_adjust::<true>,
        Mnemonic::Salc => salc,
        Mnemonic::Bound if instruction.op0_register().size() == 2 => bound::<u16>,
        Mnemonic::Bound => bound::<u32>,
        _ => return None,
    })
}

/// Sets sign, zero and parity by a byte, and carry and auxiliary carry as given.
fn adjusted(core: &mut Core, byte: u8, carry: bool, auxiliary: bool) {
    let (_, logic) = byte.or(byte);
    let carry = if carry { CF } else { 0 };
    let auxiliary = if auxiliary { AF } else { 0 };
    let image = logic.image() & !(CF | AF) | carry | auxiliary;
    core.flags.set_status(Status::from_image(image));
}

/// `aaa` and `aas`.
fn ascii_adjust<const SUBTRACT: bool>(core: &mut Core, _op: &Op) -> Result<Flow, Fault> {
    let ax = core.get::<u16>(AL);
    let adjust = ax & 0xf > 9 || core.flags.any(AF);
    let value = match (adjust, SUBTRACT) {
        (false, _) => ax,
        (true, false) => ax.wrapping_add(0x106),
        (true, true) => ax.wrapping_sub(0x106),
    };
    core.put(AL, value & 0xff0f);
    adjusted(core, value as u8 & 0xf, adjust, adjust);
    Ok(Flow::Next)
}

/// `daa` and `das`.
fn decimal_adjust<const SUBTRACT: bool>(core: &mut Core, _op: &Op) -> Result<Flow, Fault> {
    let old = core.get::<u8>(AL);
    let low = old & 0xf > 9 || core.flags.any(AF);
    let high = old > 0x99 || core.flags.any(CF);
    let by = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    let value = if SUBTRACT {
        old.wrapping_sub(by)
    } else {
        old.wrapping_add(by)
    };
    let borrowed = SUBTRACT && low && old < 6;
    core.put(AL, value);
    adjusted(core, value, high || borrowed, low);
    Ok(Flow::Next)
}

fn aam(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let base = op.imm as u8;
    let al = core.get::<u8>(AL);
    let quotient = al.checked_div(base).ok_or(Fault::DIVIDE)?;
    core.put(AH, quotient);
    core.put(AL, al % base);
    adjusted(core, al % base, false, false);
    Ok(Flow::Next)
}

fn aad(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let tens = core.get::<u8>(AH).wrapping_mul(op.imm as u8);
    let al = core.get::<u8>(AL).wrapping_add(tens);
    core.put(AL, u16::from(al));
    adjusted(core, al, false, false);
    Ok(Flow::Next)
}

/// `al` filled with the carry.
fn salc(core: &mut Core, _op: &Op) -> Result<Flow, Fault> {
    let carry = u8::from(core.flags.status().carry());
    core.put(AL, carry.wrapping_neg());
    Ok(Flow::Next)
}

/// The limits are two operands: the upper one is looked at only if the lower one is kept.
fn bound<T: Word>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let upper = Mem {
        displacement: op.mem.displacement.wrapping_add(T::BYTES as u64),
        ..op.mem
    };
    let index = core.get::<T>(op.a).signed();
    let within =
        core.read::<T>(&op.mem)?.signed() <= index && index <= core.read::<T>(&upper)?.signed();
    if within {
        Ok(Flow::Next)
    } else {
        Err(Fault::BOUND)
    }
}
