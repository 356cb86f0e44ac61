//! Whole programs, translated and interpreted: what single instructions do not show.

mod retpoline;
mod returns;

use std::sync::atomic::AtomicU32;

use iced_x86::code_asm::*;

use super::super::{
    Core, Fault, Flow, Interpreter, Tier,
    tests::{CODE, assemble, core},
};

const AT_ONCE: Tier = Tier::Translate {
    threshold: 1,
    chain: true,
};

/// Runs a program until it halts, translated and interpreted; both must end alike. Returns the
/// translated core.
fn both(write: impl Fn(&mut CodeAssembler)) -> Box<Core> {
    both_on(|core| assemble(core, 64, CODE, &write))
}

/// As [`both`], of whatever `set_up` makes of a core.
fn both_on(set_up: impl Fn(&mut Core)) -> Box<Core> {
    let (translated, interpreted) = (end(AT_ONCE, &set_up), end(Tier::Interpret, &set_up));
    assert_eq!(translated.0, interpreted.0);
    assert_eq!(translated.1.regs, interpreted.1.regs);
    assert_eq!(translated.1.flags, interpreted.1.flags);
    assert_eq!(translated.1.vector.state, interpreted.1.vector.state);
    translated.1
}

/// Runs whatever `set_up` makes of a core until it halts: how it ended, and the core.
fn end(tier: Tier, set_up: impl Fn(&mut Core)) -> (Result<(), Fault>, Box<Core>) {
    let mut interpreter = Interpreter::new(core());
    set_up(&mut interpreter.core);
    interpreter.set_tier(tier).unwrap();
    let end = until_halt(&mut interpreter);
    if tier == AT_ONCE && interpreter.counters().translations == 0 {
        eprintln!("SKIP: the processor lacks what translations need");
    }
    (end, interpreter.core)
}

fn until_halt(interpreter: &mut Interpreter) -> Result<(), Fault> {
    let quiet = AtomicU32::new(0);
    for _ in 0..1_000_000 {
        match interpreter.run_block(&quiet)? {
            Flow::Sync if interpreter.core.events.halted => return Ok(()),
            _ => {}
        }
    }
    panic!("the program does not halt");
}

#[test]
fn calls_and_returns_find_their_way() {
    let core = both(|a| {
        let mut fib = a.create_label();
        let mut small = a.create_label();
        a.mov(edi, 15).unwrap();
        a.call(fib).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut fib).unwrap();
        a.cmp(edi, 2).unwrap();
        a.jb(small).unwrap();
        a.push(rbx).unwrap();
        a.push(rdi).unwrap();
        a.dec(edi).unwrap();
        a.call(fib).unwrap();
        a.mov(rbx, rax).unwrap();
        a.pop(rdi).unwrap();
        a.sub(edi, 2).unwrap();
        a.lea(r11, ptr(fib)).unwrap();
        a.call(r11).unwrap();
        a.add(rax, rbx).unwrap();
        a.pop(rbx).unwrap();
        a.ret().unwrap();
        a.set_label(&mut small).unwrap();
        a.mov(eax, edi).unwrap();
        a.ret().unwrap();
    });
    assert_eq!(core.regs[0], 610);
}

#[test]
fn what_was_given_back_is_translated_again() {
    let mut core = core();
    assemble(&mut core, 64, CODE, |a| {
        let mut function = a.create_label();
        let mut again = a.create_label();
        a.mov(ecx, 100).unwrap();
        a.set_label(&mut again).unwrap();
        a.call(function).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut function).unwrap();
        a.add(rax, rcx).unwrap();
        a.ret().unwrap();
    });
    let mut interpreter = Interpreter::new(core);
    interpreter.set_tier(Tier::default()).unwrap();
    let mut translations = Vec::new();
    for round in 1..=3 {
        interpreter.core.set_rip(CODE);
        interpreter.core.events.halted = false;
        until_halt(&mut interpreter).unwrap();
        assert_eq!(interpreter.core.regs[0], round * 5050);
        translations.push(interpreter.counters().translations);
        interpreter.release();
    }
    if translations[0] != 0 {
        assert!(translations.is_sorted_by(|a, b| a < b), "{translations:?}");
    }
}

