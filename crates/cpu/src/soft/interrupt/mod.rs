//! Delivery of exceptions and interrupts through the guest's interrupt table, in real mode
//! ([`real`]), 32-bit protected mode ([`protected`]) and long mode ([`long`]); double and triple
//! faults (Intel SDM 3A, chapter 6).
//!
//! Called between instructions only. Either everything of a delivery happens, or nothing but
//! stores below the stack pointer.

mod long;
mod protected;
mod real;

pub(super) use long::task_pointer;
pub(super) use protected::inner_stack;

use super::{Core, Fault, flags};

/// What is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// 0 to 255.
    pub vector: u8,
    /// Error code.
    pub code: Option<u16>,
    /// Where it comes from.
    pub source: Source,
}

/// Where an event comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// An instruction that could not be completed, or `#DB` after one.
    Exception,
    /// `int`, `int3`, `into`: the gate's privilege is checked.
    Software,
    /// A local APIC, or a non-maskable interrupt.
    External,
}

/// A third fault in a row: the processor shuts down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TripleFault;

impl From<Fault> for Event {
    fn from(fault: Fault) -> Self {
        Self {
            vector: fault.vector,
            code: fault.code,
            source: Source::Exception,
        }
    }
}

impl Event {
    /// A vector without error code.
    #[must_use]
    pub fn new(vector: u8, source: Source) -> Self {
        Self {
            vector,
            code: None,
            source,
        }
    }

    /// The error code of a fault over the gate of this event.
    fn gate_code(&self) -> u16 {
        let external = u16::from(self.source != Source::Software);
        u16::from(self.vector) * 8 + 2 + external
    }

    /// The flags to push. A fault is restarted with instruction breakpoints ignored once.
    fn flags(&self, core: &Core) -> u64 {
        let restarted = self.source == Source::Exception && !matches!(self.vector, 1 | 3 | 4 | 8);
        core.flags.get() & !flags::RF | if restarted { flags::RF } else { 0 }
    }
}

/// Delivers an event; a fault on the way is delivered in its place, or makes a double fault.
///
/// # Errors
/// When a double fault cannot be delivered.
pub fn raise(core: &mut Core, event: Event) -> Result<(), TripleFault> {
    let mut event = event;
    loop {
        match deliver(core, event) {
            Ok(()) => return Ok(()),
            Err(_) if event.vector == 8 && event.source == Source::Exception => {
                return Err(TripleFault);
            }
            Err(fault) => event = combine(event, fault).into(),
        }
    }
}

/// Delivers an event.
///
/// # Errors
/// What stood in the way.
pub fn deliver(core: &mut Core, event: Event) -> Result<(), Fault> {
    if !core.control.protected() {
        real::deliver(core, event)
    } else if core.control.long() {
        long::deliver(core, event)
    } else {
        protected::deliver(core, event)
    }
}

/// What a fault during the delivery of `first` amounts to (Intel SDM 3A, table 6-5).
fn combine(first: Event, second: Fault) -> Fault {
    const PAGE_FAULT: u8 = 14;
    let contributory = |vector: u8| matches!(vector, 0 | 10..=13);
    if first.source != Source::Exception {
        return second;
    }
    let double = contributory(first.vector) && contributory(second.vector)
        || first.vector == PAGE_FAULT
            && (contributory(second.vector) || second.vector == PAGE_FAULT);
    if double { Fault::DOUBLE } else { second }
}
