//! Instructions that load segment registers, and those that ask about segments.

use super::{
    super::{
        Core, Fault, Flow, Op,
        core::Access,
        flags::ZF,
        op::FLAT,
        segment::{
            SS,
            descriptor::{CODE, CONFORMING, Descriptor, MEMORY, OPEN, is_null},
            stack::Stack,
        },
    },
    Extra,
};

/// What follows a load: `ss` holds interrupts back over one instruction.
fn loaded(core: &mut Core, number: usize) -> Flow {
    if number == SS {
        core.events.shadow = true;
        return Flow::Sync;
    }
    Flow::Next
}

/// `mov` to a segment register.
pub(super) fn load(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let number = Extra::of(op).number as usize;
    if number == super::super::segment::CS {
        return Err(Fault::INVALID_OPCODE);
    }
    let selector = core.operand(op)? as u16;
    core.load_segment(number, selector)?;
    Ok(loaded(core, number))
}

/// `pop` to a segment register.
pub(super) fn pop(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let extra = Extra::of(op);
    let mut stack = Stack::current(core);
    let selector = stack.pop(core, extra.bytes.into())? as u16;
    core.load_segment(extra.number.into(), selector)?;
    stack.commit(core);
    Ok(loaded(core, extra.number.into()))
}

/// `lds`, `les`, `lss`, `lfs`, `lgs`.
pub(super) fn load_pointer(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let extra = Extra::of(op);
    let (offset, selector) = far_pointer(core, op, extra.bytes.into())?;
    core.load_segment(extra.number.into(), selector)?;
    match extra.bytes {
        2 => core.put::<u16>(op.a, offset as u16),
        4 => core.put::<u32>(op.a, offset as u32),
        _ => core.put::<u64>(op.a, offset),
    }
    Ok(Flow::Next)
}

/// Loads a far pointer from memory: an offset of `bytes`, then a selector.
pub(super) fn far_pointer(core: &mut Core, op: &Op, bytes: usize) -> Result<(u64, u16), Fault> {
    let offset = core.offset(&op.mem);
    let (first, second) = if op.mem.segment == FLAT {
        (offset, offset.wrapping_add(bytes as u64))
    } else {
        let segment = op.mem.segment;
        (
            core.linear_at(segment, offset, bytes, Access::Read)?,
            core.linear_at(segment, offset.wrapping_add(bytes as u64), 2, Access::Read)?,
        )
    };
    let offset = match bytes {
        2 => core.load::<u16>(first)?.into(),
        4 => core.load::<u32>(first)?.into(),
        _ => core.load::<u64>(first)?,
    };
    Ok((offset, core.load::<u16>(second)?))
}

/// The descriptor of a selector that is only asked about; `None` where there is nothing to see.
fn visible(core: &mut Core, selector: u16, kinds: &[u16]) -> Result<Option<Descriptor>, Fault> {
    if is_null(selector) {
        return Ok(None);
    }
    let Some(address) = core.descriptor_address(selector, 8) else {
        return Ok(None);
    };
    let descriptor = Descriptor(core.system_load::<u64>(address)?);
    let kind = descriptor.kind();
    let known = kind & MEMORY != 0 || kinds.contains(&kind);
    let conforming = kind & (MEMORY | CODE | CONFORMING) == MEMORY | CODE | CONFORMING;
    let open = conforming || descriptor.dpl() >= core.privilege.max(selector as u8 & 3);
    Ok((known && open).then_some(descriptor))
}

fn answer(core: &mut Core, op: &Op, value: Option<u32>) -> Result<Flow, Fault> {
    core.flags.replace(ZF, if value.is_some() { ZF } else { 0 });
    if let Some(value) = value {
        match Extra::of(op).bytes {
            2 => core.put::<u16>(op.a, value as u16),
            4 => core.put::<u32>(op.a, value),
            _ => core.put::<u64>(op.a, value.into()),
        }
    }
    Ok(Flow::Next)
}

fn asked_selector(core: &mut Core, op: &Op) -> Result<u16, Fault> {
    if !core.control.protected() {
        return Err(Fault::INVALID_OPCODE);
    }
    if Extra::of(op).memory {
        core.read::<u16>(&op.mem)
    } else {
        Ok(core.get::<u16>(op.b))
    }
}

/// `lar`.
pub(super) fn access_rights(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let selector = asked_selector(core, op)?;
    let kinds: &[u16] = if core.control.long() {
        &[0x2, 0x9, 0xb, 0xc]
    } else {
        &[0x1, 0x2, 0x3, 0x4, 0x5, 0x9, 0xb, 0xc]
    };
    let found = visible(core, selector, kinds)?;
    let rights = found.map(|it| (it.0 >> 32) as u32 & 0x00ff_ff00);
    answer(core, op, rights)
}

/// `lsl`.
pub(super) fn limit(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let selector = asked_selector(core, op)?;
    let kinds: &[u16] = if core.control.long() {
        &[0x2, 0x9, 0xb]
    } else {
        &[0x1, 0x2, 0x3, 0x9, 0xb]
    };
    let found = visible(core, selector, kinds)?;
    answer(core, op, found.map(Descriptor::limit))
}

fn verify(core: &mut Core, op: &Op, good: fn(u16) -> bool) -> Result<Flow, Fault> {
    if !core.control.protected() {
        return Err(Fault::INVALID_OPCODE);
    }
    let selector = core.operand(op)? as u16;
    let found = visible(core, selector, &[])?;
    let verified = found.is_some_and(|it| good(it.kind()));
    core.flags.replace(ZF, if verified { ZF } else { 0 });
    Ok(Flow::Next)
}

/// `verr`.
pub(super) fn verify_read(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    verify(core, op, |kind| kind & (CODE | OPEN) != CODE)
}

/// `verw`.
pub(super) fn verify_write(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    verify(core, op, |kind| kind & (CODE | OPEN) == OPEN)
}
