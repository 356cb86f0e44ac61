//! Which handler executes a system instruction.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::{
    super::{
        Op,
        op::{Handler, Width, segment},
    },
    Extra, flag, identify, msr, privileged, register, segment as segments, syscall, table,
    transfer,
};

/// The operation for a system instruction.
#[must_use]
pub fn select(instruction: &Instruction, width: Width) -> Option<Op> {
    let (run, extra) = far(instruction)
        .or_else(|| segment_load(instruction))
        .or_else(|| control(instruction, width))
        .or_else(|| port(instruction, width))
        .or_else(|| simple(instruction))
        .or_else(|| plain(instruction, width))?;
    let mut op = Op::new(instruction, width, run);
    if matches!(
        instruction.op0_kind(),
        OpKind::FarBranch16 | OpKind::FarBranch32
    ) {
        op.imm = if instruction.op0_kind() == OpKind::FarBranch16 {
            instruction.far_branch16().into()
        } else {
            instruction.far_branch32().into()
        };
    }
    op.extra = extra.pack();
    Some(op)
}

fn bytes(bytes: u8) -> Extra {
    Extra {
        bytes,
        ..Extra::default()
    }
}

/// Far transfers: code segment and offset change together.
fn far(instruction: &Instruction) -> Option<(Handler, Extra)> {
    let selector = instruction.far_branch_selector();
    let direct = |bytes| Extra {
        number: selector,
        bytes,
        ..Extra::default()
    };
    let memory = |bytes| Extra {
        bytes,
        memory: true,
        ..Extra::default()
    };
    Some(match instruction.code() {
        Code::Jmp_ptr1616 => (transfer::jump, direct(2)),
        Code::Jmp_ptr1632 => (transfer::jump, direct(4)),
        Code::Jmp_m1616 => (transfer::jump, memory(2)),
        Code::Jmp_m1632 => (transfer::jump, memory(4)),
        Code::Jmp_m1664 => (transfer::jump, memory(8)),
        Code::Call_ptr1616 => (transfer::call, direct(2)),
        Code::Call_ptr1632 => (transfer::call, direct(4)),
        Code::Call_m1616 => (transfer::call, memory(2)),
        Code::Call_m1632 => (transfer::call, memory(4)),
        Code::Call_m1664 => (transfer::call, memory(8)),
        Code::Retfw | Code::Retfw_imm16 => (transfer::far_return, bytes(2)),
        Code::Retfd | Code::Retfd_imm16 => (transfer::far_return, bytes(4)),
        Code::Retfq | Code::Retfq_imm16 => (transfer::far_return, bytes(8)),
        Code::Iretw => (transfer::interrupt_return, bytes(2)),
        Code::Iretd => (transfer::interrupt_return, bytes(4)),
        Code::Iretq => (transfer::interrupt_return, bytes(8)),
        Code::Int_imm8 => (transfer::interrupt, Extra::default()),
        Code::Int3 => (transfer::breakpoint, Extra::default()),
        Code::Int1 => (transfer::debug, Extra::default()),
        Code::Into => (transfer::overflow, Extra::default()),
        _ => return None,
    })
}

/// Loads of segment registers.
fn segment_load(instruction: &Instruction) -> Option<(Handler, Extra)> {
    let number = |register| u16::from(segment(register));
    let first = instruction.op0_register();
    let memory = instruction.op1_kind() == OpKind::Memory;
    Some(match instruction.code() {
        Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => (
            segments::load as Handler,
            Extra {
                number: number(first),
                bytes: 2,
                memory,
                ..Extra::default()
            },
        ),
        Code::Popw_ES | Code::Popw_SS | Code::Popw_DS | Code::Popw_FS | Code::Popw_GS => (
            segments::pop,
            Extra {
                number: number(first),
                ..bytes(2)
            },
        ),
        Code::Popd_ES | Code::Popd_SS | Code::Popd_DS | Code::Popd_FS | Code::Popd_GS => (
            segments::pop,
            Extra {
                number: number(first),
                ..bytes(4)
            },
        ),
        Code::Popq_FS | Code::Popq_GS => (
            segments::pop,
            Extra {
                number: number(first),
                ..bytes(8)
            },
        ),
        _ => {
            let number = match instruction.mnemonic() {
                Mnemonic::Les => 0,
                Mnemonic::Lss => 2,
                Mnemonic::Lds => 3,
                Mnemonic::Lfs => 4,
                Mnemonic::Lgs => 5,
                _ => return None,
            };
            (
                segments::load_pointer,
                Extra {
                    number,
                    ..bytes(u8::try_from(first.size()).unwrap_or(8))
                },
            )
        }
    })
}

