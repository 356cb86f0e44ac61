//! `syscall` and its kin: transfers between ring 3 and ring 0 without tables (AMD APM 2, 6.1; Intel
//! SDM 2B).

use super::{
    super::{
        Core, Fault, Flow, Op, core::Segment, flags, memory::access::is_canonical, op::Width,
        segment::SS,
    },
    Extra,
    control::EFER_SCE,
};

const RCX: u8 = 1;
const RDX: u8 = 2;
const RSP: u8 = 4;
const R11: u8 = 11;
/// Flags that `sysret` restores.
const RESTORED: u64 = 0x3c_7fd7;

fn flat(selector: u16, attributes: u16) -> Segment {
    Segment {
        selector,
        attributes,
        limit: u32::MAX,
        base: 0,
    }
}

fn code(selector: u16, long: bool, ring: u16) -> Segment {
    let size = if long { 0xa09b } else { 0xc09b };
    flat(selector | ring, size | ring << 5)
}

fn data(selector: u16, ring: u16) -> Segment {
    flat(selector | ring, 0xc093 | ring << 5)
}

/// `syscall`.
pub(super) fn enter(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    if core.control.efer & EFER_SCE == 0 || !core.control.protected() {
        return Err(Fault::INVALID_OPCODE);
    }
    let next = core.next_rip(op);
    let selector = (core.msrs.star >> 32) as u16 & !3;
    if core.control.long() {
        let image = core.flags.get() & !flags::RF;
        let target = if core.width == Width::Code64 {
            core.msrs.lstar
        } else {
            core.msrs.cstar
        };
        core.put::<u64>(RCX, next);
        core.put::<u64>(R11, image);
        core.flags.set(image & !core.msrs.sfmask);
        core.set_rip(target);
    } else {
        core.put::<u32>(RCX, next as u32);
        core.flags.replace(flags::IF | flags::VM | flags::RF, 0);
        core.set_rip(core.msrs.star & 0xffff_ffff);
    }
    core.segments[SS] = data(selector + 8, 0);
    let long = core.control.long();
    core.set_code_segment(code(selector, long, 0));
    Ok(Flow::SyncBranch)
}

/// `sysret`.
pub(super) fn leave(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    if core.control.efer & EFER_SCE == 0 || !core.control.protected() {
        return Err(Fault::INVALID_OPCODE);
    }
    core.demand_ring0()?;
    let selector = (core.msrs.star >> 48) as u16 & !3;
    let wide = Extra::of(op).bytes == 8;
    let target = core.get::<u64>(RCX);
    if core.control.long() {
        let image = core.get::<u64>(R11) & RESTORED;
        core.flags.set(image);
    } else {
        core.flags.replace(flags::IF, flags::IF);
    }
    core.segments[SS] = data(selector + 8, 3);
    if wide {
        core.set_rip(target);
        core.set_code_segment(code(selector + 16, true, 3));
    } else {
        core.set_rip(target & 0xffff_ffff);
        core.set_code_segment(code(selector, false, 3));
    }
    Ok(Flow::SyncBranch)
}

/// `sysenter`.
pub(super) fn fast_enter(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    let selector = core.msrs.sysenter_cs as u16 & !3;
    if !core.control.protected() || selector == 0 {
        return Err(Fault::GP0);
    }
    let long = core.control.long();
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    core.flags.replace(flags::IF | flags::VM | flags::RF, 0);
    core.set_rip(core.msrs.sysenter_eip & mask);
    core.put::<u64>(RSP, core.msrs.sysenter_esp & mask);
    core.segments[SS] = data(selector + 8, 0);
    core.set_code_segment(code(selector, long, 0));
    Ok(Flow::SyncBranch)
}

/// `sysexit`.
pub(super) fn fast_leave(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let selector = core.msrs.sysenter_cs as u16 & !3;
    if !core.control.protected() || selector == 0 {
        return Err(Fault::GP0);
    }
    core.demand_ring0()?;
    let wide = Extra::of(op).bytes == 8;
    let (target, pointer) = (core.get::<u64>(RDX), core.get::<u64>(RCX));
    if wide && !(is_canonical(target) && is_canonical(pointer)) {
        return Err(Fault::GP0);
    }
    let (mask, base) = if wide {
        (u64::MAX, selector + 32)
    } else {
        (0xffff_ffff, selector + 16)
    };
    core.set_rip(target & mask);
    core.put::<u64>(RSP, pointer & mask);
    core.segments[SS] = data(base + 8, 3);
    core.set_code_segment(code(base, wide, 3));
    Ok(Flow::SyncBranch)
}
