//! Operands larger than [`Core::find`] takes at once: up to a few hundred bytes.

use crate::soft::{Core, Fault, core::Access, memory::access::stack_fault, op::Mem};

/// Most that is moved at once.
const PIECE: usize = 64;
const PAGE: u64 = 0x1000;

/// Pieces of `bytes` at `linear`, none of which crosses the end of a page: address, and where it
/// begins and ends in the operand.
fn pieces(linear: u64, bytes: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == bytes {
            return None;
        }
        let at = linear.wrapping_add(done as u64);
        let start = done;
        let in_page = (PAGE - at % PAGE) as usize;
        done += (bytes - done).min(PIECE).min(in_page);
        Some((at, start, done))
    })
}

/// Where an operand lies.
///
/// # Errors
/// `#GP(0)` when it is not aligned, and what [`Core::linear`] raises.
pub(super) fn address(
    core: &Core,
    mem: &Mem,
    bytes: usize,
    alignment_mask: u64,
    access: Access,
) -> Result<u64, Fault> {
    let linear = core.linear(mem, bytes, access)?;
    if linear & alignment_mask != 0 {
        return Err(Fault::GP0);
    }
    Ok(linear)
}

/// Fills `data` from a linear address.
///
/// # Errors
/// What [`Core::find`] raises.
pub(super) fn load(core: &mut Core, mem: &Mem, linear: u64, data: &mut [u8]) -> Result<(), Fault> {
    for (at, start, end) in pieces(linear, data.len()) {
        let place = core
            .find(at, end - start, Access::Read)
            .map_err(|fault| stack_fault(mem, fault))?;
        core.copy_in(place, at, &mut data[start..end]);
    }
    Ok(())
}

/// Makes sure that a store to a linear address will succeed.
///
/// # Errors
/// What [`Core::find`] raises.
pub(super) fn probe(core: &mut Core, mem: &Mem, linear: u64, bytes: usize) -> Result<(), Fault> {
    for (at, start, end) in pieces(linear, bytes) {
        core.find(at, end - start, Access::Write)
            .map_err(|fault| stack_fault(mem, fault))?;
    }
    Ok(())
}

/// Stores `data` at a linear address, all of it or nothing.
///
/// # Errors
/// What [`Core::find`] raises.
pub(super) fn store(core: &mut Core, mem: &Mem, linear: u64, data: &[u8]) -> Result<(), Fault> {
    probe(core, mem, linear, data.len())?;
    for (at, start, end) in pieces(linear, data.len()) {
        let place = core.find(at, end - start, Access::Write)?;
        core.copy_out(place, at, &data[start..end]);
    }
    Ok(())
}
