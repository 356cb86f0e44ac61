//! The device, and the handle the host steers it with.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    BalloonState, GuestMemoryStats,
    config::{
        self, ACTUAL, COMMAND_DONE, COMMAND_FIRST, COMMAND_STOP, FEATURES, Optional, PAGE_BYTES,
        QUEUES,
    },
    handler::BalloonHandler,
};
use crate::{
    StateError, state,
    virtio::{
        ActivateError, Activation, ConfigNotifier, DeviceKind, Host, VirtQueue, VirtioDevice,
        Worker, read_config_bytes,
    },
};

/// Ranges of free memory remembered; a guest that says more is not listened to.
const HINTS: usize = 64 << 10;

/// What the worker of a balloon and its handle share.
#[derive(Debug)]
pub(super) struct Shared {
    target_pages: AtomicU32,
    actual_pages: AtomicU32,
    command: AtomicU32,
    /// The number of the last round of hinting.
    last_round: AtomicU32,
    hints: Mutex<Vec<(u64, u64)>>,
    hinted: AtomicBool,
    stats: Mutex<GuestMemoryStats>,
    /// Statistics are wanted.
    pub(super) bell: EventFd,
    notifier: ConfigNotifier,
}

/// A balloon.
pub struct Balloon {
    shared: Arc<Shared>,
    worker: Worker<BalloonHandler>,
}

/// How the host steers a balloon while it is in use.
#[derive(Debug, Clone)]
pub struct BalloonControl(Arc<Shared>);

impl Balloon {
    /// An empty balloon; its thread is started here.
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn new(host: &Host) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                target_pages: AtomicU32::new(0),
                actual_pages: AtomicU32::new(0),
                command: AtomicU32::new(COMMAND_STOP),
                last_round: AtomicU32::new(COMMAND_FIRST - 1),
                hints: Mutex::default(),
                hinted: AtomicBool::new(false),
                stats: Mutex::default(),
                bell: EventFd::new(EFD_NONBLOCK)?,
                notifier: ConfigNotifier::default(),
            }),
            worker: Worker::spawn("balloon", host)?,
        })
    }

    /// The handle to steer it with.
    #[must_use]
    pub fn control(&self) -> BalloonControl {
        BalloonControl(Arc::clone(&self.shared))
    }
}

impl Shared {
    fn hints(&self) -> MutexGuard<'_, Vec<(u64, u64)>> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the round of hinting that is on, if one is.
    pub(super) fn round(&self) -> Option<u32> {
        let command = self.command.load(Ordering::Acquire);
        (command >= COMMAND_FIRST).then_some(command)
    }

    /// The guest says that memory is free, in the round that is on.
    pub(super) fn hint(&self, address: u64, bytes: u64) {
        let mut hints = self.hints();
        if hints.len() < HINTS {
            hints.push((address, bytes));
        }
    }

    /// The guest said all.
    pub(super) fn hinting_ended(&self) {
        self.hinted.store(true, Ordering::Release);
    }

    pub(super) fn set_stats(&self, stats: GuestMemoryStats) {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    fn set_command(&self, command: u32) {
        self.command.store(command, Ordering::Release);
        self.notifier.config_changed();
    }
}

impl BalloonControl {
    /// Asks the guest to lend so many bytes, rounded down to whole pages. It does as far as it can,
    /// in its own time.
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX);
        self.0.target_pages.store(pages, Ordering::Release);
        self.0.notifier.config_changed();
    }

    /// What the guest is asked to lend, in bytes.
    #[must_use]
    pub fn target(&self) -> u64 {
        u64::from(self.0.target_pages.load(Ordering::Acquire)) * PAGE_BYTES
    }

    /// What the guest says it lends, in bytes.
    #[must_use]
    pub fn actual(&self) -> u64 {
        u64::from(self.0.actual_pages.load(Ordering::Acquire)) * PAGE_BYTES
    }

    /// The statistics the guest sent last.
    #[must_use]
    pub fn stats(&self) -> GuestMemoryStats {
        *self.0.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for new statistics; they come when the guest sends them.
    pub fn refresh_stats(&self) {
        // Fails only when the counter is full: then it rings already.
        let _ = self.0.bell.write(1);
    }

    /// Asks the guest which of its memory is free, from the beginning.
    pub fn start_hinting(&self) {
        self.0.hints().clear();
        self.0.hinted.store(false, Ordering::Release);
        let last = self.0.last_round.fetch_add(1, Ordering::AcqRel);
        self.0.set_command(last.wrapping_add(1).max(COMMAND_FIRST));
    }

    /// Whether the guest said all of it.
    #[must_use]
    pub fn hinting_ended(&self) -> bool {
        self.0.hinted.load(Ordering::Acquire)
    }

    /// What the guest said is free: guest physical address and bytes of each piece, all of it RAM.
    /// It may use any of it again at any time: a copy may leave out only what was not written since
    /// hinting started.
    #[must_use]
    pub fn hints(&self) -> Vec<(u64, u64)> {
        self.0.hints().clone()
    }

    /// Forgets the hints and gives the guest its pages back.
    pub fn stop_hinting(&self) {
        self.0.set_command(COMMAND_DONE);
        self.0.hints().clear();
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let load = |it: &AtomicU32| it.load(Ordering::Acquire);
        let shared = &self.shared;
        let space = config::space(
            load(&shared.target_pages),
            load(&shared.actual_pages),
            load(&shared.command),
        );
        read_config_bytes(&space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(pages)) = (offset, data.try_into()) {
            let pages = u32::from_le_bytes(pages);
            self.shared.actual_pages.store(pages, Ordering::Release);
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let numbers = Optional::of(activation.features);
        let (inflate, deflate) = (activation.take(0), activation.take(1));
        let mut optional = |number: Option<u16>| number.and_then(|it| activation.take(it));
        let (stats, hinting, reporting) = (
            optional(numbers.stats),
            optional(numbers.hinting),
            optional(numbers.reporting),
        );
        self.shared
            .notifier
            .set(Some(Arc::clone(&activation.interrupt)));
        self.worker.start(BalloonHandler {
            inflate,
            deflate,
            stats,
            stats_held: None,
            hinting,
            hinting_round: None,
            reporting,
            shared: Arc::clone(&self.shared),
            interrupt: activation.interrupt,
        })
    }

    fn deactivate(&mut self) -> Vec<VirtQueue> {
        self.shared.notifier.set(None);
        let Some(it) = self.worker.stop() else {
            return Vec::new();
        };
        let queues = [it.inflate, it.deflate, it.stats, it.hinting, it.reporting];
        queues.into_iter().flatten().collect()
    }

    fn reset(&mut self) {
        self.shared.actual_pages.store(0, Ordering::Release);
        self.shared.command.store(COMMAND_STOP, Ordering::Release);
        self.shared.hints().clear();
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        let saved = BalloonState {
            target_pages: self.shared.target_pages.load(Ordering::Acquire),
            actual_pages: self.shared.actual_pages.load(Ordering::Acquire),
        };
        state::encode("virtio-balloon", &saved)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let saved: BalloonState = state::decode("virtio-balloon", bytes)?;
        self.reset();
        self.shared
            .target_pages
            .store(saved.target_pages, Ordering::Release);
        self.shared
            .actual_pages
            .store(saved.actual_pages, Ordering::Release);
        Ok(())
    }
}
