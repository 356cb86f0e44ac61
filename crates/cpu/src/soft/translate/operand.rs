//! Finds memory operands: the address, then its translation, then the host's address in `r10`.

use iced_x86::{Instruction, Register};

use super::{
    emit::{Address, Assembler, GUEST_RSP, Jump, RAX, S0, S1, condition},
    interface::{SPILL_RAX, TLB_HOST, TLB_READ, TLB_WRITE, guest, segment_base},
};
use crate::soft::{memory::tlb::Tlb, op};

/// What an access asks of memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    pub(super) bytes: u32,
    /// The address must be a multiple of `bytes`.
    pub(super) aligned: bool,
    pub(super) write: bool,
    /// Number of the context.
    pub(super) context: usize,
    /// The flags are of use afterwards.
    pub(super) keep_flags: bool,
}

/// Where a guest register is, or which scratch register it was loaded to.
pub(super) fn host_of(register: u8) -> Option<u8> {
    match register {
        4 => Some(GUEST_RSP),
        9..=11 => None,
        other => Some(other),
    }
}

/// Whether the address of a memory operand can be written by [`address`].
pub(super) fn is_plain(instruction: &Instruction) -> bool {
    let base = instruction.memory_base();
    let index = instruction.memory_index();
    let named = |register: Register| register == Register::None || register.is_gpr();
    if instruction.is_ip_rel_memory_operand() {
        return base == Register::RIP;
    }
    if base == Register::None && index == Register::None {
        return instruction.memory_displ_size() == 8;
    }
    named(base) && named(index)
}

/// Loads the base and the index of an address that are not in registers of the host into `r10` and
/// `r11`.
fn parts(code: &mut Assembler, instruction: &Instruction) -> Address {
    let mut load = |register: Register, scratch: u8| {
        let number = op::gpr(register)?;
        Some(host_of(number).unwrap_or_else(|| {
            code.load(scratch, guest(number));
            scratch
        }))
    };
    let base = load(instruction.memory_base(), S0);
    let scale = instruction.memory_index_scale().trailing_zeros() as u8;
    let index = load(instruction.memory_index(), S1).map(|it| (it, scale));
    Address {
        base,
        index,
        displacement: instruction.memory_displacement64() as i32,
    }
}

/// Whether the address wraps at 4 GiB.
fn is_narrow(instruction: &Instruction) -> bool {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    base.size() == 4 || index.size() == 4
}

/// Writes the offset of a memory operand to a register, as `lea` does; destroys `r10` and `r11`,
/// and leaves the flags.
pub(super) fn offset(code: &mut Assembler, instruction: &Instruction, to: u8, wide: bool) {
    let absolute = instruction.is_ip_rel_memory_operand()
        || instruction.memory_base() == Register::None
            && instruction.memory_index() == Register::None;
    if absolute {
        let value = instruction.memory_displacement64();
        code.mov_value(to, if wide { value } else { value & 0xffff_ffff });
        return;
    }
    let address = parts(code, instruction);
    code.at(wide && !is_narrow(instruction), &[0x8d], to, address);
}

/// Writes the linear address of a memory operand to `r10`.
pub(super) fn address(code: &mut Assembler, instruction: &Instruction) {
    offset(code, instruction, S0, true);
    let segment = op::segment(instruction.memory_segment());
    if segment >= 4 {
        code.load(S1, segment_base(segment));
        code.lea_sum(S0, S0, S1);
    }
}

/// From the linear address in `r10` to the host's there; destroys `r11`. Returns the jump that is
/// taken when that is not known, or not permitted. Where flags are kept, they are then in `ax` on
/// both ways, and `rax` is spilled.
pub(super) fn look_up(code: &mut Assembler, access: &Access) -> Jump {
    if access.keep_flags {
        code.store(RAX, SPILL_RAX);
        code.flags_to_ax();
    }
    let context = access.context * Tlb::STRIDE;
    let tags = if access.write { TLB_WRITE } else { TLB_READ };
    code.slot(Tlb::SLOTS - 1);
    // xor r10, tag
    code.gs_indexed(true, &[0x33], S0, S1, tags + context);
    let slow = if access.aligned {
        code.test(!0xfff | (access.bytes as i32 - 1));
        code.jump_if(condition::NOT_EQUAL)
    } else {
        code.compare(0x1000 - access.bytes);
        code.jump_if(condition::ABOVE)
    };
    // add r10, page
    code.gs_indexed(true, &[0x03], S0, S1, TLB_HOST + context);
    slow
}

/// Undoes what [`look_up`] did to keep the flags.
pub(super) fn restore_flags(code: &mut Assembler) {
    code.flags_from_ax();
    code.load(RAX, SPILL_RAX);
}
