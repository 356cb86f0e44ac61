//! The half of a local APIC that others write to.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use rustix::{thread::futex, time::Timespec};

/// What a vCPU must do, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// INIT: reset, and wait for a SIPI unless it is the bootstrap processor.
    Init,
    /// SIPI: start in real mode at `vector << 12`.
    Sipi(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An interrupt, acknowledged: it is in service until the guest ends it.
    Interrupt(u8),
}

/// What a vCPU can take now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gates {
    /// Interrupts: `IF` is set, no interrupt shadow, not waiting for a SIPI.
    pub interrupts: bool,
    /// NMIs: none is being handled, no shadow, not waiting for a SIPI.
    pub nmi: bool,
    /// Whether it waits for a SIPI; otherwise one is lost.
    pub sipi: bool,
}

/// What waits, besides the request register.
pub(super) const WAITING_REQUEST: u32 = 1 << 0;
pub(super) const WAITING_NMI: u32 = 1 << 1;
pub(super) const WAITING_INIT: u32 = 1 << 2;
pub(super) const WAITING_SIPI: u32 = 1 << 3;

/// How the APIC is addressed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Disabled,
    XApic,
    X2Apic,
}

/// A cache line of its own, for the word that the run loop reads all the time.
#[repr(align(64))]
struct Word(AtomicU32);

/// Where interrupts for one vCPU arrive, from any thread.
pub struct Inbox {
    id: u32,
    /// Never freed, a line for each vCPU ever made: a timer's signal may arrive after the timer
    /// is gone.
    attention: &'static AtomicU32,
    sleeping: AtomicBool,
    waiting: AtomicU32,
    sipi: AtomicU32,
    /// Requested (IRR) and level-triggered (TMR), a bit for each vector.
    irr: [AtomicU32; 8],
    tmr: [AtomicU32; 8],
    /// Copies of what decides whether a message is for it; its own thread writes them.
    pub(super) mode: AtomicU32,
    pub(super) enabled: AtomicBool,
    pub(super) ldr: AtomicU32,
    pub(super) dfr: AtomicU32,
}

impl Inbox {
    pub(super) fn new(id: u32) -> Self {
        let line: &'static Word = Box::leak(Box::new(Word(AtomicU32::new(0))));
        Self {
            id,
            attention: &line.0,
            sleeping: AtomicBool::new(false),
            waiting: AtomicU32::new(0),
            sipi: AtomicU32::new(0),
            irr: Default::default(),
            tmr: Default::default(),
            mode: AtomicU32::new(Mode::XApic as u32),
            enabled: AtomicBool::new(false),
            ldr: AtomicU32::new(0),
            dfr: AtomicU32::new(u32::MAX),
        }
    }

    /// Index of the vCPU and its APIC id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether the vCPU should look: something arrived since [`super::LocalApic::take`] last gave
    /// `None`, or somebody nudged.
    #[inline(always)]
    #[must_use]
    pub fn attention(&self) -> bool {
        self.attention.load(Ordering::Relaxed) != 0
    }

