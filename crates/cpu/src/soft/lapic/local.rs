//! The half of a local APIC that belongs to its vCPU: priorities, service, timer.

use std::sync::{Arc, atomic::Ordering};

use super::{
    Event, Gates, Inbox, Router,
    inbox::{Mode, WAITING_INIT, WAITING_NMI, WAITING_REQUEST, WAITING_SIPI},
    timer::Timer,
};
use crate::{Bus, CpuError, soft::clock::Tsc};

/// Base address MSR: bootstrap processor, x2APIC mode, enabled.
pub(super) const BASE_BSP: u64 = 1 << 8;
pub(super) const BASE_X2APIC: u64 = 1 << 10;
pub(super) const BASE_ENABLE: u64 = 1 << 11;
pub(super) const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

pub(super) const LVT_TIMER: usize = 0;
pub(super) const LVT_ERROR: usize = 5;
pub(super) const LVT_MASKED: u32 = 1 << 16;
/// Timer modes, bits 18:17 of its entry.
pub(super) const TIMER_MODE: u32 = 3 << 17;
const TIMER_PERIODIC: u32 = 1 << 17;
pub(super) const TIMER_DEADLINE: u32 = 2 << 17;
pub(super) const SVR_ENABLE: u32 = 1 << 8;

/// A periodic timer goes off no more often than this, whatever the guest asks for.
const MIN_PERIOD_NANOS: u64 = 50_000;

/// The registers and timer of one local APIC.
pub struct LocalApic {
    pub(super) inbox: Arc<Inbox>,
    pub(super) router: Arc<Router>,
    bus: Arc<dyn Bus>,
    pub(super) tsc: Arc<Tsc>,
    timer: Option<Timer>,
    pub(super) base: u64,
    pub(super) tpr: u8,
    pub(super) isr: [u32; 8],
    pub(super) svr: u32,
    pub(super) lvt: [u32; 6],
    pub(super) icr: u64,
    /// Errors shown, and those that the next store to the register shows.
    pub(super) esr: u32,
    pub(super) errors: u32,
    pub(super) initial_count: u32,
    pub(super) divide: u32,
    /// When the timer goes off, in ticks of the guest's counter; 0 while it is stopped.
    pub(super) deadline: u64,
    /// How far from the deadline the timer may have woken us without being lost.
    slack: u64,
}

impl LocalApic {
    /// The local APIC of the vCPU with this index, as after power-on. Index 0 is the bootstrap
    /// processor.
    ///
    /// # Errors
    /// When the index is taken already, or above what the router has room for.
    pub fn new(
        index: u32,
        router: Arc<Router>,
        bus: Arc<dyn Bus>,
        tsc: Arc<Tsc>,
    ) -> Result<Self, CpuError> {
        let inbox = router.add(index)?;
        let bsp = if index == 0 { BASE_BSP } else { 0 };
        let mut it = Self {
            inbox,
            router,
            bus,
            tsc,
            timer: None,
            base: memory::layout::LAPIC_START | BASE_ENABLE | bsp,
            tpr: 0,
            isr: [0; 8],
            svr: 0,
            lvt: [0; 6],
            icr: 0,
            esr: 0,
            errors: 0,
            initial_count: 0,
            divide: 0,
            deadline: 0,
            slack: 0,
        };
        it.init();
        Ok(it)
    }

    /// Where others put interrupts for it.
    #[must_use]
    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Ties the timer to the calling thread, which must be the one that runs the vCPU from now on.
    /// Cheap when it is already.
    ///
    /// # Errors
    /// When the kernel gives no timer.
    pub fn bind(&mut self) -> Result<(), CpuError> {
        if self.timer.as_ref().is_some_and(Timer::is_ours) {
            return Ok(());
        }
        let timer = Timer::new(self.inbox.attention_word()).map_err(|source| CpuError::System {
            what: "make a timer for a vCPU",
            source,
        })?;
        self.timer = Some(timer);
        self.arm();
        Ok(())
    }

