//! What vCPUs ask of each other: to let go of cached permission to store to a page.
//!
//! Before a vCPU makes blocks of a page it marks the page as code, so that stores to it take the
//! slow path and are seen. Stores through entries that other vCPUs had cached before would not be.
//! So it asks all others to drop those entries, and waits until each has come to the end of a block
//! or is parked: outside of guest code, where it will drop all of them before it goes on.
//!
//! Only one asks at a time; whoever waits, for its turn or for the others, goes on answering. So
//! nobody waits in a circle.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use super::{
    Core,
    lapic::Inbox,
    translate::{Cells, Counters},
};

/// Stands for all pages.
const ALL: usize = usize::MAX;
/// How often to look for an answer before the processor is given away.
const SPINS: u32 = 200;

/// One vCPU, as the others see it.
pub struct Peer {
    inbox: Arc<Inbox>,
    /// Is to drop entries for [`Peers::page`].
    requested: AtomicBool,
    /// Executes no guest code.
    parked: AtomicBool,
    /// Is to return from its run.
    kicked: AtomicBool,
    /// Instructions executed, as of when it last looked up.
    pub(super) instructions: AtomicU64,
    counters: Cells,
}

/// All vCPUs of a partition.
#[derive(Default)]
pub struct Peers {
    all: RwLock<Vec<Arc<Peer>>>,
    asking: Mutex<()>,
    page: AtomicUsize,
}

impl Peer {
    /// Makes its run return.
    pub fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.inbox.nudge();
    }

    /// Takes a kick, if there was one.
    pub fn take_kick(&self) -> bool {
        self.kicked.load(Ordering::SeqCst) && self.kicked.swap(false, Ordering::SeqCst)
    }
}

impl Peers {
    /// Adds a vCPU, parked.
    pub(super) fn add(&self, inbox: Arc<Inbox>) -> Arc<Peer> {
        let peer = Arc::new(Peer {
            inbox,
            requested: AtomicBool::new(false),
            parked: AtomicBool::new(true),
            kicked: AtomicBool::new(false),
            instructions: AtomicU64::new(0),
            counters: Cells::default(),
        });
        self.all
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&peer));
        peer
    }

    /// Instructions executed by all vCPUs.
    pub(super) fn instructions(&self) -> u64 {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .map(|it| it.instructions.load(Ordering::Relaxed))
            .sum()
    }

    /// What happened how often on each vCPU, also on those that ended.
    pub(super) fn counters(&self) -> Vec<Counters> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|it| it.counters.read()).collect()
    }

    fn try_turn(&self) -> Option<MutexGuard<'_, ()>> {
        match self.asking.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Asks all but `own` to drop their entries for a page, and waits until they have. The caller
    /// holds the turn.
    fn ask(&self, page: usize, own: Option<&Arc<Peer>>) {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let others = || {
            all.iter()
                .filter(|it| own.is_none_or(|own| !Arc::ptr_eq(it, own)))
        };
        self.page.store(page, Ordering::SeqCst);
        for peer in others() {
            peer.requested.store(true, Ordering::SeqCst);
            if !peer.parked.load(Ordering::SeqCst) {
                peer.inbox.nudge();
            }
        }
        for peer in others() {
            let mut spins = 0;
            while peer.requested.load(Ordering::SeqCst) && !peer.parked.load(Ordering::SeqCst) {
                spins += 1;
                if spins < SPINS {
                    std::hint::spin_loop();
                } else {
                    std::thread::yield_now();
                }
            }
        }
    }

    /// Lets the next store to any page, by any vCPU, be seen by the dirty log. To be called from a
    /// thread that runs no vCPU, after the log was turned on or taken and before memory is read.
    pub fn flush_writes(&self) {
        let _turn = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        self.ask(ALL, None);
    }
}

impl Core {
    /// What it counts.
    #[inline(always)]
    pub(super) fn counters(&self) -> &Cells {
        &self.platform.peer.counters
    }

    /// Marks a page as holding code that blocks are made of: from now on stores to it are seen,
    /// whoever does them. Returns the generation to keep with what is read from it next.
    pub(super) fn mark_code(&mut self, page: usize) -> u32 {
        let peers = Arc::clone(&self.platform.peers);
        let own = Arc::clone(&self.platform.peer);
        let _turn = loop {
            match peers.try_turn() {
                Some(turn) => break turn,
                None => {
                    self.answer();
                    std::hint::spin_loop();
                    std::thread::yield_now();
                }
            }
        };
        loop {
            // In this order: a store takes the mark away before it raises the generation. One that
            // was under way while the others were asked may have taken it away already.
            let generation = self.ram.pages().generation(page);
            if self.ram.pages().is_code(page) {
                return generation;
            }
            self.ram.pages().mark_code(page);
            self.tlb.flush_writes(Some(page));
            peers.ask(page, Some(&own));
        }
    }

    /// Does what others ask for. To be called between blocks only.
    pub(super) fn answer(&mut self) {
        let peer = &self.platform.peer;
        if !peer.requested.load(Ordering::SeqCst) {
            return;
        }
        let page = self.platform.peers.page.load(Ordering::SeqCst);
        self.tlb.flush_writes((page != ALL).then_some(page));
        peer.requested.store(false, Ordering::SeqCst);
    }

    /// Says that no guest code is executed for a while.
    pub(super) fn park(&self) {
        self.platform.peer.parked.store(true, Ordering::SeqCst);
    }

    /// Says that guest code is executed again. Whoever asked meanwhile did not wait, and others may
    /// have asked after; so all entries go.
    pub(super) fn unpark(&mut self) {
        let peer = &self.platform.peer;
        peer.parked.store(false, Ordering::SeqCst);
        if peer.requested.load(Ordering::SeqCst) {
            self.tlb.flush_writes(None);
            peer.requested.store(false, Ordering::SeqCst);
        }
    }
}
