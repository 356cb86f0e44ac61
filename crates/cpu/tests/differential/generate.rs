//! Makes instructions of a given form with random operands, and registers that make sense for
//! them: addresses near and over the edges of the window, divisors that divide now and then.

use iced_x86::{Code, Encoder, Instruction, Mnemonic, OpCodeOperandKind as Kind, OpKind, Register};

use cpu::soft::op::Width;

use crate::common::{GPR8, Random};

use super::host::{OPEN, Registers, data_base, landing, slot};

impl Random {
    /// An address of an operand: mostly good, now and then over an edge.
    fn address(&mut self) -> u64 {
        match self.below(12) {
            0 => OPEN.wrapping_add(self.below(20)).wrapping_sub(10),
            1 => OPEN + 0x1000 + self.below(20) - 10,
            2 => OPEN + 0x2000 + self.below(20) - 10,
            3 => OPEN + 0x3000 + self.below(20) - 18,
            4..8 => OPEN + (self.below(0x1f80) & !15),
            _ => OPEN + self.below(0x1f80),
        }
    }
}

/// An instruction, and what it starts from.
pub struct Case {
    pub bytes: Vec<u8>,
    pub before: Registers,
    /// Put into memory first, at this address.
    pub memory: Option<(u64, u64)>,
}

const GPR8_32: [Register; 8] = [
    Register::AL,
    Register::CL,
    Register::DL,
    Register::BL,
    Register::AH,
    Register::CH,
    Register::DH,
    Register::BH,
];

fn register(kind: Kind, width: Width, random: &mut Random) -> Option<Register> {
    let number = random.below(registers(width)) as u32;
    Some(match kind {
        Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode if width != Width::Code64 => {
            GPR8_32[number as usize]
        }
        Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => GPR8[random.below(20) as usize],
        Kind::r16_or_mem | Kind::r16_reg | Kind::r16_rm | Kind::r16_opcode => Register::AX + number,
        Kind::r32_or_mem | Kind::r32_reg | Kind::r32_rm | Kind::r32_opcode => {
            Register::EAX + number
        }
        Kind::r64_or_mem | Kind::r64_reg | Kind::r64_rm | Kind::r64_opcode => {
            Register::RAX + number
        }
        Kind::al => Register::AL,
        Kind::cl => Register::CL,
        Kind::ax => Register::AX,
        Kind::dx => Register::DX,
        Kind::eax => Register::EAX,
        Kind::rax => Register::RAX,
        _ => return None,
    })
}

/// How many general-purpose registers there are.
fn registers(width: Width) -> u64 {
    if width == Width::Code64 { 16 } else { 8 }
}

fn may_be_memory(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::mem | Kind::r8_or_mem | Kind::r16_or_mem | Kind::r32_or_mem | Kind::r64_or_mem
    )
}

fn immediate_kind(kind: Kind) -> Option<OpKind> {
    Some(match kind {
        Kind::imm8 | Kind::imm8_const_1 => OpKind::Immediate8,
        Kind::imm8sex16 => OpKind::Immediate8to16,
        Kind::imm8sex32 => OpKind::Immediate8to32,
        Kind::imm8sex64 => OpKind::Immediate8to64,
        Kind::imm16 => OpKind::Immediate16,
        Kind::imm32 => OpKind::Immediate32,
        Kind::imm32sex64 => OpKind::Immediate32to64,
        Kind::imm64 => OpKind::Immediate64,
        _ => return None,
    })
}

/// What one case is being made of.
struct Maker<'a> {
    width: Width,
    /// Address size of a string instruction.
    string_bytes: u32,
    random: &'a mut Random,
    instruction: Instruction,
    before: Registers,
}

/// A case of a form; `None` for forms and operands that cannot be tested so.
pub fn case(code: Code, width: Width, random: &mut Random) -> Option<Case> {
    let mut before = Registers::default();
    before.gpr.fill_with(|| random.value());
    before.gpr[4] = match random.below(16) {
        0 => random.value(),
        1 => random.address().wrapping_sub(data_base(width)),
        _ => OPEN - data_base(width) + 0x800 + (random.below(0x1000) & !7),
    };
    before.flags = random.next() & 0xcd5 | 0x202;
    let native = width.bits() / 8;
    let mut maker = Maker {
        width,
        string_bytes: match (random.one_in(8), native) {
            (true, 4) => 2,
            (true, _) => 4,
            (false, native) => native,
        },
        random,
        instruction: Instruction::default(),
        before,
    };
    maker.instruction.set_code(code);
    let info = code.op_code();
    for operand in 0..info.op_count() {
        maker.operand(operand, info.op_kind(operand))?;
    }
    maker.prefixes();
    maker.make_sense();
    maker.finish()
}

