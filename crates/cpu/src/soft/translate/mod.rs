//! The software CPU, tier 1: hot blocks of 64-bit code translated into code of the host.
//!
//! ```text
//!  Block of tier 0 ─ form ─► what each instruction is      ─ block ─► bytes ─ cache ─► executed
//!   (bytes, ops)    encoding  its parts, operands renamed    emit                        │
//!                                                                                        ▼
//!     interpreter ◄── miss, unlinked, attention, handler's outcome ── thunks, interface ─┘
//! ```
//! Guest and host are the same architecture, so most instructions are executed as they are, with
//! memory operands found in the translation lookaside buffer by code in front of them. What is not
//! translated, and what misses that buffer, is done by the handler of tier 0, called from within:
//! tier 0 is the slow path, and the oracle, of all that is here.
//!
//! - [`form`]: what is known of an opcode; [`encoding`]: an instruction's bytes, taken apart;
//! - [`emit`]: writes bytes; [`operand`]: writes what finds an operand; [`block`]: writes a block;
//!   [`stack`] and [`system`]: write what of it pushes, pops, needs privilege or may fault;
//!   [`returns`]: writes calls and returns; [`retpoline`]: and those that stand for a jump;
//! - [`mode`]: what a translation takes for granted;
//! - [`thunks`], [`interface`]: the way in and out; [`cache`]: the memory of code; [`index`]: finds
//!   what is in it;
//! - [`counters`]: what happened how often; [`view`]: a block, for people.
//!
//! [`Translator`] owns the translations of one vCPU. [`super::Interpreter`] asks it before it runs
//! a block itself, and tells it which blocks are hot.
//!
//! Nothing here is shared between vCPUs. A translation is good for one generation of its page
//! ([`memory::Pages`]), for one address, and for one [`mode::Mode`]. Whoever writes to a page of
//! code sets the attention words of all vCPUs first. Each looks at its own at every jump back, and
//! at every jump through the table of targets; it then leaves, and forgets what became stale before
//! it enters again. Within a page translations jump to each other directly, as they become stale
//! together.

mod block;
mod cache;
mod counters;
mod emit;
mod encoding;
mod form;
mod index;
pub(in crate::soft) mod interface;
mod mode;
mod operand;
mod retpoline;
mod returns;
mod stack;
mod system;
#[cfg(test)]
mod tests;
mod thunks;
pub mod view;

