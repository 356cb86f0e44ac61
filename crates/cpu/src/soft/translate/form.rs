//! What a translator must know of an instruction: whether the host may execute it as it is, and in
//! which of its fields general-purpose registers are named.
//!
//! What depends on the opcode only is found out once and kept ([`Forms`]).

use iced_x86::{
    Code, CpuidFeature, EncodingKind, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};

use crate::soft::{
    native::allow,
    op,
    opcode::{Opcode, Operand},
    vector::Unit,
};

/// A field of an instruction that names a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Field {
    /// It names a general-purpose register.
    pub(super) general: bool,
    /// One of 8 bits.
    pub(super) byte: bool,
    /// It may be written.
    pub(super) written: bool,
}

/// The class of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Class {
    /// Nobody looked yet.
    #[default]
    Unknown,
    /// Its handler executes it.
    Handler,
    /// It does nothing a guest can see.
    Nothing,
    /// The host executes it, with a memory operand and registers in other places.
    Computation,
    /// As before, in the vector registers.
    Vector(Unit, bool),
    Lea,
    Push,
    Pop,
    Leave,
    PushMemory,
    PushFlags,
    SwapGs,
    ReadClock,
    /// `sti`, or `cli`.
    InterruptFlag(bool),
    /// `idiv`, or `div`.
    Divide(bool),
    /// A computation with an operand that must be aligned.
    Aligned,
    Jump,
    JumpIf,
    JumpIndirect,
    Call,
    CallIndirect,
    Return,
    /// A call that begins a retpoline, which jumps to the register of this number. Depends on more
    /// than the opcode.
    Retpoline(u8),
}

/// What depends on the opcode only.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Form {
    pub(super) class: Class,
    /// Field `reg` of the ModRM byte.
    pub(super) reg: Field,
    /// Field `r/m`.
    pub(super) rm: Field,
    /// Field `vvvv` of a VEX prefix.
    pub(super) vvvv: Field,
    /// The lowest three bits of the opcode.
    pub(super) opcode: Field,
    /// It has a ModRM byte.
    pub(super) modrm: bool,
    /// It may write to its memory operand.
    pub(super) writes_memory: bool,
    /// Whether shifts and rotates: with a count of zero they leave the flags.
    pub(super) counts: bool,
}

/// Forms by opcode.
pub(super) struct Forms {
    known: Vec<Form>,
    factory: InstructionInfoFactory,
}

impl Forms {
    pub(super) fn new() -> Self {
        Self {
            known: vec![Form::default(); Code::values().len()],
            factory: InstructionInfoFactory::new(),
        }
    }

    /// That of an instruction.
    pub(super) fn get(&mut self, instruction: &Instruction) -> Form {
        let index = instruction.code() as usize;
        let known = self.known[index];
        if known.class != Class::Unknown {
            return known;
        }
        let form = self.find(instruction);
        self.known[index] = form;
        form
    }

    fn find(&mut self, instruction: &Instruction) -> Form {
        let mut form = Form {
            class: class(instruction),
            ..Form::default()
        };
        form.counts = matches!(
            instruction.mnemonic(),
            Mnemonic::Shl
                | Mnemonic::Sal
                | Mnemonic::Shr
                | Mnemonic::Sar
                | Mnemonic::Rol
                | Mnemonic::Ror
                | Mnemonic::Rcl
                | Mnemonic::Rcr
                | Mnemonic::Shld
                | Mnemonic::Shrd
        );
        let info = self.factory.info(instruction);
        let opcode = Opcode::of(instruction.code());
        form.modrm = opcode.is_group;
        for operand in 0..instruction.op_count() {
            let written = matches!(
                info.op_access(operand),
                OpAccess::Write
                    | OpAccess::CondWrite
                    | OpAccess::ReadWrite
                    | OpAccess::ReadCondWrite
            );
            let kind = opcode.operand(operand);
            let field = |byte: bool| Field {
                general: true,
                byte,
                written,
            };
            match kind {
                Operand::ModRmByte => form.rm = field(true),
                Operand::ModRm | Operand::ModRmRegister => form.rm = field(false),
                Operand::RegisterByte => form.reg = field(true),
                Operand::Register => form.reg = field(false),
                Operand::Vvvv => form.vvvv = field(false),
                Operand::OpcodeByte => form.opcode = field(true),
                Operand::Opcode => form.opcode = field(false),
                _ => {}
            }
            form.modrm |= matches!(
                kind,
                Operand::Memory
                    | Operand::ModRmByte
                    | Operand::ModRm
                    | Operand::ModRmRegister
                    | Operand::RegisterByte
                    | Operand::Register
                    | Operand::Vector
                    | Operand::VectorModRm
                    | Operand::VectorModRmRegister
            );
            if instruction.op_kind(operand) == OpKind::Memory {
                form.writes_memory = written;
            }
        }
        // What has no memory operand in the first instance seen may have one in the next.
        if matches!(
            form.class,
            Class::Computation | Class::Vector(..) | Class::Aligned
        ) {
            form.writes_memory |= form.rm.written || writes_first(instruction, &mut self.factory);
        }
        form
    }
}

