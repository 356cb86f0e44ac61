//! Exceptions, interrupts and far transfers, in all modes.

use iced_x86::code_asm::*;

use super::{CODE, assemble, core, get, put, run, segment};
use crate::soft::{
    Core, Fault, Interpreter, Width,
    flags::IF,
    interrupt::{self, Event, Source, TripleFault},
    segment::CS,
    system::{
        Table,
        control::{CR0_PE, EFER_LMA, EFER_LME, EFER_SCE},
    },
};

const GDT: u64 = 0x2000;
const IDT: u64 = 0x3000;
const TSS: u64 = 0x5000;
const KERNEL_STACK: u64 = 0x8000;
const IST_STACK: u64 = 0x7000;
const HANDLER: u64 = CODE + 0x800;

/// Kernel code and data, user data and code, as `syscall` wants them; then the task segment.
fn tables(core: &mut Core, code_size: u64) {
    let size = code_size << 52;
    for (index, descriptor) in [
        0,
        0x000f_9b00_0000_ffff | 0x80 << 48 | size,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x000f_fb00_0000_ffff | 0x80 << 48 | size,
        0x0000_8900_0000_0067 | TSS << 16,
        0,
    ]
    .into_iter()
    .enumerate()
    {
        put(core, GDT + index as u64 * 8, descriptor);
    }
    core.tables.gdt = Table {
        base: GDT,
        limit: 0x37,
    };
    core.tables.idt = Table {
        base: IDT,
        limit: 0xfff,
    };
    core.tables.task = crate::soft::core::Segment {
        selector: 0x28,
        attributes: 0x8b,
        limit: 0x67,
        base: TSS,
    };
    core.segments = [
        segment(0x10, 0xc093),
        segment(8, 0x809b | (code_size as u16) << 12),
        segment(0x10, 0xc093),
        segment(0x10, 0xc093),
        segment(0, 0),
        segment(0, 0),
    ];
}

/// Long mode without paging, which no processor has, but whose delivery is the same.
fn long() -> Core {
    let mut core = core();
    core.control.efer = EFER_LMA | EFER_LME | EFER_SCE;
    tables(&mut core, 2);
    put(&mut core, TSS + 4, KERNEL_STACK);
    put(&mut core, TSS + 0x24, IST_STACK);
    core.refresh();
    core
}

fn gate64(core: &mut Core, vector: u64, kind: u64) {
    let low = HANDLER & 0xffff | 8 << 16 | kind << 32 | (HANDLER >> 16) << 48;
    put(core, IDT + vector * 16, low);
    put(core, IDT + vector * 16 + 8, 0);
}

/// What was pushed last.
fn top(core: &mut Core) -> u64 {
    let pointer = core.regs[4];
    get(core, pointer)
}

fn to_user(core: &mut Core) {
    core.segments[CS] = segment(0x23, 0xa0fb);
    core.segments[2] = segment(0x1b, 0xc0f3);
    core.privilege = 3;
    core.refresh();
}

#[test]
fn a_fault_of_user_code_arrives_on_the_kernel_stack() {
    let mut core = long();
    gate64(&mut core, 13, 0x8e00);
    to_user(&mut core);
    core.flags.replace(IF, IF);
    let flags = core.flags.get();
    assemble(&mut core, 64, CODE, |a| {
        a.nop().unwrap();
        a.cli().unwrap();
    });
    assemble(&mut core, 64, HANDLER, |a| a.hlt().unwrap());
    let mut interpreter = Interpreter::new(core);
    run(&mut interpreter).unwrap();
    let core = &mut interpreter.core;
    assert_eq!((core.privilege, core.flags.any(IF)), (0, false));
    assert_eq!(core.segments[2].selector, 0);
    assert_eq!(core.regs[4], KERNEL_STACK - 48);
    let frame = [0, 8, 16, 24, 32, 40].map(|it| get(core, KERNEL_STACK - 48 + it));
    let resumed = flags | 1 << 16;
    assert_eq!(frame, [0, CODE + 1, 0x23, resumed, 0x9000, 0x1b]);
}

