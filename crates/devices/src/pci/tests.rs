//! Tests of `pci`.

use std::sync::{Arc, Mutex};

use memory::layout;
use proptest::prelude::*;

use super::*;
use crate::{Interrupts, Registers, StateError, fuzzing, state, testing::Recorder};

const MEMORY64: std::ops::Range<u64> = 0x40_0000_0000..0x80_0000_0000;
const PLACE: MsixPlace = MsixPlace {
    table_bar: 1,
    table_offset: 0,
    pending_bar: 1,
    pending_offset: 0x800,
};

/// A 64-bit BAR of a page whose every byte reads as its offset, and a 32-bit one with MSI-X.
struct Sample {
    config: Mutex<ConfigSpace>,
    msix: MsixTable,
    capability: u16,
    written: Mutex<Vec<(u8, u64, Vec<u8>)>>,
}

impl Sample {
    fn new(interrupts: Arc<dyn Interrupts>) -> Arc<Self> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1041,
            revision: 1,
            class: 0x02_0000,
            subsystem_vendor: 0x1af4,
            subsystem: 1,
        });
        config.add_bar(1, BarKind::Memory32, 0x1000);
        config.add_bar(2, BarKind::Prefetchable64, 0x10_0000);
        let msix = MsixTable::new(3, interrupts);
        let capability = msix.add_capability(&mut config, PLACE);
        Arc::new(Self {
            config: Mutex::new(config),
            msix,
            capability,
            written: Mutex::default(),
        })
    }
}

impl PciFunction for Sample {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.config.lock().unwrap().read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let mut config = self.config.lock().unwrap();
        config.write(offset, data);
        self.msix.configure(&config, self.capability);
    }

    fn windows(&self) -> Vec<Window> {
        self.config.lock().unwrap().windows()
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        match (bar, offset) {
            (1, 0..0x800) => self.msix.read_table(offset, data),
            (1, _) => self.msix.read_pending(offset - 0x800, data),
            _ => data.fill(offset as u8),
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        if bar == 1 && offset < 0x800 {
            self.msix.write_table(offset, data);
        }
        let mut written = self.written.lock().unwrap();
        written.push((bar, offset, data.to_vec()));
    }

    fn reset(&self) {
        self.config.lock().unwrap().reset();
        self.msix.reset();
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        let config = self.config.lock().unwrap().state();
        state::encode("sample", &(config, self.msix.state()))
    }

    fn restore(&self, bytes: &[u8]) -> Result<(), StateError> {
        let (saved, msix) = state::decode("sample", bytes)?;
        let mut config = self.config.lock().unwrap();
        config.restore(&saved)?;
        self.msix.restore(&msix)?;
        self.msix.configure(&config, self.capability);
        Ok(())
    }
}

fn bus() -> (PciBus, Arc<Sample>, Arc<Recorder>) {
    let bus = PciBus::new(MEMORY64);
    let interrupts = Arc::new(Recorder::default());
    let sample = Sample::new(interrupts.clone());
    assert_eq!(bus.add(None, Arc::new(HostBridge::new())).unwrap(), 0);
    assert_eq!(bus.add(None, sample.clone()).unwrap(), 1);
    (bus, sample, interrupts)
}

fn dword(bus: &PciBus, slot: u64, register: u64) -> u32 {
    let mut data = [0; 4];
    bus.read(slot << 15 | register, &mut data);
    u32::from_le_bytes(data)
}

fn store(bus: &PciBus, slot: u64, register: u64, value: u32) {
    bus.write(slot << 15 | register, &value.to_le_bytes());
}

fn peek(bus: &PciBus, address: u64) -> Option<u64> {
    let mut data = [0; 8];
    bus.memory_read(address, &mut data)
        .then(|| u64::from_le_bytes(data))
}

