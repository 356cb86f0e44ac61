//! Code that changes while it is hot: by its own stores, by another vCPU, by a device, and by page tables that map
//! something else.
//!
//! A processor sees its own stores to code at once, and those of others when it has serialized (Intel SDM 3A, 9.1.3).
//! Everything here runs often enough for any kind of translation to be made of it, chained and cached.

use std::time::Duration;

use cpu::Exit;
use iced_x86::code_asm::*;

use crate::machine::{CODE, DEVICE, Machine, RESULT, done, write};

/// A routine in a page of its own, and another.
const ROUTINE: u64 = CODE + 0x2000;
const OTHER: u64 = CODE + 0x3000;
/// `mov eax, 0; ret`; the immediate is in the bytes from 1 on.
const RETURNS: [u8; 6] = [0xb8, 0, 0, 0, 0, 0xc3];
/// How often hot loops go round.
const ROUNDS: u32 = 400;
/// Where all of the first GiB is mapped once more.
const ALIAS: u64 = 0x8000_0000;

type Assembled = Result<(), IcedError>;

/// Assembles a guest whose result, in `rbx`, is left at [`RESULT`], and runs it.
fn result(machine: &Machine, assemble: impl FnOnce(&mut CodeAssembler) -> Assembled) -> u64 {
    machine.code(CODE, |a| {
        assemble(a).unwrap();
        a.mov(edi, RESULT as u32).unwrap();
        a.mov(qword_ptr(rdi), rbx).unwrap();
        done(a);
    });
    assert_eq!(machine.run(), Exit::Kicked);
    machine.read(RESULT)
}

