//! Writes calls and returns: each as the host's own, so that the host predicts where they lead.
//!
//! ```text
//!  guest                      host                                  stack of the host
//!  call f                     push address behind the call          │ bottom: matches nothing │
//!                             call translation of f                 ├─────────────────────────┤
//!                             ▲ continuation: drop the address      │ guest's return address  │
//!  f: ret                     equal to the address recorded?        │ host's return address   │ ◄ rsp
//!                             ret, else by the table of targets     └─────────────────────────┘
//! ```
//! What a guest returns to is what its own stack says; what is recorded here is a guess that must
//! agree with it. Where it does not, as after `longjmp` or when the guest goes on with another
//! task, all that was recorded is dropped.
//!
//! Whatever could make a continuation stale ends what is recorded. The stack is empty each time
//! translated code is entered, so nothing is recorded from before translations were dropped, and
//! before the guest's memory was mapped otherwise: both happen only in between. It is emptied when
//! a handler goes on elsewhere, as for `syscall`, so nothing is recorded from another mode. And a
//! return looks at the attention word, so none leads to what somebody else is writing to.

use super::{
    block::{Slow, SlowKind, Writer},
    emit::{Assembler, RSP, S0, S1, condition},
    interface::{ATTENTION, FULL, mask, targets},
    operand::restore_flags,
};

/// How many calls are recorded. Where there are more, they are all dropped.
const MOST: i32 = 128;
/// Bytes of the host's stack that a call takes: a multiple of 16 keeps it aligned.
pub(super) const FRAME: i32 = 16;
/// Bytes for all of them.
pub(super) const FRAMES: i32 = MOST * FRAME;
/// Where the guest's return address is, from the host's.
pub(super) const RECORDED: i32 = 8;

impl Writer<'_> {
    /// Makes sure that one more call can be recorded; destroys flags.
    pub(super) fn make_room_for_call(&mut self) {
        // cmp rsp, gs:[full]
        self.code.gs(true, &[0x3b], RSP, FULL);
        let jump = self.code.jump_if(condition::BELOW_OR_EQUAL);
        let resume = Some(self.code.here());
        self.slow.push(Slow {
            jump,
            kind: SlowKind::DropCalls,
            resume,
        });
    }

    /// Records a call; the address behind it is in `r11`.
    pub(super) fn record_call(&mut self) {
        self.code.push(S1);
    }

    /// Calls a known address, and goes on behind that.
    pub(super) fn call_to(&mut self, target: u64) {
        if self.is_near(target) {
            let jump = self.code.call_later();
            self.note_exit(jump, target);
        } else {
            self.distant(target, true);
        }
        self.go_on_behind();
    }

    /// Calls the translation of the address in `r10`, and goes on behind that.
    pub(super) fn call_target(&mut self) {
        go_to_target(self.code, self.source.mode.context(), true);
        self.go_on_behind();
    }

    fn go_on_behind(&mut self) {
        self.code.lea(RSP, RSP, RECORDED);
        self.exit(self.next_rip());
    }

    /// Returns to the address in `r10`; the flags are in `ax`.
    pub(super) fn return_to_target(&mut self) {
        let elsewhere = self.thunks.elsewhere[self.source.mode.context()];
        let code = &mut *self.code;
        code.load(S1, ATTENTION);
        // cmp dword [r11], 0
        code.raw(&[0x41, 0x83, 0x3b, 0]);
        code.jump_to_if(condition::NOT_EQUAL, elsewhere);
        code.compare_to_stack(S0, RECORDED);
        code.jump_to_if(condition::NOT_EQUAL, elsewhere);
        restore_flags(code);
        code.return_to_caller();
    }
}

/// Jumps to the translation of the address in `r10`, or calls it.
pub(super) fn go_to_target(code: &mut Assembler, context: usize, call: bool) {
    const CALL: u8 = 2;
    const JUMP: u8 = 4;
    code.hash(mask(context));
    let digit = if call { CALL } else { JUMP };
    // jmp gs:[r11 * 8 + targets], or call
    code.gs_indexed(false, &[0xff], digit, S1, targets(context));
}
