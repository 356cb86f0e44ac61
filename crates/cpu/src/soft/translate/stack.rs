//! Writes what pushes and pops. Runs of either, with the `call` or the `ret` at their end, look up
//! their address once.

use std::ops::Range;

use iced_x86::{FlowControl, OpKind};

use super::{
    block::{Writer, stack},
    emit::{Address, GUEST_RSP, RAX, S0, S1},
    form::{Class, Form},
    interface::{SPILL_RAX, guest},
    operand::{host_of, restore_flags},
};
use crate::soft::op;

const RSP: u8 = 4;
const WORD: i32 = 8;

/// `[r10 + 8 * index]`.
fn word(index: usize) -> Address {
    Address {
        base: Some(S0),
        index: None,
        displacement: WORD * index as i32,
    }
}

impl Writer<'_> {
    /// Writes the run of pushes or pops that begins at `first`, the forms of which come first in
    /// `forms`. Returns of how many instructions; 0 when there is none.
    pub(super) fn stack_run(&mut self, forms: &[Form], first: usize) -> usize {
        let names_rsp = |index: usize| {
            let instruction = &self.source.instructions[index];
            instruction.op0_kind() == OpKind::Register
                && op::gpr(instruction.op0_register()) == Some(RSP)
        };
        let run = |class: Class, end: Class| {
            let mut count = 0;
            for (index, form) in forms.iter().enumerate() {
                if form.class == class && !names_rsp(first + index) {
                    count += 1;
                } else {
                    return count + usize::from(form.class == end);
                }
            }
            count
        };
        let pushes = run(Class::Push, Class::Call);
        if pushes > 0 {
            self.push_run(first..first + pushes, None);
            return pushes;
        }
        let pops = run(Class::Pop, Class::Return);
        if pops > 0 {
            self.pop_run(first..first + pops);
        }
        pops
    }

    /// Writes pushes of registers and numbers, the last of which may be that of a call. Of an
    /// indirect call, pushes `next`.
    pub(super) fn push_run(&mut self, run: Range<usize>, next: Option<u64>) {
        let count = run.len();
        let bytes = WORD * count as i32;
        let mut access = stack(
            self.source.mode.context(),
            true,
            run.clone().any(|index| self.live[index]),
        );
        access.bytes = bytes as u32;
        self.code.lea(S0, GUEST_RSP, -bytes);
        let slow = self.look_up_for_all(run.clone(), &access);
        let last = &self.source.instructions[run.end - 1];
        let calls = next.is_some() || last.flow_control() == FlowControl::Call;
        if calls {
            self.make_room_for_call();
        }
        if access.keep_flags {
            restore_flags(self.code);
        }
        for (at, index) in run.enumerate() {
            let instruction = &self.source.instructions[index];
            let register = (instruction.op0_kind() == OpKind::Register && next.is_none())
                .then(|| op::gpr(instruction.op0_register()))
                .flatten();
            let from = match register {
                Some(number) => host_of(number).unwrap_or_else(|| {
                    self.code.load(S1, guest(number));
                    S1
                }),
                None => {
                    let value = if let Some(next) = next {
                        next
                    } else if instruction.flow_control() == FlowControl::Call {
                        instruction.next_ip()
                    } else {
                        instruction.immediate(0)
                    };
                    self.code.mov_value(S1, value);
                    S1
                }
            };
            self.code.at(true, &[0x89], from, word(count - 1 - at));
        }
        self.code.lea(GUEST_RSP, GUEST_RSP, -bytes);
        if calls {
            self.record_call();
        } else {
            self.resume(slow);
        }
    }

    /// `pop rsp`, which is no part of a run.
    pub(super) fn pop_rsp(&mut self, index: usize) -> Option<()> {
        self.code.mov(S0, GUEST_RSP);
        let access = stack(self.source.mode.context(), false, self.live[index]);
        let slow = self.find(index, &access);
        self.code.at(true, &[0x8b], GUEST_RSP, word(0));
        self.resume(slow);
        Some(())
    }

    /// Writes pops to registers, the last of which may be that of `ret`, which loads `r10` and
    /// leaves the flags in `ax`.
    fn pop_run(&mut self, run: Range<usize>) {
        let count = run.len();
        let mut bytes = WORD * count as i32;
        let mut access = stack(
            self.source.mode.context(),
            false,
            run.clone().any(|index| self.live[index]),
        );
        access.bytes = bytes as u32;
        self.code.mov(S0, GUEST_RSP);
        let slow = self.look_up_for_all(run.clone(), &access);
        let last = &self.source.instructions[run.end - 1];
        let returns = last.flow_control() == FlowControl::Return;
        debug_assert!(
            !returns || access.keep_flags,
            "nobody knows who returns where"
        );
        if access.keep_flags && !returns {
            restore_flags(self.code);
        }
        for (at, index) in run.enumerate() {
            let instruction = &self.source.instructions[index];
            if instruction.flow_control() == FlowControl::Return {
                if instruction.op_count() == 1 {
                    bytes += i32::from(instruction.immediate16());
                }
                self.code.at(true, &[0x8b], S0, word(at));
                continue;
            }
            let Some(number) = op::gpr(instruction.op0_register()) else {
                continue;
            };
            match host_of(number) {
                Some(RAX) if returns => {
                    self.code.at(true, &[0x8b], S1, word(at));
                    self.code.store(S1, SPILL_RAX);
                }
                Some(host) => self.code.at(true, &[0x8b], host, word(at)),
                None => {
                    self.code.at(true, &[0x8b], S1, word(at));
                    self.code.store(S1, guest(number));
                }
            }
        }
        self.code.lea(GUEST_RSP, GUEST_RSP, bytes);
        if !returns {
            self.resume(slow);
        }
    }
}
