//! A software vCPU: the loop around the interpreter.
//!
//! ```text
//!            ┌──────────────── attention, sync ───────────────┐
//!            ▼                                                │
//!   look: kicks, requests, INIT, SIPI, NMI, interrupts ──► run blocks ── fault ─► deliver ─┐
//!            │ nothing to run (hlt, wait for SIPI)            ▲                            │
//!            └─► park, sleep, unpark ─► look                  └────────────────────────────┘
//! ```

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use memory::Ram;

use super::{
    Core, Flow, Interpreter, Tier,
    flags::{IF, TF},
    interpreter::Outcome,
    interrupt::{self, Event, Source, TripleFault},
    lapic::{self, Gates},
    peers::Peer,
    platform::Platform,
};
use crate::{
    Bus, CpuError, Exit, Kick, Vcpu, VcpuState,
    state::{Activity, SegmentState},
};

/// `dr6`: a single step was taken.
const DR6_STEP: u64 = 1 << 14;
const NMI: u8 = 2;

/// One software vCPU.
pub struct SoftVcpu {
    index: u32,
    interpreter: Interpreter,
    attention: &'static AtomicU32,
}

impl Kick for Peer {
    fn kick(&self) {
        Peer::kick(self);
    }
}

impl SoftVcpu {
    pub(super) fn new(
        index: u32,
        platform: Platform,
        ram: Ram,
        bus: Arc<dyn Bus>,
        tier: Tier,
    ) -> Result<Self, CpuError> {
        let attention = platform.apic.inbox().attention_word();
        let mut core = Core::new(platform, ram, bus);
        core.set_state(index, &VcpuState::reset(index))?;
        let mut interpreter = Interpreter::new(core);
        interpreter
            .set_tier(tier)
            .map_err(|source| CpuError::System {
                what: "map memory for translated code",
                source,
            })?;
        interpreter.core.watch_code(attention);
        Ok(Self {
            index,
            interpreter,
            attention,
        })
    }

    fn gates(&self) -> Gates {
        let core = &self.interpreter.core;
        let runs = !core.events.waits_for_sipi && !core.events.shadow;
        Gates {
            interrupts: runs && core.flags.any(IF),
            nmi: runs && !core.events.nmi_masked,
            sipi: core.events.waits_for_sipi,
        }
    }

    /// Takes what waits, until nothing more can be taken now. `Some` when the run ends.
    fn look(&mut self) -> Result<Option<Exit>, TripleFault> {
        while let Some(event) = self.interpreter.core.platform.apic.take(self.gates()) {
            self.handle(event)?;
        }
        let instructions = self.interpreter.instructions();
        let core = &mut self.interpreter.core;
        let peer = &core.platform.peer;
        peer.instructions.store(instructions, Ordering::Relaxed);
        core.answer();
        Ok(core.platform.peer.take_kick().then_some(Exit::Kicked))
    }

    fn handle(&mut self, event: lapic::Event) -> Result<(), TripleFault> {
        let index = self.index;
        let core = &mut self.interpreter.core;
        match event {
            lapic::Event::Init if index == 0 => Err(TripleFault),
            lapic::Event::Init => {
                core.reset_by_init(index);
                Ok(())
            }
            lapic::Event::Sipi(vector) => {
                core.start_at(vector);
                Ok(())
            }
            lapic::Event::Nmi => {
                core.events.halted = false;
                core.events.nmi_masked = true;
                interrupt::raise(core, Event::new(NMI, Source::External))
            }
            lapic::Event::Interrupt(vector) => {
                core.events.halted = false;
                interrupt::raise(core, Event::new(vector, Source::External))
            }
        }
    }