use std::{
    io,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use iced_x86::{Decoder, DecoderOptions, Instruction};

pub(in crate::soft) use counters::Cells;
pub use counters::Counters;

use self::{
    block::{Entry, Source, Writer},
    cache::Memory,
    emit::Assembler,
    form::Forms,
    index::{Index, Key},
    interface::{exit, target_slot},
    mode::Mode,
    thunks::Thunks,
};
use super::{Core, Fault, Flow, Op, block::Block, idle};

/// How often a block is interpreted before it is translated.
pub const THRESHOLD: u32 = 16;
/// Operations kept at first for the handlers that translations call: 40 bytes each, and half
/// as much for what finds the translations.
const LEAST_OPS: usize = 32 << 10;
/// Operations kept at most: then [`cache::BYTES`] are full, too.
const MOST_OPS: usize = 128 << 10;
/// A budget that is filled within so much of its thread's time for each operation is too small:
/// translating anew what was forgotten counts then.
const SOON: Duration = Duration::from_micros(100);
/// If it is so often in a row: what is executed only once, as the start of a program, fills any.
const OFTEN: u32 = 2;
/// Bytes of code that an idle guest may keep: what it does in between is not to be translated anew
/// each time.
const LARGE: usize = 1 << 20;
/// Bytes of code that a block may become at most, with room to spare.
const MOST_BYTES: usize = 32 << 10;

/// A direct jump of a translation that is not linked yet: where its displacement is.
struct Link(u32);

impl Link {
    const BACK: u32 = 1 << 31;

    fn new(at: usize, back: bool) -> Self {
        Self(at as u32 | if back { Self::BACK } else { 0 })
    }

    fn at(&self) -> usize {
        (self.0 & !Self::BACK) as usize
    }

    /// Whether the attention word is to be looked at on the way.
    fn leads_back(&self) -> bool {
        self.0 & Self::BACK != 0
    }
}

/// What led out of translated code, to be made to lead on within it.
#[derive(Clone, Copy)]
struct Pending {
    way: Way,
    /// Where it led to. Something else may be run first, as an interrupt.
    rip: u64,
    mode: Mode,
}

/// How translations lead to each other.
#[derive(Clone, Copy)]
enum Way {
    /// A place among the targets.
    Target(usize),
    /// The number of a direct jump.
    Link(usize),
}

/// The translations of one vCPU.
pub(super) struct Translator {
    memory: Memory,
    used: usize,
    /// Where translations begin, behind the thunks.
    start: usize,
    thunks: Thunks,
    ops: Vec<Op>,
    /// How many operations are kept before everything is forgotten.
    budget: usize,
    /// How often in a row it was filled soon.
    soon: u32,
    /// Time of its thread when everything was last forgotten.
    forgotten_at: Duration,
    index: Index,
    links: Vec<Link>,
    pending: Option<Pending>,
    /// Places among the targets that hold translations, of users and of the supervisor.
    filled: [Vec<u16>; 2],
    /// [`memory::Pages::changes`] when stale translations were forgotten last.
    seen: u64,
    /// [`super::memory::tlb::Tlb::changes`] when the targets were emptied last.
    tlb_changes: [u32; 2],
    /// [`Mode::units`] of what the targets hold.
    units: u8,
    forms: Forms,
    code: Assembler,
    instructions: Vec<Instruction>,
    threshold: u32,
    chain: bool,
}

// SAFETY: the pointers in operations' handlers and in code lead to what moves with it, or to
// nothing that moves.
unsafe impl Send for Translator {}

/// Whether the processor and the kernel have what translated code needs.
pub(super) fn is_possible() -> bool {
    const HWCAP2_FSGSBASE: u64 = 1 << 1;
    // SAFETY: reads the auxiliary vector.
    let kernel = unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE != 0;
    // `lahf` in 64-bit mode: bit 0 of ecx.
    let lahf = std::arch::x86_64::__cpuid(0x8000_0001).ecx & 1 != 0;
    kernel && lahf && is_x86_feature_detected!("bmi2") && is_x86_feature_detected!("sse3")
}

impl Translator {
    /// Maps memory for code; to be called before executable memory can no longer be mapped.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn new() -> io::Result<Self> {
        let mut memory = Memory::new()?;
        let mut code = Assembler::new(memory.address());
        let thunks = thunks::write(&mut code);
        memory.write(0, code.bytes());
        let start = code.len().next_multiple_of(64);
        Ok(Self {
            index: Index::new(memory.address()),
            memory,
            used: start,
            start,
            thunks,
            ops: Vec::with_capacity(MOST_OPS),
            budget: LEAST_OPS,
            soon: 0,
            forgotten_at: Duration::ZERO,
            links: Vec::new(),
            pending: None,
            filled: [Vec::new(), Vec::new()],
            seen: 0,
            tlb_changes: [u32::MAX; 2],
            units: u8::MAX,
            forms: Forms::new(),
            code,
            instructions: Vec::new(),
            threshold: THRESHOLD,
            chain: true,
        })
    }

    /// Translates blocks after so many executions.
    pub(super) fn set_threshold(&mut self, threshold: u32) {
        self.threshold = threshold.max(1);
    }

    /// Whether translations lead to each other; if not, each comes back at its end.
    pub(super) fn set_chaining(&mut self, chain: bool) {
        self.chain = chain;
    }

    /// Whether a block was interpreted often enough.
    #[inline(always)]
    pub(super) fn is_hot(&self, block: &Block) -> bool {
        block.heat() >= self.threshold
    }

    /// Runs translated code from the current `rip`, the host's address of which is `host`. `None`
    /// when that is not translated.
    pub(super) fn run(
        &mut self,
        core: &mut Core,
        host: u64,
        attention: &AtomicU32,
    ) -> Option<Result<Flow, Fault>> {
        self.refresh(core);
        let mode = Mode::of(core);
        if mode.units() != self.units {
            self.units = mode.units();
            self.empty_targets(core);
        }
        let key = Key::new(host, core.rip(), mode);
        let pending = self.pending.take();
        let entry = self.index.get(&key)?;
        if let Some(pending) = pending
            && self.chain
            && (pending.rip, pending.mode) == (core.rip(), mode)
        {
            self.resolve(core, pending.way, &entry);
        }
        core.prepare_translated(attention, mode);
        core.counters().entries.increment();
        // SAFETY: the thunk is called as it is made for, with an entry of a translation that is
        // not stale; it changes what the guest may change, by way of the core.
        unsafe {
            let enter: extern "sysv64" fn(*mut Core, usize) =
                std::mem::transmute(self.thunks.enter);
            enter(core, entry.body);
        }
        Some(self.came_back(core))
    }

    fn came_back(&mut self, core: &mut Core) -> Result<Flow, Fault> {
        // A handler may have changed it.
        let mode = core.interface.mode;
        let rip = core.rip();
        let pending = |way| Some(Pending { way, rip, mode });
        let reason = core.interface.exit;
        let counters = core.counters();
        match reason {
            exit::HANDLER => {
                counters.left.increment();
                return core.interface.outcome;
            }
            exit::MISS => {
                counters.misses.increment();
                self.pending = pending(Way::Target(target_slot(mode.context(), rip)));
            }
            exit::ATTENTION => counters.attention.increment(),
            link => {
                counters.unlinked.increment();
                self.pending = pending(Way::Link((link - exit::LINK) as usize));
            }
        }
        core.take_mxcsr();
        Ok(Flow::Branch)
    }

    /// Makes what led out lead to a translation.
    fn resolve(&mut self, core: &mut Core, way: Way, entry: &Entry) {
        match way {
            Way::Target(slot) => {
                let before = std::mem::replace(&mut core.interface.targets[slot], entry.indirect);
                if before == self.thunks.miss {
                    let user = slot < target_slot(1, 0);
                    self.filled[usize::from(!user)].push(slot as u16);
                } else {
                    core.counters().conflicts.increment();
                }
            }
            Way::Link(number) => {
                let Some(link) = self.links.get(number) else {
                    return;
                };
                let at = link.at();
                let target = if link.leads_back() {
                    entry.checked
                } else {
                    entry.body
                };
                let end = self.memory.address() + at + 4;
                let displacement = target.wrapping_sub(end) as u32;
                self.memory.write(at, &displacement.to_le_bytes());
                core.counters().links.increment();
            }
        }
    }

    /// Forgets what is no longer true.
    fn refresh(&mut self, core: &mut Core) {
        let changes = core.ram.pages().changes();
        if changes != self.seen {
            self.forget_stale(core, changes);
        }
        let changes = core.tlb.changes();
        if changes != self.tlb_changes {
            for (space, filled) in self.filled.iter_mut().enumerate() {
                if changes[space] != self.tlb_changes[space] {
                    core.counters().retargets.increment();
                    for slot in filled.drain(..) {
                        core.interface.targets[usize::from(slot)] = self.thunks.miss;
                    }
                }
            }
            self.tlb_changes = changes;
            // What led out did so before the change.
            self.pending = None;
        }
    }

    /// Lets all targets lead out.
    fn empty_targets(&mut self, core: &mut Core) {
        core.counters().retargets.increment();
        core.interface.targets.fill(self.thunks.miss);
        self.filled = [Vec::new(), Vec::new()];
        self.pending = None;
    }

    /// Forgets translations of pages that were written to.
    fn forget_stale(&mut self, core: &mut Core, changes: u64) {
        let written = std::mem::take(&mut core.interface.written);
        let pages = core.ram.pages();
        let stale: Vec<usize> = if self.seen + written.len() as u64 == changes {
            written
        } else {
            let is_stale =
                |&(page, generation): &(usize, u32)| pages.generation(page) != generation;
            self.index.pages().filter(is_stale).map(|it| it.0).collect()
        };
        self.seen = changes;
        self.pending = None;
        for number in stale {
            let generation = self.index.generation(number);
            if generation.is_none_or(|it| it == pages.generation(number)) {
                continue;
            }
            for entry in self.index.remove(number) {
                core.counters().stale.increment();
                self.bar(&entry);
            }
        }
    }

    /// Lets no more targets lead to a translation.
    fn bar(&mut self, entry: &Entry) {
        let end = entry.indirect + 5;
        let displacement = self.thunks.miss.wrapping_sub(end) as u32;
        let mut jump = [0xe9, 0, 0, 0, 0];
        jump[1..].copy_from_slice(&displacement.to_le_bytes());
        let at = entry.indirect - self.memory.address();
        self.memory.write(at, &jump);
    }

    /// Chooses the budget anew, once it is full.
    fn adapt(&mut self) {
        let now = idle::processor_time();
        let lasted = now.saturating_sub(self.forgotten_at);
        self.soon = if lasted < SOON * self.budget as u32 {
            self.soon + 1
        } else {
            0
        };
        self.forgotten_at = now;
        if self.soon == OFTEN {
            self.budget = (self.budget * 2).min(MOST_OPS);
            self.soon = 0;
        }
    }

    /// Forgets all.
    fn forget(&mut self, core: &mut Core) {
        core.counters().flushes.increment();
        self.empty_targets(core);
        self.index.clear();
        self.links.clear();
        self.ops.clear();
        self.used = self.start;
    }

    /// Whether what is kept is worth giving back.
    pub(super) fn is_large(&self) -> bool {
        self.used > LARGE
    }

    /// Forgets all, and returns the memory it took.
    pub(super) fn release(&mut self, core: &mut Core) {
        self.forget(core);
        self.memory.clear(self.start);
        self.ops = Vec::with_capacity(MOST_OPS);
        self.index = Index::new(self.memory.address());
        self.links = Vec::new();
        self.budget = LEAST_OPS;
        self.soon = 0;
    }

    /// Translates a block of 64-bit code that begins at the current `rip`. Its page has the number
    /// `page`.
    pub(super) fn translate(&mut self, core: &mut Core, block: &Block, page: usize) {
        let (first, end) = block.ops();
        // SAFETY: both point into the same block.
        let count = unsafe { end.offset_from(first) } as usize;
        if self.used + MOST_BYTES > cache::BYTES || self.ops.len() + count > self.budget {
            self.adapt();
            self.forget(core);
        }
        // SAFETY: the block has so many operations, and nothing is decoded meanwhile.
        let ops = unsafe { std::slice::from_raw_parts(first, count) };
        let length = ops.iter().map(|it| usize::from(it.len)).sum::<usize>();
        let mut bytes = [0; 1024];
        let Some(bytes) = bytes.get_mut(..length) else {
            return;
        };
        // SAFETY: the block's bytes lie there, on one page. Should somebody change them meanwhile,
        // the block is no longer current.
        unsafe {
            std::ptr::copy_nonoverlapping(block.host() as *const u8, bytes.as_mut_ptr(), length);
        }
        if !block.is_current() {
            return;
        }
        let rip = core.rip();
        self.decode(bytes, rip, count);
        let mut callee = [0; retpoline::MOST_BYTES];
        let callee = self.copy_callee(block, rip, &mut callee);
        if !block.is_current() {
            return;
        }
        let agrees = self.instructions.len() == count
            && self
                .instructions
                .iter()
                .zip(ops)
                .all(|(it, op)| it.len() == usize::from(op.len));
        if !agrees {
            return;
        }
        let mode = Mode::of(core);
        let key = Key::new(block.host(), rip, mode);
        let instructions = std::mem::take(&mut self.instructions);
        let source = Source {
            rip,
            bytes,
            instructions: &instructions,
            ops,
            mode,
            callee,
        };
        self.write(core, &source, key, page, block.generation());
        self.instructions = instructions;
    }

    /// Copies what the call at the end of the block leads to. Where each translation is to come back
    /// at its end, that is of no interest.
    fn copy_callee<'a>(&self, block: &Block, rip: u64, to: &'a mut [u8]) -> &'a [u8] {
        let last = self.instructions.last().filter(|_| self.chain);
        let Some((target, length)) = last.and_then(|it| retpoline::callee(it, rip)) else {
            return &[];
        };
        let host = block.host().wrapping_add(target.wrapping_sub(rip));
        let to = &mut to[..length];
        // SAFETY: they lie there, on the page that the block lies on. Should somebody change them
        // meanwhile, the block is no longer current.
        unsafe { std::ptr::copy_nonoverlapping(host as *const u8, to.as_mut_ptr(), length) };
        to
    }

    fn decode(&mut self, bytes: &[u8], rip: u64, count: usize) {
        self.instructions.clear();
        let mut decoder = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE);
        while decoder.can_decode() && self.instructions.len() < count {
            self.instructions.push(decoder.decode());
        }
    }

    fn write(
        &mut self,
        core: &mut Core,
        source: &Source<'_>,
        key: Key,
        page: usize,
        generation: u32,
    ) {
        self.code.restart(self.memory.address() + self.used);
        let (mut writer, entry) = Writer::write(
            &mut self.code,
            self.thunks,
            source,
            &mut self.forms,
            &mut self.ops,
        );
        let exits = std::mem::take(&mut writer.exits);
        for it in &exits {
            let known = if it.target == source.rip {
                Some(entry)
            } else {
                self.index.get(&key.on_page(it.target))
            };
            match known {
                Some(known) if self.chain => writer.linked(it, &known),
                _ => {
                    writer.unlinked(it, exit::LINK + self.links.len() as u64);
                    self.links.push(Link::new(self.used + it.jump.0, it.back));
                }
            }
        }
        let counters = core.counters();
        for &index in &writer.untranslated {
            counters.note_untranslated(format!("{:?}", source.instructions[index].code()));
        }
        let length = self.code.len();
        counters.translations.increment();
        let instructions = source.instructions.len() as u64;
        counters.translated_instructions.add(instructions);
        counters.host_bytes.add(length as u64);
        self.memory.write(self.used, self.code.bytes());
        self.used = (self.used + length).next_multiple_of(16);
        self.index.insert(key, &entry, page, generation);
    }
}

impl Core {
    /// Has the attention word set when code is written that somebody may have translated.
    pub(super) fn watch_code(&self, attention: &'static AtomicU32) {
        self.ram.pages().watch(attention);
        attention.store(1, Ordering::SeqCst);
    }
}