/// `body`, with `ecx` counting down from [`ROUNDS`].
fn repeat(a: &mut CodeAssembler, body: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Assembled {
    let mut again = a.create_label();
    a.xor(ebx, ebx)?;
    a.mov(ecx, ROUNDS)?;
    a.set_label(&mut again)?;
    body(a)?;
    a.dec(ecx)?;
    a.jne(again)
}

/// The sum of 1 to [`ROUNDS`].
fn sum() -> u64 {
    u64::from(ROUNDS) * (u64::from(ROUNDS) + 1) / 2
}

/// A store changes the very next instruction.
pub fn next_instruction(machine: Machine) {
    let found = result(&machine, |a| {
        let mut next = a.create_label();
        a.lea(rsi, qword_ptr(next))?;
        repeat(a, |a| {
            a.mov(dword_ptr(rsi + 1), ecx)?;
            a.set_label(&mut next)?;
            a.mov(eax, 0x1234_5678)?;
            a.add(rbx, rax)
        })
    });
    assert_eq!(found, sum());
}

/// The same by a string instruction that stores.
pub fn next_instruction_by_string(machine: Machine) {
    let found = result(&machine, |a| {
        let mut next = a.create_label();
        repeat(a, |a| {
            a.lea(rdi, qword_ptr(next))?;
            a.inc(rdi)?;
            a.mov(eax, ecx)?;
            a.push(rcx)?;
            a.mov(ecx, 1)?;
            a.rep().stosd()?;
            a.pop(rcx)?;
            a.set_label(&mut next)?;
            a.mov(eax, 0x1234_5678)?;
            a.add(rbx, rax)
        })
    });
    assert_eq!(found, sum());
}

/// A store from inside a page to a loop in another that calls back and forth.
pub fn called_routine(machine: Machine) {
    machine.write(ROUTINE, &RETURNS);
    let found = result(&machine, |a| {
        a.mov(esi, ROUTINE as u32)?;
        repeat(a, |a| {
            a.mov(dword_ptr(rsi + 1), ecx)?;
            a.call(ROUTINE)?;
            a.add(rbx, rax)
        })
    });
    assert_eq!(found, sum());
}

/// The same, written where the page is mapped a second time, and called by way of a register.
pub fn alias(machine: Machine) {
    machine.write(ROUTINE, &RETURNS);
    machine.map_large(ALIAS, 0);
    let found = result(&machine, |a| {
        a.mov(rsi, ALIAS + ROUTINE)?;
        a.mov(edx, ROUTINE as u32)?;
        repeat(a, |a| {
            a.mov(dword_ptr(rsi + 1), ecx)?;
            a.call(rdx)?;
            a.add(rbx, rax)
        })
    });
    assert_eq!(found, sum());
}

/// A branch that is a no-op by turns, as the kernel's static keys: within one hot page.
pub fn static_key(machine: Machine) {
    let found = result(&machine, |a| {
        let mut site = a.create_label();
        let mut taken = a.create_label();
        let mut after = a.create_label();
        a.lea(rsi, qword_ptr(site))?;
        repeat(a, |a| {
            // Every eighth time: between `jmp` over eight bytes and a no-op of five.
            let mut kept = a.create_label();
            let mut jump = a.create_label();
            a.test(ecx, 7)?;
            a.jne(kept)?;
            a.test(ecx, 8)?;
            a.je(jump)?;
            a.mov(dword_ptr(rsi), 0x0044_1f0f)?;
            a.mov(byte_ptr(rsi + 4), 0)?;
            a.jmp(kept)?;
            a.set_label(&mut jump)?;
            a.mov(byte_ptr(rsi), 0xe9)?;
            a.mov(dword_ptr(rsi + 1), 5)?;
            a.set_label(&mut kept)?;
            a.nop()?;
            a.set_label(&mut site)?;
            a.db(&[0x0f, 0x1f, 0x44, 0, 0])?;
            // Five bytes that a jump leaves out.
            a.add(bl, 1)?;
            a.jmp(after)?;
            a.set_label(&mut taken)?;
            a.add(rbx, 0x1_0000)?;
            a.set_label(&mut after)?;
            a.nop()
        })
    });
    let mut expected = 0u64;
    let mut jumps = false;
    for round in (1..=u64::from(ROUNDS)).rev() {
        if round % 8 == 0 {
            jumps = round & 8 == 0;
        }
        expected = if jumps {
            expected + 0x1_0000
        } else {
            expected & !0xff | (expected + 1) & 0xff
        };
    }
    assert_eq!(found, expected);
}

/// An instruction that lies in two pages, of which the second changes.
pub fn crossing(machine: Machine) {
    // The immediate's last three bytes are in the next page.
    machine.write(OTHER - 2, &RETURNS);
    let found = result(&machine, |a| {
        a.mov(esi, OTHER as u32)?;
        repeat(a, |a| {
            a.mov(byte_ptr(rsi), cl)?;
            a.call(OTHER - 2)?;
            a.shr(eax, 8)?;
            a.add(rbx, rax)
        })
    });
    let expected = (1..=u64::from(ROUNDS))
        .map(|round| round & 0xff)
        .sum::<u64>();
    assert_eq!(found, expected);
}

/// A routine is copied over another by turns, as loaders and just-in-time compilers do.
pub fn copied_over(machine: Machine) {
    let sources = OTHER + 0x800;
    for (number, value) in [(0, 1u8), (1, 10)] {
        let mut routine = RETURNS;
        routine[1] = value;
        machine.write(sources + 8 * number, &routine);
    }
    let found = result(&machine, |a| {
        repeat(a, |a| {
            a.push(rcx)?;
            a.mov(esi, ecx)?;
            a.and(esi, 1)?;
            a.lea(rsi, qword_ptr(rsi * 8 + sources))?;
            a.mov(edi, ROUTINE as u32)?;
            a.mov(ecx, 6)?;
            a.rep().movsb()?;
            a.pop(rcx)?;
            a.call(ROUTINE)?;
            a.call(ROUTINE)?;
            a.add(rbx, rax)
        })
    });
    assert_eq!(found, u64::from(ROUNDS) / 2 * 11);
}

/// What a linear page maps changes, and with it the code there; directly and indirectly called.
pub fn remapped(machine: Machine) {
    for (address, value) in [(ROUTINE, 1u8), (OTHER, 10)] {
        let mut routine = RETURNS;
        routine[1] = value;
        machine.write(address, &routine);
    }
    let entry = machine.map_small(ALIAS, ROUTINE);
    let found = result(&machine, |a| {
        a.mov(rsi, entry)?;
        a.mov(rdx, ALIAS)?;
        repeat(a, |a| {
            let (mut one, mut both) = (a.create_label(), a.create_label());
            a.mov(eax, ROUTINE as u32 | 3)?;
            a.test(ecx, 4)?;
            a.je(one)?;
            a.mov(eax, OTHER as u32 | 3)?;
            a.set_label(&mut one)?;
            a.mov(qword_ptr(rsi), rax)?;
            a.invlpg(byte_ptr(rdx))?;
            a.call(rdx)?;
            a.add(rbx, rax)?;
            a.test(ecx, 1)?;
            a.je(both)?;
            a.call(rdx)?;
            a.add(rbx, rax)?;
            a.set_label(&mut both)?;
            a.nop()
        })
    });
    let value = |round: u64| if round & 4 == 0 { 1 } else { 10 };
    let expected = (1..=u64::from(ROUNDS))
        .map(|round| value(round) * (1 + (round & 1)))
        .sum::<u64>();
    assert_eq!(found, expected);
}

/// Two address spaces have different code, and different data, at the same addresses: processes.
pub fn address_spaces(machine: Machine) {
    for (address, value) in [(ROUTINE, 1u8), (OTHER, 10)] {
        let mut routine = RETURNS;
        routine[1] = value;
        machine.write(address, &routine);
        machine.word(address + 0x800, 100 * u64::from(value));
    }
    machine.map_small(ALIAS, ROUTINE);
    let second = machine.second_space(ALIAS, OTHER);
    let found = result(&machine, |a| {
        a.mov(rsi, second)?;
        a.mov(rdi, cr3)?;
        a.mov(rdx, ALIAS)?;
        repeat(a, |a| {
            a.xchg(rsi, rdi)?;
            a.mov(cr3, rdi)?;
            a.call(rdx)?;
            a.add(rbx, rax)?;
            a.add(rbx, qword_ptr(rdx + 0x800))
        })
    });
    assert_eq!(found, u64::from(ROUNDS) / 2 * (1 + 100 + 10 + 1000));
}

/// One vCPU changes what the other executes, and says so; the other serializes and must have the new.
pub fn other_vcpu(machine: Machine) {
    const SAID: u64 = RESULT + 64;
    const SEEN: u64 = RESULT + 128;
    const WRONG: u64 = RESULT + 192;
    machine.write(ROUTINE, &RETURNS);
    machine.code(CODE, |a| {
        writer(a, SAID, SEEN).unwrap();
        done(a);
    });
    let reader = CODE + 0x1000;
    machine.code(reader, |a| executor(a, SAID, SEEN, WRONG).unwrap());
    machine.run_all(&[CODE, reader], Duration::from_secs(120), || ());
    assert_eq!(machine.read(SEEN), u64::from(ROUNDS));
    assert_eq!(machine.read(WRONG), 0, "old code was executed");
}

fn writer(a: &mut CodeAssembler, said: u64, seen: u64) -> Assembled {
    let (mut again, mut waits) = (a.create_label(), a.create_label());
    a.mov(esi, ROUTINE as u32)?;
    a.mov(ecx, 1)?;
    a.set_label(&mut again)?;
    a.mov(dword_ptr(rsi + 1), ecx)?;
    a.mov(edi, said as u32)?;
    a.mov(dword_ptr(rdi), ecx)?;
    a.mov(edi, seen as u32)?;
    a.set_label(&mut waits)?;
    a.cmp(dword_ptr(rdi), ecx)?;
    a.jne(waits)?;
    a.inc(ecx)?;
    a.cmp(ecx, ROUNDS as i32)?;
    a.jbe(again)
}

fn executor(a: &mut CodeAssembler, said: u64, seen: u64, wrong: u64) -> Assembled {
    let (mut again, mut right) = (a.create_label(), a.create_label());
    a.mov(esi, said as u32)?;
    a.mov(edi, seen as u32)?;
    a.mov(r12d, wrong as u32)?;
    a.xor(ebp, ebp)?;
    a.set_label(&mut again)?;
    // Hot, old and new.
    a.call(ROUTINE)?;
    a.cmp(dword_ptr(rsi), ebp)?;
    a.je(again)?;
    a.mov(ebp, dword_ptr(rsi))?;
    a.xor(eax, eax)?;
    a.cpuid()?;
    a.call(ROUTINE)?;
    a.cmp(eax, ebp)?;
    a.je(right)?;
    a.inc(qword_ptr(r12))?;
    a.set_label(&mut right)?;
    a.mov(dword_ptr(rdi), ebp)?;
    a.jmp(again)
}

/// A device writes over code that one vCPU executes all the time: it comes to an end.
pub fn device(machine: Machine) {
    // A loop without end, and what a device makes of it: a jump out of it.
    machine.write(ROUTINE, &[0xeb, 0xfe, 0xc3]);
    machine.code(CODE, |a| {
        a.mov(edi, RESULT as u32).unwrap();
        a.mov(dword_ptr(rdi), 1).unwrap();
        a.call(ROUTINE).unwrap();
        a.mov(dword_ptr(rdi), 2).unwrap();
        done(a);
    });
    let began = std::time::Instant::now();
    machine.run_all(&[CODE], Duration::from_secs(120), || {
        if machine.read(RESULT) == 1 && began.elapsed() > Duration::from_millis(50) {
            machine.write(ROUTINE + 1, &[0]);
        }
    });
    assert_eq!(machine.read(RESULT), 2);
}

/// A device writes code that lies ahead in the page that is executed, on being told to; past a serializing instruction it
/// is the new code that is executed, though no branch leads back or elsewhere.
pub fn device_ahead(machine: Machine) {
    /// So long it stays, or the page would never be hot.
    const STAYS: u64 = 64;
    let routine = CODE + 0x200;
    machine.write(routine, &RETURNS);
    let ram = machine.ram.clone();
    let mut last = None;
    machine.bus.react(DEVICE, move |data| {
        if last.as_deref() != Some(data) {
            write(&ram, routine + 1, data);
            last = Some(data.to_vec());
        }
    });
    let found = result(&machine, |a| {
        a.xor(esi, esi)?;
        a.mov(ebp, 8 * ROUNDS)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(eax, ebp)?;
        a.shr(eax, STAYS.ilog2())?;
        a.mov(edi, DEVICE as u32)?;
        a.mov(dword_ptr(rdi), eax)?;
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.call(routine)?;
        a.add(rsi, rax)?;
        a.dec(ebp)?;
        a.jne(again)?;
        a.mov(rbx, rsi)
    });
    assert_eq!(
        found,
        (1..=8 * u64::from(ROUNDS))
            .map(|round| round / STAYS)
            .sum::<u64>()
    );
}
