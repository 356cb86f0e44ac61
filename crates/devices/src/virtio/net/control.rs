//! The control queue (virtio 1.2, 5.1.6.5).

use memory::GuestMemory;

use super::device::Shared;
use crate::virtio::Chain;

const CLASS_RECEIVE: u8 = 0;
const CLASS_MAC: u8 = 1;
const MAC_TABLE_SET: u8 = 0;
const CLASS_MULTI_QUEUE: u8 = 4;
const PAIRS_SET: u8 = 0;

const OK: u8 = 0;
const ERROR: u8 = 1;

/// Does one command. The result is how many bytes were written, or which part is missing.
pub(super) fn command(
    shared: &Shared,
    memory: &GuestMemory,
    chain: &mut Chain,
) -> Result<u32, &'static str> {
    let mut answer = chain.writable.take_last(1).map_err(|_| "answer")?;
    let mut head = [0; 2];
    chain
        .readable
        .read(memory, &mut head)
        .map_err(|_| "command")?;
    let done = match head {
        // All frames that reach the tap are the guest's: there is nothing to filter.
        [CLASS_RECEIVE, 0..=5] | [CLASS_MAC, MAC_TABLE_SET] => true,
        [CLASS_MULTI_QUEUE, PAIRS_SET] => {
            let mut pairs = [0; 2];
            let whole = chain.readable.read(memory, &mut pairs).is_ok();
            whole && shared.set_pairs(u16::from_le_bytes(pairs))
        }
        _ => false,
    };
    let answered = answer.write(memory, &[if done { OK } else { ERROR }]);
    answered.map(|()| 1).map_err(|_| "answer")
}