impl Maker<'_> {
    fn operand(&mut self, operand: u32, kind: Kind) -> Option<()> {
        if kind == Kind::mem || may_be_memory(kind) && self.random.one_in(2) {
            self.instruction.set_op_kind(operand, OpKind::Memory);
            self.memory();
            return Some(());
        }
        if let Some(register) = register(kind, self.width, self.random) {
            self.instruction.set_op_kind(operand, OpKind::Register);
            self.instruction.set_op_register(operand, register);
            return Some(());
        }
        if let Some(op_kind) = immediate_kind(kind) {
            self.instruction.set_op_kind(operand, op_kind);
            let value = match kind {
                Kind::imm8_const_1 => 1,
                _ => self.random.value(),
            };
            match op_kind {
                OpKind::Immediate8
                    if operand == 1 && self.instruction.mnemonic() == Mnemonic::Enter =>
                {
                    self.instruction
                        .set_op_kind(operand, OpKind::Immediate8_2nd);
                    self.instruction
                        .set_immediate8_2nd(self.random.below(5) as u8);
                }
                OpKind::Immediate8 => self.instruction.set_immediate8(value as u8),
                OpKind::Immediate8to16 => {
                    self.instruction.set_immediate8to16(i16::from(value as i8))
                }
                OpKind::Immediate8to32 => {
                    self.instruction.set_immediate8to32(i32::from(value as i8))
                }
                OpKind::Immediate8to64 => {
                    self.instruction.set_immediate8to64(i64::from(value as i8))
                }
                OpKind::Immediate16 => self.instruction.set_immediate16(value as u16),
                OpKind::Immediate32 => self.instruction.set_immediate32(value as u32),
                OpKind::Immediate32to64 => self
                    .instruction
                    .set_immediate32to64(i64::from(value as i32)),
                _ => self.instruction.set_immediate64(value),
            }
            return Some(());
        }
        let op_kind = match kind {
            Kind::br64_1 | Kind::br64_4 => {
                self.instruction.set_near_branch64(landing(self.width));
                OpKind::NearBranch64
            }
            Kind::br32_1 | Kind::br32_4 => {
                self.instruction
                    .set_near_branch32(landing(self.width) as u32);
                OpKind::NearBranch32
            }
            Kind::br16_1 | Kind::br16_2 if self.width == Width::Code16 => {
                self.instruction
                    .set_near_branch16(landing(self.width) as u16);
                OpKind::NearBranch16
            }
            Kind::mem_offs => {
                let address = self.offset();
                self.instruction.set_memory_displacement64(address);
                self.instruction
                    .set_memory_displ_size(self.width.bits() / 8);
                OpKind::Memory
            }
            Kind::seg_reg => {
                let number = self.random.below(6) as u32;
                self.instruction
                    .set_op_register(operand, Register::ES + number);
                OpKind::Register
            }
            Kind::es | Kind::cs | Kind::ss | Kind::ds | Kind::fs | Kind::gs => {
                let register = match kind {
                    Kind::es => Register::ES,
                    Kind::cs => Register::CS,
                    Kind::ss => Register::SS,
                    Kind::ds => Register::DS,
                    Kind::fs => Register::FS,
                    _ => Register::GS,
                };
                self.instruction.set_op_register(operand, register);
                OpKind::Register
            }
            Kind::seg_rSI => match self.string_bytes {
                8 => OpKind::MemorySegRSI,
                4 => OpKind::MemorySegESI,
                _ => OpKind::MemorySegSI,
            },
            Kind::es_rDI => match self.string_bytes {
                8 => OpKind::MemoryESRDI,
                4 => OpKind::MemoryESEDI,
                _ => OpKind::MemoryESDI,
            },
            Kind::seg_rBX_al => {
                let base = match self.width {
                    Width::Code64 => Register::RBX,
                    Width::Code32 => Register::EBX,
                    Width::Code16 => Register::BX,
                };
                self.instruction.set_memory_base(base);
                self.instruction.set_memory_index(Register::AL);
                self.before.gpr[3] = self.offset();
                OpKind::Memory
            }
            _ => return None,
        };
        self.instruction.set_op_kind(operand, op_kind);
        Some(())
    }

    /// An address of an operand, as an offset in its segment.
    fn offset(&mut self) -> u64 {
        self.random.address().wrapping_sub(data_base(self.width))
    }

    /// A memory operand with 16-bit addresses. In 32-bit code nothing is mapped so low: it faults,
    /// and where it does says whether the address was right.
    fn memory16(&mut self) {
        let bases = [(Register::BX, 3), (Register::BP, 5), (Register::None, 16)];
        let indices = [(Register::SI, 6), (Register::DI, 7), (Register::None, 16)];
        let (base, base_number) = bases[self.random.below(3) as usize];
        let (index, index_number) = indices[self.random.below(3) as usize];
        let mut displacement = self.random.next() & 0xffff;
        if self.width == Width::Code16 {
            let target = self.offset();
            let gpr = &mut self.before.gpr;
            let value = |number: usize| gpr.get(number).copied().unwrap_or(0);
            let rest = target.wrapping_sub(displacement);
            match (base_number, index_number) {
                (16, 16) => displacement = target & 0xffff,
                (16, index) => gpr[index] = rest,
                (base, index) => gpr[base] = rest.wrapping_sub(value(index)),
            }
        }
        // `[bp]` has no form without a displacement; two bytes of it do for all.
        self.instruction.set_memory_base(base);
        self.instruction.set_memory_index(index);
        self.instruction.set_memory_displacement64(displacement);
        self.instruction.set_memory_displ_size(2);
    }

    /// A memory operand: base, base and index, or nothing but a displacement.
    fn memory(&mut self) {
        let target = self.offset();
        let short = self.random.one_in(8) == (self.width != Width::Code16);
        if short && self.width != Width::Code64 {
            return self.memory16();
        }
        let short = short || self.width != Width::Code64;
        let first = if short { Register::EAX } else { Register::RAX };
        let base = self.random.below(registers(self.width)) as u32;
        let index = self.random.below(registers(self.width)) as u32;
        self.instruction
            .set_memory_displ_size(if short { 4 } else { 8 });
        if self.random.one_in(10) && self.width != Width::Code64 {
            self.instruction.set_memory_displacement64(target);
            return;
        }
        if self.random.one_in(10) {
            let register = if short { Register::EIP } else { Register::RIP };
            self.instruction.set_memory_base(register);
            self.instruction.set_memory_displacement64(target);
            return;
        }
        let displacement = match self.random.below(3) {
            0 => 0,
            1 => self.random.below(256).wrapping_sub(128),
            _ => (self.random.next() as i32 >> 4) as u64,
        };
        self.instruction.set_memory_displacement64(displacement);
        if displacement.wrapping_add(128) < 256 {
            self.instruction.set_memory_displ_size(1);
        }
        self.instruction.set_memory_base(first + base);
        let mut rest = target.wrapping_sub(displacement);
        if index != 4 && index != base && self.random.one_in(2) {
            let scale = 1 << self.random.below(4);
            self.instruction.set_memory_index(first + index);
            self.instruction.set_memory_index_scale(scale);
            rest =
                rest.wrapping_sub(self.before.gpr[index as usize].wrapping_mul(u64::from(scale)));
        }
        self.before.gpr[base as usize] = rest;
        if short && self.random.one_in(2) {
            self.before.gpr[base as usize] ^= 0xdead_beef << 32;
        }
    }

    fn prefixes(&mut self) {
        let info = self.instruction.code().op_code();
        let in_memory = self.instruction.op0_kind() == OpKind::Memory;
        if in_memory && info.can_use_lock_prefix() && self.random.one_in(4) {
            self.instruction.set_has_lock_prefix(true);
        }
        if self.is_string() {
            match self.random.below(4) {
                0 | 1 => self.instruction.set_has_rep_prefix(true),
                2 if info.can_use_repne_prefix() => self.instruction.set_has_repne_prefix(true),
                _ => {}
            }
            let limit = if self.random.one_in(8) { 0x2000 } else { 40 };
            self.before.gpr[1] = self.random.below(limit);
            self.before.gpr[6] = self.offset();
            self.before.gpr[7] = match self.random.below(3) {
                0 => self.before.gpr[6]
                    .wrapping_add(self.random.below(64))
                    .wrapping_sub(32),
                _ => self.offset(),
            };
        }
    }

    fn is_string(&self) -> bool {
        (0..self.instruction.op_count()).any(|operand| {
            matches!(
                self.instruction.op_kind(operand),
                OpKind::MemorySegSI
                    | OpKind::MemoryESDI
                    | OpKind::MemorySegESI
                    | OpKind::MemorySegRSI
                    | OpKind::MemoryESEDI
                    | OpKind::MemoryESRDI
            )
        })
    }

    /// Values without which nothing interesting would happen.
    fn make_sense(&mut self) {
        let random = &mut *self.random;
        let gpr = &mut self.before.gpr;
        match self.instruction.mnemonic() {
            Mnemonic::Div | Mnemonic::Idiv if self.instruction.op0_kind() == OpKind::Register => {
                gpr[2] = match random.below(3) {
                    0 => 0,
                    1 => (gpr[0] as i64 >> 63) as u64,
                    _ => random.below(1 << 20),
                };
            }
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
                if self.instruction.op0_kind() == OpKind::Memory
                    && self.instruction.op1_kind() == OpKind::Register =>
            {
                let offset = &mut gpr[self.instruction.op1_register().number()];
                let near = random.below(0x8000).wrapping_sub(0x4000);
                let register = self.instruction.op1_register().full_register();
                let used = [
                    self.instruction.memory_base(),
                    self.instruction.memory_index(),
                ];
                if used.iter().all(|used| used.full_register() != register) {
                    *offset = near;
                }
            }
            Mnemonic::Cmpxchg
                if random.one_in(2) && self.instruction.op0_kind() == OpKind::Register =>
            {
                let register = self.instruction.op0_register();
                if register.size() > 1 {
                    gpr[0] = gpr[register.number()];
                }
            }
            Mnemonic::Enter | Mnemonic::Leave => {
                gpr[5] = (random.address() & !7).wrapping_sub(data_base(self.width));
            }
            Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => gpr[1] = random.below(3),
            Mnemonic::Jrcxz | Mnemonic::Jecxz | Mnemonic::Jcxz => {
                gpr[1] &= random.below(2).wrapping_neg()
            }
            _ => {}
        }
    }

    fn finish(mut self) -> Option<Case> {
        let instruction = &self.instruction;
        let mut memory = None;
        let indirect = matches!(instruction.mnemonic(), Mnemonic::Jmp | Mnemonic::Call);
        match instruction.op0_kind() {
            _ if instruction.mnemonic() == Mnemonic::Ret => {
                let top = match self.width {
                    Width::Code16 => self.before.gpr[4] & 0xffff,
                    _ => self.before.gpr[4],
                };
                let top = top.wrapping_add(data_base(self.width));
                memory = Some((top, landing(self.width)));
            }
            // The stack has to stay where it is.
            OpKind::Register if indirect && instruction.op0_register().number() == 4 => {
                return None;
            }
            OpKind::Register if indirect => {
                self.before.gpr[instruction.op0_register().number()] = landing(self.width);
            }
            OpKind::Memory if indirect => {
                memory = Some((self.effective_address()?, landing(self.width)));
            }
            _ => {}
        }
        if self.width != Width::Code64 {
            for register in &mut self.before.gpr {
                *register &= 0xffff_ffff;
            }
            self.before.gpr[8..].fill(0);
        }
        let mut encoder = Encoder::new(self.width.bits());
        encoder.encode(&self.instruction, slot(self.width)).ok()?;
        Some(Case {
            bytes: encoder.take_buffer(),
            before: self.before,
            memory,
        })
    }

    fn effective_address(&self) -> Option<u64> {
        self.instruction.virtual_address(0, 0, |register, _, _| {
            if register.is_segment_register() {
                return Some(data_base(self.width));
            }
            Some(self.before.gpr[register.number()])
        })
    }
}

/// Whether a form can be tested at all: branches of 16 bits would leave the stub.
pub fn is_testable(code: Code, width: Width) -> bool {
    let info = code.op_code();
    let branch = !matches!(
        code.mnemonic(),
        Mnemonic::Jmp | Mnemonic::Call | Mnemonic::Ret
    ) || info.operand_size() != 16;
    info.is_instruction()
        && match width {
            Width::Code64 => info.mode64(),
            Width::Code32 => info.mode32() && branch,
            Width::Code16 => info.mode16(),
        }
}
