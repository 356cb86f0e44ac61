//! Flags that need privilege, and the whole flags register through the stack.

use super::{
    super::{
        Core, Fault, Flow, Op,
        flags::{AC, IF, IOPL, NT, RF, TF, VM},
        op::Width,
        segment::stack::{Stack, changeable_flags},
    },
    Extra,
};

impl Core {
    fn may_change_interrupts(&self) -> Result<(), Fault> {
        let iopl = ((self.flags.get() & IOPL) >> 12) as u8;
        if self.control.protected() && self.privilege > iopl {
            return Err(Fault::GP0);
        }
        Ok(())
    }
}

/// `cli`.
pub(super) fn clear_interrupt(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    core.may_change_interrupts()?;
    core.flags.replace(IF, 0);
    Ok(Flow::Next)
}

/// `sti`: when it turns interrupts on, the next instruction runs before any of them.
pub(super) fn set_interrupt(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    core.may_change_interrupts()?;
    if core.flags.any(IF) {
        return Ok(Flow::Next);
    }
    core.flags.replace(IF, IF);
    core.events.shadow = true;
    Ok(Flow::Sync)
}

/// `clac`.
pub(super) fn clear_access(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    if core.privilege != 0 {
        return Err(Fault::INVALID_OPCODE);
    }
    core.flags.replace(AC, 0);
    core.refresh_context();
    Ok(Flow::Next)
}

/// `stac`.
pub(super) fn set_access(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    if core.privilege != 0 {
        return Err(Fault::INVALID_OPCODE);
    }
    core.flags.replace(AC, AC);
    core.refresh_context();
    Ok(Flow::Next)
}

/// `pushf`.
pub(super) fn push(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let image = core.flags.get() & !(RF | VM);
    let mut stack = Stack::current(core);
    stack.push(core, Extra::of(op).bytes.into(), image)?;
    stack.commit(core);
    Ok(Flow::Next)
}

/// `popf`.
pub(super) fn pop(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let bytes = Extra::of(op).bytes;
    let mut stack = Stack::current(core);
    let image = stack.pop(core, bytes.into())?;
    let interrupts = core.flags.any(IF);
    let mut mask = changeable_flags(core);
    if bytes == 2 {
        mask &= 0xffff;
    }
    core.flags.replace(mask, image);
    stack.commit(core);
    core.refresh_context();
    debug_assert!(core.width != Width::Code64 || bytes != 4);
    let turned_on = !interrupts && core.flags.any(IF);
    if turned_on || core.flags.any(TF | NT) {
        return Ok(Flow::Sync);
    }
    Ok(Flow::Next)
}