    /// The word behind [`Inbox::attention`], not zero when the vCPU should look. It lives as long
    /// as the process.
    #[must_use]
    pub fn attention_word(&self) -> &'static AtomicU32 {
        self.attention
    }

    /// Makes the vCPU look up: sets the attention word and wakes it. What it shall find must have
    /// been written before.
    pub fn nudge(&self) {
        self.attention.store(1, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) {
            // An error would mean a bad address, which a reference is not.
            let _ = futex::wake(self.attention, futex::Flags::PRIVATE, 1);
        }
    }

    /// Sleeps until the attention word is set, for so long at most; not at all where it is set. To
    /// be called by the vCPU's thread only. May return for nothing.
    pub fn wait(&self, at_most: Option<Duration>) {
        let at_most = at_most.map(|it| Timespec {
            tv_sec: it.as_secs().cast_signed(),
            tv_nsec: it.subsec_nanos().into(),
        });
        self.sleeping.store(true, Ordering::SeqCst);
        // EAGAIN: it was set. EINTR: by a signal, such as the timer's. ETIMEDOUT. All are looked at next.
        let _ = futex::wait(self.attention, futex::Flags::PRIVATE, 0, at_most.as_ref());
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// Takes the attention word down. Whatever was written before it was set is seen after this.
    pub(super) fn clear_attention(&self) {
        self.attention.store(0, Ordering::SeqCst);
    }

    /// Requests an interrupt; lost while the APIC is disabled, as by hardware.
    pub(super) fn request(&self, vector: u8, level: bool) {
        if !self.enabled.load(Ordering::Relaxed) {
            return;
        }
        let (word, bit) = (usize::from(vector / 32), 1 << (vector % 32));
        if level {
            self.tmr[word].fetch_or(bit, Ordering::Relaxed);
        } else {
            self.tmr[word].fetch_and(!bit, Ordering::Relaxed);
        }
        self.irr[word].fetch_or(bit, Ordering::SeqCst);
        self.waiting.fetch_or(WAITING_REQUEST, Ordering::SeqCst);
        self.nudge();
    }

    pub(super) fn nmi(&self) {
        self.waiting.fetch_or(WAITING_NMI, Ordering::SeqCst);
        self.nudge();
    }

    /// An INIT makes an earlier SIPI void.
    pub(super) fn init(&self) {
        let set = |it: u32| Some(it & !WAITING_SIPI | WAITING_INIT);
        let _ = self
            .waiting
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, set);
        self.nudge();
    }

    pub(super) fn sipi(&self, vector: u8) {
        self.sipi.store(u32::from(vector), Ordering::SeqCst);
        self.waiting.fetch_or(WAITING_SIPI, Ordering::SeqCst);
        self.nudge();
    }

    /// What waits, as `WAITING_*` bits.
    pub(super) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Takes down bits of what waits; `true` when one was set.
    pub(super) fn take_waiting(&self, bits: u32) -> bool {
        self.waiting.fetch_and(!bits, Ordering::SeqCst) & bits != 0
    }

    /// Vector of the SIPI that came last.
    pub(super) fn sipi_vector(&self) -> u8 {
        self.sipi.load(Ordering::SeqCst) as u8
    }

    /// The word behind [`Inbox::waiting`]; it lives as long as this does.
    pub(in crate::soft) fn waiting_word(&self) -> &AtomicU32 {
        &self.waiting
    }

    /// The highest vector requested.
    pub(super) fn highest(&self) -> Option<u8> {
        if self.waiting.load(Ordering::Relaxed) & WAITING_REQUEST == 0 {
            return None;
        }
        let found = self.scan();
        if found.is_none() {
            // Nothing there: say so, and look again for what came in between.
            self.take_waiting(WAITING_REQUEST);
            let found = self.scan();
            if found.is_some() {
                self.waiting.fetch_or(WAITING_REQUEST, Ordering::SeqCst);
            }
            return found;
        }
        found
    }

    fn scan(&self) -> Option<u8> {
        let words = self.irr.iter().enumerate().rev();
        words
            .map(|(index, word)| (index as u32, word.load(Ordering::SeqCst)))
            .find(|(_, bits)| *bits != 0)
            .map(|(index, bits)| (index * 32 + 31 - bits.leading_zeros()) as u8)
    }

    /// Takes a request back: it is in service now. Only the vCPU's thread does.
    pub(super) fn acknowledge(&self, vector: u8) {
        let (word, bit) = (usize::from(vector / 32), 1 << (vector % 32));
        self.irr[word].fetch_and(!bit, Ordering::SeqCst);
    }

    /// Whether the last request of this vector was level-triggered.
    pub(super) fn is_level(&self, vector: u8) -> bool {
        let (word, bit) = (usize::from(vector / 32), 1 << (vector % 32));
        self.tmr[word].load(Ordering::Relaxed) & bit != 0
    }

    /// The request register and the trigger mode register, 32 vectors each.
    pub(super) fn words(&self, index: usize) -> (u32, u32) {
        let load = |words: &[AtomicU32; 8]| words[index & 7].load(Ordering::SeqCst);
        (load(&self.irr), load(&self.tmr))
    }

    /// Sets both anew, after a reset or a restore.
    pub(super) fn set_words(&self, irr: [u32; 8], tmr: [u32; 8]) {
        for index in 0..8 {
            self.tmr[index].store(tmr[index], Ordering::SeqCst);
            self.irr[index].store(irr[index], Ordering::SeqCst);
        }
        if irr != [0; 8] {
            self.waiting.fetch_or(WAITING_REQUEST, Ordering::SeqCst);
        }
    }

    fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Relaxed) {
            mode if mode == Mode::X2Apic as u32 => Mode::X2Apic,
            mode if mode == Mode::XApic as u32 => Mode::XApic,
            _ => Mode::Disabled,
        }
    }

    /// Whether a message to `destination` is for this one. 8-bit destinations are zero-extended;
    /// 0xff is a broadcast in both modes, which costs nothing as there is no APIC with this id.
    pub(super) fn is_addressed(&self, destination: u32, logical: bool) -> bool {
        let mode = self.mode();
        if matches!(destination, 0xff | u32::MAX) && !logical || destination == u32::MAX {
            return mode != Mode::Disabled;
        }
        match (mode, logical) {
            (Mode::Disabled, _) => false,
            (_, false) => destination == self.id,
            (Mode::X2Apic, true) => {
                let own = x2apic_logical(self.id);
                own >> 16 == destination >> 16 && own & destination & 0xffff != 0
            }
            (Mode::XApic, true) => {
                let own = self.ldr.load(Ordering::Relaxed) >> 24;
                if self.dfr.load(Ordering::Relaxed) >> 28 == 0xf {
                    return own & destination & 0xff != 0;
                }
                let cluster = destination >> 4 & 0xf;
                (cluster == own >> 4 || cluster == 0xf) && own & destination & 0xf != 0
            }
        }
    }
}

/// The logical id in x2APIC mode: cluster 31:16, one bit of 15:0.
pub(super) fn x2apic_logical(id: u32) -> u32 {
    id >> 4 << 16 | 1 << (id & 0xf)
}
