//! The guests, and what must be found of them.

use std::time::Duration;

use cpu::{Exit, Msi, VcpuState};
use iced_x86::code_asm::*;

use crate::machine::{
    Access, CODE, DEVICE, HANDLER, Machine, RESULT, UNMAPPED, done, long_mode, within,
};

/// Memory-mapped registers of the local APIC.
const LAPIC: u32 = 0xfee0_0000;
pub const SPURIOUS: u32 = LAPIC + 0xf0;
const EOI: u32 = LAPIC + 0xb0;
const COMMAND_LOW: u32 = LAPIC + 0x300;
const COMMAND_HIGH: u32 = LAPIC + 0x310;
pub const TIMER: u32 = LAPIC + 0x320;
pub const TIMER_COUNT: u32 = LAPIC + 0x380;
pub const TIMER_DIVIDE: u32 = LAPIC + 0x3e0;
/// The vector the tests use.
pub const VECTOR: u8 = 0x50;
/// Where a vCPU that is started begins, in real mode: a page below 1 MiB.
const TRAMPOLINE: u64 = 0x8000;

pub fn store(a: &mut CodeAssembler, address: u32, value: u32) {
    a.mov(edi, address).unwrap();
    a.mov(dword_ptr(rdi), value).unwrap();
}

/// Tells the local APIC that a handler is done; `rdi` is lost.
pub fn end_interrupt(a: &mut CodeAssembler) {
    store(a, EOI, 0);
}

/// A handler that counts at [`RESULT`], ends the interrupt and returns.
fn counting_handler(machine: &Machine) {
    machine.gate(VECTOR, HANDLER);
    machine.code(HANDLER, |a| {
        a.push(rdi).unwrap();
        a.mov(edi, RESULT as u32).unwrap();
        a.lock().add(qword_ptr(rdi), 1).unwrap();
        end_interrupt(a);
        a.pop(rdi).unwrap();
        a.iretq().unwrap();
    });
}

pub fn ports_and_device_memory(machine: Machine) {
    machine.code(CODE, |a| {
        a.mov(edx, 0x1234).unwrap();
        a.mov(eax, 0xaabb_ccddu32).unwrap();
        a.out(dx, al).unwrap();
        a.out(dx, ax).unwrap();
        a.out(dx, eax).unwrap();
        a.in_(eax, dx).unwrap();
        a.mov(edi, RESULT as u32).unwrap();
        a.mov(dword_ptr(rdi), eax).unwrap();
        a.mov(esi, DEVICE as u32).unwrap();
        a.mov(rax, 0x1122_3344_5566_7788u64).unwrap();
        a.mov(byte_ptr(rsi), al).unwrap();
        a.mov(word_ptr(rsi + 2), ax).unwrap();
        a.mov(dword_ptr(rsi + 4), eax).unwrap();
        a.mov(qword_ptr(rsi + 8), rax).unwrap();
        a.movzx(ebx, word_ptr(rsi + 16)).unwrap();
        a.mov(dword_ptr(rdi + 8), ebx).unwrap();
        done(a);
    });
    machine.bus.answer(&0x0102_0304u32.to_le_bytes());
    machine.bus.answer(&0xbeefu16.to_le_bytes());
    assert_eq!(machine.run(), Exit::Kicked);
    let value = 0x1122_3344_5566_7788u64.to_le_bytes();
    assert_eq!(
        machine.bus.seen(),
        [
            Access::PortWrite(0x1234, vec![0xdd]),
            Access::PortWrite(0x1234, vec![0xdd, 0xcc]),
            Access::PortWrite(0x1234, vec![0xdd, 0xcc, 0xbb, 0xaa]),
            Access::PortRead(0x1234, 4),
            Access::Write(DEVICE, value[..1].to_vec()),
            Access::Write(DEVICE + 2, value[..2].to_vec()),
            Access::Write(DEVICE + 4, value[..4].to_vec()),
            Access::Write(DEVICE + 8, value.to_vec()),
            Access::Read(DEVICE + 16, 2),
        ]
    );
    assert_eq!(machine.read(RESULT), 0x0102_0304);
    assert_eq!(machine.read(RESULT + 8), 0xbeef);
}

