//! The code that all translations share: the way in, the way out, and the call of a handler.

use super::{
    emit::{Assembler, GUEST_RSP, RAX, RSP, S0, S1, condition},
    interface::{
        CORE, EMPTY, EXIT, FULL, GUEST_RIP, JUMP, LIVE_MXCSR, RUN_MXCSR, STATUS, VECTORS,
        call_handler, exit, guest, xmm, ymm_high,
    },
    operand::restore_flags,
    returns::{FRAME, FRAMES, go_to_target},
};

/// Guest registers that are in the host's of the same number.
const PINNED: [u8; 12] = [0, 1, 2, 3, 5, 6, 7, 8, 12, 13, 14, 15];
/// `rbx`, `rbp`, `r12` to `r15`, which belong to the caller.
const PUSH_SAVED: [u8; 10] = [0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57];
const POP_SAVED: [u8; 10] = [0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b];
/// `add rsp, 8` and `sub rsp, 8`.
const ADD_RSP_8: [u8; 4] = [0x48, 0x83, 0xc4, 8];
const SUB_RSP_8: [u8; 4] = [0x48, 0x83, 0xec, 8];
const RET: u8 = 0xc3;
const LDMXCSR: (&[u8], u8) = (&[0x0f, 0xae], 2);
const STMXCSR: (&[u8], u8) = (&[0x0f, 0xae], 3);

/// Their addresses.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Thunks {
    /// `extern "sysv64" fn(&mut Core, entry)`: runs translated code until it comes back.
    pub(super) enter: usize,
    /// Jumped to with the guest's `rip` in `r10` and the reason in `r11`.
    pub(super) leave: usize,
    /// Jumped to with the guest's `rip` in `r10`: it is not among the targets.
    pub(super) miss: usize,
    /// For each context of memory: jumped to with the target of a return in `r10` and the flags in
    /// `ax`, where another call was recorded, or none.
    pub(super) elsewhere: [usize; 3],
    /// Called with an operation in `r10` and its `rip` in `r11`; comes back if the guest goes on
    /// with the next instruction.
    pub(super) handler: usize,
    /// Called to have the lower halves of the vector registers, or all of them, in the host's.
    pub(super) vectors: [usize; 2],
}

/// Writes them.
pub(super) fn write(code: &mut Assembler) -> Thunks {
    let save_vectors = save_vectors(code);
    let vectors = [load_low(code), load_all(code)];
    let leave = leave(code, save_vectors);
    let miss = code.here();
    code.mov_value(S1, exit::MISS);
    code.jump_to(leave);
    let enter = enter(code, miss);
    let elsewhere = std::array::from_fn(|context| elsewhere(code, context));
    let handler = handler(code, save_vectors);
    Thunks {
        enter,
        leave,
        miss,
        elsewhere,
        handler,
        vectors,
    }
}

/// All guest registers and flags to the core; destroys `rax`.
fn save(code: &mut Assembler, save_vectors: usize) {
    for register in PINNED {
        code.store(register, guest(register));
    }
    code.store(GUEST_RSP, guest(RSP));
    code.flags_to_ax();
    code.byte(0x66);
    code.gs(false, &[0x89], RAX, STATUS);
    code.gs(false, STMXCSR.0, STMXCSR.1, LIVE_MXCSR);
    code.compare_field(VECTORS, 0);
    let none = code.jump_if(condition::EQUAL);
    code.call(save_vectors);
    code.land(none);
}

/// The reverse, but for the vectors and `mxcsr`.
fn load(code: &mut Assembler) {
    code.gs(false, &[0x0f, 0xb7], RAX, STATUS);
    code.flags_from_ax();
    for register in PINNED {
        code.load(register, guest(register));
    }
    code.load(GUEST_RSP, guest(RSP));
}

/// Loads `mxcsr` after a handler, unless it is what it was before: that takes long. Handlers leave
/// its controls alone, and flags they add are in the guest's already.
fn load_mxcsr(code: &mut Assembler) {
    code.gs(false, &[0x8b], RAX, RUN_MXCSR);
    code.gs(false, &[0x3b], RAX, LIVE_MXCSR);
    let same = code.jump_if(condition::EQUAL);
    code.gs(false, LDMXCSR.0, LDMXCSR.1, RUN_MXCSR);
    code.land(same);
}

/// The first call that is recorded is none: where a guest should return to its address all the
/// same, which is in no address space, that is a `miss`.
fn enter(code: &mut Assembler, miss: usize) -> usize {
    const NOWHERE: u64 = 1 << 63;
    let entry = code.here();
    code.raw(&PUSH_SAVED);
    code.raw(&SUB_RSP_8);
    for word in [NOWHERE, miss as u64] {
        code.mov_value(S1, word);
        code.push(S1);
    }
    // wrgsbase rdi
    code.raw(&[0xf3, 0x48, 0x0f, 0xae, 0xdf]);
    code.store(RSP, EMPTY);
    code.lea(S1, RSP, -FRAMES);
    code.store(S1, FULL);
    code.mov(S0, 6);
    code.gs(false, LDMXCSR.0, LDMXCSR.1, RUN_MXCSR);
    load(code);
    // jmp r10
    code.raw(&[0x41, 0xff, 0xe2]);
    entry
}