/// Whether the operand that may be in memory is written, also where it is a register now.
fn writes_first(instruction: &Instruction, factory: &mut InstructionInfoFactory) -> bool {
    let opcode = Opcode::of(instruction.code());
    let info = factory.info(instruction);
    (0..instruction.op_count()).any(|operand| {
        matches!(
            opcode.operand(operand),
            Operand::Memory | Operand::VectorModRm | Operand::ModRm
        ) && !matches!(
            info.op_access(operand),
            OpAccess::Read | OpAccess::CondRead | OpAccess::None
        )
    })
}

fn class(instruction: &Instruction) -> Class {
    let code = instruction.code();
    if code.is_jmp_short_or_near() {
        return Class::Jump;
    }
    if code.is_jcc_short_or_near() {
        return Class::JumpIf;
    }
    if code.is_jmp_near_indirect() {
        return Class::JumpIndirect;
    }
    if code.is_call_near() {
        return Class::Call;
    }
    if code.is_call_near_indirect() {
        return Class::CallIndirect;
    }
    match code {
        Code::Retnq | Code::Retnq_imm16 => return Class::Return,
        Code::Push_r64 | Code::Pushq_imm8 | Code::Pushq_imm32 => return Class::Push,
        Code::Pop_r64 => return Class::Pop,
        Code::Leaveq => return Class::Leave,
        Code::Push_rm64 => return Class::PushMemory,
        Code::Pushfq => return Class::PushFlags,
        Code::Rdtsc => return Class::ReadClock,
        Code::Swapgs => return Class::SwapGs,
        Code::Cli => return Class::InterruptFlag(false),
        Code::Sti => return Class::InterruptFlag(true),
        Code::Cmpxchg16b_m128 => return Class::Aligned,
        Code::Lea_r32_m | Code::Lea_r64_m => return Class::Lea,
        _ => {}
    }
    if code.flow_control() != FlowControl::Next
        || code.is_privileged()
        || code.is_stack_instruction()
        || instruction.is_string_instruction()
        || !code.cpuid_features().iter().all(|&it| is_known(it))
    {
        return Class::Handler;
    }
    match instruction.mnemonic() {
        Mnemonic::Nop
        | Mnemonic::Endbr64
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchw => Class::Nothing,
        Mnemonic::Vzeroupper | Mnemonic::Vzeroall => Class::Vector(Unit::Avx, false),
        Mnemonic::Div | Mnemonic::Idiv
            if matches!(
                code,
                Code::Div_rm32 | Code::Div_rm64 | Code::Idiv_rm32 | Code::Idiv_rm64
            ) =>
        {
            Class::Divide(instruction.mnemonic() == Mnemonic::Idiv)
        }
        Mnemonic::Lfence | Mnemonic::Mfence | Mnemonic::Sfence => Class::Computation,
        mnemonic if is_integer(mnemonic) => integer(instruction),
        _ if allow::is_computation(instruction) => vector(instruction),
        _ => Class::Handler,
    }
}