pub fn string_ports(machine: Machine) {
    machine.write(RESULT + 0x100, b"abcd");
    machine.code(CODE, |a| {
        a.mov(edx, 0x300).unwrap();
        a.mov(esi, RESULT as u32 + 0x100).unwrap();
        a.mov(ecx, 4).unwrap();
        a.rep().outsb().unwrap();
        a.mov(edi, RESULT as u32).unwrap();
        a.mov(ecx, 3).unwrap();
        a.rep().insw().unwrap();
        a.mov(eax, RESULT as u32 + 0x20).unwrap();
        a.mov(qword_ptr(rax), rdi).unwrap();
        a.mov(qword_ptr(rax + 8), rcx).unwrap();
        done(a);
    });
    for word in [0x1111u16, 0x2222, 0x3333] {
        machine.bus.answer(&word.to_le_bytes());
    }
    assert_eq!(machine.run(), Exit::Kicked);
    let written = b"abcd".map(|byte| Access::PortWrite(0x300, vec![byte]));
    let read = [(); 3].map(|()| Access::PortRead(0x300, 2));
    assert_eq!(machine.bus.seen(), [&written[..], &read[..]].concat());
    assert_eq!(machine.read(RESULT), 0x3333_2222_1111);
    assert_eq!(machine.read(RESULT + 0x20), RESULT + 6);
    assert_eq!(machine.read(RESULT + 0x28), 0);
}