#[test]
fn functions_are_found_where_they_are_and_nowhere_else() {
    let (bus, ..) = bus();
    assert_eq!(dword(&bus, 0, 0), 0x0008_1b36);
    assert_eq!(dword(&bus, 0, 8), 0x0600_0000);
    assert_eq!(dword(&bus, 1, 0), 0x1041_1af4);
    assert_eq!(dword(&bus, 2, 0), u32::MAX);
    // Function 1 of the same slot, another bus, extended space.
    assert_eq!(dword(&bus, 1, 0x1000), u32::MAX);
    assert_eq!(dword(&bus, 1 << 5, 0), u32::MAX);
    assert_eq!(dword(&bus, 1, 0x100), u32::MAX);
    // A store to what is read-only changes nothing.
    store(&bus, 1, 0, 0);
    assert_eq!(dword(&bus, 1, 0), 0x1041_1af4);
}

#[test]
fn bars_have_addresses_from_the_start_and_decode_when_told_to() {
    let (bus, ..) = bus();
    let low = u64::from(dword(&bus, 1, 0x14));
    let high = u64::from(dword(&bus, 1, 0x1c)) << 32 | u64::from(dword(&bus, 1, 0x18) & !0xf);
    assert_eq!(low, layout::MMIO32_START);
    assert_eq!(high, MEMORY64.start);
    assert_eq!(peek(&bus, high + 0x42), None);
    store(&bus, 1, 4, 2);
    assert_eq!(peek(&bus, high + 0x42), Some(0x4242_4242_4242_4242));
    assert_eq!(peek(&bus, high + 0x10_0000), None);
    assert_eq!(peek(&bus, high - 1), None);
}

#[test]
fn a_guest_sizes_and_moves_a_bar_as_the_specification_says() {
    let (bus, ..) = bus();
    let before = dword(&bus, 1, 0x18);
    store(&bus, 1, 0x18, u32::MAX);
    store(&bus, 1, 0x1c, u32::MAX);
    assert_eq!(dword(&bus, 1, 0x18), 0xfff0_000c);
    assert_eq!(dword(&bus, 1, 0x1c), u32::MAX);
    store(&bus, 1, 0x18, before);
    store(&bus, 1, 0x1c, 0x51);
    store(&bus, 1, 4, 2);
    assert_eq!(peek(&bus, 0x51_0000_0007), Some(0x0707_0707_0707_0707));
    assert_eq!(peek(&bus, MEMORY64.start), None);
    bus.reset();
    store(&bus, 1, 4, 2);
    assert!(peek(&bus, MEMORY64.start).is_some());
}

#[test]
fn overlapping_bars_of_a_hostile_guest_go_to_the_lower_slot() {
    let (bus, first, interrupts) = bus();
    let second = Sample::new(interrupts);
    bus.add(Some(5), second.clone()).unwrap();
    for slot in [5, 1] {
        store(&bus, slot, 4, 2);
        store(&bus, slot, 0x14, 0xd000_0000);
    }
    assert!(bus.memory_write(0xd000_0ff8, &[1]));
    assert_eq!(first.written.lock().unwrap().len(), 1);
    assert!(second.written.lock().unwrap().is_empty());
}

#[test]
fn a_slot_is_free_again_after_unplugging() {
    let (bus, sample, interrupts) = bus();
    assert!(matches!(
        bus.add(Some(1), sample.clone()),
        Err(PciError::Slot { slot: Some(1) })
    ));
    store(&bus, 1, 4, 2);
    assert!(bus.remove(1).is_some());
    assert_eq!(peek(&bus, MEMORY64.start), None);
    assert_eq!(dword(&bus, 1, 0), u32::MAX);
    // The bridge and 31 others.
    for slot in 1..32 {
        assert_eq!(
            bus.add(None, Sample::new(interrupts.clone())).unwrap(),
            slot
        );
    }
    assert!(matches!(
        bus.add(None, Sample::new(interrupts)),
        Err(PciError::Slot { slot: None })
    ));
    assert_eq!(dword(&bus, 1, 0x14) as u64, layout::MMIO32_START);
}

