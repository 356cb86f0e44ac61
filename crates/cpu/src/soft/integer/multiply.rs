//! Multiplication and division.

use iced_x86::{Instruction, Mnemonic};

use super::{
    Kind, by_size, by_wide_size, bytes,
    host::{Host, Wide},
    kinds,
};
use crate::soft::{
    Core, Fault, Flow, Op,
    flags::Status,
    op::{HIGH_BYTES, Handler},
};

/// Numbers of the registers that hold a product and a dividend.
const A: u8 = 0;
const D: u8 = 2;

/// The register of the upper half: `ah` for bytes.
#[inline(always)]
fn upper<T: Host>() -> u8 {
    if T::BYTES == 1 { HIGH_BYTES } else { D }
}

/// Where the explicit operand of a one-operand form is.
trait Source {
    fn get<T: Host>(core: &mut Core, op: &Op) -> Result<T, Fault>;
}

struct InRegister;

impl Source for InRegister {
    #[inline(always)]
    fn get<T: Host>(core: &mut Core, op: &Op) -> Result<T, Fault> {
        Ok(core.get(op.a))
    }
}

struct InMemory;

impl Source for InMemory {
    #[inline(always)]
    fn get<T: Host>(core: &mut Core, op: &Op) -> Result<T, Fault> {
        core.read(&op.mem)
    }
}

/// A one-operand multiplication: low half, high half.
trait Multiply {
    fn multiply<T: Host>(a: T, b: T) -> (T, T, Status);
}

struct Unsigned;
struct Signed;

impl Multiply for Unsigned {
    #[inline(always)]
    fn multiply<T: Host>(a: T, b: T) -> (T, T, Status) {
        a.mul(b)
    }
}

impl Multiply for Signed {
    #[inline(always)]
    fn multiply<T: Host>(a: T, b: T) -> (T, T, Status) {
        a.imul(b)
    }
}

/// A division of a dividend of twice the size: quotient and remainder, or `None` where there is no
/// quotient that fits.
trait Divide {
    fn divide<T: Host>(high: T, low: T, divisor: T) -> Option<(T, T)>;
}

impl Divide for Unsigned {
    #[inline(always)]
    fn divide<T: Host>(high: T, low: T, divisor: T) -> Option<(T, T)> {
        if high >= divisor {
            return None;
        }
        if T::BYTES < 8 || high.wide() == 0 {
            let dividend = if T::BYTES < 8 {
                high.wide() << T::BITS | low.wide()
            } else {
                low.wide()
            };
            let divisor = divisor.wide();
            return Some((T::low(dividend / divisor), T::low(dividend % divisor)));
        }
        let dividend = u128::from(high.wide()) << 64 | u128::from(low.wide());
        let divisor = u128::from(divisor.wide());
        Some((
            T::low((dividend / divisor) as u64),
            T::low((dividend % divisor) as u64),
        ))
    }
}

impl Divide for Signed {
    #[inline(always)]
    fn divide<T: Host>(high: T, low: T, divisor: T) -> Option<(T, T)> {
        let divisor = divisor.signed();
        let narrow = if T::BYTES < 8 {
            Some((high.wide() << T::BITS | low.wide()) as i64)
                .map(|dividend| dividend << (64 - 2 * T::BITS) >> (64 - 2 * T::BITS))
        } else if high.signed() == low.signed() >> 63 {
            Some(low.signed())
        } else {
            None
        };
        if let Some(dividend) = narrow {
            let quotient = dividend.checked_div(divisor)?;
            let fits = T::low(quotient as u64).signed() == quotient;
            return fits.then(|| {
                (
                    T::low(quotient as u64),
                    T::low(dividend.wrapping_rem(divisor) as u64),
                )
            });
        }
        let dividend = i128::from(high.signed()) << 64 | i128::from(low.wide());
        let quotient = dividend.checked_div(i128::from(divisor))?;
        let remainder = dividend.checked_rem(i128::from(divisor))?;
        let quotient = i64::try_from(quotient).ok()?;
        Some((T::low(quotient as u64), T::low(remainder as u64)))
    }
}

/// The handler of a multiplication or division.
pub fn select(instruction: &Instruction) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::Mul => one_operand_multiply::<Unsigned>(instruction),
        Mnemonic::Imul if instruction.op_count() == 1 => {
            one_operand_multiply::<Signed>(instruction)
        }
        Mnemonic::Imul => imul(instruction),
        Mnemonic::Div => division::<Unsigned>(instruction),
        Mnemonic::Idiv => division::<Signed>(instruction),
        _ => None,
    }
}

fn one_operand_multiply<O: Multiply>(instruction: &Instruction) -> Option<Handler> {
    let size = bytes(instruction, 0);
    Some(match Kind::of(instruction, 0) {
        Kind::Register => by_size!(size, multiply, O, InRegister),
        _ => by_size!(size, multiply, O, InMemory),
    })
}

fn division<O: Divide>(instruction: &Instruction) -> Option<Handler> {
    let size = bytes(instruction, 0);
    Some(match Kind::of(instruction, 0) {
        Kind::Register => by_size!(size, divide, O, InRegister),
        _ => by_size!(size, divide, O, InMemory),
    })
}

fn imul(instruction: &Instruction) -> Option<Handler> {
    let size = bytes(instruction, 0);
    let immediate = instruction.op_count() == 3;
    Some(match (kinds(instruction).1, immediate) {
        (Kind::Register, false) => by_wide_size!(size, imul_register),
        (Kind::Memory, false) => by_wide_size!(size, imul_memory),
        (Kind::Register, true) => by_wide_size!(size, imul_register_immediate),
        (Kind::Memory, true) => by_wide_size!(size, imul_memory_immediate),
        _ => return None,
    })
}

fn multiply<O: Multiply, S: Source, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let b = S::get::<T>(core, op)?;
    let (low, high, status) = O::multiply(core.get(A), b);
    core.put(A, low);
    core.put(upper::<T>(), high);
    core.flags.set_status(status);
    Ok(Flow::Next)
}

fn divide<O: Divide, S: Source, T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let divisor = S::get::<T>(core, op)?;
    let (high, low) = (core.get(upper::<T>()), core.get(A));
    let (quotient, remainder) = O::divide(high, low, divisor).ok_or(Fault::DIVIDE)?;
    core.put(A, quotient);
    core.put(upper::<T>(), remainder);
    Ok(Flow::Next)
}

#[inline(always)]
fn finish_imul<T: Wide>(core: &mut Core, op: &Op, a: T, b: T) -> Result<Flow, Fault> {
    let (product, status) = a.imul_low(b);
    core.put(op.a, product);
    core.flags.set_status(status);
    Ok(Flow::Next)
}

fn imul_register<T: Wide>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let (a, b) = (core.get::<T>(op.a), core.get(op.b));
    finish_imul(core, op, a, b)
}

fn imul_memory<T: Wide>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let b = core.read::<T>(&op.mem)?;
    let a = core.get(op.a);
    finish_imul(core, op, a, b)
}

fn imul_register_immediate<T: Wide>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let a = core.get::<T>(op.b);
    finish_imul(core, op, a, T::low(op.imm))
}

fn imul_memory_immediate<T: Wide>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let a = core.read::<T>(&op.mem)?;
    finish_imul(core, op, a, T::low(op.imm))
}
