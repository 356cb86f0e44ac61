//! From an instruction to its stub: which registers go in and come out, and the instruction again
//! with its operands where the stub has them.

use iced_x86::{
    CodeSize, Encoder, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register,
};

use super::{allow, emit::Emitter};
use crate::soft::{core::Access, flags::STATUS, op, vector::Unit};

/// The memory operand of a computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Operand {
    pub(super) bytes: u8,
    /// Misaligned when the address has one of these bits.
    pub(super) alignment_mask: u8,
    pub(super) access: Access,
    /// Whether it is read too where it is written.
    pub(super) read: bool,
}

/// What a handler must know of a computation, and the code of its stub.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) unit: Unit,
    pub(super) mxcsr: bool,
    /// Flags it reads.
    pub(super) flags_read: u64,
    /// Flags it may change.
    pub(super) flags_written: u64,
    pub(super) memory: Option<Operand>,
    pub(super) stub: Vec<u8>,
}

/// What happens to one register.
#[derive(Debug, Clone, Copy, Default)]
struct Use {
    read: bool,
    written: bool,
    /// Of a vector register: its upper half is read.
    wide: bool,
}

/// All registers a computation names or implies.
#[derive(Debug, Default)]
struct Registers {
    gpr: [Use; 16],
    vector: [Use; 16],
    /// As they came.
    all: Vec<Register>,
}

/// Host registers a stub may use, by number: `rax`, `rcx`, `rdx`, `r8` to `r11`; all others belong
/// to its caller or hold its arguments.
const SCRATCH: [u8; 7] = [8, 9, 10, 11, 0, 1, 2];

/// Makes the stub; `None` when the instruction is not one for the host.
pub(super) fn plan(instruction: &Instruction) -> Option<Plan> {
    if !allow::is_computation(instruction) {
        return None;
    }
    let memory_at = memory_operand(instruction)?;
    let mut host = *instruction;
    host.set_code_size(CodeSize::Code64);
    host.set_has_lock_prefix(false);
    host.set_has_rep_prefix(false);
    host.set_has_repne_prefix(false);
    host.set_segment_prefix(Register::None);
    if memory_at.is_some() {
        address(&mut host, Register::None);
    }
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&host);
    let memory = match memory_at {
        Some(at) => Some(operand(instruction, info.op_access(at))?),
        None if info.used_memory().is_empty() => None,
        None => return None,
    };
    let registers = Registers::new(info.used_registers())?;
    let unit = allow::unit(instruction, &registers.all)?;
    let map = registers.assign()?;
    replace(&mut host, &map)?;
    if memory_at.is_some() {
        address(&mut host, Register::RSI);
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&host, 0).ok()?;
    let mut plan = Plan {
        unit,
        mxcsr: allow::uses_mxcsr(instruction),
        flags_read: flags(instruction.rflags_read())?,
        flags_written: flags(instruction.rflags_modified())?,
        memory,
        stub: Vec::new(),
    };
    plan.stub = assemble(&plan, &registers, &map, &encoder.take_buffer());
    Some(plan)
}

/// The number of the one operand in memory: `Some(None)` when there is none, `None` when it is not
/// named by a mod/rm byte.
#[allow(clippy::option_option, reason = "the outer one is a refusal")]
fn memory_operand(instruction: &Instruction) -> Option<Option<u32>> {
    let mut found = None;
    for operand in 0..instruction.op_count() {
        match instruction.op_kind(operand) {
            OpKind::Memory if found.is_none() => found = Some(operand),
            OpKind::Register | OpKind::Immediate8 | OpKind::Immediate8_2nd => {}
            _ => return None,
        }
    }
    Some(found)
}

fn address(instruction: &mut Instruction, base: Register) {
    instruction.set_memory_base(base);
    instruction.set_memory_index(Register::None);
    instruction.set_memory_index_scale(1);
    instruction.set_memory_displacement64(0);
    instruction.set_memory_displ_size(u32::from(base == Register::None) * 4);
}

fn operand(instruction: &Instruction, access: OpAccess) -> Option<Operand> {
    let bytes = u8::try_from(instruction.memory_size().size()).ok()?;
    if bytes == 0 || bytes > 32 {
        return None;
    }
    let (written, read) = match access {
        OpAccess::Read | OpAccess::CondRead => (false, true),
        OpAccess::Write => (true, false),
        OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
        OpAccess::None | OpAccess::NoMemAccess => return None,
    };
    Some(Operand {
        bytes,
        alignment_mask: allow::alignment_mask(instruction, bytes),
        access: if written { Access::Write } else { Access::Read },
        read,
    })
}

