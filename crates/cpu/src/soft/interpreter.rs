//! The innermost loop: finds blocks and runs their operations.
//!
//! Where there is a translator it is asked first, and told of blocks that are run often.
//!
//! It runs one vCPU on the thread of its caller, knows nothing of threads, interrupts or exits, and
//! hands every fault to its caller.

mod lockstep;

use std::{
    io,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use lockstep::Lockstep;

use super::{
    Core, Fault, Flow, Width,
    block::{Block, Blocks},
    idle::{Verdict, Watch},
    op::RIP,
    translate::{self, Translator},
};

/// A core with its blocks.
pub struct Interpreter {
    /// The state. It is large, and stays where it is.
    pub core: Box<Core>,
    blocks: Blocks,
    translator: Option<Box<Translator>>,
    lockstep: Option<Box<Lockstep>>,
    instructions: u64,
    watch: Watch,
}

/// How code is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// By the interpreter only.
    Interpret,
    /// Blocks that were interpreted often enough are translated.
    Translate {
        /// How often that is, 1 at least.
        threshold: u32,
        /// Whether translations lead to each other. If not, [`Interpreter::run_block`] runs one
        /// at a time.
        chain: bool,
    },
    /// Both, and they must agree, or it panics: for finding bugs, with one vCPU.
    Lockstep,
}

impl Default for Tier {
    /// What is fastest.
    fn default() -> Self {
        Self::Translate {
            threshold: translate::THRESHOLD,
            chain: true,
        }
    }
}

/// Why [`Interpreter::run`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The attention word is not zero.
    Attention,
    /// An instruction may have changed how code is run, or asks for something by its effect on
    /// [`Core`]: everything must be looked at anew.
    Sync,
    /// The instruction at the current `rip` raised an exception.
    Fault(Fault),
}

impl Interpreter {
    /// Nothing decoded yet.
    #[must_use]
    pub fn new(core: Core) -> Self {
        Self {
            blocks: Blocks::new(core.ram.clone()),
            core: Box::new(core),
            translator: None,
            lockstep: None,
            instructions: 0,
            watch: Watch::new(),
        }
    }

    /// Says how code is to be run; at first it is interpreted. On a machine that lacks what
    /// translations need it stays so. To be called before the process gives up its right to map
    /// executable memory.
    ///
    /// # Errors
    /// When the kernel gives no memory for translations.
    pub fn set_tier(&mut self, tier: Tier) -> io::Result<()> {
        self.translator = None;
        self.lockstep = None;
        let (threshold, chain) = match tier {
            Tier::Interpret => return Ok(()),
            Tier::Translate { threshold, chain } => (threshold, chain),
            Tier::Lockstep => (2, false),
        };
        if translate::is_possible() {
            if tier == Tier::Lockstep {
                self.lockstep = Some(Box::default());
            }
            let mut translator = Box::new(Translator::new()?);
            translator.set_threshold(threshold);
            translator.set_chaining(chain);
            self.translator = Some(translator);
        }
        Ok(())
    }

    /// What happened how often.
    #[must_use]
    pub fn counters(&self) -> translate::Counters {
        self.core.counters().read()
    }

    /// Instructions executed so far. A repeated string instruction counts once per part, and what
    /// translated code executes from one entry to the next return as one.
    #[must_use]
    pub fn instructions(&self) -> u64 {
        self.instructions
    }

    /// Says that the guest has nothing to do. Is to be called again after the time it returns, if it
    /// has nothing to do then either.
    pub fn rest(&mut self) -> Option<Duration> {
        let is_large = self.translator.as_ref().is_some_and(|it| it.is_large());
        if !is_large && !self.blocks.is_large() {
            return None;
        }
        match self.watch.look() {
            Verdict::Unknown(patience) => Some(patience),
            Verdict::Idle => {
                self.release();
                None
            }
        }
    }