#[test]
fn software_interrupts_need_the_gates_privilege_and_return() {
    let mut core = long();
    gate64(&mut core, 0x80, 0xee00);
    gate64(&mut core, 0x81, 0x8e00);
    gate64(&mut core, 13, 0x8e01);
    to_user(&mut core);
    assemble(&mut core, 64, CODE, |a| {
        a.int(0x80).unwrap();
        a.inc(ebx).unwrap();
        a.int(0x81).unwrap();
    });
    // The first time it returns; the second time it is #GP, on the interrupt stack.
    assemble(&mut core, 64, HANDLER, |a| {
        let mut second = a.create_label();
        a.inc(ecx).unwrap();
        a.cmp(ecx, 2).unwrap();
        a.je(second).unwrap();
        a.iretq().unwrap();
        a.set_label(&mut second).unwrap();
        a.hlt().unwrap();
    });
    let mut interpreter = Interpreter::new(core);
    run(&mut interpreter).unwrap();
    let core = &mut interpreter.core;
    assert_eq!((core.regs[3], core.regs[1]), (1, 2));
    assert_eq!(core.regs[4], IST_STACK - 48);
    assert_eq!(get(core, IST_STACK - 48), 0x81 * 8 + 2);
    assert_eq!(get(core, IST_STACK - 40), CODE + 4);
}

#[test]
fn a_fault_while_delivering_a_fault_is_a_double_then_a_triple_one() {
    let mut core = long();
    gate64(&mut core, 8, 0x8e00);
    // No gate for #GP: another #GP, a second contributory fault.
    let general = Event::from(Fault::GP0);
    interrupt::raise(&mut core, general).unwrap();
    assert_eq!(core.rip(), HANDLER);
    assert_eq!(top(&mut core), 0, "the code of a double fault");
    // A benign event with the same trouble is only #GP.
    gate64(&mut core, 13, 0x8e00);
    let external = Event::new(0x30, Source::External);
    interrupt::raise(&mut core, external).unwrap();
    assert_eq!(top(&mut core), 0x30 * 8 + 3);
    put(&mut core, IDT + 8 * 16, 0);
    put(&mut core, IDT + 13 * 16, 0);
    assert_eq!(interrupt::raise(&mut core, general), Err(TripleFault));
}

#[test]
fn syscall_and_sysret_change_rings() {
    let mut core = long();
    core.msrs.star = 0x0013 << 48 | 8 << 32;
    core.msrs.lstar = HANDLER;
    core.msrs.sfmask = IF;
    to_user(&mut core);
    core.flags.replace(IF, IF);
    assemble(&mut core, 64, CODE, |a| {
        a.syscall().unwrap();
        a.mov(ebx, cs).unwrap();
        a.syscall().unwrap();
    });
    assemble(&mut core, 64, HANDLER, |a| {
        let mut second = a.create_label();
        a.mov(edx, cs).unwrap();
        a.test(ebx, ebx).unwrap();
        a.jnz(second).unwrap();
        a.sysretq().unwrap();
        a.set_label(&mut second).unwrap();
        a.hlt().unwrap();
    });
    let mut interpreter = Interpreter::new(core);
    run(&mut interpreter).unwrap();
    let core = &interpreter.core;
    assert_eq!((core.regs[3], core.regs[2]), (0x23, 8));
    assert_eq!((core.privilege, core.flags.any(IF)), (0, false));
    assert!(core.regs[11] & IF != 0);
}

#[test]
fn protected_mode_switches_stacks_and_returns() {
    let mut core = core();
    tables(&mut core, 4);
    put(&mut core, TSS + 4, KERNEL_STACK | 0x10 << 32);
    let gate = HANDLER & 0xffff | 8 << 16 | 0xee00 << 32 | (HANDLER >> 16) << 48;
    put(&mut core, IDT + 0x80 * 8, gate);
    core.segments[CS] = segment(0x23, 0xc0fb);
    core.segments[2] = segment(0x1b, 0xc0f3);
    core.segments[3] = segment(0x1b, 0xc0f3);
    core.privilege = 3;
    core.refresh();
    assert_eq!(core.width, Width::Code32);
    assemble(&mut core, 32, CODE, |a| {
        a.int(0x80).unwrap();
        a.mov(ebx, cs).unwrap();
        a.mov(edi, esp).unwrap();
        a.int(0x80).unwrap();
    });
    assemble(&mut core, 32, HANDLER, |a| {
        let mut second = a.create_label();
        a.test(ebx, ebx).unwrap();
        a.jnz(second).unwrap();
        a.iretd().unwrap();
        a.set_label(&mut second).unwrap();
        a.mov(esi, esp).unwrap();
        a.mov(eax, ss).unwrap();
        a.hlt().unwrap();
    });
    let mut interpreter = Interpreter::new(core);
    run(&mut interpreter).unwrap();
    let regs = interpreter.core.regs;
    assert_eq!((regs[3], regs[7]), (0x23, 0x9000));
    assert_eq!((regs[0], regs[6]), (0x10, KERNEL_STACK - 20));
}

