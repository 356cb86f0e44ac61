//! Writes hot instructions that are no computations: those of ring 0, those on flags, and division,
//! which may fault.

use iced_x86::OpKind;

use super::{
    block::{Slow, SlowKind, Writer, at_s0, stack},
    emit::{Address, GUEST_RSP, Jump, RAX, S0, S1, condition},
    interface::{
        CLOCK, CONTROL, KERNEL_GS_BASE, SHOWN_MASK, SPILL_RAX, SPILL_TARGET, STATUS_MASK, WAITING,
        guest, segment_base,
    },
    operand::{self, host_of, is_plain, restore_flags},
};
use crate::soft::{flags::IF, op};

const RDX: u8 = 2;
const GS: u8 = 5;

/// `[base]`.
fn at(base: u8) -> Address {
    Address {
        base: Some(base),
        index: None,
        displacement: 0,
    }
}

impl Writer<'_> {
    fn keep_flags(&mut self, keep: bool) {
        if keep {
            self.code.store(RAX, SPILL_RAX);
            self.code.flags_to_ax();
        }
    }

    fn bring_flags_back(&mut self, keep: bool) {
        if keep {
            restore_flags(self.code);
        }
    }

    /// Has the handler do it where `jump` is taken.
    fn slow(&mut self, index: usize, jump: Jump) -> usize {
        self.slow.push(Slow {
            jump,
            kind: SlowKind::Handlers(index..index + 1, self.live[index], self.level),
            resume: None,
        });
        self.slow.len() - 1
    }

    pub(super) fn push_memory(&mut self, index: usize) -> Option<()> {
        let instruction = &self.source.instructions[index];
        if !is_plain(instruction) {
            return None;
        }
        let context = self.source.mode.context();
        let keep = self.live[index];
        operand::address(self.code, instruction);
        let load = self.find(index, &stack(context, false, keep));
        self.code.at(true, &[0x8b], S1, at_s0());
        self.code.store(S1, SPILL_TARGET);
        self.code.lea(S0, GUEST_RSP, -8);
        let store = self.find(index, &stack(context, true, keep));
        self.code.load(S1, SPILL_TARGET);
        self.code.at(true, &[0x89], S1, at_s0());
        self.code.lea(GUEST_RSP, GUEST_RSP, -8);
        self.resume(load);
        self.resume(store);
        Some(())
    }

    /// `pushfq`: the host's status flags, with the others of the guest.
    pub(super) fn push_flags(&mut self, index: usize) -> Option<()> {
        // pushfq; pop r11
        self.code.raw(&[0x9c, 0x41, 0x5b]);
        self.code.and_field(S1, STATUS_MASK);
        self.code.load(S0, CONTROL);
        self.code.and_field(S0, SHOWN_MASK);
        self.code.lea_sum(S1, S1, S0);
        self.code.store(S1, SPILL_TARGET);
        self.code.lea(S0, GUEST_RSP, -8);
        let slow = self.find(
            index,
            &stack(self.source.mode.context(), true, self.live[index]),
        );
        self.code.load(S1, SPILL_TARGET);
        self.code.at(true, &[0x89], S1, at_s0());
        self.code.lea(GUEST_RSP, GUEST_RSP, -8);
        self.resume(slow);
        Some(())
    }

    /// `rdtsc`; leaves the flags.
    pub(super) fn read_clock(&mut self) -> Option<()> {
        if !self.source.mode.may_read_clock() {
            return None;
        }
        let code = &mut *self.code;
        // rdtsc; rorx rdx, rdx, 32
        code.raw(&[0x0f, 0x31, 0xc4, 0xe3, 0xfb, 0xf0, 0xd2, 32]);
        code.lea_sum(RAX, RAX, RDX);
        code.load(S1, CLOCK);
        code.at(true, &[0x8b], S1, at(S1));
        code.lea_sum(RAX, RAX, S1);
        // rorx rdx, rax, 32; mov edx, edx; mov eax, eax
        code.raw(&[0xc4, 0xe3, 0xfb, 0xf0, 0xd0, 32, 0x89, 0xd2, 0x89, 0xc0]);
        Some(())
    }

    pub(super) fn swap_gs(&mut self) -> Option<()> {
        if !self.source.mode.is_ring0() {
            return None;
        }
        let base = segment_base(GS);
        self.code.load(S0, base);
        self.code.load(S1, KERNEL_GS_BASE);
        self.code.store(S1, base);
        self.code.store(S0, KERNEL_GS_BASE);
        Some(())
    }

    /// `cli`, and `sti` where nothing waits for it. The attention word, which is looked at no
    /// earlier than at the end of the block, holds interrupts back for one instruction.
    pub(super) fn interrupt_flag(&mut self, index: usize, on: bool) -> Option<()> {
        if !self.source.mode.is_ring0() {
            return None;
        }
        let keep = self.live[index];
        self.keep_flags(keep);
        let slow = on.then(|| {
            self.code.load(S1, WAITING);
            // cmp dword [r11], 0
            self.code.raw(&[0x41, 0x83, 0x3b, 0]);
            let jump = self.code.jump_if(condition::NOT_EQUAL);
            self.slow(index, jump)
        });
        // or dword gs:[control], IF, or and with all others.
        let (digit, mask) = if on { (1, IF as u32) } else { (4, !IF as u32) };
        self.code.gs(false, &[0x81], digit, CONTROL);
        self.code.raw(&mask.to_le_bytes());
        self.bring_flags_back(keep);
        if let Some(slow) = slow {
            self.resume(slow);
        }
        Some(())
    }

    /// `div` and `idiv` of 32 and 64 bits: where the quotient may not fit, the handler is to see.
    pub(super) fn divide(&mut self, index: usize, signed: bool) -> Option<()> {
        let instruction = &self.source.instructions[index];
        let keep = self.live[index];
        let mut slow = Vec::new();
        let wide = if instruction.op0_kind() == OpKind::Register {
            let register = instruction.op0_register();
            let number = op::gpr(register)?;
            match host_of(number) {
                Some(host) => self.code.mov(S1, host),
                None => self.code.load(S1, guest(number)),
            }
            register.size() == 8
        } else {
            if !is_plain(instruction) {
                return None;
            }
            let wide = instruction.memory_size().size() == 8;
            operand::address(self.code, instruction);
            let mut access = stack(self.source.mode.context(), false, keep);
            access.bytes = if wide { 8 } else { 4 };
            slow.push(self.find(index, &access));
            self.code.at(wide, &[0x8b], S1, at_s0());
            wide
        };
        self.code.mov(S0, RAX);
        self.keep_flags(keep);
        if signed {
            // The dividend is its lower half, and the divisor neither 0 nor -1. sar r10, 63 or 31;
            // cmp r10, rdx
            self.code.registers(wide, &[0xc1], 7, S0);
            self.code.byte(if wide { 63 } else { 31 });
            self.code.registers(wide, &[0x3b], S0, RDX);
            let jump = self.code.jump_if(condition::NOT_EQUAL);
            slow.push(self.slow(index, jump));
            let above = Address {
                base: Some(S1),
                index: None,
                displacement: 1,
            };
            self.code.at(wide, &[0x8d], S0, above);
            self.code.registers(wide, &[0x81], 7, S0);
            self.code.raw(&1_u32.to_le_bytes());
            let jump = self.code.jump_if(condition::BELOW_OR_EQUAL);
            slow.push(self.slow(index, jump));
        } else {
            // cmp rdx, r11
            self.code.registers(wide, &[0x3b], RDX, S1);
            let jump = self.code.jump_if(condition::ABOVE_OR_EQUAL);
            slow.push(self.slow(index, jump));
        }
        self.bring_flags_back(keep);
        self.code
            .registers(wide, &[0xf7], if signed { 7 } else { 6 }, S1);
        for slow in slow {
            self.resume(slow);
        }
        Some(())
    }
}
