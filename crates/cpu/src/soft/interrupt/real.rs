//! Real mode: a table of far pointers.

use super::Event;
use crate::soft::{
    Core, Fault,
    core::Segment,
    flags::{AC, IF, TF},
    segment::{CS, stack::Stack},
};

pub(super) fn deliver(core: &mut Core, event: Event) -> Result<(), Fault> {
    let offset = u64::from(event.vector) * 4;
    if offset + 3 > u64::from(core.tables.idt.limit) {
        return Err(Fault::gp(event.gate_code()));
    }
    let target = core.system_load::<u32>(core.tables.idt.base.wrapping_add(offset))?;
    let mut stack = Stack::current(core);
    let image = core.flags.get();
    stack.push(core, 2, image)?;
    stack.push(core, 2, u64::from(core.segments[CS].selector))?;
    stack.push(core, 2, core.rip())?;
    stack.commit(core);
    core.flags.replace(IF | TF | AC, 0);
    let selector = (target >> 16) as u16;
    core.set_code_segment(Segment {
        selector,
        base: u64::from(selector) << 4,
        ..core.segments[CS]
    });
    core.set_rip(u64::from(target & 0xffff));
    Ok(())
}
