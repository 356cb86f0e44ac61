//! Instructions that belong to no other family, most of them of ring 0.

use super::super::{Core, Fault, Flow, Op};

/// The host processor is given away once in so many pauses.
const PAUSES: u32 = 256;
/// What KVM answers to a hypercall it does not know: `-KVM_ENOSYS`.
const UNKNOWN_HYPERCALL: u64 = -1000_i64 as u64;

/// `hlt`.
pub(super) fn halt(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    core.demand_ring0()?;
    core.events.halted = true;
    Ok(Flow::Sync)
}

/// `pause`: whoever spins on one gives its host processor away now and then, as what it waits for
/// may be another vCPU without one.
pub(super) fn pause(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    core.events.pauses = core.events.pauses.wrapping_add(1);
    if core.events.pauses.is_multiple_of(PAUSES) {
        std::thread::yield_now();
    }
    Ok(Flow::Next)
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
