//! What translated code and Rust tell each other: a part of the core.

use std::{
    mem::offset_of,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use crate::soft::{
    Core, Fault, Flags, Flow, Op,
    flags::{IF, RF, STATUS as STATUS_FLAGS, TF, VM},
    memory::tlb::Tlb,
    op::{RIP, Width},
    system::msr::Msrs,
    vector::Vector,
};

use super::mode::Mode;

/// Targets of indirect and distant jumps of users, and of the supervisor.
const TARGETS: usize = 1 << 13;
/// Of the supervisor while user pages are open to it: short stretches of code.
const OPEN_TARGETS: usize = 1 << 6;
/// All of them.
pub(super) const ALL_TARGETS: usize = 2 * TARGETS + OPEN_TARGETS;
// Their numbers are kept as such.
const _: () = assert!(ALL_TARGETS <= 1 << 16);
/// The lowest bit of an address by which it is found among the targets. Functions begin at multiples
/// of 16, and returns mostly need no table: what lower bits tell apart is less than what higher ones
/// do.
const LOWEST_BIT: u32 = 4;

/// Why translated code came back to Rust, besides the numbers of links.
pub(super) mod exit {
    /// The target of a jump is not among the targets.
    pub(in crate::soft::translate) const MISS: u64 = 0;
    /// The attention word is not zero.
    pub(in crate::soft::translate) const ATTENTION: u64 = 1;
    /// A handler did not say "next": the outcome is in the interface.
    pub(in crate::soft::translate) const HANDLER: u64 = 2;
    /// The number of the first link.
    pub(in crate::soft::translate) const LINK: u64 = 16;
}

/// What translated code and Rust tell each other.
#[repr(C)]
pub(in crate::soft) struct Interface {
    /// The attention word; translated code reads it.
    attention: *const AtomicU32,
    /// Not zero when an interrupt may wait; translated code reads it.
    waiting: *const AtomicU32,
    /// What the guest's clock is ahead of the host's; translated code reads it.
    clock: *const AtomicU64,
    /// The core this is a part of.
    core: *mut Core,
    /// Where translated code goes on after a handler that branched.
    jump: usize,
    /// The host's `rsp` where no call is recorded, and where there is no room for more.
    empty: usize,
    full: usize,
    /// The status flags, in their places.
    status: u64,
    /// All flags that `pushf` shows.
    shown: u64,
    /// Why it came back.
    pub(super) exit: u64,
    /// Where translated code puts `rax`, and the target of a jump, for a moment.
    spill: [u64; 2],
    /// What to load into `mxcsr`: the guest's where it computes as the host does, else the host's.
    run_mxcsr: u32,
    /// What was in `mxcsr` when translated code was left.
    live_mxcsr: u32,
    /// How much of the vector registers is in those of the host: 0 nothing, 1 the lower halves, 2
    /// all. Always 0 while Rust runs.
    vectors: u64,
    /// For each context of memory, the bits of an address that say its place among the targets.
    masks: [u64; 3],
    /// Where translations begin, of each context in turn; of what is not translated, a thunk.
    pub(super) targets: [usize; ALL_TARGETS],
    /// The result of the handler that made translated code come back.
    pub(super) outcome: Result<Flow, Fault>,
    /// What the code that runs was translated for.
    pub(super) mode: Mode,
    /// [`Tlb::changes`] when translated code was entered.
    pub(super) changes: [u32; 2],
    /// Pages of code that this vCPU wrote to since the translator last looked, or some of them.
    pub(super) written: Vec<usize>,
}

impl Default for Interface {
    fn default() -> Self {
        let mask = |targets: usize| (targets as u64 - 1) << LOWEST_BIT;
        Self {
            attention: std::ptr::null(),
            waiting: std::ptr::null(),
            clock: std::ptr::null(),
            core: std::ptr::null_mut(),
            jump: 0,
            empty: 0,
            full: 0,
            status: STATUS_FLAGS,
            shown: !(RF | VM),
            exit: 0,
            spill: [0; 2],
            run_mxcsr: 0x1f80,
            live_mxcsr: 0x1f80,
            vectors: 0,
            masks: [mask(TARGETS), mask(TARGETS), mask(OPEN_TARGETS)],
            targets: [0; ALL_TARGETS],
            outcome: Ok(Flow::Next),
            mode: Mode::default(),
            changes: [0; 2],
            written: Vec::new(),
        }
    }
}

impl Interface {
    /// Notes that this vCPU wrote to a page of code.
    pub(in crate::soft) fn note_written(&mut self, page: usize) {
        // Where nobody looks, some are enough: that others are missing is seen.
        const MOST: usize = 64;
        if self.written.len() < MOST {
            self.written.push(page);
        }
    }
}

/// The place of an address among the targets of a context.
pub(super) fn target_slot(context: usize, address: u64) -> usize {
    let targets = if context == 2 { OPEN_TARGETS } else { TARGETS };
    context * TARGETS + ((address >> LOWEST_BIT) as usize & (targets - 1))
}

const THIS: usize = offset_of!(Core, interface);
const VECTOR: usize = offset_of!(Core, vector);
/// The guest's status flags, as `lahf; seto al` leaves them.
pub(super) const STATUS: usize = offset_of!(Core, flags) + Flags::STATUS;
/// `rip`.
pub(super) const GUEST_RIP: usize = guest(RIP);
pub(super) const ATTENTION: usize = THIS + offset_of!(Interface, attention);
pub(super) const WAITING: usize = THIS + offset_of!(Interface, waiting);
pub(super) const CLOCK: usize = THIS + offset_of!(Interface, clock);
pub(super) const CORE: usize = THIS + offset_of!(Interface, core);
pub(super) const JUMP: usize = THIS + offset_of!(Interface, jump);
/// Where no call is recorded: the host's `rsp`.
pub(super) const EMPTY: usize = THIS + offset_of!(Interface, empty);
/// Where there is no room to record one more.
pub(super) const FULL: usize = THIS + offset_of!(Interface, full);
/// The status flags, as a mask.
pub(super) const STATUS_MASK: usize = THIS + offset_of!(Interface, status);
/// The flags that `pushf` shows, as a mask.
pub(super) const SHOWN_MASK: usize = THIS + offset_of!(Interface, shown);
/// All flags but the status flags.
pub(super) const CONTROL: usize = offset_of!(Core, flags) + Flags::CONTROL;
/// What `swapgs` puts into the base of `gs`.
pub(super) const KERNEL_GS_BASE: usize = offset_of!(Core, msrs) + offset_of!(Msrs, kernel_gs_base);
pub(super) const EXIT: usize = THIS + offset_of!(Interface, exit);
pub(super) const SPILL_RAX: usize = THIS + offset_of!(Interface, spill);
pub(super) const SPILL_TARGET: usize = SPILL_RAX + 8;
pub(super) const RUN_MXCSR: usize = THIS + offset_of!(Interface, run_mxcsr);
pub(super) const LIVE_MXCSR: usize = THIS + offset_of!(Interface, live_mxcsr);
pub(super) const VECTORS: usize = THIS + offset_of!(Interface, vectors);
pub(super) const TLB_READ: usize = offset_of!(Core, tlb) + Tlb::READ;
pub(super) const TLB_WRITE: usize = offset_of!(Core, tlb) + Tlb::WRITE;
pub(super) const TLB_HOST: usize = offset_of!(Core, tlb) + Tlb::HOST;

/// Where a guest register is kept in the core.
pub(super) const fn guest(register: u8) -> usize {
    offset_of!(Core, regs) + 8 * register as usize
}

/// Where the base of `fs` (4) or `gs` (5) is kept.
pub(super) fn segment_base(segment: u8) -> usize {
    offset_of!(Core, segments)
        + size_of::<crate::soft::core::Segment>() * usize::from(segment)
        + offset_of!(crate::soft::core::Segment, base)
}

/// The mask of a context's targets.
pub(super) fn mask(context: usize) -> usize {
    THIS + offset_of!(Interface, masks) + 8 * context
}

/// The first target of a context.
pub(super) fn targets(context: usize) -> usize {
    THIS + offset_of!(Interface, targets) + 8 * TARGETS * context
}

/// The target at a place.
pub(super) fn target(slot: usize) -> usize {
    targets(0) + 8 * slot
}

/// The lower half of a vector register.
pub(super) fn xmm(number: u8) -> usize {
    VECTOR + Vector::XMM + 16 * usize::from(number)
}

/// The upper half.
pub(super) fn ymm_high(number: u8) -> usize {
    VECTOR + Vector::YMM_HIGH + 16 * usize::from(number)
}

impl Core {
    /// Before translated code is entered.
    pub(super) fn prepare_translated(&mut self, attention: &AtomicU32, mode: Mode) {
        self.interface.attention = attention;
        self.interface.waiting = self.platform.apic.inbox().waiting_word();
        self.interface.clock = self.platform.tsc.offset();
        self.interface.core = self;
        self.interface.mode = mode;
        self.interface.changes = self.tlb.changes();
        self.interface.run_mxcsr = self.run_mxcsr(mode);
        // Whatever ends a block moves it.
        self.block_end = std::ptr::dangling();
    }

    fn run_mxcsr(&self, mode: Mode) -> u32 {
        if mode.computes_as_host() {
            self.vector.state.mxcsr
        } else {
            0x1f80
        }
    }

    /// Notes what translated code left in `mxcsr`.
    pub(super) fn take_mxcsr(&mut self) {
        const RAISED: u32 = 0x3f;
        if self.interface.mode.computes_as_host() {
            self.vector.state.mxcsr |= self.interface.live_mxcsr & RAISED;
        }
    }
}

/// What translated code does after a handler.
mod after {
    /// Goes on with the next instruction.
    pub(super) const NEXT: u32 = 0;
    /// Comes back.
    pub(super) const LEAVE: u32 = 1;
    /// Jumps to `Interface::jump`.
    pub(super) const JUMP: u32 = 2;
}

/// Runs the handler of one instruction for translated code; everything the guest can see is in the
/// core. Returns what translated code does then, as [`after`] numbers it.
///
/// It is left too when the attention word is set: what serializes has a handler, and past that the
/// guest may expect code as others have written it, also where no branch leads back or elsewhere.
pub(super) unsafe extern "sysv64" fn call_handler(core: *mut Core, op: *const Op) -> u32 {
    // SAFETY: translated code is entered with a core that nobody else uses, and passes operations
    // that live as long as it does.
    let (core, op) = unsafe { (&mut *core, &*op) };
    core.take_mxcsr();
    core.counters().handlers.increment();
    let outcome = (op.run)(core, op);
    let Ok(flow) = outcome else {
        return core.leave_translated(outcome);
    };
    let goes_on = match flow {
        Flow::Next | Flow::Branch => !core.block_end.is_null(),
        Flow::Sync | Flow::SyncBranch => !core.block_end.is_null() && core.may_go_on(),
        Flow::Again => false,
    };
    // SAFETY: set on entry, to a word that lives as long as the run.
    let attention = unsafe { &*core.interface.attention };
    let goes_on = goes_on && attention.load(Ordering::Relaxed) == 0;
    let mode = Mode::of(core);
    let next = matches!(flow, Flow::Next | Flow::Sync);
    if goes_on && next && mode == core.interface.mode && core.has_same_tlb() {
        core.interface.run_mxcsr = core.run_mxcsr(mode);
        return after::NEXT;
    }
    if next {
        core.regs[RIP as usize] = core.regs[RIP as usize].wrapping_add(u64::from(op.len));
    }
    let known_units = mode.units() == core.interface.mode.units();
    if goes_on && known_units && core.width == Width::Code64 && core.has_same_tlb() {
        core.interface.mode = mode;
        core.interface.run_mxcsr = core.run_mxcsr(mode);
        let slot = target_slot(mode.context(), core.rip());
        core.interface.jump = core.interface.targets[slot];
        return after::JUMP;
    }
    core.leave_translated(outcome)
}

impl Core {
    #[inline(always)]
    fn has_same_tlb(&self) -> bool {
        self.interface.changes == self.tlb.changes()
    }

    /// Whether what a handler changed is nothing to be looked at before more code is run. An
    /// interrupt that may be taken now sets the attention word, which translated code looks at.
    fn may_go_on(&self) -> bool {
        let events = &self.events;
        if events.shadow || events.halted || events.waits_for_sipi || self.flags.any(TF) {
            return false;
        }
        if self.flags.any(IF) {
            self.platform.apic.look();
        }
        true
    }

    fn leave_translated(&mut self, outcome: Result<Flow, Fault>) -> u32 {
        self.interface.exit = exit::HANDLER;
        self.interface.outcome = outcome;
        after::LEAVE
    }
}
