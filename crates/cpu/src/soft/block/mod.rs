//! Blocks: runs of decoded instructions, cached by where they lie in physical memory.
//!
//! ```text
//!   rip ─ code tlb ─► host address + width ─ heads ─► chain of Blocks ─► operations, in one slice
//!                                              │ not in it, or stale
//!                                              └─ decode ─► Block (its page marked as code)
//! ```
//! A block ends at a branch, at the end of its page or after [`decode::MOST_OPS`] instructions. It
//! is valid as long as the generation of its page is the one it was decoded at. An instruction that
//! crosses pages is a block of its own, valid for two generations, and kept apart.
//!
//! Each vCPU has its own cache; nothing here is shared. When the operations fill their budget
//! everything is forgotten at once. The budget follows what the guest runs: it is doubled when it
//! was filled so soon that decoding counts, and given back when it lasted long. How often blocks were
//! executed outlasts that: else what needs more than a budget, and comes round again and again, as a
//! `fork` does, would never be found worth translating.

pub(in crate::soft) mod decode;

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    ptr::null,
    sync::atomic::{AtomicU32, Ordering},
};

use memory::Ram;

use super::{Core, Fault, Op, op::Width};

/// Chains of blocks: a power of two.
const CHAINS: usize = 1 << 14;
/// Operations kept at most, 40 bytes each and some 10 more for what finds them; half of it at first.
const KEPT: usize = 20 << 10;
/// A budget that is filled within as many instructions for each operation in it is too small:
/// decoding an operation takes as long as executing some twenty.
const SOON: u64 = 64;
/// So often in a row: what is executed only once, as the start of a program, fills any budget.
const OFTEN: u32 = 4;
/// One that takes this many is too large.
const LATE: u64 = 8 * SOON;

/// A run of decoded instructions.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    key: u64,
    ops: *const Op,
    cell: *const AtomicU32,
    generation: u32,
    count: u32,
    /// How often it was found.
    heat: u32,
}

/// An instruction that goes on in another page.
#[derive(Debug, Clone, Copy)]
struct Crossing {
    block: Block,
    /// Number and generation of that page.
    second: (u32, u32),
}

impl Block {
    const NONE: Self = Self {
        key: 0,
        ops: null(),
        cell: null(),
        generation: 0,
        count: 0,
        heat: 0,
    };

    /// Its operations, as a range of pointers.
    #[inline(always)]
    #[must_use]
    pub fn ops(&self) -> (*const Op, *const Op) {
        // SAFETY: `ops` points to `count` operations.
        (self.ops, unsafe { self.ops.add(self.count as usize) })
    }

    /// Where its first byte lies on the host.
    #[must_use]
    pub fn host(&self) -> u64 {
        self.key & !(3 << 60)
    }

    /// How often it was found, as far as is remembered; 0 for an instruction that goes on in another page.
    #[inline(always)]
    #[must_use]
    pub fn heat(&self) -> u32 {
        self.heat
    }

    /// The generation of its page it was decoded at.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether its page has that generation still.
    #[inline(always)]
    #[must_use]
    pub fn is_current(&self) -> bool {
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
    /// For each chain the number of its first block, the one used last; 0 for none.
    heads: Box<[u32; CHAINS]>,
    /// For each chain how often the hottest of its blocks were executed before they were forgotten.
    heats: Box<[Heat; CHAINS]>,
    /// All blocks; number 0 is [`Block::NONE`].
    blocks: Vec<Block>,
    /// For each block the number of the next in its chain.
    next: Vec<u32>,
    crossings: HashMap<u64, Crossing, BuildHasherDefault<AddressHasher>>,
    /// Made with room for [`KEPT`]; memory that was never written takes none of the host's.
    ops: Vec<Op>,
    budget: usize,
    /// How often in a row it was filled soon.
    soon: u32,
    /// Instructions executed when everything was last forgotten.
    forgotten_at: u64,
    /// Keeps alive what blocks point into.
    _ram: Ram,
}

// SAFETY: the pointers lead into `ops` and into the pages of `_ram`, which move with it.
unsafe impl Send for Blocks {}

fn key(host: u64, width: Width) -> u64 {
    host | (width as u64) << 60
}

fn chain(key: u64) -> usize {
    (key ^ key >> 14) as usize % CHAINS
}

/// How often one of the blocks of a chain was executed. Few others have its tag; that makes some be
/// translated early, and nothing wrong.
#[derive(Debug, Clone, Copy, Default)]
struct Heat {
    tag: u8,
    heat: u8,
}

impl Heat {
    fn tag(key: u64) -> u8 {
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
    }

