//! Computed jumps by way of a return.

use iced_x86::code_asm::*;

use super::{both, both_on};
use crate::soft::tests::{CODE, assemble};

/// `jmp target`, as Linux has it where it fears the processor's guess.
fn thunk(a: &mut CodeAssembler, target: AsmRegister64) {
    let mut trap = a.create_label();
    let mut set = a.create_label();
    a.call(set).unwrap();
    a.set_label(&mut trap).unwrap();
    a.pause().unwrap();
    a.lfence().unwrap();
    a.jmp(trap).unwrap();
    a.set_label(&mut set).unwrap();
    a.mov(ptr(rsp), target).unwrap();
    a.ret().unwrap();
}

#[test]
fn retpolines_jump_to_their_register_and_keep_all_else() {
    for target in [rax, rbp, r9, r11, r15] {
        let core = both(|a| {
            let [mut again, mut jump, mut odd, mut even, mut went] =
                std::array::from_fn(|_| a.create_label());
            a.mov(ecx, 60).unwrap();
            a.set_label(&mut again).unwrap();
            a.lea(rbx, ptr(odd)).unwrap();
            a.lea(target, ptr(even)).unwrap();
            a.test(ecx, 1).unwrap();
            a.cmovnz(target, rbx).unwrap();
            a.cmp(ecx, 30).unwrap();
            a.call(jump).unwrap();
            a.dec(ecx).unwrap();
            a.jnz(again).unwrap();
            a.hlt().unwrap();
            a.set_label(&mut jump).unwrap();
            thunk(a, target);
            a.set_label(&mut odd).unwrap();
            a.adc(rdx, 0x100).unwrap();
            a.jmp(went).unwrap();
            a.set_label(&mut even).unwrap();
            a.adc(rdx, 1).unwrap();
            a.set_label(&mut went).unwrap();
            // What the call and the store left below the stack.
            a.add(rsi, ptr(rsp - 8)).unwrap();
            a.ret().unwrap();
        });
        assert_eq!(core.regs[2], 30 * 0x101 + 29);
    }
}

#[test]
fn what_looks_nearly_like_a_retpoline_is_done_as_it_is_written() {
    // `rsp` itself, an address beside the return's, and a return that pops more.
    let written: [fn(&mut CodeAssembler); 3] = [
        |a| a.mov(ptr(rsp), rsp).unwrap(),
        |a| a.mov(ptr(rsp + 8), rax).unwrap(),
        |a| a.mov(ptr(rsp), eax).unwrap(),
    ];
    for write in written {
        both_on(|core| {
            core.regs[4] = CODE + 0x800;
            assemble(core, 64, CODE + 0x7f0, |a| {
                for _ in 0..0x20 {
                    a.hlt().unwrap();
                }
            });
            assemble(core, 64, CODE, |a| {
                let mut set = a.create_label();
                let mut behind = a.create_label();
                a.lea(rax, ptr(behind)).unwrap();
                a.call(set).unwrap();
                a.set_label(&mut behind).unwrap();
                a.hlt().unwrap();
                a.set_label(&mut set).unwrap();
                write(a);
                a.ret().unwrap();
            });
        });
    }
}