    /// Everything as after INIT: the id, the base address and the mode stay.
    pub fn init(&mut self) {
        self.tpr = 0;
        self.isr = [0; 8];
        self.svr = 0xff;
        self.lvt = [LVT_MASKED; 6];
        self.icr = 0;
        self.esr = 0;
        self.errors = 0;
        self.initial_count = 0;
        self.divide = 0;
        self.deadline = 0;
        self.inbox.set_words([0; 8], [0; 8]);
        self.inbox.take_waiting(WAITING_NMI | WAITING_REQUEST);
        self.inbox.ldr.store(0, Ordering::Relaxed);
        self.inbox.dfr.store(u32::MAX, Ordering::Relaxed);
        self.publish();
        self.arm();
    }

    pub(super) fn mode(&self) -> Mode {
        match self.base & (BASE_ENABLE | BASE_X2APIC) {
            0 | BASE_X2APIC => Mode::Disabled,
            BASE_ENABLE => Mode::XApic,
            _ => Mode::X2Apic,
        }
    }

    /// Where its registers are in guest physical memory; `None` while they are not there.
    #[must_use]
    pub fn base(&self) -> Option<u64> {
        (self.mode() == Mode::XApic).then_some(self.base & BASE_ADDRESS)
    }

    /// Tells senders what decides whether a message is for us.
    pub(super) fn publish(&self) {
        let mode = self.mode();
        let enabled = mode != Mode::Disabled && self.svr & SVR_ENABLE != 0;
        self.inbox.mode.store(mode as u32, Ordering::SeqCst);
        self.inbox.enabled.store(enabled, Ordering::SeqCst);
    }

    /// What the vCPU must do now, if anything. Takes down the attention word, and sets it again
    /// while more waits. What is behind a closed gate waits for [`LocalApic::look`].
    pub fn take(&mut self, gates: Gates) -> Option<Event> {
        self.inbox.clear_attention();
        self.expire();
        let waiting = self.inbox.waiting();
        if waiting == 0 {
            return None;
        }
        let event = self.next_event(waiting, gates)?;
        self.look();
        Some(event)
    }

    fn next_event(&mut self, waiting: u32, gates: Gates) -> Option<Event> {
        if waiting & WAITING_INIT != 0 && self.inbox.take_waiting(WAITING_INIT) {
            return Some(Event::Init);
        }
        if waiting & WAITING_SIPI != 0 && self.inbox.take_waiting(WAITING_SIPI) && gates.sipi {
            return Some(Event::Sipi(self.inbox.sipi_vector()));
        }
        if gates.nmi && waiting & WAITING_NMI != 0 && self.inbox.take_waiting(WAITING_NMI) {
            return Some(Event::Nmi);
        }
        if !gates.interrupts {
            return None;
        }
        let vector = self.deliverable()?;
        self.inbox.acknowledge(vector);
        self.isr[usize::from(vector / 32)] |= 1 << (vector % 32);
        Some(Event::Interrupt(vector))
    }

    /// The highest request, when its priority is above the processor's.
    fn deliverable(&self) -> Option<u8> {
        let vector = self.inbox.highest()?;
        let enabled = self.mode() != Mode::Disabled;
        (enabled && vector & 0xf0 > self.ppr() & 0xf0).then_some(vector)
    }

    /// Sets the attention word when anything waits: to be called when a gate opened.
    #[inline]
    pub fn look(&self) {
        if self.inbox.waiting() != 0 {
            self.inbox.attention_word().store(1, Ordering::SeqCst);
        }
    }

    /// The highest vector in service.
    fn in_service(&self) -> Option<u8> {
        let words = self.isr.iter().enumerate().rev();
        words
            .filter(|(_, bits)| **bits != 0)
            .map(|(index, bits)| (index as u32 * 32 + 31 - bits.leading_zeros()) as u8)
            .next()
    }

