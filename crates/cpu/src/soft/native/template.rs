//! What the ops of one computation have in common, wherever its operand in memory lies: made once
//! for all places where the guest has it.

use std::{
    collections::HashMap,
    sync::{Mutex, OnceLock, PoisonError},
};

use iced_x86::{Code, Decoder, DecoderOptions, Encoder, Instruction, OpKind, Register};

use super::{arena::Arena, plan, run};
use crate::soft::{Core, Fault, Flow, Op, op::Width};

/// All that a stub depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    code: Code,
    /// Of the operands, `None` for the one in memory.
    registers: [Register; 4],
    immediates: [u8; 2],
}

impl Key {
    fn new(instruction: &Instruction) -> Option<Self> {
        let mut key = Self {
            code: instruction.code(),
            registers: [Register::None; 4],
            immediates: [0; 2],
        };
        for operand in 0..instruction.op_count() {
            match instruction.op_kind(operand) {
                OpKind::Register => {
                    *key.registers.get_mut(operand as usize)? = instruction.op_register(operand);
                }
                OpKind::Immediate8 => key.immediates[0] = instruction.immediate8(),
                OpKind::Immediate8_2nd => key.immediates[1] = instruction.immediate8_2nd(),
                _ => {}
            }
        }
        Some(key)
    }
}

/// Templates there are. As many as there are stubs, so bounded with them.
type Known = Mutex<HashMap<Key, run::Template>>;

/// The op of a computation; `None` when the instruction is none.
pub(super) fn op(instruction: &Instruction, width: Width) -> Option<Op> {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    let key = Key::new(instruction)?;
    let mut known = KNOWN
        .get_or_init(Known::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(template) = known.get(&key) {
        return Some(template.op(instruction, width));
    }
    let plan = plan::plan(instruction)?;
    match Arena::get().ok()?.place(&plan.stub) {
        Some(entry) => {
            let template = run::Template::new(&plan, entry);
            known.insert(key, template);
            Some(template.op(instruction, width))
        }
        None => unplaced(instruction, width),
    }
}

/// The op of a computation for which there is no more room. It carries the instruction's bytes, and
/// makes the stub each time.
pub(super) fn unplaced(instruction: &Instruction, width: Width) -> Option<Op> {
    let mut encoder = Encoder::new(width.bits());
    encoder.encode(instruction, instruction.ip()).ok()?;
    let mut bytes = encoder.take_buffer();
    bytes.resize(15, 0x90);
    let mut op = Op::new(instruction, width, execute_unplaced);
    op.imm = u64::from_le_bytes(bytes[..8].try_into().ok()?);
    op.extra = u32::from_le_bytes(bytes[8..12].try_into().ok()?);
    (op.a, op.b, op.c) = (bytes[12], bytes[13], bytes[14]);
    Some(op)
}

fn execute_unplaced(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let mut bytes = [0; 15];
    bytes[..8].copy_from_slice(&op.imm.to_le_bytes());
    bytes[8..12].copy_from_slice(&op.extra.to_le_bytes());
    bytes[12..].copy_from_slice(&[op.a, op.b, op.c]);
    let width = core.width;
    let instruction =
        Decoder::with_ip(width.bits(), &bytes, core.rip(), DecoderOptions::NONE).decode();
    let run = |plan: plan::Plan| {
        Arena::get().ok()?.borrow(&plan.stub, |entry| {
            let mut stub = run::Template::new(&plan, entry).op(&instruction, width);
            stub.mem = op.mem;
            (stub.run)(core, &stub)
        })
    };
    plan::plan(&instruction)
        .and_then(run)
        .unwrap_or(Err(Fault::INVALID_OPCODE))
}
