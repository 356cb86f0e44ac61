//! Long mode: gates of 16 bytes, stacks from the task state segment, always 64 bits wide (Intel SDM
//! 3A, 6.14).

use super::{Event, Source};
use crate::soft::{
    Core, Fault,
    flags::{IF, NT, RF, TF, VM},
    memory::{access::is_canonical, tlb::Context},
    segment::{
        CS, SS,
        descriptor::{BIG, Descriptor, LONG, PRESENT},
        load::null_stack,
        stack::Stack,
    },
};

const INTERRUPT: u16 = 0xe;
const TRAP: u16 = 0xf;

pub(super) fn deliver(core: &mut Core, event: Event) -> Result<(), Fault> {
    let refused = Fault::gp(event.gate_code());
    let offset = u64::from(event.vector) * 16;
    if offset + 15 > u64::from(core.tables.idt.limit) {
        return Err(refused);
    }
    let address = core.tables.idt.base.wrapping_add(offset);
    let gate = Descriptor(core.system_load(address)?);
    let high = core.system_load::<u64>(address.wrapping_add(8))?;
    let trap = match gate.kind() {
        INTERRUPT => false,
        TRAP => true,
        _ => return Err(refused),
    };
    if event.source == Source::Software && gate.dpl() < core.privilege {
        return Err(refused);
    }
    if !gate.has(PRESENT) {
        return Err(Fault::np(event.gate_code()));
    }
    let external = u16::from(event.source != Source::Software);
    let selector = (gate.0 >> 16) as u16;
    let code = super::protected::target_code(core, selector, external)?;
    if code.attributes & (LONG | BIG) != LONG {
        return Err(Fault::gp(selector & !3 | external));
    }
    let target = gate.0 & 0xffff | gate.0 >> 32 & 0xffff_0000 | high << 32;
    if !is_canonical(target) {
        return Err(Fault::gp(external));
    }
    let privilege = code.selector as u8 & 3;
    let inner = privilege < core.privilege;
    let ist = (gate.0 >> 32) as u8 & 7;
    let pointer = if ist != 0 {
        task_pointer(core, 0x24 + (u64::from(ist) - 1) * 8)?
    } else if inner {
        task_pointer(core, 4 + u64::from(privilege) * 8)?
    } else {
        core.regs[4]
    };
    let mut stack = Stack::wide(pointer & !0xf);
    let image = event.flags(core);
    let context = if inner {
        Context::Supervisor
    } else {
        core.tlb.context()
    };
    core.as_context(context, |core| {
        stack.push(core, 8, u64::from(core.segments[SS].selector))?;
        stack.push(core, 8, core.regs[4])?;
        stack.push(core, 8, image)?;
        stack.push(core, 8, u64::from(core.segments[CS].selector))?;
        stack.push(core, 8, core.rip())?;
        match event.code {
            Some(code) => stack.push(core, 8, u64::from(code)),
            None => Ok(()),
        }
    })?;
    if inner {
        core.segments[SS] = null_stack(u16::from(privilege));
    }
    core.regs[4] = stack.pointer;
    let cleared = TF | VM | RF | NT | if trap { 0 } else { IF };
    core.flags.replace(cleared, 0);
    core.set_code_segment(code);
    core.set_rip(target);
    Ok(())
}

/// A stack pointer from the 64-bit task state segment.
pub(in crate::soft) fn task_pointer(core: &mut Core, offset: u64) -> Result<u64, Fault> {
    let task = core.tables.task;
    if offset + 7 > u64::from(task.limit) {
        return Err(Fault::ts(task.selector & !3));
    }
    let pointer = core.system_load::<u64>(task.base.wrapping_add(offset))?;
    if !is_canonical(pointer) {
        return Err(Fault::ss(0));
    }
    Ok(pointer)
}
