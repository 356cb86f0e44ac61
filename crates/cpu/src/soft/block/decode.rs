//! From bytes of guest code to operations.

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction};

use super::super::{Core, Fault, Op, op::Width, select::select};

/// Instructions of a block at most.
pub const MOST_OPS: usize = 64;
/// Bytes decoded for a block at most, and with room for an instruction's rest on the next page.
pub(in crate::soft) const MOST_BYTES: usize = 512;
/// An instruction has at most so many bytes.
const LONGEST: usize = 15;

/// Decodes the block at a linear address, whose first byte is at `host`, and appends its
/// operations. When its only instruction goes on in the next page, returns that page's number and
/// generation.
///
/// # Errors
/// What fetching the first instruction raises; nothing was appended.
pub fn decode(
    core: &mut Core,
    linear: u64,
    host: u64,
    ops: &mut Vec<Op>,
) -> Result<Option<(u32, u32)>, Fault> {
    let mut bytes = [0; MOST_BYTES + LONGEST];
    let in_page = 0x1000 - (linear & 0xfff) as usize;
    let length = in_page.min(MOST_BYTES);
    copy(host, &mut bytes[..length]);
    if append(core.width, &bytes[..length], ops) > 0 {
        return Ok(None);
    }
    // Not even one instruction: it goes on in the next page.
    let Some((host, page)) = core.find_code((linear | 0xfff).wrapping_add(1))? else {
        return Err(Fault::INVALID_OPCODE);
    };
    let generation = core.mark_code(page);
    copy(host, &mut bytes[length..length + LONGEST]);
    let before = ops.len();
    append(core.width, &bytes[..length + LONGEST], ops);
    ops.truncate(before + 1);
    Ok(Some((u32::try_from(page).unwrap_or(u32::MAX), generation)))
}

fn copy(host: u64, bytes: &mut [u8]) {
    // SAFETY: `host` is the address of guest code, and the caller stays within its page. The guest
    // may change it meanwhile; then the block is found to be stale before it is run.
    unsafe {
        std::ptr::copy_nonoverlapping(host as *const u8, bytes.as_mut_ptr(), bytes.len());
    }
}

/// Appends operations up to the end of the block or of the bytes; returns how many.
pub(in crate::soft) fn append(width: Width, bytes: &[u8], ops: &mut Vec<Op>) -> usize {
    let mut decoder = Decoder::new(width.bits(), bytes, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut count = 0;
    while count < MOST_OPS && decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        ops.push(select(&instruction, width));
        count += 1;
        if instruction.flow_control() != FlowControl::Next {
            break;
        }
    }
    count
}
