//! The machine around the vCPUs: which devices there are and where.
//!
//! ```text
//!  ports   0x60 i8042   0x70 clock   0x3f8 serial   0x600 power   0xcf8 PCI configuration
//!  memory  IOAPIC, PCI configuration space (ECAM), PCI devices: crate::memory::layout
//!  lines   4 serial   9 power
//! ```

use std::{
    io,
    sync::{Arc, OnceLock},
};

use cpu::{Msi, Partition};
use devices::{
    Interrupts,
    acpi::{self, AcpiConfig, AcpiTables, GenerationId, PowerRegisters, PowerRequest},
    i8042::I8042,
    ioapic::Ioapic,
    pci::{ConfigPorts, HostBridge, PciBus},
    rtc::Rtc,
    serial::Serial,
};
use memory::{Ram, layout};

use super::{Gate, MachineError};
use crate::{boot::ACPI_START, bus::BusBuilder, console::Output, exit::StopReason};

/// Addresses for 64-bit BARs.
const MEMORY64_BYTES: u64 = 1 << 36;

/// Carries interrupts from devices to the vCPUs, which are made after them.
#[derive(Default)]
pub(super) struct Router(OnceLock<Arc<dyn Partition>>);

impl Router {
    /// Where interrupts go from now on.
    pub(super) fn connect(&self, partition: Arc<dyn Partition>) {
        // There is one partition per machine.
        let _first = self.0.set(partition);
    }
}

impl Interrupts for Router {
    fn signal_msi(&self, address: u64, data: u32) {
        if let Some(partition) = self.0.get() {
            // Refused for a message that makes no sense, which a guest may have written.
            let _refused = partition.signal_msi(Msi { address, data });
        }
    }
}

/// Devices that every machine has.
pub(super) struct Platform {
    pub(super) interrupts: Arc<Router>,
    pub(super) pci: Arc<PciBus>,
    pub(super) power: Arc<PowerRegisters>,
    pub(super) serial: Arc<Serial>,
    pub(super) acpi: AcpiTables,
}

impl Platform {
    /// Makes them, and puts them on `bus`. What the guest asks of its machine goes to `gate`.
    pub(super) fn new(
        bus: &mut BusBuilder,
        ram: &Ram,
        vcpus: u32,
        gate: &Arc<Gate>,
        output: Output,
    ) -> Result<Self, MachineError> {
        let interrupts = Arc::new(Router::default());
        let ioapic = Arc::new(Ioapic::new(Arc::clone(&interrupts) as Arc<dyn Interrupts>));
        let start = layout::IOAPIC_START;
        bus.memory(start..start + Ioapic::BYTES, Arc::clone(&ioapic) as _)?;
        let ended = Arc::clone(&ioapic);
        bus.end_of_interrupt(Box::new(move |vector| ended.end_of_interrupt(vector)));

        let serial = Arc::new(Serial::new(Box::new(output), ioapic.line(Serial::IRQ)));
        bus.port(Serial::BASE, Serial::COUNT, Arc::clone(&serial) as _)?;
        bus.port(Rtc::BASE, Rtc::COUNT, Arc::new(Rtc::new()))?;
        let reset = Arc::clone(gate);
        let i8042 = I8042::new(move || reset.stop(StopReason::Reset));
        bus.port(I8042::BASE, I8042::COUNT, Arc::new(i8042))?;
        let asked = Arc::clone(gate);
        let power = PowerRegisters::new(ioapic.line(PowerRegisters::IRQ), move |request| {
            asked.stop(match request {
                PowerRequest::Off => StopReason::PowerOff,
                PowerRequest::Reset => StopReason::Reset,
            });
        });
        let power = Arc::new(power);
        let (first, count) = (PowerRegisters::BASE, PowerRegisters::COUNT);
        bus.port(first, count, Arc::clone(&power) as _)?;

        let start = layout::mmio64_start(ram.bytes());
        let memory64 = start..start + MEMORY64_BYTES;
        let pci = pci(bus, memory64.clone())?;
        let acpi = acpi::tables(&AcpiConfig {
            address: ACPI_START,
            vcpus,
            memory64,
        });
        Ok(Self {
            interrupts,
            pci,
            power,
            serial,
            acpi,
        })
    }

    /// Gives the machine the identity of one that never ran before; after the tables are in memory.
    pub(super) fn identify(&self, ram: &Ram) -> io::Result<()> {
        let mut id = [0; 16];
        // SAFETY: fills as many bytes of ours as it is told.
        let count = unsafe { libc::getrandom(id.as_mut_ptr().cast(), id.len(), 0) };
        if usize::try_from(count).ok() != Some(id.len()) {
            return Err(io::Error::last_os_error());
        }
        let memory = ram.guest_memory().clone();
        let page = GenerationId::new(memory, self.acpi.generation_id, Arc::clone(&self.power));
        page.set(id).map_err(io::Error::other)
    }
}

fn pci(bus: &mut BusBuilder, memory64: std::ops::Range<u64>) -> Result<Arc<PciBus>, MachineError> {
    let pci = Arc::new(PciBus::new(memory64));
    pci.add(None, Arc::new(HostBridge::new()))?;
    let start = layout::ECAM_START;
    bus.memory(start..start + PciBus::ECAM_BYTES, Arc::clone(&pci) as _)?;
    let ports = Arc::new(ConfigPorts::new(Arc::clone(&pci)));
    bus.port(ConfigPorts::BASE, ConfigPorts::COUNT, ports)?;
    bus.pci(Arc::clone(&pci));
    Ok(pci)
}