/// From real mode to 64-bit mode as firmware and kernels do it, with an interrupt on the way.
#[test]
fn a_processor_comes_from_real_to_protected_mode() {
    let mut core = core();
    tables(&mut core, 4);
    core.control.cr0 &= !CR0_PE;
    core.control.cr0 |= 0x10;
    for (number, it) in core.segments.iter_mut().enumerate() {
        *it = segment(0, if number == CS { 0x9b } else { 0x93 });
        it.limit = 0xffff;
    }
    core.tables.idt = Table {
        base: 0,
        limit: 0x3ff,
    };
    core.refresh();
    assert_eq!(core.width, Width::Code16);
    // The vector's handler adds 5 to bx; the table's limit and base for `lgdt` lie at 0x6000.
    core.physical_write(0x21 * 4, &0x0000_6800u32.to_le_bytes());
    core.physical_write(0x6000, &[0x37, 0, 0, 0x20, 0, 0]);
    assemble(&mut core, 16, 0x6800, |a| {
        a.add(bx, 5).unwrap();
        a.iret().unwrap();
    });
    assemble(&mut core, 16, 0x6100, |a| {
        a.int(0x21).unwrap();
        a.db(&[0x0f, 0x01, 0x16, 0x00, 0x60]).unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(eax, 1).unwrap();
        a.mov(cr0, eax).unwrap();
        // jmp 8:0x6200, with a 32-bit offset.
        a.db(&[0x66, 0xea, 0x00, 0x62, 0, 0, 8, 0]).unwrap();
    });
    assemble(&mut core, 32, 0x6200, |a| {
        a.mov(eax, 0x10).unwrap();
        a.mov(ds, eax).unwrap();
        a.mov(dword_ptr(0x2_0000), ebx).unwrap();
        a.hlt().unwrap();
    });
    core.set_rip(0x6100);
    let mut interpreter = Interpreter::new(core);
    run(&mut interpreter).unwrap();
    let core = &mut interpreter.core;
    assert_eq!(core.width, Width::Code32);
    assert_eq!(
        core.tables.gdt,
        Table {
            base: GDT,
            limit: 0x37
        }
    );
    assert_eq!(get(core, 0x2_0000), 5);
}

#[test]
fn segment_loads_refuse_what_they_must() {
    let mut core = long();
    assert_eq!(core.load_segment(3, 0x1b), Ok(()));
    assert_eq!(core.load_segment(3, 0), Ok(()));
    assert_eq!(
        core.load_segment(3, 0x80),
        Err(Fault::gp(0x80)),
        "past the limit"
    );
    assert_eq!(
        core.load_segment(2, 0x1b),
        Err(Fault::gp(0x18)),
        "another ring's stack"
    );
    assert_eq!(
        core.load_segment(2, 8),
        Err(Fault::gp(8)),
        "code as a stack"
    );
    assert_eq!(
        core.load_segment(3, 0x28),
        Err(Fault::gp(0x28)),
        "a system descriptor"
    );
    put(&mut core, GDT + 0x10, 0x00cf_1300_0000_ffff);
    assert_eq!(core.load_segment(3, 0x10), Err(Fault::np(0x10)));
    assert_eq!(core.load_segment(2, 0x10), Err(Fault::ss(0x10)));
    to_user(&mut core);
    put(&mut core, GDT + 0x10, 0x00cf_9300_0000_ffff);
    assert_eq!(
        core.load_segment(3, 0x10),
        Err(Fault::gp(0x10)),
        "data of ring 0"
    );
    assert_eq!(
        core.load_segment(2, 0),
        Err(Fault::GP0),
        "no stack in ring 3"
    );
}
