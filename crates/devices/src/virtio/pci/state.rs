//! What is saved of the transport.

use serde::{Deserialize, Serialize};

use crate::{
    pci::{ConfigState, MsixState},
    virtio::SavedQueue,
};

/// The transport, its queues, and its device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// virtio device number, to notice a state of something else.
    pub device_number: u16,
    /// PCI configuration space.
    pub config: ConfigState,
    /// Messages.
    pub msix: MsixState,
    /// Device status (virtio 1.2, 2.1).
    pub status: u8,
    /// Interrupt cause not yet read.
    pub cause: u8,
    /// Configuration generation.
    pub generation: u8,
    /// Which half of the features is read.
    pub device_feature_select: u32,
    /// Which half of the features is written.
    pub driver_feature_select: u32,
    /// What the driver accepts.
    pub driver_features: u64,
    /// Which queue the registers show.
    pub queue_select: u16,
    /// Vector for configuration changes.
    pub config_vector: u16,
    /// Queues with their vectors.
    pub queues: Vec<(SavedQueue, u16)>,
    /// What the device itself saved.
    pub device: Vec<u8>,
}