/// Moves from and to control and debug registers.
fn control(instruction: &Instruction, width: Width) -> Option<(Handler, Extra)> {
    let (first, second) = (instruction.op0_register(), instruction.op1_register());
    let (run, register): (Handler, _) = match instruction.code() {
        Code::Mov_r32_cr | Code::Mov_r64_cr => (register::read_control, second),
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => (register::write_control, first),
        Code::Mov_r32_dr | Code::Mov_r64_dr => (register::read_debug, second),
        Code::Mov_dr_r32 | Code::Mov_dr_r64 => (register::write_debug, first),
        _ => return None,
    };
    let extra = Extra {
        number: u16::try_from(register.number()).unwrap_or(u16::MAX),
        bytes: if width == Width::Code64 { 8 } else { 4 },
        ..Extra::default()
    };
    Some((run, extra))
}

/// Port input and output.
fn port(instruction: &Instruction, width: Width) -> Option<(Handler, Extra)> {
    use crate::soft::port;
    let (run, bytes): (Handler, u8) = match instruction.code() {
        Code::In_AL_imm8 => (port::read_fixed, 1),
        Code::In_AX_imm8 => (port::read_fixed, 2),
        Code::In_EAX_imm8 => (port::read_fixed, 4),
        Code::In_AL_DX => (port::read, 1),
        Code::In_AX_DX => (port::read, 2),
        Code::In_EAX_DX => (port::read, 4),
        Code::Out_imm8_AL => (port::write_fixed, 1),
        Code::Out_imm8_AX => (port::write_fixed, 2),
        Code::Out_imm8_EAX => (port::write_fixed, 4),
        Code::Out_DX_AL => (port::write, 1),
        Code::Out_DX_AX => (port::write, 2),
        Code::Out_DX_EAX => (port::write, 4),
        Code::Insb_m8_DX => (port::read_string, 1),
        Code::Insw_m16_DX => (port::read_string, 2),
        Code::Insd_m32_DX => (port::read_string, 4),
        Code::Outsb_DX_m8 => (port::write_string, 1),
        Code::Outsw_DX_m16 => (port::write_string, 2),
        Code::Outsd_DX_m32 => (port::write_string, 4),
        _ => return None,
    };
    let pointer = (0..instruction.op_count())
        .map(|operand| instruction.op_kind(operand))
        .find_map(|kind| match kind {
            OpKind::MemorySegSI | OpKind::MemoryESDI => Some(2),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(4),
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(8),
            _ => None,
        });
    let extra = Extra {
        number: pointer.unwrap_or(if width == Width::Code64 { 8 } else { 4 }),
        bytes,
        memory: false,
        repeat: instruction.has_rep_prefix() || instruction.has_repne_prefix(),
    };
    Some((run, extra))
}