    fn of(self, key: u64) -> u32 {
        if self.tag == Self::tag(key) {
            u32::from(self.heat)
        } else {
            0
        }
    }

    /// Another block takes the place once it is as hot; each that is not cools the one there.
    fn keep(&mut self, block: &Block) {
        let tag = Self::tag(block.key);
        let heat = u8::try_from(block.heat).unwrap_or(u8::MAX);
        if self.tag == tag {
            self.heat = self.heat.max(heat);
        } else if heat >= self.heat {
            *self = Self { tag, heat };
        } else {
            self.heat -= 1;
        }
    }
}

impl Blocks {
    /// An empty cache of code in `ram`.
    #[must_use]
    pub fn new(ram: Ram) -> Self {
        let mut blocks = Self {
            heads: Box::new([0; CHAINS]),
            heats: Box::new([Heat::default(); CHAINS]),
            blocks: Vec::new(),
            next: Vec::new(),
            crossings: HashMap::default(),
            ops: Vec::new(),
            budget: KEPT / 2,
            soon: 0,
            forgotten_at: 0,
            _ram: ram,
        };
        blocks.make_room();
        blocks
    }

    /// The block at the current `rip`, after so many `instructions` were executed. It is valid
    /// until the next call.
    ///
    /// # Errors
    /// What fetching the first instruction raises.
    #[inline(always)]
    pub fn find(&mut self, core: &mut Core, instructions: u64) -> Result<Block, Fault> {
        let linear = core.code_address()?;
        if let Some((host, _)) = core.tlb.code(linear) {
            let key = key(host, core.width);
            // SAFETY: `chain` returns numbers under the length of `heads`, which holds numbers of
            // blocks only.
            let block = unsafe {
                let head = *self.heads.get_unchecked(chain(key));
                self.blocks.get_unchecked_mut(head as usize)
            };
            if block.key == key && block.is_current() {
                block.heat = block.heat.saturating_add(1);
                return Ok(*block);
            }
        }
        self.find_slow(core, linear, instructions)
    }

    #[cold]
    #[inline(never)]
    fn find_slow(
        &mut self,
        core: &mut Core,
        linear: u64,
        instructions: u64,
    ) -> Result<Block, Fault> {
        let Some((host, page)) = core.find_code(linear)? else {
            return Err(Fault::INVALID_OPCODE);
        };
        let key = key(host, core.width);
        let known = self.advance(key);
        if let Some(number) = known
            && self.blocks[number as usize].is_current()
        {
            let block = &mut self.blocks[number as usize];
            block.heat = block.heat.saturating_add(1);
            return Ok(*block);
        }
        if known.is_some() {
            // It is other code now.
            self.heats[chain(key)] = Heat::default();
        }
        if let Some(crossing) = self.crossings.get(&key).copied()
            && crossing.is_current(core, linear)?
        {
            return Ok(crossing.block);
        }
        if self.ops.len() + decode::MOST_OPS > self.budget {
            self.adapt(instructions);
            self.forget();
        }
        let (block, second) = self.decode(core, linear, host, page)?;
        match second {
            Some(second) => {
                // A translation is good as long as one page is, so it is never hot.
                let block = Block { heat: 0, ..block };
                self.crossings.insert(key, Crossing { block, second });
                Ok(block)
            }
            None => {
                self.insert(block);
                Ok(block)
            }
        }
    }

