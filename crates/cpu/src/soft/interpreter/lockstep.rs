//! Both tiers in lockstep: each block is interpreted, taken back, run by its translation, and must come to the same.
//!
//! ```text
//!   registers ──► interpreted, with a journal ──► registers, stores ─┐
//!       │                    │ stores taken back                     ├─ equal, or a panic that tells the block
//!       └───────────► translated ───────────────► registers, stores ─┘
//! ```
//! This is for finding bugs of the translator in whole boots, with one vCPU and no device that writes to memory by itself.
//! Only blocks that can be taken back are compared: no system instructions, no strings, and in an execution no access to
//! devices, no store to code, no walk that changed page tables. All others are interpreted. What a block does first and
//! then more seldom is compared: [`ALWAYS`], then each [`SELDOM`]th time; else its translation is just run.

use std::{collections::HashMap, hash::BuildHasherDefault, sync::atomic::AtomicU32};

use iced_x86::{CpuidFeature, Decoder, DecoderOptions, Instruction, RflagsBits};

use super::Interpreter;
use crate::soft::{
    Core, Fault, Flags, Flow, Width,
    block::{AddressHasher, Block},
    core::Access,
    flags::{AF, CF, OF, PF, SF, STATUS, ZF},
    memory::{access::is_canonical, journal::Journal},
    system,
    vector::VectorState,
};

/// So often each block is compared.
const ALWAYS: u32 = 200;
/// And then each time of so many.
const SELDOM: u32 = 256;

/// What is remembered of blocks.
#[derive(Default)]
pub(super) struct Lockstep {
    /// By the host's address of a block: the generation it is known of, how often it was met, and whether it can be
    /// taken back.
    blocks: HashMap<u64, (u32, u32, bool), BuildHasherDefault<AddressHasher>>,
    compared: u64,
    quiet: AtomicU32,
}

/// What a block may change besides memory.
struct Snapshot {
    regs: [u64; 18],
    flags: Flags,
    vector: VectorState,
    cr2: u64,
}

impl Snapshot {
    fn of(core: &Core) -> Self {
        Self {
            regs: core.regs,
            flags: core.flags,
            vector: core.vector.state.clone(),
            cr2: core.control.cr2,
        }
    }

    fn restore(&self, core: &mut Core) {
        core.regs = self.regs;
        core.flags = self.flags;
        core.vector.state = self.vector.clone();
        core.control.cr2 = self.cr2;
    }

    /// What is not as in `other`, but for these flags.
    fn difference(&self, other: &Self, flags: u64) -> String {
        let mut text = String::new();
        for (number, (one, two)) in self.regs.iter().zip(&other.regs).enumerate() {
            if one != two {
                text += &format!("register {number}: {one:#x}, translated {two:#x}\n");
            }
        }
        let (one, two) = (self.flags.get() & !flags, other.flags.get() & !flags);
        if one != two {
            text += &format!("flags: {one:#x}, translated {two:#x}\n");
        }
        if self.cr2 != other.cr2 {
            text += &format!("cr2: {:#x}, translated {:#x}\n", self.cr2, other.cr2);
        }
        let areas = self
            .vector
            .area()
            .chunks(16)
            .zip(other.vector.area().chunks(16));
        for (number, (one, two)) in areas.enumerate() {
            if one != two {
                text += &format!(
                    "vector state + {}: {one:x?}, translated {two:x?}\n",
                    number * 16
                );
            }
        }
        text
    }
}

/// Whether what an instruction does is registers and journalled memory, and leaves translated code where the block ends.
fn can_be_taken_back(it: &Instruction, width: Width) -> bool {
    let bulk = |feature: &CpuidFeature| {
        let name = format!("{feature:?}");
        name.starts_with("XSAVE") || name.starts_with("FXSR") || name.starts_with("FPU")
    };
    let mnemonic = format!("{:?}", it.mnemonic());
    let elsewhere = mnemonic.contains("mask") || mnemonic.to_lowercase().ends_with("ldmxcsr");
    system::select(it, width).is_none()
        && !it.is_string_instruction()
        && !it.is_privileged()
        && !elsewhere
        && !it.cpuid_features().iter().any(bulk)
}

/// The flags that some instructions leave undefined in the end.
fn undefined(instructions: &[Instruction]) -> u64 {
    const PLACES: [(u32, u64); 6] = [
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
        (RflagsBits::AF, AF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::SF, SF),
        (RflagsBits::OF, OF),
    ];
    let left = instructions.iter().fold(0, |left, it| {
        let defined = it.rflags_written() | it.rflags_cleared() | it.rflags_set();
        left & !defined | it.rflags_undefined()
    });
    PLACES
        .into_iter()
        .filter(|(bit, _)| left & bit != 0)
        .fold(0, |mask, (_, flag)| mask | flag)
}

fn decoded(block: &Block, rip: u64) -> Vec<Instruction> {
    let (start, end) = block.ops();
    // SAFETY: both point into the same block.
    let ops = unsafe { std::slice::from_raw_parts(start, end.offset_from(start) as usize) };
    let mut bytes = vec![0; ops.iter().map(|op| usize::from(op.len)).sum()];
    // SAFETY: the block's bytes lie there; nobody but this vCPU writes to memory.
    unsafe {
        std::ptr::copy_nonoverlapping(block.host() as *const u8, bytes.as_mut_ptr(), bytes.len());
    };
    Decoder::with_ip(64, &bytes, rip, DecoderOptions::NONE)
        .into_iter()
        .collect()
}

