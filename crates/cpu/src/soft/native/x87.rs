//! x87 control: environment, control and status words (Intel SDM 1, 8.1). Written in Rust, since
//! the host's unit would show addresses of the host here.

use iced_x86::{Instruction, Mnemonic};

use super::bulk;
use crate::soft::{
    Core, Fault, Flow, Handler, Op,
    core::Access,
    op::{NONE, Width},
    vector::{Unit, VectorState},
};

const FCW_INITIAL: u16 = 0x37f;
const FCW_MASKS: u16 = 0x3f;
/// What can be set in the control word, and what always is.
const FCW_KNOWN: u16 = 0x1f3f;
const FCW_FIXED: u16 = 0x40;
/// What `fnclex` leaves of the status word: conditions and the top of the stack.
const FSW_CONDITIONS: u16 = 0x7f00;
/// Bytes of eight registers as `fnsave` stores them.
const STACK_BYTES: usize = 80;

pub(super) fn select(instruction: &Instruction, width: Width) -> Option<Op> {
    let run: Handler = match instruction.mnemonic() {
        Mnemonic::Fldcw => load_control,
        Mnemonic::Fnstcw => store_control,
        Mnemonic::Fnstsw => store_status,
        Mnemonic::Fnclex => clear,
        Mnemonic::Fninit => initialize,
        Mnemonic::Fnstenv | Mnemonic::Fnsave => store_environment,
        Mnemonic::Fldenv | Mnemonic::Frstor => load_environment,
        Mnemonic::Fneni | Mnemonic::Fndisi | Mnemonic::Fnsetpm => nothing,
        Mnemonic::Wait => wait,
        Mnemonic::Emms => empty,
        _ => return None,
    };
    let mut op = Op::new(instruction, width, run);
    op.extra = u32::try_from(instruction.memory_size().size()).ok()?;
    Some(op)
}

fn load_control(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::X87)?;
    core.vector.state.check_pending()?;
    let word: u16 = core.read(&op.mem)?;
    set_control(&mut core.vector.state, word);
    Ok(Flow::Next)
}

fn set_control(state: &mut VectorState, word: u16) {
    state.fcw = word & FCW_KNOWN | FCW_FIXED;
    state.summarize();
}

fn store_control(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::X87)?;
    core.write(&op.mem, core.vector.state.fcw)?;
    Ok(Flow::Next)
}

fn store_status(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::X87)?;
    let word = core.vector.state.fsw;
    if op.a == NONE {
        core.write(&op.mem, word)?;
    } else {
        core.put(op.a, word);
    }
    Ok(Flow::Next)
}

fn clear(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::X87)?;
    core.vector.state.fsw &= FSW_CONDITIONS;
    Ok(Flow::Next)
}

fn initialize(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::X87)?;
    reset(&mut core.vector.state);
    Ok(Flow::Next)
}

fn reset(state: &mut VectorState) {
    set_status(state, 0);
    state.fcw = FCW_INITIAL;
    state.ftw = 0;
    (state.fop, state.fip, state.fdp) = (0, 0, 0);
}

fn nothing(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::X87)?;
    Ok(Flow::Next)
}

fn wait(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::Wait)?;
    core.vector.state.check_pending()?;
    Ok(Flow::Next)
}

fn empty(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::Mmx)?;
    core.vector.state.check_pending()?;
    core.vector.state.enter_mmx();
    core.vector.state.ftw = 0;
    Ok(Flow::Next)
}

fn top(status: u16) -> usize {
    usize::from(status >> 11 & 7)
}

/// Sets the status word. Registers are kept by their distance from the top, so they move with it.
fn set_status(state: &mut VectorState, status: u16) {
    let distance = top(status).wrapping_sub(top(state.fsw)) & 7;
    state.st.rotate_left(distance);
    state.fsw = status;
}

/// The tag word in full: two bits for each physical register.
fn tags(state: &VectorState) -> u16 {
    (0..8usize).fold(0, |word, physical| {
        let register = &state.st[physical.wrapping_sub(top(state.fsw)) & 7];
        let exponent = u16::from_le_bytes([register[8], register[9]]) & 0x7fff;
        let zero = register[..8].iter().all(|&it| it == 0);
        let tag = match exponent {
            _ if state.ftw >> physical & 1 == 0 => 3,
            0 if zero => 1,
            0 | 0x7fff => 2,
            _ if register[7] & 0x80 == 0 => 2,
            _ => 0,
        };
        word | tag << (2 * physical)
    })
}

/// `fnstenv` and `fnsave`; the latter has the registers too and initializes the unit.
fn store_environment(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::X87)?;
    let mut image = [0; 28 + STACK_BYTES];
    let bytes = op.extra as usize;
    let (environment, whole) = parts(bytes);
    let state = &core.vector.state;
    if environment == 28 {
        let high = 0xffff_0000u32;
        let words = [
            u32::from(state.fcw) | high,
            u32::from(state.fsw) | high,
            u32::from(tags(state)) | high,
            state.fip as u32,
            u32::from(state.fop) << 16,
            state.fdp as u32,
            high,
        ];
        for (to, from) in image.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&from.to_le_bytes());
        }
    } else {
        let words = [
            state.fcw,
            state.fsw,
            tags(state),
            state.fip as u16,
            0,
            state.fdp as u16,
            0,
        ];
        for (to, from) in image.chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&from.to_le_bytes());
        }
    }
    if whole {
        let stack = image[environment..].chunks_exact_mut(10);
        for (to, from) in stack.zip(&state.st) {
            to.copy_from_slice(&from[..10]);
        }
    }
    let linear = bulk::address(core, &op.mem, bytes, 0, Access::Write)?;
    bulk::store(core, &op.mem, linear, &image[..bytes])?;
    let state = &mut core.vector.state;
    if whole {
        reset(state);
    } else {
        set_control(state, state.fcw | FCW_MASKS);
    }
    Ok(Flow::Next)
}

/// The bytes of the environment in an operand of this size, and whether registers follow.
fn parts(bytes: usize) -> (usize, bool) {
    match bytes.checked_sub(STACK_BYTES) {
        Some(environment) => (environment, true),
        None => (bytes, false),
    }
}

/// `fldenv` and `frstor`.
fn load_environment(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::X87)?;
    core.vector.state.check_pending()?;
    let mut image = [0; 28 + STACK_BYTES];
    let bytes = op.extra as usize;
    let (environment, whole) = parts(bytes);
    let linear = bulk::address(core, &op.mem, bytes, 0, Access::Read)?;
    bulk::load(core, &op.mem, linear, &mut image[..bytes])?;
    let step = environment / 7;
    let word = |index: usize| u16::from_le_bytes([image[step * index], image[step * index + 1]]);
    let state = &mut core.vector.state;
    set_status(state, word(1));
    set_control(state, word(0));
    state.ftw = (0..8).fold(0, |all, it| {
        all | u8::from(word(2) >> (2 * it) & 3 != 3) << it
    });
    (state.fop, state.fip, state.fdp) = (0, 0, 0);
    if whole {
        let stack = image[environment..].chunks_exact(10);
        for (to, from) in state.st.iter_mut().zip(stack) {
            to[..10].copy_from_slice(from);
        }
    }
    Ok(Flow::Next)
}