/// Those whose handler needs to know nothing more, by name.
fn simple(instruction: &Instruction) -> Option<(Handler, Extra)> {
    let run: Handler = match instruction.mnemonic() {
        Mnemonic::Cli => flag::clear_interrupt,
        Mnemonic::Sti => flag::set_interrupt,
        Mnemonic::Clac => flag::clear_access,
        Mnemonic::Stac => flag::set_access,
        Mnemonic::Clts => register::clear_task_switched,
        Mnemonic::Xgetbv => register::read_extended,
        Mnemonic::Xsetbv => register::write_extended,
        Mnemonic::Swapgs => register::swap_gs,
        Mnemonic::Syscall => syscall::enter,
        Mnemonic::Sysenter => syscall::fast_enter,
        Mnemonic::Cpuid => identify::cpuid,
        Mnemonic::Rdtsc => identify::read_clock,
        Mnemonic::Rdtscp => identify::read_clock_and_id,
        Mnemonic::Rdpid => identify::read_id,
        Mnemonic::Rdpmc => privileged::read_counter,
        Mnemonic::Rdmsr => msr::read,
        Mnemonic::Wrmsr => msr::write,
        Mnemonic::Pause => privileged::pause,
        Mnemonic::Hlt => privileged::halt,
        Mnemonic::Invlpg => privileged::invalidate_page,
        Mnemonic::Vmcall | Mnemonic::Vmmcall => privileged::hypercall,
        Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => privileged::flush_caches,
        _ => return None,
    };
    Some((run, Extra::default()))
}

/// Those that have operands, by name.
fn plain(instruction: &Instruction, width: Width) -> Option<(Handler, Extra)> {
    let memory = instruction.op0_kind() == OpKind::Memory;
    let natural = if width == Width::Code64 { 8 } else { 4 };
    let register = u8::try_from(instruction.op0_register().size()).unwrap_or(8);
    let word = Extra {
        bytes: 2,
        memory,
        ..Extra::default()
    };
    // The destination of `sldt` and the like: a register of any size, or a word in memory.
    let selector = Extra {
        bytes: if memory { 2 } else { register },
        memory,
        ..Extra::default()
    };
    let source = Extra {
        bytes: register,
        memory: instruction.op1_kind() == OpKind::Memory,
        ..Extra::default()
    };
    let stack = match instruction.code() {
        Code::Pushfw | Code::Popfw => 2,
        Code::Pushfd | Code::Popfd => 4,
        _ => 8,
    };
    Some(match instruction.mnemonic() {
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => (flag::push, bytes(stack)),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => (flag::pop, bytes(stack)),
        Mnemonic::Lgdt => (table::load_gdt, bytes(natural)),
        Mnemonic::Lidt => (table::load_idt, bytes(natural)),
        Mnemonic::Sgdt => (table::store_gdt, bytes(natural)),
        Mnemonic::Sidt => (table::store_idt, bytes(natural)),
        Mnemonic::Lldt => (table::load_ldt, word),
        Mnemonic::Ltr => (table::load_task, word),
        Mnemonic::Sldt => (table::store_ldt, selector),
        Mnemonic::Str => (table::store_task, selector),
        Mnemonic::Lar => (segments::access_rights, source),
        Mnemonic::Lsl => (segments::limit, source),
        Mnemonic::Verr => (segments::verify_read, word),
        Mnemonic::Verw => (segments::verify_write, word),
        Mnemonic::Lmsw => (register::load_machine_status, word),
        Mnemonic::Smsw => (register::store_machine_status, selector),
        Mnemonic::Rdfsbase => (register::read_fs_base, selector),
        Mnemonic::Rdgsbase => (register::read_gs_base, selector),
        Mnemonic::Wrfsbase => (register::write_fs_base, selector),
        Mnemonic::Wrgsbase => (register::write_gs_base, selector),
        Mnemonic::Sysret => (syscall::leave, bytes(4)),
        Mnemonic::Sysretq => (syscall::leave, bytes(8)),
        Mnemonic::Sysexit => (syscall::fast_leave, bytes(4)),
        Mnemonic::Sysexitq => (syscall::fast_leave, bytes(8)),
        Mnemonic::Rdrand | Mnemonic::Rdseed => (identify::random, selector),
        _ => return None,
    })
}