    fn run_until_exit(&mut self) -> Result<Exit, TripleFault> {
        if let Some((vector, code)) = self.interpreter.core.events.injected.take() {
            let event = Event {
                vector,
                code,
                source: if vector < 32 {
                    Source::Exception
                } else {
                    Source::External
                },
            };
            interrupt::raise(&mut self.interpreter.core, event)?;
        }
        loop {
            if let Some(exit) = self.look()? {
                return Ok(exit);
            }
            let core = &mut self.interpreter.core;
            if core.events.halted || core.events.waits_for_sipi {
                core.park();
                let patience = self.interpreter.rest();
                let core = &mut self.interpreter.core;
                core.platform.apic.inbox().wait(patience);
                core.unpark();
                continue;
            }
            self.run_blocks()?;
        }
    }

    /// Runs guest code until something is to be looked at.
    fn run_blocks(&mut self) -> Result<(), TripleFault> {
        loop {
            let core = &self.interpreter.core;
            if core.events.shadow || core.flags.any(TF) {
                self.step()?;
            } else {
                match self.interpreter.run(self.attention) {
                    Outcome::Attention => return Ok(()),
                    Outcome::Sync => {}
                    Outcome::Fault(fault) => {
                        interrupt::raise(&mut self.interpreter.core, fault.into())?;
                    }
                }
            }
            let core = &mut self.interpreter.core;
            if core.events.halted || core.events.waits_for_sipi {
                return Ok(());
            }
            if core.flags.any(IF) && !core.events.shadow {
                core.platform.apic.look();
            }
        }
    }

    /// Runs one instruction: in the shadow of one that holds interrupts back, or because the guest
    /// steps.
    fn step(&mut self) -> Result<(), TripleFault> {
        let core = &mut self.interpreter.core;
        core.events.shadow = false;
        let stepping = core.flags.any(TF);
        match self.interpreter.step() {
            Err(fault) => interrupt::raise(&mut self.interpreter.core, fault.into()),
            // A repeated instruction traps after each part, as after each repetition.
            Ok(Flow::Next | Flow::Branch | Flow::Again | Flow::Sync | Flow::SyncBranch) => {
                let core = &mut self.interpreter.core;
                if !stepping || core.events.shadow {
                    return Ok(());
                }
                core.control.dr6 |= DR6_STEP;
                interrupt::raise(core, super::Fault::DEBUG.into())
            }
        }
    }
}

impl Drop for SoftVcpu {
    fn drop(&mut self) {
        let core = &self.interpreter.core;
        core.ram.pages().unwatch(self.attention);
    }
}

impl Vcpu for SoftVcpu {
    fn index(&self) -> u32 {
        self.index
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        let peer: Arc<Peer> = Arc::clone(&self.interpreter.core.platform.peer);
        peer
    }

    fn run(&mut self) -> Result<Exit, CpuError> {
        let core = &mut self.interpreter.core;
        core.platform.apic.bind()?;
        core.unpark();
        if core.ram.pages().is_logging() {
            core.tlb.flush_writes(None);
        }
        let exit = self.run_until_exit();
        self.interpreter.core.park();
        Ok(exit.unwrap_or(Exit::Shutdown))
    }

    fn state(&self) -> Result<VcpuState, CpuError> {
        Ok(self.interpreter.core.state())
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), CpuError> {
        self.interpreter.core.set_state(self.index, state)
    }
}

impl Core {
    /// What INIT does: as after power-on, but for the vector state and a few registers, and then
    /// the wait for a SIPI (Intel SDM 3A, table 11-1).
    fn reset_by_init(&mut self, index: u32) {
        let mut fresh = VcpuState::reset(index);
        fresh.control.cr0 |= self.control.cr0 & 0x6000_0000;
        fresh.activity = Activity::WaitForSipi;
        self.set_registers(&fresh);
        self.platform.apic.init();
    }

    /// What SIPI does: real mode at `vector << 12`.
    fn start_at(&mut self, vector: u8) {
        self.segments[super::segment::CS] = SegmentState {
            selector: u16::from(vector) << 8,
            attributes: 0x009b,
            limit: 0xffff,
            base: u64::from(vector) << 12,
        }
        .into();
        self.set_rip(0);
        self.events.waits_for_sipi = false;
        self.refresh();
    }
}
