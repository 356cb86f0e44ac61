//! The DSDT: devices in the language of ACPI.

use acpi_tables::{
    Aml, AmlSink,
    aml::{
        AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Field, FieldAccessType,
        FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed,
        Method, Name, Notify, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Store,
        ZERO,
    },
    sdt::Sdt,
};
use memory::layout;

use super::{
    AcpiConfig, PowerRegisters,
    device::{EVENT_GENERATION, EVENT_POWER, EVENT_SLEEP, EVENTS, SLEEP_TYPE_OFF},
    tables::{OEM, OEM_REVISION, OEM_TABLE},
};
use crate::{pci::PciBus, rtc::Rtc, serial::Serial};

/// The value of a notification that a button was pressed, or the identifier changed.
const NOTIFY_STATUS: u8 = 0x80;

/// The whole table.
pub(super) fn dsdt(config: &AcpiConfig, generation_id: u64) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    pci(config, &mut dsdt);
    ports(&mut dsdt);
    events(generation_id, &mut dsdt);
    let off = Package::new(vec![&SLEEP_TYPE_OFF, &ZERO, &ZERO, &ZERO]);
    Name::new(Path::new("_S5_"), &off).to_aml_bytes(&mut dsdt);
    dsdt.update_checksum();
    dsdt
}

/// The PCI root with its windows, and the memory of its configuration space. Functions interrupt
/// by messages only, so there is no routing table.
fn pci(config: &AcpiConfig, sink: &mut dyn AmlSink) {
    let uncached = AddressSpaceCacheable::NotCacheable;
    let memory32 = AddressSpace::new_memory(
        uncached,
        true,
        layout::MMIO32_START as u32,
        layout::MMIO32_END as u32 - 1,
        None,
    );
    let (start, last) = (config.memory64.start, config.memory64.end - 1);
    let uncached = AddressSpaceCacheable::NotCacheable;
    let memory64 = AddressSpace::new_memory(uncached, true, start, last, None);
    let buses = AddressSpace::new_bus_number(0u16, 0u16);
    let ports = IO::new(0xcf8, 0xcf8, 1, 8);
    Device::new(
        Path::new("_SB_.PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_SEG"), &ZERO),
            &Name::new(Path::new("_BBN"), &ZERO),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&buses, &ports, &memory32, &memory64]),
            ),
        ],
    )
    .to_aml_bytes(sink);
    let ecam = Memory32Fixed::new(true, layout::ECAM_START as u32, PciBus::ECAM_BYTES as u32);
    Device::new(
        Path::new("_SB_.MBRD"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ecam])),
        ],
    )
    .to_aml_bytes(sink);
}

/// The serial port and the clock.
fn ports(sink: &mut dyn AmlSink) {
    let interrupt = Interrupt::new(true, true, false, false, u32::from(Serial::IRQ));
    let registers = IO::new(Serial::BASE, Serial::BASE, 0, Serial::COUNT as u8);
    Device::new(
        Path::new("_SB_.COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&interrupt, &registers]),
            ),
        ],
    )
    .to_aml_bytes(sink);
    let registers = IO::new(Rtc::BASE, Rtc::BASE, 0, Rtc::COUNT as u8);
    Device::new(
        Path::new("_SB_.RTC0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0B00")),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&registers])),
        ],
    )
    .to_aml_bytes(sink);
}

/// Buttons, the generation identifier, and the device that tells of their events (ACPI 6.5, 5.6.9).
fn events(generation_id: u64, sink: &mut dyn AmlSink) {
    for (path, hid) in [("_SB_.PWRB", "PNP0C0C"), ("_SB_.SLPB", "PNP0C0E")] {
        let hid = EISAName::new(hid);
        let hid = Name::new(Path::new("_HID"), &hid);
        Device::new(Path::new(path), vec![&hid]).to_aml_bytes(sink);
    }
    let (low, high) = (generation_id as u32, (generation_id >> 32) as u32);
    // By its own name, and by the one Linux before 6.13 knows.
    let names = Package::new(vec![&"VM_Gen_Counter", &"VMGENCTR"]);
    Device::new(
        Path::new("_SB_.VGEN"),
        vec![
            &Name::new(Path::new("_HID"), &"BRTH0001"),
            &Name::new(Path::new("_CID"), &names),
            &Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
            &Name::new(Path::new("ADDR"), &Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(sink);
    event_device(sink);
}

/// `_EVT` reads the register of events, which takes them, and notifies those concerned.
fn event_device(sink: &mut dyn AmlSink) {
    let interrupt = Interrupt::new(true, true, false, false, u32::from(PowerRegisters::IRQ));
    let port = PowerRegisters::BASE + EVENTS;
    let (taken, scratch) = (Local(0), Local(1));
    let targets = [
        (EVENT_POWER, "\\_SB_.PWRB"),
        (EVENT_SLEEP, "\\_SB_.SLPB"),
        (EVENT_GENERATION, "\\_SB_.VGEN"),
    ];
    let targets = targets.map(|(bit, path)| (bit, Path::new(path)));
    let tests = targets
        .each_ref()
        .map(|(bit, _)| And::new(&scratch, &taken, bit));
    let notices = targets
        .each_ref()
        .map(|(_, path)| Notify::new(path, &NOTIFY_STATUS));
    let branches: Vec<If<'_>> = tests
        .iter()
        .zip(&notices)
        .map(|(test, notice)| If::new(test, vec![notice]))
        .collect();
    let register = Path::new("EVTS");
    let take = Store::new(&taken, &register);
    let mut body: Vec<&dyn Aml> = vec![&take];
    body.extend(branches.iter().map(|it| -> &dyn Aml { it }));
    Device::new(
        Path::new("_SB_.GEDE"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt])),
            &OpRegion::new(Path::new("EVTR"), OpRegionSpace::SystemIO, &port, &4u8),
            &Field::new(
                Path::new("EVTR"),
                FieldAccessType::DWord,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"EVTS", 32)],
            ),
            &Method::new(Path::new("_EVT"), 1, true, body),
        ],
    )
    .to_aml_bytes(sink);
}
