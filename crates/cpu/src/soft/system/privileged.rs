//! Instructions of ring 0 that belong to no other family.

use super::super::{Core, Fault, Flow, Op};

/// What KVM answers to a hypercall it does not know: `-KVM_ENOSYS`.
const UNKNOWN_HYPERCALL: u64 = -1000_i64 as u64;

/// `hlt`.
pub(super) fn halt(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    core.demand_ring0()?;
    core.events.halted = true;
    Ok(Flow::Sync)
}

/// `invlpg`.
pub(super) fn invalidate_page(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.demand_ring0()?;
    let offset = core.offset(&op.mem);
    let linear = match op.mem.segment {
        super::super::op::FLAT => offset,
        segment => core.segments[segment as usize % 6]
            .base
            .wrapping_add(offset),
    };
    core.tlb.flush_page(linear);
    Ok(Flow::Sync)
}

/// `invd`, `wbinvd`: guest memory is coherent.
pub(super) fn flush_caches(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    core.demand_ring0()?;
    Ok(Flow::Next)
}

/// `rdpmc`: there are no counters.
pub(super) fn read_counter(_: &mut Core, _: &Op) -> Result<Flow, Fault> {
    Err(Fault::GP0)
}

/// `vmcall`, `vmmcall`: no hypercall is offered.
pub(super) fn hypercall(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    core.put::<u64>(0, UNKNOWN_HYPERCALL);
    Ok(Flow::Next)
}
