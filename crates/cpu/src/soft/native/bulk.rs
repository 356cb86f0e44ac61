//! Operands larger than [`Core::find`] takes at once: up to a few hundred bytes.

use crate::soft::{
    Core, Fault,
    core::{Access, Place},
    memory::access::stack_fault,
    op::Mem,
};

/// Most that [`Core::find`] looks at and [`Core::copy_out`] moves at once.
const PIECE: usize = 64;
const PAGE: u64 = 0x1000;

/// The parts of `bytes` at `linear` by page: address, and where it begins and ends in the operand.
/// What may be done to one byte of a page may be done to all.
fn parts(linear: u64, bytes: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == bytes {
            return None;
        }
        let at = linear.wrapping_add(done as u64);
        let start = done;
        done += (bytes - done).min((PAGE - at % PAGE) as usize);
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

fn find(core: &mut Core, mem: &Mem, at: u64, access: Access) -> Result<Place, Fault> {
    core.find(at, 1, access)
        .map_err(|fault| stack_fault(mem, fault))
}

/// Fills `data` from a linear address.
///
/// # Errors
/// What [`Core::find`] raises.
pub(super) fn load(core: &mut Core, mem: &Mem, linear: u64, data: &mut [u8]) -> Result<(), Fault> {
    for (at, start, end) in parts(linear, data.len()) {
        let part = &mut data[start..end];
        match find(core, mem, at, Access::Read)? {
            // SAFETY: RAM is mapped in whole pages, and the part does not leave its page.
            Place::Ram(host) => unsafe {
                std::ptr::copy_nonoverlapping(host.as_ptr(), part.as_mut_ptr(), part.len());
            },
            Place::Device(physical) | Place::Split(physical, _) => {
                for (offset, piece) in (physical..).step_by(PIECE).zip(part.chunks_mut(PIECE)) {
                    core.physical_read(offset, piece);
                }
            }
        }
    }
    Ok(())
}

/// Makes sure that a store to a linear address will succeed.
///
/// # Errors
/// What [`Core::find`] raises.
pub(super) fn probe(core: &mut Core, mem: &Mem, linear: u64, bytes: usize) -> Result<(), Fault> {
    for (at, ..) in parts(linear, bytes) {
        find(core, mem, at, Access::Write)?;
    }
    Ok(())
}

/// Stores `data` at a linear address, all of it or nothing.
///
/// # Errors
/// What [`Core::find`] raises.
pub(super) fn store(core: &mut Core, mem: &Mem, linear: u64, data: &[u8]) -> Result<(), Fault> {
    probe(core, mem, linear, data.len())?;
    for (at, start, end) in parts(linear, data.len()) {
        let part = &data[start..end];
        match find(core, mem, at, Access::Write)? {
            // SAFETY: as in `load`.
            Place::Ram(host) => unsafe {
                std::ptr::copy_nonoverlapping(part.as_ptr(), host.as_ptr(), part.len());
            },
            Place::Device(physical) | Place::Split(physical, _) => {
                for (offset, piece) in (physical..).step_by(PIECE).zip(part.chunks(PIECE)) {
                    core.physical_write(offset, piece);
                }
            }
        }
    }
    Ok(())
}