    /// Looks a key up and moves its block to the head of its chain.
    fn advance(&mut self, key: u64) -> Option<u32> {
        let head = &mut self.heads[chain(key)];
        let mut before = 0;
        let mut number = *head;
        while number != 0 {
            let next = self.next[number as usize];
            if self.blocks[number as usize].key == key {
                if before != 0 {
                    self.next[before as usize] = next;
                    self.next[number as usize] = *head;
                    *head = number;
                }
                return Some(number);
            }
            before = number;
            number = next;
        }
        None
    }

    /// Keeps a block, in place of a stale one of the same key.
    fn insert(&mut self, block: Block) {
        if let Some(number) = self.advance(block.key) {
            self.blocks[number as usize] = block;
            return;
        }
        let number = u32::try_from(self.blocks.len()).expect("blocks are fewer than operations");
        let head = &mut self.heads[chain(block.key)];
        self.blocks.push(block);
        self.next.push(std::mem::replace(head, number));
    }

    fn decode(
        &mut self,
        core: &mut Core,
        linear: u64,
        host: u64,
        page: usize,
    ) -> Result<(Block, Option<(u32, u32)>), Fault> {
        let generation = core.mark_code(page);
        let first = self.ops.len();
        let second = decode::decode(core, linear, host, &mut self.ops)?;
        let key = key(host, core.width);
        let block = Block {
            key,
            // SAFETY: `first` is at most the length, and the vector never grows past the capacity
            // it was made with, so what it holds stays where it is.
            ops: unsafe { self.ops.as_ptr().add(first) },
            cell: core.ram.pages().generation_cell(page),
            generation,
            count: u32::try_from(self.ops.len() - first).unwrap_or(0),
            heat: 1 + self.heats[chain(key)].of(key),
        };
        Ok((block, second))
    }

    /// Chooses the budget anew, once it is full.
    fn adapt(&mut self, instructions: u64) {
        let lasted = instructions.wrapping_sub(self.forgotten_at);
        self.forgotten_at = instructions;
        let full = self.budget as u64;
        self.soon = if lasted < full * SOON {
            self.soon + 1
        } else {
            0
        };
        if self.soon == OFTEN {
            self.budget = (self.budget * 2).min(KEPT);
            self.soon = 0;
        } else if lasted > full * LATE && self.budget > KEPT / 2 {
            self.budget = KEPT / 2;
            self.make_room();
        }
    }

    /// Whether what is kept is worth giving back.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.ops.len() > KEPT / 4
    }

    /// Forgets all blocks, and begins anew with little memory.
    pub fn release(&mut self) {
        self.budget = KEPT / 2;
        self.soon = 0;
        self.make_room();
    }

    /// Takes fresh memory, and returns what was written to.
    fn make_room(&mut self) {
        self.keep_heats();
        // Each block has an operation at least.
        self.blocks = Vec::with_capacity(KEPT + 1);
        self.next = Vec::with_capacity(KEPT + 1);
        self.ops = Vec::with_capacity(KEPT);
        self.forget();
    }

    fn keep_heats(&mut self) {
        for block in self.blocks.iter().skip(1) {
            self.heats[chain(block.key)].keep(block);
        }
    }

    /// Forgets all blocks.
    pub fn forget(&mut self) {
        self.keep_heats();
        self.heads.fill(0);
        self.blocks.clear();
        self.blocks.push(Block::NONE);
        self.next.clear();
        self.next.push(0);
        self.crossings.clear();
        self.ops.clear();
    }
}

impl Crossing {
    fn is_current(&self, core: &mut Core, linear: u64) -> Result<bool, Fault> {
        if !self.block.is_current() {
            return Ok(false);
        }
        let (page, generation) = self.second;
        let found = core.find_code((linear | 0xfff).wrapping_add(1))?;
        Ok(found.is_some_and(|(_, found)| found == page as usize)
            && core.ram.pages().generation(page as usize) == generation)
    }
}
