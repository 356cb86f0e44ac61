//! Instructions that tell what the processor is and what time it is, and random numbers.

use super::{
    super::{
        Core, Fault, Flow, Op,
        flags::{CF, STATUS},
    },
    Extra,
    control::{CR4_OSXSAVE, CR4_TSD},
};

const OSXSAVE: u32 = 1 << 27;

/// `cpuid`: the table, but for what control registers decide.
pub(super) fn cpuid(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    let (leaf, subleaf) = (core.get::<u32>(0), core.get::<u32>(1));
    let mut found = core.platform.cpuid.lookup(leaf, subleaf);
    match (leaf, subleaf) {
        (1, _) => {
            found.ecx &= !OSXSAVE;
            if core.control.cr4 & CR4_OSXSAVE != 0 {
                found.ecx |= OSXSAVE;
            }
        }
        // Bytes of an XSAVE area with what is on now.
        (0xd, 0) => found.ebx = if core.control.xcr0 & 4 != 0 { 832 } else { 576 },
        _ => {}
    }
    core.put::<u32>(0, found.eax);
    core.put::<u32>(3, found.ebx);
    core.put::<u32>(1, found.ecx);
    core.put::<u32>(2, found.edx);
    Ok(Flow::Next)
}

fn demand_clock(core: &Core) -> Result<(), Fault> {
    if core.control.cr4 & CR4_TSD != 0 && core.privilege != 0 {
        return Err(Fault::GP0);
    }
    Ok(())
}

/// `rdtsc`.
pub(super) fn read_clock(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    demand_clock(core)?;
    let now = core.platform.tsc.now();
    core.put::<u32>(0, now as u32);
    core.put::<u32>(2, (now >> 32) as u32);
    Ok(Flow::Next)
}

/// `rdtscp`.
pub(super) fn read_clock_and_id(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    read_clock(core, op)?;
    let id = core.msrs.tsc_aux;
    core.put::<u32>(1, id as u32);
    Ok(Flow::Next)
}

/// `rdpid`.
pub(super) fn read_id(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let id = core.msrs.tsc_aux;
    core.put::<u64>(op.a, id);
    Ok(Flow::Next)
}

/// `rdrand`, `rdseed`: from the host kernel's generator. Should it fail, carry says so, as a
/// processor's does.
pub(super) fn random(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let mut bytes = [0u8; 8];
    // SAFETY: the kernel writes at most as many bytes as there are.
    let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    let good = filled == bytes.len() as isize;
    let value = if good { u64::from_le_bytes(bytes) } else { 0 };
    debug_assert!(!Extra::of(op).memory);
    core.set_operand(op, value)?;
    core.flags.replace(STATUS, if good { CF } else { 0 });
    Ok(Flow::Next)
}
