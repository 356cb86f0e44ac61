//! `fxsave`, `xsave` and their counterparts (Intel SDM 1, 10.5 and 13.7 to 13.9), over the state in
//! memory. Only the standard form of XSAVE areas is known: a guest's CPUID must not show XSAVEC
//! and XSAVES.

use std::ops::Range;

use iced_x86::{Instruction, Mnemonic};

use super::{bulk, control::count};
use crate::soft::{
    Core, Fault, Flow, Handler, Op,
    core::Access,
    op::Width,
    vector::{AREA_BYTES, HEADER, MXCSR_MASK, Unit, VectorState, YMM_HIGH, array},
};

/// Components.
const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;

/// Offsets in an area.
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;

pub(super) fn select(instruction: &Instruction, width: Width) -> Option<Op> {
    let run: Handler = match instruction.mnemonic() {
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => fxsave,
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => fxrstor,
        Mnemonic::Xsave | Mnemonic::Xsave64 => xsave::<false>,
        Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => xsave::<true>,
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => xrstor,
        _ => return None,
    };
    Some(Op::new(instruction, width, run))
}

fn xmm_end(width: Width) -> usize {
    XMM + 16 * count(width)
}

fn fxsave(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    // The same rules as for x87, but a pending exception does not count.
    core.vector.admit(Unit::X87)?;
    let bytes = xmm_end(core.width);
    let linear = bulk::address(core, &op.mem, HEADER, 15, Access::Write)?;
    let area = *core.vector.state.area();
    bulk::store(core, &op.mem, linear, &area[..bytes])?;
    Ok(Flow::Next)
}

fn fxrstor(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::X87)?;
    let mut area = [0; HEADER];
    let linear = bulk::address(core, &op.mem, HEADER, 15, Access::Read)?;
    bulk::load(core, &op.mem, linear, &mut area)?;
    let mxcsr = u32::from_le_bytes(array(&area, MXCSR));
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(Fault::GP0);
    }
    let registers = count(core.width);
    let state = &mut core.vector.state;
    state.set_x87(&area);
    state.mxcsr = mxcsr;
    load_xmm(state, &area, registers);
    Ok(Flow::Next)
}

fn load_xmm(state: &mut VectorState, area: &[u8], registers: usize) {
    for (index, register) in state.xmm[..registers].iter_mut().enumerate() {
        *register = array(area, XMM + 16 * index);
    }
}

/// The components an instruction is asked for: `edx:eax`, as far as they are on.
fn requested(core: &Core) -> u64 {
    let asked = core.get::<u64>(2) << 32 | u64::from(core.get::<u32>(0));
    asked & core.vector.xcr0()
}

/// Components that may not be in their initial state. Saying so of x87 and SSE always is allowed.
fn in_use(state: &VectorState) -> u64 {
    let upper = state.ymm_high != [[0; 16]; 16];
    X87 | SSE | if upper { AVX } else { 0 }
}

/// `xsave`, and `xsaveopt`, which leaves out what is in its initial state.
fn xsave<const OPTIMIZED: bool>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::Xsave)?;
    let linear = bulk::address(core, &op.mem, AREA_BYTES, 63, Access::Write)?;
    let requested = requested(core);
    let registers = count(core.width);
    let state = core.vector.state.clone();
    let area = state.area();
    let in_use = in_use(&state) & requested;
    let written = if OPTIMIZED { in_use } else { requested };
    let end = if written & AVX != 0 {
        YMM_HIGH + 16 * registers
    } else {
        HEADER + 8
    };
    // What is there, changed where it is to be, and all of it stored again; where that cannot be
    // stored, nothing is.
    bulk::probe(core, &op.mem, linear, end)?;
    let mut image = [0; AREA_BYTES];
    bulk::load(core, &op.mem, linear, &mut image[..end])?;
    let present: u64 = u64::from_le_bytes(array(&image, HEADER)) & !requested | in_use;
    let mut put = |range: Range<usize>| image[range.clone()].copy_from_slice(&area[range]);
    if written & X87 != 0 {
        put(0..MXCSR);
        put(ST..XMM);
    }
    if requested & (SSE | AVX) != 0 {
        put(MXCSR..ST);
    }
    if written & SSE != 0 {
        put(XMM..XMM + 16 * registers);
    }
    if written & AVX != 0 {
        put(YMM_HIGH..end);
    }
    image[HEADER..HEADER + 8].copy_from_slice(&present.to_le_bytes());
    bulk::store(core, &op.mem, linear, &image[..end])?;
    Ok(Flow::Next)
}

fn xrstor(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::Xsave)?;
    let linear = bulk::address(core, &op.mem, AREA_BYTES, 63, Access::Read)?;
    let requested = requested(core);
    let registers = count(core.width);
    let mut area = [0; AREA_BYTES];
    bulk::load(core, &op.mem, linear, &mut area[..YMM_HIGH])?;
    let present = u64::from_le_bytes(array(&area, HEADER));
    // The compacted form is among what makes the second word other than zero.
    let reserved: [u8; 16] = array(&area, HEADER + 8);
    let mxcsr = u32::from_le_bytes(array(&area, MXCSR));
    let takes_mxcsr = requested & (SSE | AVX) != 0;
    if present & !core.vector.xcr0() != 0
        || reserved != [0; 16]
        || takes_mxcsr && mxcsr & !MXCSR_MASK != 0
    {
        return Err(Fault::GP0);
    }
    let loaded = requested & present;
    if loaded & AVX != 0 {
        let upper = linear.wrapping_add(YMM_HIGH as u64);
        let end = YMM_HIGH + 16 * registers;
        bulk::load(core, &op.mem, upper, &mut area[YMM_HIGH..end])?;
    }
    let state = &mut core.vector.state;
    let initial = VectorState::default();
    if requested & X87 != 0 {
        let from = if loaded & X87 != 0 {
            &area
        } else {
            initial.area()
        };
        state.set_x87(from);
    }
    if takes_mxcsr {
        state.mxcsr = mxcsr;
    }
    if requested & SSE != 0 {
        let from = if loaded & SSE != 0 {
            &area
        } else {
            initial.area()
        };
        load_xmm(state, from, registers);
    }
    if requested & AVX != 0 {
        // Where it is not loaded, `area` holds zeros there.
        for (index, register) in state.ymm_high[..registers].iter_mut().enumerate() {
            *register = array(&area, YMM_HIGH + 16 * index);
        }
    }
    Ok(Flow::Next)
}
