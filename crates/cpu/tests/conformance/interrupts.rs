//! Interrupts in the midst of hot code: what they interrupt does not notice.
//!
//! The code carries state from instruction to instruction in flags, vector registers and on the stack, over branches of
//! each kind. It is computed once with interrupts held back, and then again and again while a timer fires.

use cpu::Exit;
use iced_x86::code_asm::*;

use crate::{
    guests::{SPURIOUS, TIMER, TIMER_COUNT, TIMER_DIVIDE, VECTOR, end_interrupt, store},
    machine::{CODE, HANDLER, Machine, RESULT, done},
};

/// Interrupts that must have come.
const ENOUGH: u32 = 200;
/// Times that the loop is gone through in one computation.
const TURNS: u32 = 300;
/// How many computations had another result than the first.
const WRONG: u64 = RESULT + 8;
/// Where the computation is, and what it calls.
const COMPUTE: u64 = CODE + 0x1000 - 0x20;
const CALLED: u64 = CODE + 0x3000;

type Assembled = Result<(), IcedError>;

/// Counts, and uses all that it can but must restore.
fn handler(a: &mut CodeAssembler) -> Assembled {
    a.push(rax)?;
    a.push(rdi)?;
    a.sub(rsp, 16)?;
    a.movdqu(xmmword_ptr(rsp), xmm1)?;
    a.pcmpeqd(xmm1, xmm1)?;
    a.mov(edi, RESULT as u32)?;
    a.lock().add(qword_ptr(rdi), 1)?;
    end_interrupt(a);
    a.xor(eax, eax)?;
    a.movdqu(xmm1, xmmword_ptr(rsp))?;
    a.add(rsp, 16)?;
    a.pop(rdi)?;
    a.pop(rax)?;
    a.iretq()
}

/// Computes `rax`; the carry flag lives through the whole loop. It begins at the end of a page and goes on in the next.
fn compute(a: &mut CodeAssembler) -> Assembled {
    let (mut again, mut end) = (a.create_label(), a.create_label());
    a.push(rbp)?;
    a.mov(rax, 0x9e37_79b9_7f4a_7c15u64)?;
    a.mov(rdx, 0xd6e8_feb8_6659_fd93u64)?;
    a.movq(xmm0, rdx)?;
    a.pxor(xmm1, xmm1)?;
    a.mov(ebp, CALLED as u32)?;
    a.mov(ecx, TURNS)?;
    a.stc()?;
    a.set_label(&mut again)?;
    a.adc(rax, rdx)?;
    a.rcl(rdx, 1)?;
    a.paddq(xmm1, xmm0)?;
    a.push(rax)?;
    a.call(CALLED)?;
    a.call(rbp)?;
    a.pop(r9)?;
    a.paddq(xmm0, xmm1)?;
    a.lea(ecx, dword_ptr(rcx - 1))?;
    a.jrcxz(end)?;
    a.jmp(again)?;
    a.set_label(&mut end)?;
    a.adc(rax, r9)?;
    a.movq(rdx, xmm1)?;
    a.lea(rax, qword_ptr(rax + rdx))?;
    a.pop(rbp)?;
    a.ret()
}

fn called(a: &mut CodeAssembler) -> Assembled {
    let mut skip = a.create_label();
    a.rcr(rax, 3)?;
    a.jb(skip)?;
    a.adc(rdx, r9)?;
    a.set_label(&mut skip)?;
    a.ret()
}

fn start(a: &mut CodeAssembler) -> Assembled {
    let (mut again, mut right) = (a.create_label(), a.create_label());
    store(a, SPURIOUS, 0x1ff);
    store(a, TIMER_DIVIDE, 0xb);
    store(a, TIMER, 0x2_0000 | u32::from(VECTOR));
    a.mov(r9d, 5)?;
    a.call(COMPUTE)?;
    a.mov(rbx, rax)?;
    store(a, TIMER_COUNT, 50_000);
    a.mov(edi, RESULT as u32)?;
    a.sti()?;
    a.set_label(&mut again)?;
    a.mov(r9d, 5)?;
    a.call(COMPUTE)?;
    a.cmp(rax, rbx)?;
    a.je(right)?;
    a.inc(qword_ptr(rdi + (WRONG - RESULT)))?;
    a.set_label(&mut right)?;
    a.cmp(dword_ptr(rdi), ENOUGH as i32)?;
    a.jb(again)?;
    a.cli()
}

pub fn in_hot_code(machine: &Machine) {
    machine.gate(VECTOR, HANDLER);
    machine.code(HANDLER, |a| handler(a).unwrap());
    machine.code(COMPUTE, |a| compute(a).unwrap());
    machine.code(CALLED, |a| called(a).unwrap());
    machine.code(CODE, |a| {
        start(a).unwrap();
        done(a);
    });
    assert_eq!(machine.run(), Exit::Kicked);
    assert!(machine.read(RESULT) >= u64::from(ENOUGH));
    assert_eq!(machine.read(WRONG), 0, "computations went wrong");
}
