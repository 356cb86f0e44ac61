//! The common configuration registers (virtio 1.2, 4.1.4.3): which bytes they are. What writing
//! them does is in [`super::function`].

use std::sync::atomic::Ordering;

use super::{
    place::COMMON_BYTES,
    shared::{DRIVER_OK, FEATURES_OK, NO_VECTOR, Shared},
};
use crate::virtio::SavedQueue;

/// Features of transport and rings: indirect descriptors, event indexes, no legacy.
pub(super) const RING_FEATURES: u64 = 1 << 28 | 1 << 29 | VERSION_1;
pub(super) const VERSION_1: u64 = 1 << 32;
pub(super) const EVENT_IDX: u64 = 1 << 29;

/// The registers that are plain memory until the driver is ready.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) device_features: u64,
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u16,
    pub(super) queues: Vec<SavedQueue>,
    pub(super) max_sizes: Vec<u16>,
}

/// What a write asks for beyond remembering it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// The driver wrote the status register.
    Status(u8),
}

/// The half of a 64-bit value that a select register shows; beyond them zero.
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

/// Replaces bytes of a 64-bit register, `offset` in it.
fn patch(value: u64, offset: u64, data: &[u8]) -> u64 {
    let mut bytes = value.to_le_bytes();
    let start = offset as usize;
    bytes[start..start + data.len()].copy_from_slice(data);
    u64::from_le_bytes(bytes)
}

impl Common {
    pub(super) fn new(features: u64, max_sizes: &[u16]) -> Self {
        Self {
            device_features: features | RING_FEATURES,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: max_sizes.iter().map(|it| SavedQueue::fresh(*it)).collect(),
            max_sizes: max_sizes.to_vec(),
        }
    }

    pub(super) fn reset(&mut self) {
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        for (queue, max) in self.queues.iter_mut().zip(&self.max_sizes) {
            *queue = SavedQueue::fresh(*max);
        }
    }

    /// Whether what the driver accepts is something it was offered.
    pub(super) fn features_fit(&self) -> bool {
        self.driver_features & !self.device_features == 0 && self.driver_features & VERSION_1 != 0
    }

    /// All registers as bytes.
    pub(super) fn image(&self, shared: &Shared) -> [u8; COMMON_BYTES as usize] {
        let mut image = [0; COMMON_BYTES as usize];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        let offered = half(self.device_features, self.device_feature_select);
        let accepted = half(self.driver_features, self.driver_feature_select);
        put(0x00, &self.device_feature_select.to_le_bytes());
        put(0x04, &offered.to_le_bytes());
        put(0x08, &self.driver_feature_select.to_le_bytes());
        put(0x0c, &accepted.to_le_bytes());
        put(
            0x10,
            &shared.config_vector.load(Ordering::Acquire).to_le_bytes(),
        );
        put(0x12, &(self.queues.len() as u16).to_le_bytes());
        put(0x14, &[shared.status()]);
        put(0x15, &[shared.generation.load(Ordering::Acquire)]);
        put(0x16, &self.queue_select.to_le_bytes());
        let selected = usize::from(self.queue_select);
        // A queue that does not exist shows as size 0 (4.1.4.3.1).
        if let Some(queue) = self.queues.get(selected) {
            let vector = shared.queue_vectors[selected].load(Ordering::Acquire);
            put(0x18, &queue.size.to_le_bytes());
            put(0x1a, &vector.to_le_bytes());
            put(0x1c, &u16::from(queue.ready).to_le_bytes());
            put(0x1e, &self.queue_select.to_le_bytes());
            put(0x20, &queue.descriptors.to_le_bytes());
            put(0x28, &queue.available.to_le_bytes());
            put(0x30, &queue.used.to_le_bytes());
        }
        image
    }

    /// A write to the registers. Fields take writes of their own size, 64-bit ones also of half;
    /// anything else is ignored.
    pub(super) fn write(&mut self, shared: &Shared, offset: u64, data: &[u8]) -> Effect {
        let mut wide = [0; 8];
        wide[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(wide);
        let status = shared.status();
        match (offset, data.len()) {
            (0x00, 4) => self.device_feature_select = value as u32,
            (0x08, 4) => self.driver_feature_select = value as u32,
            (0x0c, 4) if status & FEATURES_OK == 0 && self.driver_feature_select < 2 => {
                let at = u64::from(self.driver_feature_select) * 4;
                self.driver_features = patch(self.driver_features, at, data);
            }
            (0x10, 2) => {
                let vector = existing(shared, value as u16);
                shared.config_vector.store(vector, Ordering::Release);
            }
            (0x14, 1) => return Effect::Status(value as u8),
            (0x16, 2) => self.queue_select = value as u16,
            (0x1a, 2) => {
                if let Some(slot) = shared.queue_vectors.get(usize::from(self.queue_select)) {
                    slot.store(existing(shared, value as u16), Ordering::Release);
                }
            }
            (0x18 | 0x1c | 0x20..0x38, _) if status & DRIVER_OK == 0 => {
                self.write_queue(offset, data, value);
            }
            _ => {}
        }
        Effect::None
    }

    /// The registers of the selected queue, until it is enabled.
    fn write_queue(&mut self, offset: u64, data: &[u8], value: u64) {
        let selected = usize::from(self.queue_select);
        let Some(queue) = self.queues.get_mut(selected).filter(|it| !it.ready) else {
            return;
        };
        match (offset, data.len()) {
            (0x18, 2) => {
                let size = value as u16;
                if size.is_power_of_two() && size <= self.max_sizes[selected] {
                    queue.size = size;
                }
            }
            (0x1c, 2) if value == 1 => queue.ready = true,
            (0x20 | 0x24, 4) | (0x20, 8) => {
                queue.descriptors = patch(queue.descriptors, offset - 0x20, data);
            }
            (0x28 | 0x2c, 4) | (0x28, 8) => {
                queue.available = patch(queue.available, offset - 0x28, data);
            }
            (0x30 | 0x34, 4) | (0x30, 8) => queue.used = patch(queue.used, offset - 0x30, data),
            _ => {}
        }
    }
}

/// A vector as the driver may have it: one that does not exist reads back as none (4.1.5.1.2.1).
fn existing(shared: &Shared, vector: u16) -> u16 {
    if vector < shared.msix.vectors() {
        vector
    } else {
        NO_VECTOR
    }
}
