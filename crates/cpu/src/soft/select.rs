//! Which handler executes an instruction.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use iced_x86::{Instruction, Mnemonic};

use super::{Core, Fault, Flow, Op, integer, native, op::Width, system};

type Select = fn(&Instruction, Width) -> Option<Op>;

/// The modules that know instructions, in the order they are asked. Add yours here.
const MODULES: &[Select] = &[system::select, integer::select, native::select];

static UNKNOWN: AtomicU64 = AtomicU64::new(0);
static LAST_UNKNOWN: Mutex<Mnemonic> = Mutex::new(Mnemonic::INVALID);

/// The operation for an instruction; one that raises `#UD` for an instruction that no module knows.
#[must_use]
pub fn select(instruction: &Instruction, width: Width) -> Op {
    if !instruction.is_invalid() {
        if let Some(op) = MODULES.iter().find_map(|module| module(instruction, width)) {
            return op;
        }
        UNKNOWN.fetch_add(1, Ordering::Relaxed);
        *LAST_UNKNOWN.lock().unwrap_or_else(PoisonError::into_inner) = instruction.mnemonic();
    }
    Op::new(instruction, width, invalid)
}

/// How many instructions were decoded that exist but no module knew, and the last of them. Guests
/// probe for features so; a guest that dies of `#UD` died of this one.
#[must_use]
pub fn unknown() -> (u64, Mnemonic) {
    let last = *LAST_UNKNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    (UNKNOWN.load(Ordering::Relaxed), last)
}

fn invalid(_: &mut Core, _: &Op) -> Result<Flow, Fault> {
    Err(Fault::INVALID_OPCODE)
}
