//! Random instructions of a given code, and random states to run them on.

use iced_x86::{Code, Encoder, Instruction, OpCodeOperandKind as K, Register};

use crate::soft::vector::VectorState;

/// A small generator (SplitMix64): a failing case is known by its seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    fn register(&mut self, first: Register, count: u64) -> Register {
        first + self.below(count) as u32
    }

    /// A general-purpose register that is neither `rsp` nor `base`.
    fn gpr(&mut self, first: Register, base: Register) -> Register {
        loop {
            let it = self.register(first, 16);
            if !matches!(it.full_register(), Register::RSP) && it.full_register() != base {
                return it;
            }
        }
    }

    /// Bits that make interesting floats, in both precisions.
    pub fn lane(&mut self) -> u64 {
        const DOUBLES: [u64; 10] = [
            0,
            1 << 63,
            0x3ff0_0000_0000_0000,
            0x7ff0_0000_0000_0000,
            0xfff8_0000_0000_0001,
            0x7ff0_0000_0000_0001,
            1,
            0x000f_ffff_ffff_ffff,
            0x7fef_ffff_ffff_ffff,
            0x41df_ffff_ffc0_0000,
        ];
        const SINGLES: [u32; 10] = [
            0,
            1 << 31,
            0x3f80_0000,
            0x7f80_0000,
            0xffc0_0001,
            0x7f80_0001,
            1,
            0x007f_ffff,
            0x7f7f_ffff,
            0x4f00_0000,
        ];
        let pick = |this: &mut Self| {
            let small = (this.below(200) as f32 - 100.0) / 8.0;
            match this.below(3) {
                0 => SINGLES[this.below(10) as usize],
                1 => small.to_bits(),
                _ => this.next() as u32,
            }
        };
        match self.below(5) {
            0 => DOUBLES[self.below(10) as usize],
            1 => ((self.below(2000) as f64 - 1000.0) / 16.0).to_bits(),
            2 => u64::from(pick(self)) << 32 | u64::from(pick(self)),
            3 => self.below(256),
            _ => self.next(),
        }
    }

    pub fn vector(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.lane().to_le_bytes());
        bytes[8..].copy_from_slice(&self.lane().to_le_bytes());
        bytes
    }

    /// A state of all units, exceptions masked.
    pub fn state(&mut self) -> VectorState {
        let mut state = VectorState::default();
        if self.chance(2) {
            state.mxcsr |= self.next() as u32 & 0x607f;
        }
        for it in state.xmm.iter_mut().chain(&mut state.ymm_high) {
            *it = self.vector();
        }
        state.fcw = 0x7f | (self.next() as u16 & 0xc00) | [0, 0x200, 0x300][self.below(3) as usize];
        state.fsw = self.next() as u16 & 0x7f7f;
        state.ftw = if self.chance(2) {
            0xff
        } else {
            self.next() as u8
        };
        for it in &mut state.st {
            let lane = self.lane();
            it[..8].copy_from_slice(&lane.to_le_bytes());
            let exponent: u16 = match self.below(6) {
                0 => 0x3fff,
                1 => 0x4005,
                2 => 0xbffe,
                3 => 0x7fff,
                4 => 0,
                _ => self.next() as u16,
            };
            if !self.chance(4) {
                it[7] |= 0x80;
            }
            it[8..10].copy_from_slice(&exponent.to_le_bytes());
        }
        state
    }

    /// An instruction of this code that uses `base` as the address of its memory operand if it gets
    /// one; `None` when the code has operands that are not made here.
    pub fn instruction(&mut self, code: Code, base: Register) -> Option<Instruction> {
        let info = code.op_code();
        let mut it = Instruction::default();
        it.set_code(code);
        for operand in 0..info.op_count() {
            self.operand(&mut it, operand, info.op_kind(operand), base)?;
        }
        Some(it)
    }

    fn operand(
        &mut self,
        it: &mut Instruction,
        operand: u32,
        kind: K,
        base: Register,
    ) -> Option<()> {
        use iced_x86::OpKind;
        let register = match kind {
            K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 => self.register(Register::XMM0, 16),
            K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => self.register(Register::YMM0, 16),
            K::mm_reg | K::mm_rm => self.register(Register::MM0, 8),
            K::r16_reg | K::r16_rm => self.gpr(Register::AX, base),
            K::r32_reg | K::r32_rm | K::r32_vvvv => self.gpr(Register::EAX, base),
            K::r64_reg | K::r64_rm | K::r64_vvvv => self.gpr(Register::RAX, base),
            K::st0 => Register::ST0,
            K::sti_opcode => self.register(Register::ST0, 8),
            K::ax => Register::AX,
            K::xmm_or_mem if self.chance(2) => self.register(Register::XMM0, 16),
            K::ymm_or_mem if self.chance(2) => self.register(Register::YMM0, 16),
            K::mm_or_mem if self.chance(2) => self.register(Register::MM0, 8),
            K::r16_or_mem if self.chance(2) => self.gpr(Register::AX, base),
            K::r32_or_mem if self.chance(2) => self.gpr(Register::EAX, base),
            K::r64_or_mem if self.chance(2) => self.gpr(Register::RAX, base),
            K::r8_or_mem if self.chance(2) => loop {
                let it = [
                    Register::AL,
                    Register::CH,
                    Register::BH,
                    Register::DL,
                    Register::R9L,
                ][self.below(5) as usize];
                if it.full_register() != base {
                    break it;
                }
            },
            K::mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::mm_or_mem
            | K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem => {
                it.set_op_kind(operand, OpKind::Memory);
                it.set_memory_base(base);
                return Some(());
            }
            K::seg_rDI => {
                it.set_op_kind(operand, OpKind::MemorySegRDI);
                return Some(());
            }
            K::mem_vsib32x | K::mem_vsib64x | K::mem_vsib32y | K::mem_vsib64y => {
                it.set_op_kind(operand, OpKind::Memory);
                it.set_memory_base(base);
                it.set_memory_index_scale(1 << self.below(4));
                it.set_memory_index(match kind {
                    K::mem_vsib32x | K::mem_vsib64x => self.register(Register::XMM0, 16),
                    _ => self.register(Register::YMM0, 16),
                });
                return Some(());
            }
            K::imm8 | K::imm8_const_1 => {
                it.set_op_kind(operand, OpKind::Immediate8);
                it.set_immediate8(self.next() as u8);
                return Some(());
            }
            _ => return None,
        };
        it.set_op_kind(operand, OpKind::Register);
        it.set_op_register(operand, register);
        Some(())
    }
}

/// Its bytes; `None` for a mixture of operands that cannot be encoded.
pub fn encode(instruction: &Instruction) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(64);
    encoder.encode(instruction, 0x1000).ok()?;
    Some(encoder.take_buffer())
}