/// Features of plain integer instructions, which [`allow`] does not list.
fn is_known(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL186
            | F::INTEL286
            | F::INTEL386
            | F::INTEL486
            | F::X64
            | F::CX8
            | F::MULTIBYTENOP
            | F::PREFETCHW
            | F::CET_IBT
    ) || allow::supports(feature)
}

fn is_x87(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::FPU | F::FPU287 | F::FPU287XL_ONLY | F::FPU387 | F::FPU387SL_ONLY
    )
}

fn integer(instruction: &Instruction) -> Class {
    let opcode = Opcode::of(instruction.code());
    let mut operands = (0..instruction.op_count()).map(|it| opcode.operand(it));
    if operands.any(|it| it == Operand::System) {
        return Class::Handler;
    }
    Class::Computation
}

/// Whether a bit's number says where in memory it is.
pub(super) fn is_bit_string(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    ) && instruction.op0_kind() == OpKind::Memory
        && instruction.op1_kind() == OpKind::Register
}

#[rustfmt::skip]
fn is_integer(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Movnti | M::Movbe | M::Xchg | M::Bswap
        | M::Add | M::Adc | M::Sub | M::Sbb | M::And | M::Or | M::Xor | M::Cmp | M::Test
        | M::Inc | M::Dec | M::Neg | M::Not | M::Imul | M::Mul
        | M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
        | M::Bt | M::Bts | M::Btr | M::Btc | M::Bsf | M::Bsr | M::Popcnt | M::Lzcnt | M::Tzcnt
        | M::Cbw | M::Cwde | M::Cdqe | M::Cwd | M::Cdq | M::Cqo
        | M::Xadd | M::Cmpxchg | M::Cmpxchg8b
        | M::Clc | M::Stc | M::Cmc | M::Lahf | M::Sahf
        | M::Andn | M::Bextr | M::Blsi | M::Blsmsk | M::Blsr | M::Bzhi | M::Mulx | M::Pdep | M::Pext
        | M::Rorx | M::Sarx | M::Shlx | M::Shrx | M::Adcx | M::Adox
        | M::Cmova | M::Cmovae | M::Cmovb | M::Cmovbe | M::Cmove | M::Cmovg | M::Cmovge | M::Cmovl
        | M::Cmovle | M::Cmovne | M::Cmovno | M::Cmovnp | M::Cmovns | M::Cmovo | M::Cmovp | M::Cmovs
        | M::Seta | M::Setae | M::Setb | M::Setbe | M::Sete | M::Setg | M::Setge | M::Setl
        | M::Setle | M::Setne | M::Setno | M::Setnp | M::Setns | M::Seto | M::Setp | M::Sets
    )
}

fn vector(instruction: &Instruction) -> Class {
    let opcode = Opcode::of(instruction.code());
    let mut operands = (0..instruction.op_count()).map(|it| opcode.operand(it));
    if operands.any(|it| matches!(it, Operand::X87 | Operand::String)) {
        return Class::Handler;
    }
    if instruction.cpuid_features().iter().any(|&it| is_x87(it)) {
        return Class::Handler;
    }
    let unit = match instruction.encoding() {
        EncodingKind::VEX => Unit::Avx,
        EncodingKind::Legacy => Unit::Sse,
        _ => return Class::Handler,
    };
    let in_vectors = (0..instruction.op_count()).any(|operand| {
        matches!(
            opcode.operand(operand),
            Operand::Vector
                | Operand::VectorModRmRegister
                | Operand::VectorModRm
                | Operand::VectorVvvv
        )
    });
    if !in_vectors {
        // Integer computations that are not on the list above, such as `crc32`.
        return Class::Computation;
    }
    Class::Vector(unit, allow::uses_mxcsr(instruction))
}

/// Whether a guest register is kept in the core; `rsp` has another register of the host.
pub(super) fn is_moved(register: Register) -> bool {
    matches!(op::gpr(register), Some(4 | 9 | 10 | 11))
}