impl Interpreter {
    /// Runs the block at the current `rip` by both tiers.
    ///
    /// # Errors
    /// What the instruction at the current `rip` raised.
    ///
    /// # Panics
    /// When the tiers disagree.
    pub(super) fn run_in_lockstep(&mut self) -> Result<Flow, Fault> {
        let block = self.blocks.find(&mut self.core, self.instructions)?;
        let rip = self.core.rip();
        let crosses = rip >> 12 != (rip + 15) >> 12;
        if self.core.width != Width::Code64 || crosses || !self.is_hot(&block) {
            return self.interpret(&block);
        }
        match self.turn(&block, rip) {
            Turn::Interpret => self.interpret(&block),
            Turn::Translate => match self.translated(&block) {
                Some(flow) => flow,
                None => self.interpret(&block),
            },
            Turn::Compare => self.compare(&block, rip),
        }
    }

    fn is_hot(&self, block: &Block) -> bool {
        self.translator.as_ref().is_some_and(|it| it.is_hot(block))
    }

    fn turn(&mut self, block: &Block, rip: u64) -> Turn {
        let Some(lockstep) = &mut self.lockstep else {
            return Turn::Interpret;
        };
        let known = lockstep.blocks.entry(block.host()).or_default();
        if known.1 == 0 || known.0 != block.generation() {
            let width = self.core.width;
            let all = decoded(block, rip)
                .iter()
                .all(|it| can_be_taken_back(it, width));
            *known = (block.generation(), 0, all);
        }
        known.1 += 1;
        match *known {
            (_, _, false) => Turn::Interpret,
            (_, count, true) if count <= ALWAYS || count.is_multiple_of(SELDOM) => Turn::Compare,
            _ => Turn::Translate,
        }
    }

    /// Runs the translation of the block, which is made when there is none.
    fn translated(&mut self, block: &Block) -> Option<Result<Flow, Fault>> {
        let (Some(translator), Some(lockstep)) = (&mut self.translator, &self.lockstep) else {
            return None;
        };
        let core = &mut self.core;
        let (host, page) = core.find_code(core.rip()).ok()??;
        if let Some(flow) = translator.run(core, host, &lockstep.quiet) {
            return Some(flow);
        }
        translator.translate(core, block, page);
        translator.run(core, host, &lockstep.quiet)
    }

    fn compare(&mut self, block: &Block, rip: u64) -> Result<Flow, Fault> {
        let before = Snapshot::of(&self.core);
        self.core.tlb.flush_writes(None);
        self.core.journal = Some(Box::default());
        let flow = self.interpret(block);
        let journal = self.core.journal.take().unwrap_or_default();
        let plain = matches!(flow, Ok(Flow::Next | Flow::Branch) | Err(_));
        if journal.is_final || !plain {
            return flow;
        }
        let (after, stores) = (Snapshot::of(&self.core), journal.now());
        journal.undo();
        before.restore(&mut self.core);
        self.prepare(&journal);
        let Some(found) = self.translated(block) else {
            return self.interpret(block);
        };
        let translated = Snapshot::of(&self.core);
        let nowhere = flow == Err(Fault::GP0) && !is_canonical(self.core.rip());
        if nowhere {
            // The interpreter tells the branch, translated code its target.
            journal.undo();
            before.restore(&mut self.core);
            return self.interpret(block);
        }
        let flags = match flow {
            // Translated code may have lost those that nobody reads.
            Err(_) => STATUS,
            Ok(_) => undefined(&decoded(block, rip)),
        };
        let mut text = after.difference(&translated, flags);
        if flow.is_err() != found.is_err() || flow.is_err() && flow != found {
            text += &format!("outcome: {flow:?}, translated {found:?}\n");
        }
        for ((it, one), two) in journal.written().iter().zip(stores).zip(journal.now()) {
            if one != two {
                text += &format!("store to {:x?}: {one:x?}, translated {two:x?}\n", it.linear);
            }
        }
        if !text.is_empty() {
            diverged(block, rip, &before, &text);
        }
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.compared += 1;
        }
        flow
    }

    /// Lets translated code find memory as it would: most stores known, or now and then nothing.
    fn prepare(&mut self, journal: &Journal) {
        let count = self.lockstep.as_ref().map_or(0, |it| it.compared);
        if count.is_multiple_of(16) {
            self.core.tlb.flush(true);
            return;
        }
        for it in journal.written() {
            if let Some(linear) = it.linear {
                // It was found a moment ago.
                let _known = self.core.find(linear, it.bytes, Access::Write);
            }
        }
    }

    /// How many executions of blocks were compared.
    #[must_use]
    pub fn compared(&self) -> u64 {
        self.lockstep.as_ref().map_or(0, |it| it.compared)
    }
}

/// What to do with an execution of a block.
enum Turn {
    Interpret,
    Translate,
    Compare,
}

fn diverged(block: &Block, rip: u64, before: &Snapshot, text: &str) -> ! {
    let code: Vec<_> = decoded(block, rip)
        .iter()
        .map(|it| format!("{:x}: {it}\n", it.ip()))
        .collect();
    panic!(
        "the tiers of the software CPU disagree\n{text}from {:x?} flags {:x} mxcsr {:x}\n{}",
        before.regs,
        before.flags.get(),
        before.vector.mxcsr,
        code.concat()
    );
}
