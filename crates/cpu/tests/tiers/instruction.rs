//! Makes instructions of 64-bit code with random operands, integer and vector, such that a run of them has a chance to
//! get through: memory is addressed by a few registers that are hardly ever written.

use iced_x86::{
    Code, CpuidFeature, EncodingKind, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpCodeOperandKind as Kind, OpKind, Register,
};

use crate::common::{GPR8, Random};

/// Registers with a purpose; all others hold anything.
#[derive(Debug, Clone, Copy)]
pub struct Roles {
    /// Hold addresses.
    pub bases: [Register; 2],
    /// Holds a small number.
    pub index: Register,
    /// Counts down the branches that are left.
    pub fuel: Register,
}

impl Roles {
    pub fn new(random: &mut Random) -> Self {
        if random.one_in(4) {
            // What string instructions use.
            return Self {
                bases: [Register::RSI, Register::RDI],
                index: Register::RCX,
                fuel: Register::R15,
            };
        }
        let mut all: Vec<Register> = (0..16)
            .filter(|it| *it != 4)
            .map(|it| Register::RAX + it)
            .collect();
        let mut take = || {
            let at = random.below(all.len() as u64) as usize;
            all.swap_remove(at)
        };
        Self {
            bases: [take(), take()],
            index: take(),
            fuel: take(),
        }
    }

    fn holds(&self, register: Register) -> bool {
        self.bases.contains(&register)
            || register == self.index
            || register == self.fuel
            || register == Register::RSP
    }
}

/// All forms that can be made.
pub fn forms(random: &mut Random) -> Vec<Code> {
    let roles = Roles {
        bases: [Register::RSI, Register::RDI],
        index: Register::RCX,
        fuel: Register::R15,
    };
    let mut factory = InstructionInfoFactory::new();
    Code::values()
        .filter(|code| is_wanted(*code))
        .filter(|code| (0..200).any(|_| make(*code, roles, random, &mut factory).is_some()))
        .collect()
}

#[rustfmt::skip]
fn is_wanted(code: Code) -> bool {
    use CpuidFeature as F;
    use Mnemonic as M;
    let info = code.op_code();
    let known = code.cpuid_features().iter().all(|it| matches!(
        it,
        F::INTEL8086 | F::INTEL186 | F::INTEL286 | F::INTEL386 | F::INTEL486 | F::X64 | F::CX8
        | F::CMPXCHG16B | F::CMOV | F::MULTIBYTENOP | F::POPCNT | F::LZCNT | F::MOVBE | F::ADX | F::BMI1 | F::BMI2
        | F::SSE | F::SSE2 | F::SSE3 | F::SSSE3 | F::SSE4_1 | F::SSE4_2 | F::AVX | F::AVX2 | F::FMA | F::F16C
        | F::AES | F::PCLMULQDQ | F::PREFETCHW
    ));
    info.is_instruction()
        && info.mode64()
        && known
        && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && !code.is_privileged()
        && code.flow_control() == FlowControl::Next
        && !matches!(
            code.mnemonic(),
            M::Popf | M::Popfd | M::Popfq | M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw | M::Lar | M::Lsl
            | M::Verr | M::Verw | M::Enter | M::Wait
        )
}

fn register(kind: Kind, random: &mut Random) -> Option<Register> {
    // Those that a translator keeps elsewhere more often than the others.
    let number = match random.below(3) {
        0 => 8 + random.below(4) as u32,
        _ => random.below(16) as u32,
    };
    Some(match kind {
        Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => GPR8[random.below(20) as usize],
        Kind::r16_or_mem | Kind::r16_reg | Kind::r16_rm | Kind::r16_opcode => Register::AX + number,
        Kind::r32_or_mem | Kind::r32_reg | Kind::r32_rm | Kind::r32_opcode | Kind::r32_vvvv => {
            Register::EAX + number
        }
        Kind::r64_or_mem | Kind::r64_reg | Kind::r64_rm | Kind::r64_opcode | Kind::r64_vvvv => {
            Register::RAX + number
        }
        Kind::xmm_or_mem
        | Kind::xmm_reg
        | Kind::xmm_rm
        | Kind::xmm_vvvv
        | Kind::xmm_is4
        | Kind::xmm_is5 => Register::XMM0 + random.below(16) as u32,
        Kind::ymm_or_mem
        | Kind::ymm_reg
        | Kind::ymm_rm
        | Kind::ymm_vvvv
        | Kind::ymm_is4
        | Kind::ymm_is5 => Register::YMM0 + random.below(16) as u32,
        Kind::al => Register::AL,
        Kind::cl => Register::CL,
        Kind::ax => Register::AX,
        Kind::dx => Register::DX,
        Kind::eax => Register::EAX,
        Kind::rax => Register::RAX,
        _ => return None,
    })
}