    /// Gives back all that was decoded and translated. What the guest goes on to execute is found
    /// worth translating at once.
    pub(super) fn release(&mut self) {
        self.blocks.release();
        if let Some(translator) = &mut self.translator {
            translator.release(&mut self.core);
        }
        // SAFETY: gives unused pages back to the kernel.
        #[cfg(target_env = "gnu")]
        let _any_returned = unsafe { libc::malloc_trim(0) };
    }

    /// Runs until `attention` is not zero (looked at before each block), or something happens that
    /// only the caller can handle.
    pub fn run(&mut self, attention: &AtomicU32) -> Outcome {
        loop {
            if attention.load(Ordering::Relaxed) != 0 {
                return Outcome::Attention;
            }
            match self.run_block(attention) {
                Ok(Flow::Next | Flow::Branch | Flow::Again) => {}
                Ok(Flow::Sync | Flow::SyncBranch) => return Outcome::Sync,
                Err(fault) => return Outcome::Fault(fault),
            }
        }
    }

    /// Runs what is translated at the current `rip`, and what that leads to until it comes back;
    /// else interprets one block.
    ///
    /// # Errors
    /// What the instruction at the current `rip` raised.
    #[inline(always)]
    pub fn run_block(&mut self, attention: &AtomicU32) -> Result<Flow, Fault> {
        if self.lockstep.is_some() {
            return self.run_in_lockstep();
        }
        let Some(translator) = &mut self.translator else {
            return self.block();
        };
        let core = &mut self.core;
        if core.width != Width::Code64 {
            return self.block();
        }
        let rip = core.rip();
        let Some((host, page)) = core.find_code(rip)? else {
            return self.block();
        };
        if let Some(flow) = translator.run(core, host, attention) {
            self.instructions += 1;
            return flow;
        }
        let block = self.blocks.find(core, self.instructions)?;
        if translator.is_hot(&block) {
            translator.translate(core, &block, page);
            if let Some(flow) = translator.run(core, host, attention) {
                return flow;
            }
        }
        core.counters().interpreted.increment();
        self.interpret(&block)
    }

    /// Interprets one block.
    ///
    /// # Errors
    /// What the instruction at the current `rip` raised.
    #[inline(always)]
    pub fn block(&mut self) -> Result<Flow, Fault> {
        let block = self.blocks.find(&mut self.core, self.instructions)?;
        self.interpret(&block)
    }

    #[inline(always)]
    fn interpret(&mut self, block: &Block) -> Result<Flow, Fault> {
        let core = &mut self.core;
        let (start, end) = block.ops();
        core.block_end = end;
        let mut op = start;
        let flow = loop {
            // SAFETY: `op` is before the end of the block, which lives until the next is found.
            let this = unsafe { &*op };
            match (this.run)(core, this) {
                Ok(Flow::Next) => {
                    core.regs[RIP as usize] =
                        core.regs[RIP as usize].wrapping_add(u64::from(this.len));
                    // SAFETY: one past the end at most.
                    op = unsafe { op.add(1) };
                    if op >= core.block_end {
                        break Ok(Flow::Next);
                    }
                }
                Ok(Flow::Sync) => {
                    core.regs[RIP as usize] =
                        core.regs[RIP as usize].wrapping_add(u64::from(this.len));
                    break Ok(Flow::Sync);
                }
                other => break other,
            }
        };
        // SAFETY: both point into the same block.
        self.instructions += unsafe { op.offset_from(start) } as u64 + 1;
        flow
    }

    /// Runs one instruction.
    ///
    /// # Errors
    /// What it raised.
    pub fn step(&mut self) -> Result<Flow, Fault> {
        let block = self.blocks.find(&mut self.core, self.instructions)?;
        let core = &mut self.core;
        core.block_end = std::ptr::null();
        // SAFETY: a block has at least one operation, and lives until the next is found.
        let op = unsafe { &*block.ops().0 };
        self.instructions += 1;
        let flow = (op.run)(core, op)?;
        if matches!(flow, Flow::Next | Flow::Sync) {
            core.set_rip(core.rip().wrapping_add(u64::from(op.len)));
        }
        Ok(flow)
    }
}
