//! Recognises retpolines: what kernels have in place of computed jumps where they are told, or fear,
//! that the processor speculates past them (Linux: `arch/x86/lib/retpoline.S`).
//!
//! ```text
//!        call set        pushes `trap`
//!  trap: pause; lfence; jmp trap
//!  set:  mov [rsp], reg  and replaces it by where to jump
//!        ret
//! ```
//! The call and what it leads to are written as the jump they stand for, with the same store below
//! the stack pointer. What lies at `trap` is not looked at: nothing leads there, other than by the
//! processor's guess.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Register};

use super::{
    block::{Source, Writer, at_s0, stack},
    emit::{GUEST_RSP, S0, S1},
    interface::guest,
    operand::host_of,
};
use crate::soft::op;

/// Bytes of `mov [rsp], reg; ret`, and a few that a compiler may add to them.
pub(super) const MOST_BYTES: usize = 8;

const PAGE: u64 = 0x1000;

/// Where the call at the end of a block leads to, as far from its `rip` as from the block's, if that
/// is on the block's page; and how many bytes from there on are to be looked at.
pub(super) fn callee(last: &Instruction, rip: u64) -> Option<(u64, usize)> {
    if last.flow_control() != FlowControl::Call || !last.code().is_call_near() {
        return None;
    }
    let target = last.near_branch_target();
    let on_page = target >> 12 == rip >> 12;
    let left = (PAGE - target % PAGE) as usize;
    on_page.then_some((target, left.min(MOST_BYTES)))
}

/// The number of the register that a retpoline jumps to, if that is what a block ends with.
pub(super) fn register(source: &Source<'_>) -> Option<u8> {
    let last = source.instructions.last()?;
    let (target, _) = callee(last, source.rip)?;
    let mut decoder = Decoder::with_ip(64, source.callee, target, DecoderOptions::NONE);
    let (set, ret) = (decoder.decode(), decoder.decode());
    let sets = set.code() == Code::Mov_rm64_r64
        && set.memory_base() == Register::RSP
        && set.memory_index() == Register::None
        && set.memory_displacement64() == 0
        && set.op1_register() != Register::RSP;
    (sets && ret.code() == Code::Retnq)
        .then(|| op::gpr(set.op1_register()))
        .flatten()
}

impl Writer<'_> {
    /// Writes the store of a retpoline, and loads where it jumps to `r10`.
    pub(super) fn retpoline(&mut self, index: usize, register: u8) {
        let context = self.source.mode.context();
        self.code.lea(S0, GUEST_RSP, -8);
        // The handler makes the call, which leads to the rest of it.
        let _ends = self.find(index, &stack(context, true, self.live[index]));
        let from = host_of(register).unwrap_or_else(|| {
            self.code.load(S1, guest(register));
            S1
        });
        self.code.at(true, &[0x89], from, at_s0());
        self.code.mov(S0, from);
    }
}