/// iced's flag bits as those of `rflags`; `None` when a flag is touched that no computation
/// touches. The condition bits of x87 are not in `rflags`.
fn flags(bits: u32) -> Option<u64> {
    use iced_x86::RflagsBits as B;
    let mut image = 0;
    for (bit, flag) in [
        (B::CF, crate::soft::flags::CF),
        (B::PF, crate::soft::flags::PF),
        (B::AF, crate::soft::flags::AF),
        (B::ZF, crate::soft::flags::ZF),
        (B::SF, crate::soft::flags::SF),
        (B::OF, crate::soft::flags::OF),
    ] {
        if bits & bit != 0 {
            image |= flag;
        }
    }
    let known =
        B::CF | B::PF | B::AF | B::ZF | B::SF | B::OF | B::C0 | B::C1 | B::C2 | B::C3 | B::UIF;
    (bits & !known == 0).then_some(image & STATUS)
}

impl Registers {
    fn new(used: &[iced_x86::UsedRegister]) -> Option<Self> {
        let mut registers = Self::default();
        for it in used {
            let register = it.register();
            let (read, written) = match it.access() {
                OpAccess::Read | OpAccess::CondRead => (true, false),
                OpAccess::Write => (false, true),
                OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
                OpAccess::None | OpAccess::NoMemAccess => continue,
            };
            registers.all.push(register);
            let entry = if register.is_gpr() {
                let number = register.full_register().number();
                &mut registers.gpr[number]
            } else if register.is_vector_register() {
                registers.vector.get_mut(register.number())?
            } else {
                continue;
            };
            // A write of 8 or 16 bits leaves the rest, which must be loaded for that.
            entry.read |= read || register.is_gpr() && written && register.size() < 4;
            entry.written |= written;
            entry.wide |= read && register.size() > 16;
        }
        Some(registers)
    }

    /// Where the stub has each guest register. Implied ones stay where they are; named ones move
    /// if they must.
    fn assign(&self) -> Option<[u8; 16]> {
        let mut map = [op::NONE; 16];
        let mut free = SCRATCH.to_vec();
        let used = |number: &u8| {
            let it = self.gpr[usize::from(*number)];
            it.read || it.written
        };
        let (stay, go): (Vec<u8>, Vec<u8>) =
            (0..16).filter(used).partition(|it| SCRATCH.contains(it));
        free.retain(|it| !stay.contains(it));
        for number in stay {
            map[usize::from(number)] = number;
        }
        for (number, host) in go.iter().zip(0..) {
            map[usize::from(*number)] = *free.get::<usize>(host)?;
        }
        Some(map)
    }
}

/// Puts the host's registers where the guest's are named. Refused when a moved register is implied
/// only, since then the instruction would still use the other one.
fn replace(host: &mut Instruction, map: &[u8; 16]) -> Option<()> {
    let mut moved: Vec<usize> = (0..16)
        .filter(|&it| map[it] != op::NONE && usize::from(map[it]) != it)
        .collect();
    for operand in 0..host.op_count() {
        if host.op_kind(operand) != OpKind::Register || !host.op_register(operand).is_gpr() {
            continue;
        }
        let register = host.op_register(operand);
        let guest = register.full_register().number();
        let number = u32::from(map[guest]);
        let base = match register.size() {
            1 => return None,
            2 => Register::AX + number,
            4 => Register::EAX + number,
            _ => Register::RAX + number,
        };
        host.set_op_register(operand, base);
        moved.retain(|&it| it != guest);
    }
    moved.is_empty().then_some(())
}

/// The code around the instruction.
fn assemble(plan: &Plan, registers: &Registers, map: &[u8; 16], encoded: &[u8]) -> Vec<u8> {
    let mut out = Emitter::default();
    let x87 = matches!(plan.unit, Unit::X87 | Unit::Mmx);
    let vector = || registers.vector.iter().zip(0u8..);
    let gpr = || registers.gpr.iter().zip(0u8..);
    if x87 {
        out.enter_x87();
    } else {
        if plan.mxcsr {
            out.enter_mxcsr();
        }
        for (it, number) in vector().filter(|(it, _)| it.read || it.written) {
            match plan.unit {
                Unit::Avx if it.read => out.load_ymm(number, it.wide),
                Unit::Avx => {}
                // Most leave a part of what they write.
                _ => out.load_xmm(number),
            }
        }
    }
    if plan.flags_read != 0 {
        out.enter_flags();
    }
    for (_, guest) in gpr().filter(|(it, _)| it.read) {
        out.load_gpr(map[usize::from(guest)], guest);
    }
    out.raw(encoded);
    for (_, guest) in gpr().filter(|(it, _)| it.written) {
        out.store_gpr(map[usize::from(guest)], guest);
    }
    if plan.flags_written != 0 {
        out.leave_flags();
    }
    if x87 {
        out.leave_x87();
    } else {
        for (_, number) in vector().filter(|(it, _)| it.written) {
            match plan.unit {
                Unit::Avx => out.store_ymm(number),
                _ => out.store_xmm(number),
            }
        }
        if plan.unit == Unit::Avx {
            out.vzeroupper();
        }
        if plan.mxcsr {
            out.leave_mxcsr();
        }
    }
    out.ret();
    out.finish()
}
