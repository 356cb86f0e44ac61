//! Blocks: code that writes itself, that crosses pages, that another vCPU writes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use iced_x86::code_asm::*;
use memory::Ram;

use super::{CODE, Nothing, assemble, core, get, put, run};
use crate::{
    Exit, Partition, VcpuState,
    cpuid::Table,
    soft::{Interpreter, SoftPartition, Tier},
    state::SegmentState,
};

#[test]
fn a_store_to_the_next_instruction_is_seen_by_it() {
    let mut core = core();
    assemble(&mut core, 64, CODE, |a| {
        let mut patched = a.create_label();
        let mut again = a.create_label();
        a.mov(ecx, 3).unwrap();
        a.xor(eax, eax).unwrap();
        a.set_label(&mut again).unwrap();
        a.lea(rbx, ptr(patched)).unwrap();
        // The immediate of the `add` that follows at once.
        a.mov(byte_ptr(rbx + 1), cl).unwrap();
        a.set_label(&mut patched).unwrap();
        a.add(eax, 100).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    let mut interpreter = Interpreter::new(core);
    run(&mut interpreter).unwrap();
    assert_eq!(interpreter.core.regs[0], 3 + 2 + 1);
}

#[test]
fn an_instruction_over_two_pages_follows_a_change_of_either() {
    let at_once = Tier::Translate {
        threshold: 1,
        chain: true,
    };
    for tier in [Tier::Interpret, at_once] {
        let mut core = core();
        // mov eax, 0x11111111 with three bytes on the first page; hlt.
        let start = CODE + 0xffd;
        core.physical_write(start, &[0xb8, 0x11, 0x11]);
        core.physical_write(start + 3, &[0x11, 0x11, 0xf4]);
        let mut interpreter = Interpreter::new(core);
        interpreter.set_tier(tier).unwrap();
        let mut result = |patch: Option<(u64, u8)>| {
            if let Some((address, byte)) = patch {
                interpreter.core.physical_write(address, &[byte]);
            }
            interpreter.core.set_rip(start);
            interpreter.core.events.halted = false;
            run(&mut interpreter).unwrap();
            interpreter.core.regs[0]
        };
        assert_eq!(result(None), 0x1111_1111);
        assert_eq!(result(Some((start + 4, 0x22))), 0x2211_1111);
        assert_eq!(result(Some((start + 1, 0x33))), 0x2211_1133);
        assert_eq!(result(None), 0x2211_1133);
    }
}

#[test]
fn a_device_that_writes_code_voids_its_blocks() {
    use vm_memory::{Bytes, GuestAddress};
    let mut core = core();
    put(&mut core, CODE, 0x0000_f400_0000_01b8);
    let memory = core.ram.guest_memory().clone();
    let mut interpreter = Interpreter::new(core);
    for value in [1u8, 2] {
        memory.write_obj(value, GuestAddress(CODE + 1)).unwrap();
        interpreter.core.set_rip(CODE);
        interpreter.core.events.halted = false;
        run(&mut interpreter).unwrap();
        assert_eq!(interpreter.core.regs[0], u64::from(value));
    }
}

#[test]
fn many_blocks_are_forgotten_and_decoded_again() {
    let mut core = core();
    // A page of `inc eax; jmp +0`, more blocks than fit after some rounds of voiding.
    for address in (CODE..CODE + 0x1000).step_by(4) {
        core.physical_write(address, &[0xff, 0xc0, 0xeb, 0x00]);
    }
    core.physical_write(CODE + 0x1000, &[0xf4]);
    let mut interpreter = Interpreter::new(core);
    for round in 1..=400u64 {
        interpreter.core.physical_write(CODE, &[0xff]);
        interpreter.core.set_rip(CODE);
        interpreter.core.events.halted = false;
        run(&mut interpreter).unwrap();
        assert_eq!(interpreter.core.regs[0], round * 1024);
    }
}

/// 64-bit mode without page tables exists only here; so the vCPUs of this test run in 32-bit mode.
fn protected(index: u32, rip: u64) -> VcpuState {
    let mut state = VcpuState::protected32(index, rip, 0);
    state.activity = crate::state::Activity::Running;
    state.segments.registers[1] = SegmentState::flat_code32(0x10);
    state
}

/// One vCPU writes an immediate, the other executes it until it sees the new one: a lost update
/// would hang.
#[test]
fn code_written_by_another_vcpu_is_executed_as_written() {
    const ROUNDS: u32 = 300;
    const SHARED: i32 = 0x2_0000;
    let mut core = core();
    let routine = CODE + 0x3000;
    assemble(&mut core, 32, routine, |a| {
        a.mov(eax, 0).unwrap();
        a.mov(dword_ptr(SHARED), eax).unwrap();
        let mut here = a.create_label();
        a.set_label(&mut here).unwrap();
        a.jmp(routine).unwrap();
    });
    assemble(&mut core, 32, CODE, |a| {
        a.mov(ecx, 1).unwrap();
        let mut next = a.create_label();
        let mut wait = a.create_label();
        a.set_label(&mut next).unwrap();
        a.mov(dword_ptr(routine as i32 + 1), ecx).unwrap();
        a.set_label(&mut wait).unwrap();
        a.pause().unwrap();
        a.cmp(dword_ptr(SHARED), ecx).unwrap();
        a.jne(wait).unwrap();
        a.inc(ecx).unwrap();
        a.cmp(ecx, ROUNDS).unwrap();
        a.jbe(next).unwrap();
        a.mov(dword_ptr(SHARED + 8), 1).unwrap();
        a.hlt().unwrap();
    });
    let ram: Ram = core.ram.clone();
    let partition = SoftPartition::new(&ram, Arc::new(Nothing), |_| Table::default());
    let mut vcpus = [(0, CODE), (1, routine)].map(|(index, rip)| {
        let mut vcpu = partition.create_vcpu(index).unwrap();
        vcpu.set_state(&protected(index, rip)).unwrap();
        vcpu
    });
    let kickers = vcpus.each_ref().map(|it| it.kicker());
    let finished = || {
        let (host, _) = ram.host(SHARED as u64 + 8).unwrap();
        // SAFETY: mapped and aligned; guests and this test access it atomically.
        let word = unsafe { AtomicU64::from_ptr(host.as_ptr().cast()) };
        word.load(Ordering::SeqCst) != 0
    };
    let patience = Instant::now() + Duration::from_secs(60);
    std::thread::scope(|scope| {
        let threads: Vec<_> = vcpus
            .iter_mut()
            .map(|vcpu| scope.spawn(|| vcpu.run()))
            .collect();
        while !finished() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        kickers.iter().for_each(|it| it.kick());
        for thread in threads {
            assert_eq!(thread.join().unwrap().unwrap(), Exit::Kicked);
        }
    });
    assert!(
        finished(),
        "stopped at {:#x}",
        get(&mut core, SHARED as u64)
    );
}
