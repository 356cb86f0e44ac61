//! Blocks: runs of decoded instructions, cached by where they lie in physical memory.
//!
//! ```text
//!   rip ─ code tlb ─► host address + width ─ front ─► Block ─► operations, in one slice
//!                                              │ miss
//!                                              ├─ map ─► Block
//!                                              └─ decode ─► Block (its page marked as code)
//! ```
//! A block ends at a branch, at the end of its page or after [`decode::MOST_OPS`] instructions. It
//! is valid as long as the generation of its page is the one it was decoded at. An instruction that
//! crosses pages is a block of its own, valid for two generations, and never in the front.
//!
//! Each vCPU has its own cache; nothing here is shared. When the operations fill their memory
//! everything is forgotten at once.

mod decode;

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    ptr::null,
    sync::atomic::{AtomicU32, Ordering},
};

use memory::Ram;

use super::{Core, Fault, Op, op::Width};

/// Slots of the front: direct mapped, a power of two.
const FRONT: usize = 1 << 14;
/// Operations kept at most: 40 bytes each. With what finds them that is some 6 MiB at most.
const MOST_KEPT: usize = 96 << 10;

/// A run of decoded instructions.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    key: u64,
    ops: *const Op,
    cell: *const AtomicU32,
    generation: u32,
    count: u32,
    /// For an instruction that goes on in another page: number and generation of that page.
    second: Option<(u32, u32)>,
}

impl Block {
    const NONE: Self = Self {
        key: 0,
        ops: null(),
        cell: null(),
        generation: 0,
        count: 0,
        second: None,
    };

    /// Its operations, as a range of pointers.
    #[inline(always)]
    #[must_use]
    pub fn ops(&self) -> (*const Op, *const Op) {
        // SAFETY: `ops` points to `count` operations.
        (self.ops, unsafe { self.ops.add(self.count as usize) })
    }

    #[inline(always)]
    fn is_current(&self) -> bool {
        // SAFETY: `cell` lies in the `Pages` of the RAM that the cache holds.
        unsafe { &*self.cell }.load(Ordering::Relaxed) == self.generation
    }
}

/// Keys are addresses: one multiplication spreads them well enough.
#[derive(Default)]
pub struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(26);
    }
}

/// The blocks of one vCPU.
pub struct Blocks {
    front: Box<[Block]>,
    map: HashMap<u64, Block, BuildHasherDefault<AddressHasher>>,
    ops: Vec<Op>,
    /// Keeps alive what blocks point into.
    _ram: Ram,
}

// SAFETY: the pointers lead into `ops` and into the pages of `_ram`, which move with it.
unsafe impl Send for Blocks {}

fn key(host: u64, width: Width) -> u64 {
    host | (width as u64) << 60
}

fn front(key: u64) -> usize {
    (key ^ key >> 14) as usize % FRONT
}

impl Blocks {
    /// An empty cache of code in `ram`.
    #[must_use]
    pub fn new(ram: Ram) -> Self {
        Self {
            front: vec![Block::NONE; FRONT].into_boxed_slice(),
            map: HashMap::default(),
            ops: Vec::with_capacity(MOST_KEPT),
            _ram: ram,
        }
    }

    /// The block at the current `rip`. It is valid until the next call.
    ///
    /// # Errors
    /// What fetching the first instruction raises.
    #[inline(always)]
    pub fn find(&mut self, core: &mut Core) -> Result<Block, Fault> {
        let linear = core.code_address()?;
        if let Some((host, _)) = core.tlb.code(linear) {
            let key = key(host, core.width);
            // SAFETY: `front` returns numbers under its length.
            let block = unsafe { self.front.get_unchecked(front(key)) };
            if block.key == key && block.is_current() {
                return Ok(*block);
            }
        }
        self.find_slow(core, linear)
    }

    #[cold]
    #[inline(never)]
    fn find_slow(&mut self, core: &mut Core, linear: u64) -> Result<Block, Fault> {
        let Some((host, page)) = core.find_code(linear)? else {
            return Err(Fault::INVALID_OPCODE);
        };
        let key = key(host, core.width);
        if let Some(block) = self.map.get(&key).copied()
            && block.is_current()
            && Self::second_is_current(core, linear, &block)?
        {
            if block.second.is_none() {
                self.front[front(key)] = block;
            }
            return Ok(block);
        }
        if self.ops.len() + decode::MOST_OPS > MOST_KEPT {
            self.forget();
        }
        let block = self.decode(core, linear, host, page)?;
        self.map.insert(key, block);
        if block.second.is_none() {
            self.front[front(key)] = block;
        }
        Ok(block)
    }

    fn second_is_current(core: &mut Core, linear: u64, block: &Block) -> Result<bool, Fault> {
        let Some((page, generation)) = block.second else {
            return Ok(true);
        };
        let found = core.find_code((linear | 0xfff).wrapping_add(1))?;
        Ok(found.is_some_and(|(_, found)| found == page as usize)
            && core.ram.pages().generation(page as usize) == generation)
    }

    fn decode(
        &mut self,
        core: &mut Core,
        linear: u64,
        host: u64,
        page: usize,
    ) -> Result<Block, Fault> {
        core.mark_code(page);
        let generation = core.ram.pages().generation(page);
        let first = self.ops.len();
        let second = decode::decode(core, linear, host, &mut self.ops)?;
        Ok(Block {
            key: key(host, core.width),
            // SAFETY: `first` is at most the length, and the vector never grows past the capacity
            // it was made with, so what it holds stays where it is.
            ops: unsafe { self.ops.as_ptr().add(first) },
            cell: core.ram.pages().generation_cell(page),
            generation,
            count: u32::try_from(self.ops.len() - first).unwrap_or(0),
            second,
        })
    }

    /// Forgets all blocks.
    pub fn forget(&mut self) {
        self.front.fill(Block::NONE);
        self.map.clear();
        self.ops.clear();
    }
}
