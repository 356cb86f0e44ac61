//! Returns that do not lead behind the call before them, or to what was there when it was made.

use iced_x86::code_asm::*;

use super::{AT_ONCE, both, both_on, end};
use crate::soft::{
    Core, Fault,
    system::control::{CR0_PG, CR4_PAE, CR4_SMAP, EFER_LMA, EFER_LME},
    tests::{CODE, assemble},
};

#[test]
fn flags_and_registers_live_over_calls_and_returns() {
    let core = both(|a| {
        let mut function = a.create_label();
        let mut again = a.create_label();
        a.mov(ecx, 40).unwrap();
        a.set_label(&mut again).unwrap();
        a.add(ebx, 0x1357_9bdf).unwrap();
        a.call(function).unwrap();
        a.adc(rdx, rax).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut function).unwrap();
        a.push(rbx).unwrap();
        a.push(r10).unwrap();
        a.mov(eax, 0).unwrap();
        a.pop(r11).unwrap();
        a.pop(rax).unwrap();
        a.ret().unwrap();
    });
    assert_ne!(core.regs[2], 0);
}

#[test]
fn more_calls_than_are_recorded_all_return() {
    let core = both(|a| {
        let mut down = a.create_label();
        let mut bottom = a.create_label();
        a.mov(edi, 700).unwrap();
        a.call(down).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut down).unwrap();
        a.dec(edi).unwrap();
        a.jz(bottom).unwrap();
        a.call(down).unwrap();
        a.set_label(&mut bottom).unwrap();
        a.inc(eax).unwrap();
        a.ret().unwrap();
    });
    assert_eq!(core.regs[0], 700);
}

#[test]
fn a_return_leads_where_the_stack_says() {
    // The function returns behind the instruction it was called before, or past its caller, or on
    // another stack.
    let core = both(|a| {
        let [
            mut again,
            mut outer,
            mut skip,
            mut past,
            mut other,
            mut landed,
        ] = std::array::from_fn(|_| a.create_label());
        a.mov(ecx, 30).unwrap();
        a.set_label(&mut again).unwrap();
        a.call(skip).unwrap();
        a.add(eax, 0x1000_0000).unwrap();
        a.call(outer).unwrap();
        a.call(other).unwrap();
        a.add(eax, 0x100).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut skip).unwrap();
        // `add eax, 0x1000_0000` has 5 bytes.
        a.add(qword_ptr(rsp), 5).unwrap();
        a.ret().unwrap();
        a.set_label(&mut outer).unwrap();
        a.call(past).unwrap();
        a.add(eax, 0x2000_0000).unwrap();
        a.ret().unwrap();
        a.set_label(&mut past).unwrap();
        a.inc(eax).unwrap();
        a.add(rsp, 8).unwrap();
        a.ret().unwrap();
        a.set_label(&mut other).unwrap();
        a.mov(rbx, rsp).unwrap();
        a.mov(rsp, 0x8000_u64).unwrap();
        a.lea(rdx, ptr(landed)).unwrap();
        a.push(rdx).unwrap();
        a.ret_1(8).unwrap();
        a.set_label(&mut landed).unwrap();
        a.mov(rsp, rbx).unwrap();
        a.ret().unwrap();
    });
    assert_eq!(core.regs[0], 30 * 0x101);
}

#[test]
fn what_was_written_behind_a_call_is_run() {
    let core = both(|a| {
        let [mut again, mut function, mut behind] = std::array::from_fn(|_| a.create_label());
        a.mov(ecx, 50).unwrap();
        a.lea(rbx, ptr(behind)).unwrap();
        a.set_label(&mut again).unwrap();
        a.call(function).unwrap();
        a.set_label(&mut behind).unwrap();
        a.add(eax, 100).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
        a.nops_with_size(0x1000).unwrap();
        a.set_label(&mut function).unwrap();
        a.mov(byte_ptr(rbx + 1), cl).unwrap();
        a.ret().unwrap();
    });
    assert_eq!(core.regs[0], (1..=50).sum::<u64>());
}

#[test]
fn a_return_into_another_mode_is_computed_in_that() {
    // Sums are rounded to nearest or down, by turns, in code that is the same.
    both(|a| {
        let [mut again, mut function] = std::array::from_fn(|_| a.create_label());
        a.mov(ecx, 40).unwrap();
        a.mov(dword_ptr(rsp - 64), 0x1f80).unwrap();
        a.mov(dword_ptr(rsp - 60), 0x3f80).unwrap();
        a.mov(rax, 0x3cb0_0000_0000_0000_u64).unwrap();
        a.movq(xmm1, rax).unwrap();
        a.cvtsi2sd(xmm2, ecx).unwrap();
        a.mov(rsi, rsp).unwrap();
        a.set_label(&mut again).unwrap();
        a.call(function).unwrap();
        a.addsd(xmm2, xmm1).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut function).unwrap();
        a.mov(edx, ecx).unwrap();
        a.and(edx, 1).unwrap();
        a.ldmxcsr(dword_ptr(rsi + rdx * 4 - 64)).unwrap();
        a.ret().unwrap();
    });
}