    /// Processor priority: the higher of the task's and that of what is in service.
    pub(super) fn ppr(&self) -> u8 {
        let service = self.in_service().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= service {
            self.tpr
        } else {
            service
        }
    }

    /// Task priority, as `cr8` shows it: 0 to 15.
    #[must_use]
    pub fn cr8(&self) -> u64 {
        u64::from(self.tpr >> 4)
    }

    /// Sets the task priority by `cr8`; of `value`, bits 3:0 count.
    pub fn set_cr8(&mut self, value: u64) {
        self.set_tpr((value as u8 & 0xf) << 4);
    }

    pub(super) fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
        self.look();
    }

    /// Ends the interrupt with the highest vector in service.
    pub fn end_of_interrupt(&mut self) {
        let Some(vector) = self.in_service() else {
            return;
        };
        self.isr[usize::from(vector / 32)] &= !(1 << (vector % 32));
        if self.inbox.is_level(vector) {
            self.bus.end_of_interrupt(vector);
        }
        self.look();
    }

    /// Notes an error and raises its interrupt (Intel SDM 3A, 12.5.3).
    pub(super) fn error(&mut self, bit: u32) {
        self.errors |= bit;
        self.raise(LVT_ERROR);
    }

    /// Requests what an entry of the local vector table says.
    fn raise(&self, entry: usize) {
        let entry = self.lvt[entry];
        if entry & LVT_MASKED == 0 && entry as u8 >= 16 {
            self.inbox.request(entry as u8, false);
        }
    }

    pub(super) fn timer_mode(&self) -> u32 {
        self.lvt[LVT_TIMER] & TIMER_MODE
    }

    /// Ticks of the counter for `count` of the timer: a nanosecond each, times the divider.
    pub(super) fn timer_ticks(&self, count: u32) -> u64 {
        self.tsc.ticks(u64::from(count) << self.divide_shift())
    }

    pub(super) fn divide_shift(&self) -> u32 {
        ((self.divide & 3 | self.divide >> 1 & 4) + 1) & 7
    }

    /// What is left of the timer's count.
    pub(super) fn current_count(&self) -> u32 {
        if self.deadline == 0 || self.timer_mode() == TIMER_DEADLINE {
            return 0;
        }
        let left = self.deadline.saturating_sub(self.tsc.now());
        let count = self.tsc.nanos(left) >> self.divide_shift();
        u32::try_from(count)
            .unwrap_or(u32::MAX)
            .min(self.initial_count)
    }

    /// Makes the timer go off at the deadline.
    pub(super) fn arm(&mut self) {
        let Some(timer) = &self.timer else {
            return;
        };
        if self.deadline == 0 {
            timer.arm(0);
            return;
        }
        let left = self.deadline.saturating_sub(self.tsc.now());
        if left == 0 {
            self.inbox.attention_word().store(1, Ordering::SeqCst);
            return;
        }
        // The kernel's clock may run up to 500 ppm faster than the counter.
        self.slack = left / 1000 + self.tsc.ticks(100_000);
        timer.arm(self.tsc.nanos(left).saturating_add(1));
    }

    /// Raises the timer's interrupt when it is time.
    fn expire(&mut self) {
        if self.deadline == 0 {
            return;
        }
        let now = self.tsc.now();
        if now < self.deadline {
            if self.deadline - now <= self.slack {
                self.arm();
            }
            return;
        }
        let due = std::mem::take(&mut self.deadline);
        self.raise(LVT_TIMER);
        if self.timer_mode() == TIMER_PERIODIC && self.initial_count != 0 {
            let period = self.timer_ticks(self.initial_count);
            let period = period.max(self.tsc.ticks(MIN_PERIOD_NANOS));
            // Those that were missed are not made up for.
            let missed = (now - due) / period;
            self.deadline = due + period * (missed + 1);
            self.arm();
        }
    }
}
