//! `mxcsr`, fences, and the small rest that is no computation.

use std::sync::atomic::{Ordering, fence};

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind};

use crate::soft::{
    Core, Fault, Flow, Handler, Op,
    core::Access,
    memory::access::stack_fault,
    op::{NONE, Width},
    vector::{MXCSR_MASK, Unit},
};

/// The polynomial of `crc32` (CRC-32C), bits reversed.
const CASTAGNOLI: u32 = 0x82f6_3b78;

pub(super) fn select(instruction: &Instruction, width: Width) -> Option<Op> {
    let run: Handler = match instruction.mnemonic() {
        Mnemonic::Ldmxcsr => load_mxcsr::<false>,
        Mnemonic::Vldmxcsr => load_mxcsr::<true>,
        Mnemonic::Stmxcsr => store_mxcsr::<false>,
        Mnemonic::Vstmxcsr => store_mxcsr::<true>,
        Mnemonic::Lfence | Mnemonic::Mfence | Mnemonic::Sfence => order,
        Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2 => nothing,
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => flush_line,
        Mnemonic::Vzeroupper => zero_upper,
        Mnemonic::Vzeroall => zero_all,
        Mnemonic::Crc32 if is_byte(instruction) => crc32,
        _ => return None,
    };
    match instruction.encoding() {
        EncodingKind::Legacy | EncodingKind::VEX => Some(Op::new(instruction, width, run)),
        _ => None,
    }
}

fn is_byte(instruction: &Instruction) -> bool {
    match instruction.op1_kind() {
        OpKind::Register => instruction.op1_register().is_gpr8(),
        _ => instruction.memory_size().size() == 1,
    }
}

const fn unit(vex: bool) -> Unit {
    if vex { Unit::Avx } else { Unit::Sse }
}

fn load_mxcsr<const VEX: bool>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.vector.admit(unit(VEX))?;
    let value: u32 = core.read(&op.mem)?;
    if value & !MXCSR_MASK != 0 {
        return Err(Fault::GP0);
    }
    core.vector.state.mxcsr = value;
    Ok(Flow::Next)
}

fn store_mxcsr<const VEX: bool>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.vector.admit(unit(VEX))?;
    core.write(&op.mem, core.vector.state.mxcsr)?;
    Ok(Flow::Next)
}

fn order(_: &mut Core, _: &Op) -> Result<Flow, Fault> {
    fence(Ordering::SeqCst);
    Ok(Flow::Next)
}

fn nothing(_: &mut Core, _: &Op) -> Result<Flow, Fault> {
    Ok(Flow::Next)
}

/// Caches are coherent with everything the guest can see, so only the permission to read counts.
fn flush_line(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let linear = core.linear(&op.mem, 1, Access::Read)?;
    core.find(linear, 1, Access::Read)
        .map_err(|fault| stack_fault(&op.mem, fault))?;
    Ok(Flow::Next)
}

/// Registers that exist in code of this width.
pub(super) fn count(width: Width) -> usize {
    if width == Width::Code64 { 16 } else { 8 }
}

fn zero_upper(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::Avx)?;
    core.vector.state.ymm_high[..count(core.width)].fill([0; 16]);
    Ok(Flow::Next)
}

fn zero_all(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::Avx)?;
    core.vector.state.xmm[..count(core.width)].fill([0; 16]);
    core.vector.state.ymm_high[..count(core.width)].fill([0; 16]);
    Ok(Flow::Next)
}

/// `crc32` of one byte, whose high-byte registers no stub could name beside others.
fn crc32(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let byte: u8 = if op.b == NONE {
        core.read(&op.mem)?
    } else {
        core.get(op.b)
    };
    let sum = (0..8).fold(core.get::<u32>(op.a) ^ u32::from(byte), |sum, _| {
        sum >> 1 ^ CASTAGNOLI & (sum & 1).wrapping_neg()
    });
    core.put(op.a, u64::from(sum));
    Ok(Flow::Next)
}