#[test]
fn no_room_for_a_bar_leaves_the_bus_as_it_was() {
    let bus = PciBus::new(0x10_0000..0x20_0000);
    let interrupts = Arc::new(Recorder::default());
    bus.add(None, Sample::new(interrupts.clone())).unwrap();
    let error = bus.add(None, Sample::new(interrupts)).unwrap_err();
    assert!(matches!(error, PciError::Room { bytes: 0x10_0000 }));
    assert!(bus.function(1).is_none());
}

#[test]
fn messages_wait_while_masked_and_go_out_when_unmasked() {
    let (bus, sample, interrupts) = bus();
    let low = u64::from(dword(&bus, 1, 0x14));
    let capability = u64::from(sample.capability);
    assert_eq!(dword(&bus, 1, 0x34) as u64, capability);
    assert_eq!(dword(&bus, 1, capability), 0x0002_0011);
    store(&bus, 1, 4, 6);
    assert!(bus.memory_write(low + 16, &0xfee0_1000u64.to_le_bytes()));
    assert!(bus.memory_write(low + 24, &0x31u32.to_le_bytes()));
    sample.msix.signal(1);
    assert_eq!(interrupts.messages(), [], "MSI-X is off");
    store(&bus, 1, capability, 0x8000_0000);
    sample.msix.signal(1);
    sample.msix.signal(1);
    sample.msix.signal(9);
    assert_eq!(interrupts.messages(), [], "the vector is masked");
    assert_eq!(peek(&bus, low + 0x800), Some(0b010));
    assert!(bus.memory_write(low + 28, &0u32.to_le_bytes()));
    assert_eq!(interrupts.messages(), [(0xfee0_1000, 0x31)]);
    assert_eq!(peek(&bus, low + 0x800), Some(0));
    sample.msix.signal(1);
    assert_eq!(interrupts.messages(), [(0xfee0_1000, 0x31)]);
    // All masked by the function, then not.
    store(&bus, 1, capability, 0xc000_0000);
    sample.msix.signal(1);
    assert_eq!(interrupts.messages(), []);
    store(&bus, 1, capability, 0x8000_0000);
    assert_eq!(interrupts.messages(), [(0xfee0_1000, 0x31)]);
}

#[test]
fn a_bus_saved_with_a_pending_message_goes_on_on_another() {
    let (saved, sample, interrupts) = bus();
    store(&saved, 1, 4, 6);
    store(&saved, 1, 0x14, 0xd000_0000);
    store(&saved, 1, u64::from(sample.capability), 0x8000_0000);
    sample.msix.signal(2);
    let state = saved.save().unwrap();
    drop(saved);
    let (restored, _, signals) = bus();
    restored.restore(&state).unwrap();
    assert_eq!(peek(&restored, 0xd000_0800), Some(0b100));
    assert!(restored.memory_write(0xd000_0020, &0xfee0_0000u64.to_le_bytes()));
    assert!(restored.memory_write(0xd000_0028, &0x55u64.to_le_bytes()));
    assert_eq!(signals.messages(), [(0xfee0_0000, 0x55)]);
    assert_eq!(interrupts.messages(), []);
    let other = PciBus::new(MEMORY64);
    assert!(other.restore(&state).is_err());
    other.add(None, Arc::new(HostBridge::new())).unwrap();
    other.add(None, Arc::new(HostBridge::new())).unwrap();
    assert!(other.restore(&state).is_err());
}

#[test]
fn the_old_ports_reach_the_same_registers() {
    let (bus, ..) = bus();
    let ports = ConfigPorts::new(Arc::new(bus));
    let mut data = [0; 4];
    ports.read(4, &mut data);
    assert_eq!(data, [0xff; 4]);
    ports.write(0, &0x8000_0800u32.to_le_bytes());
    ports.read(4, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x1041_1af4);
    let mut half = [0; 2];
    ports.read(6, &mut half);
    assert_eq!(u16::from_le_bytes(half), 0x1041);
    ports.read(0, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x8000_0800);
}

proptest! {
    #[test]
    fn hostile_accesses_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        fuzzing::pci(&bytes);
    }
}