fn may_be_memory(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::r8_or_mem
            | Kind::r16_or_mem
            | Kind::r32_or_mem
            | Kind::r64_or_mem
            | Kind::xmm_or_mem
            | Kind::ymm_or_mem
    )
}

fn set_immediate(
    it: &mut Instruction,
    operand: u32,
    kind: Kind,
    random: &mut Random,
) -> Option<()> {
    let value = random.value();
    let op_kind = match kind {
        Kind::imm8 | Kind::imm8_const_1 => OpKind::Immediate8,
        Kind::imm8sex16 => OpKind::Immediate8to16,
        Kind::imm8sex32 => OpKind::Immediate8to32,
        Kind::imm8sex64 => OpKind::Immediate8to64,
        Kind::imm16 => OpKind::Immediate16,
        Kind::imm32 => OpKind::Immediate32,
        Kind::imm32sex64 => OpKind::Immediate32to64,
        Kind::imm64 => OpKind::Immediate64,
        _ => return None,
    };
    it.set_op_kind(operand, op_kind);
    match op_kind {
        OpKind::Immediate8 if kind == Kind::imm8_const_1 => it.set_immediate8(1),
        OpKind::Immediate8 => it.set_immediate8(value as u8),
        OpKind::Immediate8to16 => it.set_immediate8to16(i16::from(value as i8)),
        OpKind::Immediate8to32 => it.set_immediate8to32(i32::from(value as i8)),
        OpKind::Immediate8to64 => it.set_immediate8to64(i64::from(value as i8)),
        OpKind::Immediate16 => it.set_immediate16(value as u16),
        OpKind::Immediate32 => it.set_immediate32(value as u32),
        OpKind::Immediate32to64 => it.set_immediate32to64(i64::from(value as i32)),
        _ => it.set_immediate64(value),
    }
    Some(())
}

/// A memory operand: by a base, with an index now and then, on the stack, absolute or relative to `rip`.
fn set_memory(it: &mut Instruction, roles: Roles, random: &mut Random) {
    let displacement = random.below(256).wrapping_sub(128);
    it.set_memory_displacement64(displacement);
    it.set_memory_displ_size(1);
    if random.one_in(16) {
        it.set_segment_prefix(if random.one_in(2) {
            Register::FS
        } else {
            Register::GS
        });
    }
    match random.below(12) {
        0 => {
            it.set_memory_base(Register::RIP);
            it.set_memory_displ_size(8);
            it.set_memory_displacement64(random.address());
            return;
        }
        1 => {
            it.set_memory_displ_size(8);
            it.set_memory_displacement64(random.address());
            return;
        }
        2 => it.set_memory_base(Register::RSP),
        _ => it.set_memory_base(roles.bases[random.below(2) as usize]),
    }
    if random.one_in(3) {
        it.set_memory_index(roles.index);
        it.set_memory_index_scale(1 << random.below(4));
    }
    if random.one_in(8) {
        it.set_memory_displ_size(8);
        it.set_memory_displacement64(displacement.wrapping_add(random.below(0x1000)));
    }
    if random.one_in(12) {
        let narrow = |register: Register| match register {
            Register::None => Register::None,
            wide => Register::EAX + wide.number() as u32,
        };
        it.set_memory_base(narrow(it.memory_base()));
        it.set_memory_index(narrow(it.memory_index()));
        it.set_memory_displ_size(it.memory_displ_size().min(4));
    }
}

