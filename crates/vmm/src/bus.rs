//! Who answers at which port and at which address: what vCPUs call for all that is not RAM.
//!
//! The table is fixed once the machine is built, so a look-up takes no lock; the functions on the
//! PCI bus, which move and come and go, have their own ([`devices::pci::PciBus`]).

use std::{ops::Range, sync::Arc};

use cpu::Bus;
use devices::{Registers, pci::PciBus};

/// What ended interrupts are told to.
pub type EndOfInterrupt = Box<dyn Fn(u8) + Send + Sync>;

/// Two devices claim the same addresses: a mistake in how the machine is built.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{space} {start:#x} up to {end:#x} is taken already")]
pub struct Overlap {
    /// Ports or memory.
    pub space: &'static str,
    /// First address asked for.
    pub start: u64,
    /// Past the last.
    pub end: u64,
}

struct Entry {
    range: Range<u64>,
    device: Arc<dyn Registers>,
}

/// Devices by address, in order.
#[derive(Default)]
struct Table(Vec<Entry>);

impl Table {
    fn insert(
        &mut self,
        space: &'static str,
        range: Range<u64>,
        device: Arc<dyn Registers>,
    ) -> Result<(), Overlap> {
        let at = self.0.partition_point(|it| it.range.start < range.start);
        let before = at.checked_sub(1).map(|it| self.0[it].range.end);
        let after = self.0.get(at).map(|it| it.range.start);
        if before.is_some_and(|end| end > range.start) || after.is_some_and(|it| it < range.end) {
            return Err(Overlap {
                space,
                start: range.start,
                end: range.end,
            });
        }
        self.0.insert(at, Entry { range, device });
        Ok(())
    }

    /// The device at an address, and the offset in its range.
    #[inline]
    fn find(&self, address: u64) -> Option<(&dyn Registers, u64)> {
        let after = self.0.partition_point(|it| it.range.start <= address);
        let entry = &self.0[after.checked_sub(1)?];
        let offset = address - entry.range.start;
        (address < entry.range.end).then(|| (&*entry.device, offset))
    }
}

/// The bus of a machine that is being built.
#[derive(Default)]
pub struct BusBuilder {
    ports: Table,
    memory: Table,
    pci: Option<Arc<PciBus>>,
    end_of_interrupt: Option<EndOfInterrupt>,
}

impl BusBuilder {
    /// A device at `count` ports.
    ///
    /// # Errors
    /// When one of them is taken.
    pub fn port(
        &mut self,
        first: u16,
        count: u16,
        device: Arc<dyn Registers>,
    ) -> Result<(), Overlap> {
        let first = u64::from(first);
        self.ports
            .insert("ports", first..first + u64::from(count), device)
    }

    /// A device in memory.
    ///
    /// # Errors
    /// When some of it is taken.
    pub fn memory(&mut self, range: Range<u64>, device: Arc<dyn Registers>) -> Result<(), Overlap> {
        self.memory.insert("memory", range, device)
    }

    /// Whose functions answer wherever in memory no other device does.
    pub fn pci(&mut self, pci: Arc<PciBus>) {
        self.pci = Some(pci);
    }

    /// Who is told of ended level-triggered interrupts.
    pub fn end_of_interrupt(&mut self, ended: EndOfInterrupt) {
        self.end_of_interrupt = Some(ended);
    }

    /// The bus.
    #[must_use]
    pub fn build(self) -> MachineBus {
        MachineBus(self)
    }
}

/// The bus of a machine.
pub struct MachineBus(BusBuilder);

impl Bus for MachineBus {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.0.ports.find(u64::from(port)) {
            device.read(offset, data);
        }
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        if let Some((device, offset)) = self.0.ports.find(u64::from(port)) {
            device.write(offset, data);
        }
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.0.memory.find(address) {
            device.read(offset, data);
        } else if let Some(pci) = &self.0.pci {
            // Nobody there: all ones stay.
            let _answered = pci.memory_read(address, data);
        }
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.0.memory.find(address) {
            device.write(offset, data);
        } else if let Some(pci) = &self.0.pci {
            let _answered = pci.memory_write(address, data);
        }
    }

    fn end_of_interrupt(&self, vector: u8) {
        if let Some(ended) = &self.0.end_of_interrupt {
            ended(vector);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// Answers with the offset.
    struct Echo;

    impl Registers for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&self, _: u64, _: &[u8]) {}
    }

    fn read(bus: &MachineBus, port: u16) -> u8 {
        let mut data = [0];
        bus.port_read(port, &mut data);
        data[0]
    }

    #[test]
    fn an_access_reaches_the_device_whose_range_it_is_in_and_no_other() {
        let mut bus = BusBuilder::default();
        bus.port(0x3f8, 8, Arc::new(Echo)).unwrap();
        bus.port(0x60, 1, Arc::new(Echo)).unwrap();
        bus.memory(0x1000..0x2000, Arc::new(Echo)).unwrap();
        let bus = bus.build();
        assert_eq!(read(&bus, 0x3ff), 7);
        assert_eq!(read(&bus, 0x60), 0);
        for nobody in [0, 0x5f, 0x61, 0x3f7, 0x400, 0xffff] {
            assert_eq!(read(&bus, nobody), 0xff);
        }
        let mut data = [0; 2];
        bus.mmio_read(0x1fff, &mut data);
        assert_eq!(data, [0xff; 2]);
        bus.mmio_read(0x1003, &mut data);
        assert_eq!(data, [3; 2]);
        bus.mmio_read(u64::MAX, &mut data);
        assert_eq!(data, [0xff; 2]);
    }

    #[test]
    fn two_devices_cannot_have_the_same_address() {
        let mut bus = BusBuilder::default();
        bus.port(0x3f8, 8, Arc::new(Echo)).unwrap();
        for (first, count) in [(0x3f8, 8), (0x3ff, 1), (0x3f0, 9), (0x3f0, 0x20)] {
            assert!(bus.port(first, count, Arc::new(Echo)).is_err());
        }
        bus.port(0x3f0, 8, Arc::new(Echo)).unwrap();
        bus.port(0x400, 8, Arc::new(Echo)).unwrap();
    }
}
