//! 32-bit protected mode: gates of 8 bytes, stacks of inner privilege from the task state segment
//! (Intel SDM 3A, 6.12). Task gates are refused with `#GP`: no operating system of this century
//! uses them for more than a double fault it does not survive.

use super::{Event, Source};
use crate::soft::{
    Core, Fault,
    core::Segment,
    flags::{IF, NT, RF, TF, VM},
    memory::tlb::Context,
    segment::{
        CS, SS,
        descriptor::{CONFORMING, Descriptor, PRESENT, is_null},
        stack::Stack,
    },
};

const INTERRUPT_16: u16 = 0x6;
const TRAP_16: u16 = 0x7;
const INTERRUPT_32: u16 = 0xe;
const TRAP_32: u16 = 0xf;

pub(super) fn deliver(core: &mut Core, event: Event) -> Result<(), Fault> {
    let refused = Fault::gp(event.gate_code());
    let offset = u64::from(event.vector) * 8;
    if offset + 7 > u64::from(core.tables.idt.limit) {
        return Err(refused);
    }
    let gate = Descriptor(core.system_load(core.tables.idt.base.wrapping_add(offset))?);
    let (bytes, trap) = match gate.kind() {
        INTERRUPT_16 => (2, false),
        TRAP_16 => (2, true),
        INTERRUPT_32 => (4, false),
        TRAP_32 => (4, true),
        _ => return Err(refused),
    };
    if event.source == Source::Software && gate.dpl() < core.privilege {
        return Err(refused);
    }
    if !gate.has(PRESENT) {
        return Err(Fault::np(event.gate_code()));
    }
    let external = u16::from(event.source != Source::Software);
    let code = target_code(core, (gate.0 >> 16) as u16, external)?;
    let target = if bytes == 4 {
        gate.0 & 0xffff | gate.0 >> 32 & 0xffff_0000
    } else {
        gate.0 & 0xffff
    };
    let inner = (code.selector as u8 & 3) < core.privilege;
    let privilege = code.selector as u8 & 3;
    let (mut stack, segment) = if inner {
        let (stack, segment) = inner_stack(core, privilege)?;
        (stack, Some(segment))
    } else {
        (Stack::current(core), None)
    };
    let old = (core.segments[SS].selector, core.regs[4]);
    let image = event.flags(core);
    let context = if inner {
        Context::Supervisor
    } else {
        core.tlb.context()
    };
    core.as_context(context, |core| {
        if inner {
            stack.push(core, bytes, u64::from(old.0))?;
            stack.push(core, bytes, old.1)?;
        }
        stack.push(core, bytes, image)?;
        stack.push(core, bytes, u64::from(core.segments[CS].selector))?;
        stack.push(core, bytes, core.rip())?;
        match event.code {
            Some(code) => stack.push(core, bytes, u64::from(code)),
            None => Ok(()),
        }
    })?;
    if let Some(segment) = segment {
        core.segments[SS] = segment;
        core.regs[4] = stack.pointer;
    } else {
        stack.commit(core);
    }
    let cleared = TF | VM | RF | NT | if trap { 0 } else { IF };
    core.flags.replace(cleared, 0);
    core.set_code_segment(code);
    core.set_rip(target);
    Ok(())
}

/// The code segment a gate leads to, with the privilege its handler will have.
pub(super) fn target_code(core: &mut Core, selector: u16, external: u16) -> Result<Segment, Fault> {
    if is_null(selector) {
        return Err(Fault::gp(external));
    }
    let refuse = Fault::gp(selector & !3 | external);
    let address = core.descriptor_address(selector, 8).ok_or(refuse)?;
    let descriptor = Descriptor(core.system_load::<u64>(address)?);
    if !descriptor.is_code() || descriptor.dpl() > core.privilege {
        return Err(refuse);
    }
    if !descriptor.has(PRESENT) {
        return Err(Fault::np(selector & !3 | external));
    }
    let privilege = if descriptor.has(CONFORMING) {
        core.privilege
    } else {
        descriptor.dpl()
    };
    let descriptor = core.mark_accessed(selector, descriptor)?;
    Ok(descriptor.segment(selector & !3 | u16::from(privilege)))
}

/// The stack for an inner privilege, from a 32-bit or 16-bit task state segment.
pub(in crate::soft) fn inner_stack(
    core: &mut Core,
    privilege: u8,
) -> Result<(Stack, Segment), Fault> {
    let task = core.tables.task;
    let refused = Fault::ts(task.selector & !3);
    let number = u64::from(privilege);
    let wide = task.attributes & 8 != 0;
    let (offset, bytes) = if wide {
        (4 + number * 8, 8)
    } else {
        (2 + number * 4, 4)
    };
    if offset + bytes - 1 > u64::from(task.limit) {
        return Err(refused);
    }
    let address = task.base.wrapping_add(offset);
    let (pointer, selector) = if wide {
        (
            u64::from(core.system_load::<u32>(address)?),
            core.system_load::<u16>(address.wrapping_add(4))?,
        )
    } else {
        (
            u64::from(core.system_load::<u16>(address)?),
            core.system_load::<u16>(address.wrapping_add(2))?,
        )
    };
    let segment = core.stack_segment(selector, privilege, Fault::ts)?;
    Ok((Stack::segmented(pointer, segment), segment))
}