fn set_operand(
    it: &mut Instruction,
    operand: u32,
    roles: Roles,
    random: &mut Random,
) -> Option<()> {
    let kind = it.code().op_code().op_kind(operand);
    if kind == Kind::mem || may_be_memory(kind) && random.one_in(2) {
        it.set_op_kind(operand, OpKind::Memory);
        set_memory(it, roles, random);
        return Some(());
    }
    if let Some(register) = register(kind, random) {
        it.set_op_kind(operand, OpKind::Register);
        it.set_op_register(operand, register);
        return Some(());
    }
    let op_kind = match kind {
        Kind::seg_rSI => OpKind::MemorySegRSI,
        Kind::es_rDI => OpKind::MemoryESRDI,
        Kind::mem_offs => {
            it.set_memory_displacement64(random.address());
            it.set_memory_displ_size(8);
            OpKind::Memory
        }
        _ => return set_immediate(it, operand, kind, random),
    };
    it.set_op_kind(operand, op_kind);
    Some(())
}

/// An instruction of a form; `None` now and then, when it would be of no use.
pub fn make(
    code: Code,
    roles: Roles,
    random: &mut Random,
    factory: &mut InstructionInfoFactory,
) -> Option<Instruction> {
    let mut it = Instruction::default();
    it.set_code(code);
    let info = code.op_code();
    for operand in 0..info.op_count() {
        set_operand(&mut it, operand, roles, random)?;
    }
    let in_memory = (0..it.op_count()).any(|operand| it.op_kind(operand) == OpKind::Memory);
    if it.op0_kind() == OpKind::Memory && info.can_use_lock_prefix() && random.one_in(3) {
        it.set_has_lock_prefix(true);
    }
    if code.is_string_instruction() {
        let used = roles.bases == [Register::RSI, Register::RDI] && roles.index == Register::RCX;
        if !used {
            return None;
        }
        match random.below(3) {
            0 if info.can_use_rep_prefix() => it.set_has_rep_prefix(true),
            1 if info.can_use_repne_prefix() => it.set_has_repne_prefix(true),
            _ => {}
        }
        return Some(it);
    }
    if in_memory && is_bit_string(&it) {
        let size = it.op1_register().size();
        let first = match size {
            2 => Register::AX,
            4 => Register::EAX,
            _ => Register::RAX,
        };
        it.set_op1_register(first + roles.index.number() as u32);
    }
    match it.mnemonic() {
        Mnemonic::Div | Mnemonic::Idiv if !random.one_in(4) => return None,
        // By more than its width a double shift leaves even its result undefined.
        Mnemonic::Shld | Mnemonic::Shrd if it.op1_register().size() == 2 => {
            if it.op2_kind() != OpKind::Immediate8 {
                return None;
            }
            it.set_immediate8(it.immediate8() & 0xf);
        }
        _ => {}
    }
    (random.one_in(40) || !writes_role(&it, roles, factory)).then_some(it)
}

fn is_bit_string(it: &Instruction) -> bool {
    matches!(
        it.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    ) && it.op1_kind() == OpKind::Register
}

fn writes_role(it: &Instruction, roles: Roles, factory: &mut InstructionInfoFactory) -> bool {
    let stack = it.is_stack_instruction();
    factory.info(it).used_registers().iter().any(|used| {
        let register = used.register().full_register();
        let written = !matches!(
            used.access(),
            OpAccess::Read | OpAccess::CondRead | OpAccess::None
        );
        written && roles.holds(register) && !(stack && register == Register::RSP)
    })
}

/// What of the flags an instruction leaves undefined, after `before` was.
pub fn undefined_after(it: &Instruction, before: u32) -> u32 {
    let defined = it.rflags_written() | it.rflags_cleared() | it.rflags_set();
    before & !defined | it.rflags_undefined()
}

/// What most code is made of: integer instructions with flags that depend on each other.
#[rustfmt::skip]
pub fn is_common(code: Code) -> bool {
    use Mnemonic as M;
    matches!(
        code.mnemonic(),
        M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Lea | M::Add | M::Adc | M::Sub | M::Sbb | M::And | M::Or | M::Xor
        | M::Cmp | M::Test | M::Inc | M::Dec | M::Neg | M::Shl | M::Shr | M::Sar | M::Rol | M::Rcr | M::Push | M::Pop
        | M::Cmove | M::Cmovb | M::Setb | M::Setg | M::Xchg | M::Bt | M::Imul | M::Lahf | M::Cmc
        | M::Movups | M::Movdqa | M::Paddq | M::Pxor | M::Addsd
    )
}
