//! What a virtio device is to its transport, and what both get from the process around them.

use std::{
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
};

use memory::GuestMemory;

use super::{QueueError, VirtQueue};
use crate::StateError;

/// Which device it is (virtio 1.2, 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Network card.
    Net,
    /// Disk.
    Block,
    /// Console.
    Console,
    /// Source of entropy.
    Entropy,
    /// Memory balloon.
    Balloon,
    /// Sockets between guest and host.
    Vsock,
    /// Folder of the host.
    Fs,
}

impl DeviceKind {
    /// The virtio device number.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Console => 3,
            Self::Entropy => 4,
            Self::Balloon => 5,
            Self::Vsock => 19,
            Self::Fs => 26,
        }
    }

    /// The PCI class code: base class, sub-class, interface.
    #[must_use]
    pub fn pci_class(self) -> u32 {
        match self {
            Self::Net => 0x02_0000,
            Self::Block | Self::Fs => 0x01_8000,
            Self::Console => 0x07_8000,
            Self::Entropy | Self::Balloon => 0xff_0000,
            Self::Vsock => 0x02_8000,
        }
    }

    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Net => "virtio-net",
            Self::Block => "virtio-block",
            Self::Console => "virtio-console",
            Self::Entropy => "virtio-entropy",
            Self::Balloon => "virtio-balloon",
            Self::Vsock => "virtio-vsock",
            Self::Fs => "virtio-fs",
        }
    }
}

/// How a device interrupts its driver. Called from any thread; never waits.
pub trait Interrupt: Send + Sync + fmt::Debug {
    /// A queue has answers.
    fn queue_used(&self, queue: u16);

    /// The configuration space changed.
    fn config_changed(&self);

    /// The device cannot go on until it is reset (virtio 1.2, 2.1.2).
    fn needs_reset(&self, why: &QueueError);
}

/// Something the host should know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceEvent {
    /// The driver broke the rules; its device stands still until it resets it.
    NeedsReset {
        /// Which device.
        device: String,
        /// What the driver did.
        reason: String,
    },
    /// The host's storage under a disk is full; the guest got an I/O error.
    DiskFull {
        /// Which disk.
        device: String,
    },
    /// The host's storage under a disk failed; the guest got an I/O error.
    DiskFailed {
        /// Which disk.
        device: String,
        /// How.
        reason: String,
    },
    /// A worker thread died: a bug of ours. The device stands still.
    WorkerLost {
        /// Which device.
        device: String,
    },
}

/// How the part of a device that the host steers reaches its driver, if there is one now.
#[derive(Debug, Default)]
pub struct ConfigNotifier(Mutex<Option<Arc<dyn Interrupt>>>);

impl ConfigNotifier {
    /// The driver is ready, or gone.
    pub fn set(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = interrupt;
    }

    /// Tells the driver that the configuration space changed.
    pub fn config_changed(&self) {
        if let Some(interrupt) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            interrupt.config_changed();
        }
    }
}

/// What devices get from the process they run in.
#[derive(Clone)]
pub struct Host {
    /// Called first on every thread a device starts, with the thread's name: the place for its
    /// seccomp filter. Threads are started when a device is made, not when it is activated.
    pub thread_started: Arc<dyn Fn(&str) + Send + Sync>,
    /// Told what happens; called on device threads, must not wait.
    pub event: Arc<dyn Fn(DeviceEvent) + Send + Sync>,
}

impl Default for Host {
    /// No filters, nobody told.
    fn default() -> Self {
        Self {
            thread_started: Arc::new(|_| ()),
            event: Arc::new(|_| ()),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

/// What a device gets when its driver is ready.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub memory: GuestMemory,
    /// What was negotiated.
    pub features: u64,
    /// The queues the driver enabled, lowest number first. There may be any of them.
    pub queues: Vec<VirtQueue>,
    /// How to interrupt.
    pub interrupt: Arc<dyn Interrupt>,
}

impl Activation {
    /// Whether a feature bit was negotiated.
    #[must_use]
    pub fn has(&self, bit: u32) -> bool {
        self.features & (1 << bit) != 0
    }

    /// Takes the queue of a number.
    pub fn take(&mut self, index: u16) -> Option<VirtQueue> {
        let at = self.queues.iter().position(|it| it.index() == index)?;
        Some(self.queues.remove(at))
    }
}

/// Why a device cannot work with what its driver set up.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The host refused something it takes.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Its worker is gone.
    #[error("the worker thread is gone")]
    Worker,
}

/// A virtio device behind a transport, which locks it and calls it from vCPU threads: nothing here
/// may wait for the guest.
pub trait VirtioDevice: Send {
    /// Which device it is.
    fn kind(&self) -> DeviceKind;

    /// The feature bits it offers of its own kind, without those of transport and rings.
    fn features(&self) -> u64;

    /// The most entries of each of its queues, powers of two. Constant.
    fn queue_sizes(&self) -> &[u16];

    /// A load from its configuration space; what is not there reads as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// A store to its configuration space; ignored where nothing can be written.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Starts to serve: after the driver set DRIVER_OK, and after a pause.
    ///
    /// # Errors
    /// When it cannot; the transport then asks the driver for a reset.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Holds still and gives the queues back, each request in them either answered or still in the
    /// queue. Returns when nothing touches guest memory any more. Without effect on a device that
    /// does not serve.
    fn deactivate(&mut self) -> Vec<VirtQueue>;

    /// Forgets what the driver did, after [`VirtioDevice::deactivate`].
    fn reset(&mut self) {}

    /// What the device itself remembers, after [`VirtioDevice::deactivate`].
    ///
    /// # Errors
    /// When it cannot be written.
    fn save(&self) -> Result<Vec<u8>, StateError> {
        Ok(Vec::new())
    }

    /// Takes what [`VirtioDevice::save`] gave, before it is activated.
    ///
    /// # Errors
    /// When it does not fit.
    fn restore(&mut self, _state: &[u8]) -> Result<(), StateError> {
        Ok(())
    }
}

/// A load of `data.len()` bytes at `offset` of a configuration space whose bytes are `space`.
pub fn read_config_bytes(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let start = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(space.len());
    let bytes = data.len().min(space.len() - start);
    data[..bytes].copy_from_slice(&space[start..start + bytes]);
}