pub fn page_fault(machine: Machine) {
    machine.gate(14, HANDLER);
    machine.code(HANDLER, |a| {
        a.mov(edi, RESULT as u32).unwrap();
        a.mov(rax, cr2).unwrap();
        a.mov(qword_ptr(rdi), rax).unwrap();
        // Error code, then where.
        a.pop(rax).unwrap();
        a.mov(qword_ptr(rdi + 8), rax).unwrap();
        a.pop(rax).unwrap();
        a.mov(qword_ptr(rdi + 16), rax).unwrap();
        done(a);
    });
    let faulting = CODE + 0x80;
    machine.code(CODE, |a| {
        a.mov(rbx, UNMAPPED + 0x123).unwrap();
        a.jmp(faulting).unwrap();
    });
    machine.code(faulting, |a| {
        a.mov(qword_ptr(rbx), rax).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(machine.run(), Exit::Kicked);
    assert_eq!(machine.read(RESULT), UNMAPPED + 0x123);
    assert_eq!(
        machine.read(RESULT + 8),
        2,
        "a write to what is not present"
    );
    assert_eq!(machine.read(RESULT + 16), faulting);
}

pub fn interrupt_wakes(machine: Machine) {
    counting_handler(&machine);
    machine.code(CODE, |a| {
        store(a, SPURIOUS, 0x1ff);
        a.mov(edi, RESULT as u32).unwrap();
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.sti().unwrap();
        a.hlt().unwrap();
        a.cli().unwrap();
        a.cmp(qword_ptr(rdi), 3).unwrap();
        a.jb(again).unwrap();
        done(a);
    });
    let mut vcpu = machine.vcpu();
    let partition = &machine.partition;
    std::thread::scope(|scope| {
        let runs = scope.spawn(|| within(&mut *vcpu, Duration::from_secs(20)));
        // Each is ended before the next comes, or they would be one.
        for count in 1..=3 {
            while machine.read(RESULT) < count && !runs.is_finished() {
                let message = Msi {
                    address: 0xfee0_0000,
                    data: u32::from(VECTOR),
                };
                partition.signal_msi(message).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        assert_eq!(runs.join().unwrap(), Exit::Kicked);
    });
    assert!(machine.read(RESULT) >= 3);
}

pub fn timer(machine: Machine) {
    counting_handler(&machine);
    machine.code(CODE, |a| {
        store(a, SPURIOUS, 0x1ff);
        store(a, TIMER_DIVIDE, 0xb);
        // Periodic.
        store(a, TIMER, 0x2_0000 | u32::from(VECTOR));
        store(a, TIMER_COUNT, 100_000);
        a.mov(edi, RESULT as u32).unwrap();
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.sti().unwrap();
        a.hlt().unwrap();
        a.cli().unwrap();
        a.cmp(qword_ptr(rdi), 3).unwrap();
        a.jb(again).unwrap();
        done(a);
    });
    assert_eq!(machine.run(), Exit::Kicked);
    assert!(machine.read(RESULT) >= 3);
}

/// Sends INIT and SIPI from the first vCPU to the second.
fn start_second(a: &mut CodeAssembler) {
    store(a, SPURIOUS, 0x1ff);
    for command in [0x4500u32, 0x4600 | (TRAMPOLINE >> 12) as u32] {
        store(a, COMMAND_HIGH, 1 << 24);
        store(a, COMMAND_LOW, command);
    }
}

/// Waits until the second vCPU has put its mark at [`RESULT`].
fn await_mark(a: &mut CodeAssembler, mark: u32) {
    a.mov(edi, RESULT as u32).unwrap();
    let mut again = a.create_label();
    a.set_label(&mut again).unwrap();
    a.pause().unwrap();
    a.cmp(dword_ptr(rdi), mark).unwrap();
    a.jne(again).unwrap();
}

fn two(machine: &Machine) -> Exit {
    let mut first = machine.vcpu();
    let mut second = machine.partition.create_vcpu(1).unwrap();
    machine.watch(&*second);
    std::thread::scope(|scope| {
        let other = scope.spawn(move || within(&mut *second, Duration::from_secs(30)));
        let exit = within(&mut *first, Duration::from_secs(30));
        assert_eq!(other.join().unwrap(), Exit::Kicked);
        exit
    })
}

pub fn second_vcpu(machine: Machine) {
    machine.code(CODE, |a| {
        start_second(a);
        await_mark(a, 0xcafe);
        done(a);
    });
    // Real mode, cs 0x800: a mark at 0x9000:0.
    machine.assemble(16, TRAMPOLINE, |a| {
        a.mov(ax, (RESULT >> 4) as u32).unwrap();
        a.mov(ds, ax).unwrap();
        a.xor(bx, bx).unwrap();
        a.mov(word_ptr(bx), 0xcafe).unwrap();
        let mut here = a.create_label();
        a.set_label(&mut here).unwrap();
        a.hlt().unwrap();
        a.jmp(here).unwrap();
    });
    assert_eq!(two(&machine), Exit::Kicked);
}

/// Additions of each vCPU.
const ADDITIONS: u32 = 20_000;

pub fn locked_additions(machine: Machine) {
    let add = |a: &mut CodeAssembler| {
        a.mov(ecx, ADDITIONS).unwrap();
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.lock().add(dword_ptr(rdi + 64), 1).unwrap();
        a.dec(ecx).unwrap();
        a.jne(again).unwrap();
    };
    machine.code(CODE, |a| {
        start_second(a);
        await_mark(a, 1);
        a.lock().inc(dword_ptr(rdi)).unwrap();
        add(a);
        await_mark(a, 3);
        done(a);
    });
    machine.assemble(16, TRAMPOLINE, |a| {
        a.mov(ax, (RESULT >> 4) as u32).unwrap();
        a.mov(ds, ax).unwrap();
        a.xor(di, di).unwrap();
        a.mov(word_ptr(di), 1).unwrap();
        let mut wait = a.create_label();
        a.set_label(&mut wait).unwrap();
        a.cmp(word_ptr(di), 2).unwrap();
        a.jne(wait).unwrap();
        a.mov(ecx, ADDITIONS).unwrap();
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.lock().add(dword_ptr(di + 64), 1).unwrap();
        a.dec(ecx).unwrap();
        a.jne(again).unwrap();
        a.lock().inc(word_ptr(di)).unwrap();
        let mut here = a.create_label();
        a.set_label(&mut here).unwrap();
        a.hlt().unwrap();
        a.jmp(here).unwrap();
    });
    assert_eq!(two(&machine), Exit::Kicked);
    assert_eq!(machine.read(RESULT + 64), u64::from(2 * ADDITIONS));
}

pub fn triple_fault(machine: Machine) {
    let mut vcpu = machine.vcpu();
    let mut state = long_mode(0);
    // No gate is within the table: neither the fault nor the double fault can be delivered.
    state.segments.idt.limit = 0;
    vcpu.set_state(&state).unwrap();
    machine.code(CODE, |a| a.ud2().unwrap());
    let exit = within(&mut *vcpu, Duration::from_secs(20));
    assert_eq!(exit, Exit::Shutdown);
}

pub fn saved_state(machine: Machine) {
    machine.code(CODE, |a| {
        a.mov(edi, RESULT as u32).unwrap();
        a.mov(rbx, 0x1234_5678_9abc_def0u64).unwrap();
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.inc(qword_ptr(rdi)).unwrap();
        a.cmp(dword_ptr(rdi + 8), 1).unwrap();
        a.jne(again).unwrap();
        a.mov(qword_ptr(rdi + 16), rbx).unwrap();
        done(a);
    });
    let mut vcpu = machine.vcpu();
    let kicker = vcpu.kicker();
    let state: VcpuState = std::thread::scope(|scope| {
        let runs = scope.spawn(|| {
            let exit = within(&mut *vcpu, Duration::from_secs(20));
            assert_eq!(exit, Exit::Kicked);
            vcpu.state().unwrap()
        });
        while machine.read(RESULT) == 0 {
            std::thread::yield_now();
        }
        kicker.kick();
        runs.join().unwrap()
    });
    let counted = machine.read(RESULT);
    assert!(counted > 0);
    drop(vcpu);
    let mut other = machine.another().create_vcpu(0).unwrap();
    other.set_state(&state).unwrap();
    machine.watch(&*other);
    std::thread::scope(|scope| {
        let runs = scope.spawn(|| within(&mut *other, Duration::from_secs(20)));
        // Told to end only once it has counted on, wherever in its loop it was kicked.
        while machine.read(RESULT) <= counted && !runs.is_finished() {
            std::thread::yield_now();
        }
        machine.word(RESULT + 8, 1);
        assert_eq!(runs.join().unwrap(), Exit::Kicked);
    });
    assert!(machine.bus.is_done());
    assert_eq!(machine.read(RESULT + 16), 0x1234_5678_9abc_def0);
    assert!(machine.read(RESULT) > counted);
}

pub fn written_code(machine: Machine) {
    let routine = CODE + 0x400;
    // mov eax, 1; ret
    machine.write(routine, &[0xb8, 1, 0, 0, 0, 0xc3]);
    machine.code(CODE, |a| {
        a.mov(edi, RESULT as u32).unwrap();
        a.mov(esi, routine as u32).unwrap();
        a.xor(ebx, ebx).unwrap();
        a.mov(ecx, 5).unwrap();
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.call(routine).unwrap();
        a.add(ebx, eax).unwrap();
        // The next call finds another immediate.
        a.inc(byte_ptr(rsi + 1)).unwrap();
        a.dec(ecx).unwrap();
        a.jne(again).unwrap();
        a.mov(qword_ptr(rdi), rbx).unwrap();
        done(a);
    });
    assert_eq!(machine.run(), Exit::Kicked);
    assert_eq!(machine.read(RESULT), 1 + 2 + 3 + 4 + 5);
}