#[test]
fn a_return_to_no_address_is_a_fault() {
    // Also to the one that is recorded where no call is.
    for address in [1_u64 << 63, 0x8000_0000_0000] {
        let (end, _) = end(AT_ONCE, |core| {
            assemble(core, 64, CODE, |a| {
                a.mov(rax, address).unwrap();
                a.push(rax).unwrap();
                a.ret().unwrap();
            });
        });
        assert_eq!(end, Err(Fault::GP0));
    }
}

/// Where two pages of code are, and the linear address that is mapped to either.
const PAGES: [u64; 2] = [0x30_0000, 0x30_1000];
const LINEAR: u64 = 0x20_0000;
const TABLES: u64 = 0x10_0000;
const USER: u64 = 4;

/// The lowest 2 MiB mapped as they are, [`LINEAR`] to the first page. Returns where the entry of
/// that is.
fn map(core: &mut Core) -> u64 {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 0x80;
    let table = |level: u64| TABLES + 0x1000 * level;
    for (address, entry) in [
        (table(0), table(1)),
        (table(1), table(2)),
        (table(2), LARGE),
        (table(2) + 8, table(3)),
        (table(3), PAGES[0]),
    ] {
        core.physical_write(address, &(entry | PRESENT_WRITABLE).to_le_bytes());
    }
    core.control.cr0 |= CR0_PG;
    core.control.cr4 |= CR4_PAE;
    core.control.efer = EFER_LME | EFER_LMA;
    core.control.cr3 = TABLES;
    core.tlb.flush(true);
    table(3)
}

#[test]
fn a_return_out_of_open_user_pages_finds_them_shut() {
    // The function shuts them when its caller has read them often enough; then that must fault.
    let core = both_on(|core| {
        let entry = map(core);
        core.physical_write(entry, &(PAGES[0] | USER | 3).to_le_bytes());
        for level in 0..3 {
            let at = TABLES + 0x1000 * level + if level == 2 { 8 } else { 0 };
            let next = TABLES + 0x1000 * (level + 1);
            core.physical_write(at, &(next | USER | 3).to_le_bytes());
        }
        core.control.cr4 |= CR4_SMAP;
        assemble(core, 64, CODE, |a| {
            let [mut warm, mut again, mut function, mut open] =
                std::array::from_fn(|_| a.create_label());
            // Until the way from shutting them to the return leads through translations only.
            a.mov(edx, 20).unwrap();
            a.set_label(&mut warm).unwrap();
            a.stac().unwrap();
            a.mov(ecx, 10).unwrap();
            a.call(function).unwrap();
            a.dec(edx).unwrap();
            a.jnz(warm).unwrap();
            a.mov(ecx, 40).unwrap();
            a.mov(rbx, LINEAR).unwrap();
            a.stac().unwrap();
            a.set_label(&mut again).unwrap();
            a.call(function).unwrap();
            // Reads a flag: then those of the fault are the guest's.
            a.adc(rax, ptr(rbx)).unwrap();
            a.dec(ecx).unwrap();
            a.jnz(again).unwrap();
            a.hlt().unwrap();
            a.set_label(&mut function).unwrap();
            a.cmp(ecx, 10).unwrap();
            a.jne(open).unwrap();
            a.clac().unwrap();
            a.set_label(&mut open).unwrap();
            a.ret().unwrap();
        });
    });
    assert_eq!(core.regs[1], 10);
}

#[test]
fn a_return_into_a_page_mapped_anew_runs_what_is_there_now() {
    let core = both_on(|core| {
        let entry = map(core);
        let function = CODE + 0x100;
        for (page, value) in PAGES.into_iter().zip([1, 100]) {
            assemble(core, 64, page, |a| {
                // Assembled where it lies, called where it is mapped.
                a.mov(rbx, function).unwrap();
                a.call(rbx).unwrap();
                a.add(eax, value).unwrap();
                a.ret().unwrap();
            });
        }
        assemble(core, 64, CODE, |a| {
            let mut again = a.create_label();
            a.mov(ecx, 40).unwrap();
            a.mov(rsi, PAGES[1] | 3).unwrap();
            a.mov(rdi, PAGES[0] | 3).unwrap();
            a.mov(r14, LINEAR).unwrap();
            a.mov(r15, entry).unwrap();
            a.set_label(&mut again).unwrap();
            a.call(r14).unwrap();
            a.dec(ecx).unwrap();
            a.jnz(again).unwrap();
            a.hlt().unwrap();
        });
        assemble(core, 64, function, |a| {
            let mut stays = a.create_label();
            a.test(ecx, 2).unwrap();
            a.jz(stays).unwrap();
            a.mov(ptr(r15), rsi).unwrap();
            a.invlpg(ptr(r14)).unwrap();
            a.xchg(rsi, rdi).unwrap();
            a.set_label(&mut stays).unwrap();
            a.ret().unwrap();
        });
    });
    assert!(core.regs[0] > 40 && core.regs[0] < 4000);
}
