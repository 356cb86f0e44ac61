//! Features and configuration space (virtio 1.2, 5.1.3 and 5.1.4).

pub(super) const F_CHECKSUM: u64 = 1 << 0;
pub(super) const F_GUEST_CHECKSUM: u64 = 1 << 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
pub(super) const F_GUEST_TSO4: u64 = 1 << 7;
pub(super) const F_GUEST_TSO6: u64 = 1 << 8;
pub(super) const F_GUEST_ECN: u64 = 1 << 9;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_HOST_ECN: u64 = 1 << 13;
pub(super) const F_MERGE_BUFFERS: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_CONTROL: u64 = 1 << 17;
const F_CONTROL_RECEIVE: u64 = 1 << 18;
pub(super) const F_MULTI_QUEUE: u64 = 1 << 22;

/// Entries of the queues that carry packets.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue.
pub(super) const CONTROL_SIZE: u16 = 64;
/// Bytes of the header in front of every packet (5.1.6).
pub(super) const HEADER_BYTES: usize = 12;
/// Where in it the number of buffers is that a packet takes.
pub(super) const HEADER_BUFFERS: usize = 10;
/// Header, Ethernet header with a VLAN tag, and the largest packet that segmentation takes.
pub(super) const PACKET_BYTES: usize = HEADER_BYTES + 18 + 65_535;

const LINK_UP: u16 = 1;

pub(super) fn features(offloads: bool, pairs: u16, mtu: Option<u16>) -> u64 {
    let mut features = F_MAC | F_MERGE_BUFFERS | F_STATUS | F_CONTROL | F_CONTROL_RECEIVE;
    if offloads {
        features |= F_CHECKSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN;
        features |= F_GUEST_CHECKSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN;
    }
    if pairs > 1 {
        features |= F_MULTI_QUEUE;
    }
    if mtu.is_some() {
        features |= F_MTU;
    }
    features
}

/// `struct virtio_net_config`.
pub(super) fn space(mac: [u8; 6], link: bool, pairs: u16, mtu: Option<u16>) -> [u8; 12] {
    let mut space = [0; 12];
    let status = if link { LINK_UP } else { 0 };
    space[..6].copy_from_slice(&mac);
    space[6..8].copy_from_slice(&status.to_le_bytes());
    space[8..10].copy_from_slice(&pairs.to_le_bytes());
    space[10..].copy_from_slice(&mtu.unwrap_or(0).to_le_bytes());
    space
}
