//! What the fuzz targets and property tests call: hostile accesses against every device of the
//! platform. Nothing here may panic, whatever the bytes.

use std::sync::Arc;

use crate::{
    Registers,
    acpi::PowerRegisters,
    i8042::I8042,
    ioapic::Ioapic,
    pci::{ConfigPorts, HostBridge, PciBus},
    rtc::Rtc,
    serial::Serial,
};

/// All devices of the platform; the first byte chooses which.
pub fn fuzz(bytes: &[u8]) {
    let Some((&which, bytes)) = bytes.split_first() else {
        return;
    };
    match which % 6 {
        0 => pci(bytes),
        1 => serial(bytes),
        2 => ioapic(bytes),
        3 => rtc(bytes),
        4 => power(bytes),
        _ => crate::virtio::fuzzing::fuzz(bytes),
    }
}

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

struct Nowhere;

impl crate::Interrupts for Nowhere {
    fn signal_msi(&self, _address: u64, _data: u32) {}
}

impl crate::Line for Nowhere {
    fn set(&self, _high: bool) {}
}

/// A serial port, with input in between.
pub fn serial(bytes: &[u8]) {
    let serial = Serial::new(Box::new(std::io::sink()), Arc::new(Nowhere));
    for part in bytes.chunks(100) {
        accesses(&serial, 8, part);
        let taken = serial.input(part);
        assert!(taken <= part.len(), "no more than was given");
    }
    serial.restore(&serial.state());
}

/// The IOAPIC, with lines moving and interrupts ending in between.
pub fn ioapic(bytes: &[u8]) {
    let ioapic = Ioapic::new(Arc::new(Nowhere));
    for part in bytes.chunks(20) {
        accesses(&ioapic, 0x14, part);
        ioapic.set_line(part[0] & 31, part[0] & 32 != 0);
        ioapic.end_of_interrupt(part[0]);
    }
    ioapic.restore(&ioapic.state());
}

/// The real-time clock and the keyboard controller.
pub fn rtc(bytes: &[u8]) {
    let rtc = Rtc::with_clock(|| u64::from(u32::MAX));
    accesses(&rtc, 2, bytes);
    assert!(rtc.restore(&rtc.state()).is_ok(), "what was saved is taken");
    accesses(&I8042::new(|| {}), 5, bytes);
}

/// The registers of ACPI.
pub fn power(bytes: &[u8]) {
    let power = PowerRegisters::new(Arc::new(Nowhere), |_| {});
    for part in bytes.chunks(50) {
        accesses(&power, 8, part);
        power.press_power_button();
    }
    power.restore(power.state());
}
