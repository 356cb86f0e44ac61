//! What the transport and the device's worker threads both touch: status, interrupt cause, vectors.

use std::{
    error::Error,
    fmt,
    sync::atomic::{AtomicU8, AtomicU16, Ordering},
};

use crate::{
    pci::MsixTable,
    virtio::{DeviceEvent, DeviceKind, Host, Interrupt, QueueError},
};

/// The driver found the device.
pub(super) const ACKNOWLEDGE: u8 = 1;
/// The driver is set up.
pub(super) const DRIVER_OK: u8 = 4;
/// Features are agreed on.
pub(super) const FEATURES_OK: u8 = 8;
/// The device cannot go on.
pub(super) const NEEDS_RESET: u8 = 64;

/// Interrupt cause: a queue.
const CAUSE_QUEUE: u8 = 1;
/// Interrupt cause: the configuration.
const CAUSE_CONFIG: u8 = 2;

/// No vector (4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

pub(super) struct Shared {
    pub(super) kind: DeviceKind,
    /// What people call this very device.
    pub(super) label: String,
    pub(super) host: Host,
    pub(super) msix: MsixTable,
    pub(super) status: AtomicU8,
    pub(super) cause: AtomicU8,
    pub(super) generation: AtomicU8,
    pub(super) config_vector: AtomicU16,
    pub(super) queue_vectors: Box<[AtomicU16]>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("label", &self.label)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn status(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    /// The interrupt cause, which reading clears (4.1.4.5).
    pub(super) fn take_cause(&self) -> u8 {
        self.cause.swap(0, Ordering::AcqRel)
    }

    /// Stops the device for its driver until a reset.
    pub(super) fn fail(&self, reason: String) {
        let before = self.status.fetch_or(NEEDS_RESET, Ordering::AcqRel);
        if before & NEEDS_RESET != 0 {
            return;
        }
        if before & DRIVER_OK != 0 {
            self.signal_config();
        }
        (self.host.event)(DeviceEvent::NeedsReset {
            device: self.label.clone(),
            reason,
        });
    }

    fn signal_config(&self) {
        self.cause.fetch_or(CAUSE_CONFIG, Ordering::AcqRel);
        self.signal(self.config_vector.load(Ordering::Acquire));
    }

    fn signal(&self, vector: u16) {
        if vector != NO_VECTOR {
            self.msix.signal(vector);
        }
    }

    /// Back to before any driver.
    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.cause.store(0, Ordering::Release);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
    }
}

impl Interrupt for Shared {
    fn queue_used(&self, queue: u16) {
        self.cause.fetch_or(CAUSE_QUEUE, Ordering::AcqRel);
        if let Some(vector) = self.queue_vectors.get(usize::from(queue)) {
            self.signal(vector.load(Ordering::Acquire));
        }
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if self.status() & DRIVER_OK != 0 {
            self.signal_config();
        }
    }

    fn needs_reset(&self, why: &QueueError) {
        self.fail(chain(why));
    }
}

/// An error and what caused it, in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
