//! What the fuzz targets and property tests call: hostile accesses against every device of the
//! platform. Nothing here may panic, whatever the bytes.

use std::sync::Arc;

use crate::{
    Registers,
    pci::{ConfigPorts, HostBridge, PciBus},
};

/// Runs the accesses that `bytes` encode: ten bytes each, of kind and size, offset, value.
pub fn accesses(registers: &dyn Registers, range: u64, bytes: &[u8]) {
    for access in bytes.chunks_exact(10) {
        let size = 1 << (access[0] >> 1 & 3);
        let offset = u64::from(access[1]) | u64::from(access[9]) << 8 | u64::from(access[8]) << 16;
        // Mostly within the range, sometimes past its end.
        let offset = if access[0] & 0xf0 == 0 {
            offset
        } else {
            offset % range
        };
        let mut data = [0; 8];
        if access[0] & 1 == 0 {
            registers.read(offset, &mut data[..size]);
        } else {
            data.copy_from_slice(&access[2..]);
            registers.write(offset, &data[..size]);
        }
    }
}

/// Configuration space of a bus with a bridge on it, by ECAM and by the old ports, then whatever
/// decodes.
pub fn pci(bytes: &[u8]) {
    let bus = Arc::new(PciBus::new(0x40_0000_0000..0x41_0000_0000));
    for _ in 0..2 {
        let added = bus.add(None, Arc::new(HostBridge::new()));
        assert!(added.is_ok(), "an empty bus has room");
    }
    let half = bytes.len() / 2;
    accesses(&*bus, 0x1_0000, &bytes[..half]);
    accesses(&ConfigPorts::new(Arc::clone(&bus)), 8, &bytes[half..]);
    let saved = bus.save();
    assert!(
        saved.is_ok_and(|state| bus.restore(&state).is_ok()),
        "what was saved is taken"
    );
}