#[test]
fn flags_live_over_memory_accesses_stacks_and_jumps() {
    both(|a| {
        let mut again = a.create_label();
        let mut there = a.create_label();
        a.mov(ecx, 40).unwrap();
        a.mov(r9, rsp).unwrap();
        a.set_label(&mut again).unwrap();
        a.add(al, 0x35).unwrap();
        // Each of these keeps the flags, and needs memory.
        a.mov(ptr(rsp - 64), rax).unwrap();
        a.push(rax).unwrap();
        a.mov(r10, ptr(r9 - 64)).unwrap();
        a.pop(r11).unwrap();
        a.jmp(there).unwrap();
        a.set_label(&mut there).unwrap();
        a.adc(rbx, r10).unwrap();
        a.pushfq().unwrap();
        a.pop(rdx).unwrap();
        a.xor(rsi, rdx).unwrap();
        a.rol(rsi, 7).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
}

#[test]
fn a_loop_that_patches_itself_runs_what_it_wrote() {
    let core = both(|a| {
        let mut again = a.create_label();
        let mut patched = a.create_label();
        a.mov(ecx, 50).unwrap();
        a.lea(rbx, ptr(patched)).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(byte_ptr(rbx + 1), cl).unwrap();
        a.set_label(&mut patched).unwrap();
        a.add(eax, 100).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(core.regs[0], (1..=50).sum::<u64>());
}

#[test]
fn links_into_a_page_end_with_its_code() {
    // A function on the next page is called from a loop, then rewritten, then called again.
    let core = both(|a| {
        let mut function = a.create_label();
        let mut again = a.create_label();
        a.mov(ecx, 6).unwrap();
        a.lea(rbx, ptr(function)).unwrap();
        a.set_label(&mut again).unwrap();
        for _ in 0..4 {
            a.call(function).unwrap();
        }
        a.inc(byte_ptr(rbx + 1)).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
        for _ in 0..0x1000 {
            a.nop().unwrap();
        }
        a.set_label(&mut function).unwrap();
        a.add(eax, 1).unwrap();
        a.ret().unwrap();
    });
    assert_eq!(core.regs[0], 4 * (1 + 2 + 3 + 4 + 5 + 6));
}

#[test]
fn vectors_are_the_same_after_slow_paths_and_handlers() {
    both(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 20).unwrap();
        a.mov(rax, 0x4009_21fb_5444_2d18_u64).unwrap();
        a.movq(xmm1, rax).unwrap();
        a.cvtsi2sd(xmm2, ecx).unwrap();
        a.set_label(&mut again).unwrap();
        a.mulsd(xmm2, xmm1).unwrap();
        a.movups(ptr(rsp - 0x1008), xmm2).unwrap();
        a.paddq(xmm3, xmm2).unwrap();
        a.pushfq().unwrap();
        a.popfq().unwrap();
        a.divsd(xmm2, xmm1).unwrap();
        a.movaps(xmm4, ptr(rsp - 64)).unwrap();
        a.vaddpd(ymm5, ymm2, ymm3).unwrap();
        a.vmovups(ptr(rsp - 0x2010), ymm5).unwrap();
        a.pxor(xmm3, xmm4).unwrap();
        a.sub(rsp, 0x40).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
}

#[test]
fn an_attention_word_ends_a_loop_without_end() {
    let mut core = core();
    assemble(&mut core, 64, CODE, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.add(rax, 1).unwrap();
        a.jmp(again).unwrap();
    });
    let mut interpreter = Interpreter::new(core);
    interpreter.set_tier(AT_ONCE).unwrap();
    let word = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            word.store(1, std::sync::atomic::Ordering::SeqCst);
        });
        assert_eq!(
            interpreter.run(&word),
            crate::soft::interpreter::Outcome::Attention
        );
    });
    assert!(interpreter.core.regs[0] > 0);
}
