//! What depends on an opcode only: how its operands are named, and the sizes it fixes.
//!
//! The decoder's library knows this too, but only together with texts about each opcode, which take half
//! a MiB once the first is asked for. The build script asks it, for this table.
//! [`super::translate`] and the handlers that need a size call it; it knows no processor's state.

mod operand;

use iced_x86::Code;

pub use operand::Operand;

/// What an opcode says of an instruction.
#[derive(Debug, Clone, Copy)]
pub struct Opcode {
    operands: [Operand; Self::OPERANDS],
    /// Field `reg` of its ModRM byte is part of the opcode.
    pub is_group: bool,
    /// Operand size in bytes, 0 where it has none.
    pub operand_bytes: u8,
    /// Address size in bits, 0 where it has none.
    pub address_bits: u8,
}

impl Opcode {
    const OPERANDS: usize = 5;

    /// That of an instruction's code.
    #[must_use]
    pub fn of(code: Code) -> &'static Self {
        &TABLE[code as usize]
    }

    /// How it names operand number `index`.
    #[must_use]
    pub fn operand(&self, index: u32) -> Operand {
        let operand = self.operands.get(index as usize);
        operand.copied().unwrap_or(Operand::Other)
    }
}

/// A row of the table.
const fn row(
    operands: [Operand; Opcode::OPERANDS],
    is_group: bool,
    operand_bytes: u8,
    address_bits: u8,
) -> Opcode {
    Opcode {
        operands,
        is_group,
        operand_bytes,
        address_bits,
    }
}

include!(concat!(env!("OUT_DIR"), "/opcodes.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_say_where_operands_are() {
        use Operand as O;
        let add = Opcode::of(Code::Add_r32_rm32);
        assert_eq!([add.operand(0), add.operand(1)], [O::Register, O::ModRm]);
        assert_eq!((add.operand(2), add.is_group), (O::Other, false));
        let shift = Opcode::of(Code::Shl_rm8_CL);
        assert_eq!((shift.operand(0), shift.is_group), (O::ModRmByte, true));
        let load = Opcode::of(Code::VEX_Vmovdqu_ymm_ymmm256);
        assert_eq!(
            [load.operand(0), load.operand(1)],
            [O::Vector, O::VectorModRm]
        );
        assert_eq!(Opcode::of(Code::Retnq).operand_bytes, 8);
        assert_eq!(Opcode::of(Code::Retnw).operand_bytes, 2);
        assert_eq!(Opcode::of(Code::Loop_rel8_64_ECX).address_bits, 32);
    }
}