fn leave(code: &mut Assembler, save_vectors: usize) -> usize {
    let entry = code.here();
    code.store(S0, GUEST_RIP);
    code.store(S1, EXIT);
    save(code, save_vectors);
    back(code);
    entry
}

/// Back to the caller of `enter`, whatever calls are recorded.
fn back(code: &mut Assembler) {
    code.load(RSP, EMPTY);
    code.lea(RSP, RSP, FRAME + 8);
    code.raw(&POP_SAVED);
    code.byte(RET);
}

fn handler(code: &mut Assembler, save_vectors: usize) -> usize {
    let entry = code.here();
    code.store(S1, GUEST_RIP);
    save(code, save_vectors);
    code.load(7, CORE);
    code.mov(6, S0);
    code.raw(&SUB_RSP_8);
    code.mov_value(RAX, call_handler as *const () as u64);
    // call rax
    code.raw(&[0xff, 0xd0]);
    code.raw(&ADD_RSP_8);
    // test eax, eax
    code.raw(&[0x85, 0xc0]);
    let other = code.jump_if(condition::NOT_EQUAL);
    load_mxcsr(code);
    load(code);
    code.byte(RET);
    code.land(other);
    // cmp eax, 2
    code.raw(&[0x83, 0xf8, 2]);
    let leave = code.jump_if(condition::NOT_EQUAL);
    // What was recorded may be of another mode; and drops the address of the caller.
    code.load(RSP, EMPTY);
    load_mxcsr(code);
    load(code);
    code.load(S0, GUEST_RIP);
    // jmp gs:[jump]
    code.gs(false, &[0xff], 4, JUMP);
    code.land(leave);
    back(code);
    entry
}

fn elsewhere(code: &mut Assembler, context: usize) -> usize {
    let entry = code.here();
    code.load(RSP, EMPTY);
    restore_flags(code);
    go_to_target(code, context, false);
    entry
}

/// Writes a VEX instruction with a field as its memory operand: `map`, and `fields` without vvvv,
/// as in the third byte.
fn vex(code: &mut Assembler, map: u8, fields: u8, opcode: u8, register: (u8, u8), offset: usize) {
    let (reg, vvvv) = register;
    let inverted_r = if reg < 8 { 0x80 } else { 0 };
    code.raw(&[
        0x65,
        0xc4,
        inverted_r | 0x60 | map,
        fields | (!vvvv & 15) << 3,
        opcode,
        (reg & 7) << 3 | 4,
        0x25,
    ]);
    code.raw(&(offset as u32).to_le_bytes());
}

/// Leaves nothing in the host's registers; destroys flags.
fn save_vectors(code: &mut Assembler) -> usize {
    let entry = code.here();
    for register in 0..16 {
        // movups
        code.gs(false, &[0x0f, 0x11], register, xmm(register));
    }
    code.compare_field(VECTORS, 2);
    let low_only = code.jump_if(condition::BELOW);
    if std::is_x86_feature_detected!("avx") {
        for register in 0..16 {
            // vextractf128
            vex(code, 3, 0x05, 0x19, (register, 0), ymm_high(register));
            code.byte(1);
        }
        // vzeroupper
        code.raw(&[0xc5, 0xf8, 0x77]);
    }
    code.land(low_only);
    code.set_field(VECTORS, 0);
    code.byte(RET);
    entry
}

/// Destroys nothing.
fn load_low(code: &mut Assembler) -> usize {
    let entry = code.here();
    for register in 0..16 {
        code.gs(false, &[0x0f, 0x10], register, xmm(register));
    }
    code.set_field(VECTORS, 1);
    code.byte(RET);
    entry
}

/// Destroys nothing but `r11`.
fn load_all(code: &mut Assembler) -> usize {
    let entry = code.here();
    // Lower halves are there already, where it is not zero.
    code.exchange(1, S1);
    code.gs(false, &[0x0f, 0xb6], 1, VECTORS);
    // jrcxz to the loads, else past them.
    code.raw(&[0xe3, 5]);
    let there = code.jump();
    for register in 0..16 {
        code.gs(false, &[0x0f, 0x10], register, xmm(register));
    }
    code.land(there);
    code.exchange(1, S1);
    if std::is_x86_feature_detected!("avx") {
        for register in 0..16 {
            // vinsertf128
            vex(
                code,
                3,
                0x05,
                0x18,
                (register, register),
                ymm_high(register),
            );
            code.byte(1);
        }
    }
    code.set_field(VECTORS, 2);
    code.byte(RET);
    entry
}
