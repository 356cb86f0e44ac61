//! The device, and the handle the host steers it with.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Disk,
    config::{self, QUEUE_SIZE},
    handler::BlockHandler,
    held::Held,
    request::Direction,
    ring::Ring,
};
use crate::virtio::{
    ActivateError, Activation, ConfigNotifier, DeviceKind, Host, Limits, RateLimiter, VirtQueue,
    VirtioDevice, Worker, read_config_bytes,
};

/// The most queues a disk can have.
const MOST_QUEUES: u16 = 16;

/// How a disk is shown.
#[derive(Debug, Clone)]
pub struct BlockOptions {
    /// What people call it; worker threads are named after it.
    pub label: String,
    /// Shown to the guest as serial number: the first 20 bytes of it.
    pub serial: String,
    /// The guest cannot write.
    pub read_only: bool,
    /// Queues with a thread each, 1 to 16; best as many as vCPUs.
    pub queues: u16,
    /// Limits of what the guest reads.
    pub read_limits: Limits,
    /// Limits of what it writes; what it discards, zeroes or flushes counts as operations.
    pub write_limits: Limits,
    /// Let reads and flushes of a queue overlap by an io_uring, if the kernel has it, lets us and the disk is a
    /// file. Needs `io_uring_enter` on the worker threads, and all of io_uring where the disk is made.
    pub ring: bool,
}

impl Default for BlockOptions {
    /// Writable, one queue, no limits.
    fn default() -> Self {
        Self {
            label: "disk".to_owned(),
            serial: String::new(),
            read_only: false,
            queues: 1,
            read_limits: Limits::default(),
            write_limits: Limits::default(),
            ring: false,
        }
    }
}

/// What a disk did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockStats {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests of any kind.
    pub requests: u64,
    /// Those that failed.
    pub errors: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    read: AtomicU64,
    written: AtomicU64,
    requests: AtomicU64,
    errors: AtomicU64,
}

impl Counters {
    pub(super) fn read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn wrote(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn finished(&self, ok: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if !ok {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What the workers of a disk and its handle share.
pub(super) struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) label: String,
    pub(super) serial: [u8; 20],
    pub(super) read_only: bool,
    read_limiter: RateLimiter,
    write_limiter: RateLimiter,
    pub(super) stats: Counters,
    pub(super) host: Host,
    notifier: ConfigNotifier,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("label", &self.label)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// What limits requests of a direction.
    pub(super) fn limiter(&self, direction: Direction) -> &RateLimiter {
        match direction {
            Direction::Read => &self.read_limiter,
            Direction::Write => &self.write_limiter,
        }
    }
}

/// A disk.
pub struct Block {
    shared: Arc<Shared>,
    queue_sizes: Vec<u16>,
    workers: Vec<Worker<BlockHandler>>,
    /// One a queue, while its worker does not have it.
    rings: Vec<Option<Ring>>,
}

/// How the host steers a disk while it is in use.
#[derive(Debug, Clone)]
pub struct BlockControl(Arc<Shared>);

impl Block {
    /// A disk with `disk` as its storage. Its threads are started here.
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn new(disk: Arc<dyn Disk>, options: &BlockOptions, host: &Host) -> io::Result<Self> {
        let mut serial = [0; 20];
        let bytes = options.serial.as_bytes();
        let length = bytes.len().min(serial.len());
        serial[..length].copy_from_slice(&bytes[..length]);
        let queues = options.queues.clamp(1, MOST_QUEUES);
        let workers = (0..queues)
            .map(|index| Worker::spawn(&format!("{}-{index}", options.label), host))
            .collect::<io::Result<_>>()?;
        let ring = || {
            let file = disk.ring_file().filter(|_| options.ring)?;
            Ring::new(file).ok()
        };
        let rings = (0..queues).map(|_| ring()).collect();
        Ok(Self {
            shared: Arc::new(Shared {
                disk,
                label: options.label.clone(),
                serial,
                read_only: options.read_only,
                read_limiter: RateLimiter::new(options.read_limits),
                write_limiter: RateLimiter::new(options.write_limits),
                stats: Counters::default(),
                host: host.clone(),
                notifier: ConfigNotifier::default(),
            }),
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues)],
            workers,
            rings,
        })
    }

    /// The handle to steer it with.
    #[must_use]
    pub fn control(&self) -> BlockControl {
        BlockControl(Arc::clone(&self.shared))
    }
}

impl BlockControl {
    /// Changes the rate limits.
    pub fn set_limits(&self, read: Limits, write: Limits) {
        self.0.read_limiter.set(read);
        self.0.write_limiter.set(write);
    }

    /// The rate limits of reads and of writes.
    #[must_use]
    pub fn limits(&self) -> (Limits, Limits) {
        (self.0.read_limiter.limits(), self.0.write_limiter.limits())
    }

    /// Tells the guest that its storage has another size now.
    pub fn size_changed(&self) {
        self.0.notifier.config_changed();
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> BlockStats {
        let stats = &self.0.stats;
        BlockStats {
            read_bytes: stats.read.load(Ordering::Relaxed),
            written_bytes: stats.written.load(Ordering::Relaxed),
            requests: stats.requests.load(Ordering::Relaxed),
            errors: stats.errors.load(Ordering::Relaxed),
        }
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        config::features(self.shared.read_only, self.queue_sizes.len() as u16)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = config::space(self.shared.disk.bytes(), self.queue_sizes.len() as u16);
        read_config_bytes(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.shared
            .notifier
            .set(Some(Arc::clone(&activation.interrupt)));
        for queue in activation.queues {
            let index = usize::from(queue.index());
            let worker = self.workers.get_mut(index).ok_or(ActivateError::Worker)?;
            worker.start(BlockHandler {
                queue,
                held: Held::default(),
                ring: self.rings.get_mut(index).and_then(Option::take),
                shared: Arc::clone(&self.shared),
                interrupt: Arc::clone(&activation.interrupt),
            })?;
        }
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<VirtQueue> {
        self.shared.notifier.set(None);
        let mut queues = Vec::new();
        for (worker, ring) in self.workers.iter_mut().zip(&mut self.rings) {
            if let Some(handler) = worker.stop() {
                *ring = handler.ring;
                queues.push(handler.queue);
            }
        }
        queues
    }
}
