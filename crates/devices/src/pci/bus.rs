//! Bus 0: 32 slots of one function each, and who decodes which memory.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use memory::layout;

use super::{
    PciFunction, Window,
    space::{AddressSpace, Bar},
};
use crate::{Registers, StateError};

/// How many functions fit on the bus, the host bridge included.
const SLOTS: usize = 32;
/// Bytes of configuration space that a bus takes in ECAM.
const BUS_BYTES: u64 = 1 << 20;
/// End of the registers that change what a function decodes: command and BARs.
const DECODING: Range<u16> = 0x04..0x28;

/// Why a function cannot be had on the bus.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// The slot is taken, or none is free.
    #[error("no free slot on the PCI bus (asked for {slot:?}, it has {SLOTS})")]
    Slot {
        /// Which was asked for.
        slot: Option<u8>,
    },
    /// There are no addresses left for a BAR.
    #[error("no room for a BAR of {bytes} bytes in PCI memory")]
    Room {
        /// Its size.
        bytes: u64,
    },
}

/// A slot that is taken.
struct Slot {
    function: Arc<dyn PciFunction>,
    /// The addresses its BARs got when it was plugged in.
    bars: Vec<(Bar, u64)>,
}

/// A window and whose it is.
struct Route {
    window: Window,
    function: Arc<dyn PciFunction>,
}

/// All that a store to configuration space may change, behind one lock.
struct Slots {
    slots: [Option<Slot>; SLOTS],
    low: AddressSpace,
    high: AddressSpace,
}

/// The bus. As [`Registers`] it is the ECAM region of bus 0: [`PciBus::ECAM_BYTES`] at
/// [`layout::ECAM_START`]; memory accesses that nothing else takes go to [`PciBus::memory_read`]
/// and [`PciBus::memory_write`].
pub struct PciBus {
    slots: Mutex<Slots>,
    /// In order of address, without overlaps.
    routes: RwLock<Vec<Route>>,
}

impl PciBus {
    /// Size of the ECAM region: one bus.
    pub const ECAM_BYTES: u64 = BUS_BYTES;

    /// An empty bus that gives 64-bit BARs addresses in `memory64`, 32-bit ones in the hole of
    /// [`layout`].
    #[must_use]
    pub fn new(memory64: Range<u64>) -> Self {
        Self {
            slots: Mutex::new(Slots {
                slots: [const { None }; SLOTS],
                low: AddressSpace::new(layout::MMIO32_START..layout::MMIO32_END),
                high: AddressSpace::new(memory64),
            }),
            routes: RwLock::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plugs a function in, at `slot` or the first free one, and gives its BARs addresses. The
    /// result is its slot: device number, function 0.
    ///
    /// # Errors
    /// When there is no slot or no address left; the function is then not on the bus.
    pub fn add(&self, slot: Option<u8>, function: Arc<dyn PciFunction>) -> Result<u8, PciError> {
        let mut slots = self.lock();
        let free = match slot {
            Some(slot) => Some(usize::from(slot)),
            None => slots.slots.iter().position(Option::is_none),
        };
        let index = free.filter(|&it| slots.slots.get(it).is_some_and(Option::is_none));
        let index = index.ok_or(PciError::Slot { slot })?;
        let mut bars = Vec::new();
        for bar in Bar::probe(&*function) {
            match slots.take(bar) {
                Some(address) => bars.push((bar, address)),
                None => {
                    slots.give(&bars);
                    return Err(PciError::Room { bytes: bar.bytes });
                }
            }
        }
        for (bar, address) in &bars {
            bar.assign(&*function, *address);
        }
        slots.slots[index] = Some(Slot { function, bars });
        self.route(&slots);
        Ok(index as u8)
    }

    /// Unplugs the function in a slot; what still runs in it ends by itself.
    pub fn remove(&self, slot: u8) -> Option<Arc<dyn PciFunction>> {
        let mut slots = self.lock();
        let gone = slots.slots.get_mut(usize::from(slot))?.take()?;
        slots.give(&gone.bars);
        self.route(&slots);
        Some(gone.function)
    }

    /// The function in a slot.
    #[must_use]
    pub fn function(&self, slot: u8) -> Option<Arc<dyn PciFunction>> {
        let slots = self.lock();
        let slot = slots.slots.get(usize::from(slot))?.as_ref()?;
        Some(Arc::clone(&slot.function))
    }

    /// Resets all functions and gives their BARs the addresses of the start again.
    pub fn reset(&self) {
        let slots = self.lock();
        for slot in slots.slots.iter().flatten() {
            slot.function.reset();
            for (bar, address) in &slot.bars {
                bar.assign(&*slot.function, *address);
            }
        }
        self.route(&slots);
    }

    /// What [`PciFunction::save`] gave for each slot.
    ///
    /// # Errors
    /// When a function cannot be saved.
    pub fn save(&self) -> Result<Vec<(u8, Vec<u8>)>, StateError> {
        let slots = self.lock();
        let taken = slots.slots.iter().enumerate();
        taken
            .filter_map(|(index, slot)| slot.as_ref().map(|it| (index as u8, it)))
            .map(|(index, slot)| Ok((index, slot.function.save()?)))
            .collect()
    }

    /// Restores the functions of a bus that was built like the one saved.
    ///
    /// # Errors
    /// When a slot is empty here, or a function cannot take its state.
    pub fn restore(&self, state: &[(u8, Vec<u8>)]) -> Result<(), StateError> {
        let slots = self.lock();
        for (index, bytes) in state {
            let slot = slots
                .slots
                .get(usize::from(*index))
                .and_then(Option::as_ref);
            let slot = slot.ok_or_else(|| StateError::Mismatch {
                device: "PCI bus",
                reason: format!("slot {index} is empty here"),
            })?;
            slot.function.restore(bytes)?;
        }
        self.route(&slots);
        Ok(())
    }

    /// Finds anew who decodes what. Where two claim the same address, the lower slot has it.
    fn route(&self, slots: &Slots) {
        let mut routes: Vec<Route> = Vec::new();
        for slot in slots.slots.iter().flatten() {
            for window in slot.function.windows() {
                let Some(end) = window.start.checked_add(window.bytes) else {
                    continue;
                };
                let overlaps = |it: &Route| {
                    window.start < it.window.start + it.window.bytes && it.window.start < end
                };
                if !routes.iter().any(overlaps) {
                    routes.push(Route {
                        window,
                        function: Arc::clone(&slot.function),
                    });
                }
            }
        }
        routes.sort_by_key(|it| it.window.start);
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = routes;
    }

    /// Who decodes an address: the function, the BAR, the offset in it.
    fn decode(&self, address: u64) -> Option<(Arc<dyn PciFunction>, u8, u64)> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let after = routes.partition_point(|it| it.window.start <= address);
        let route = &routes[after.checked_sub(1)?];
        let offset = address - route.window.start;
        (offset < route.window.bytes)
            .then(|| (Arc::clone(&route.function), route.window.bar, offset))
    }

    /// A load of 1 to 8 bytes from device memory; `false` and `data` untouched where no function
    /// decodes the address.
    #[must_use]
    pub fn memory_read(&self, address: u64, data: &mut [u8]) -> bool {
        let Some((function, bar, offset)) = self.decode(address) else {
            return false;
        };
        function.bar_read(bar, offset, data);
        true
    }

    /// A store of 1 to 8 bytes to device memory; `false` where no function decodes the address.
    #[must_use]
    pub fn memory_write(&self, address: u64, data: &[u8]) -> bool {
        let Some((function, bar, offset)) = self.decode(address) else {
            return false;
        };
        function.bar_write(bar, offset, data);
        true
    }

    /// A load from configuration space of `slot`, function 0. All ones where there is none.
    pub fn config_read(&self, slot: u8, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        let slots = self.lock();
        let Some(Some(slot)) = slots.slots.get(usize::from(slot)) else {
            return;
        };
        let mut at = offset;
        for part in pieces(offset, data.len()) {
            slot.function.config_read(at, &mut data[part.clone()]);
            at += part.len() as u16;
        }
    }

    /// A store to configuration space of `slot`, function 0.
    pub fn config_write(&self, slot: u8, offset: u16, data: &[u8]) {
        let slots = self.lock();
        let Some(Some(slot)) = slots.slots.get(usize::from(slot)) else {
            return;
        };
        let mut at = offset;
        for part in pieces(offset, data.len()) {
            slot.function.config_write(at, &data[part.clone()]);
            at += part.len() as u16;
        }
        if offset < DECODING.end && at > DECODING.start {
            self.route(&slots);
        }
    }
}

impl Slots {
    fn take(&mut self, bar: Bar) -> Option<u64> {
        let space = if bar.wide {
            &mut self.high
        } else {
            &mut self.low
        };
        space.take(bar.bytes)
    }

    fn give(&mut self, bars: &[(Bar, u64)]) {
        for (bar, address) in bars {
            let space = if bar.wide {
                &mut self.high
            } else {
                &mut self.low
            };
            space.give(*address);
        }
    }
}

/// Cuts an access at `offset` into parts that do not cross a four-byte register.
fn pieces(offset: u16, bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let first = (4 - usize::from(offset % 4)).min(bytes);
    let rest = (first..bytes)
        .step_by(4)
        .map(move |it| it..(it + 4).min(bytes));
    std::iter::once(0..first).chain(rest)
}

impl Registers for PciBus {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match place(offset, data.len()) {
            Some((slot, register)) => self.config_read(slot, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((slot, register)) = place(offset, data.len()) {
            self.config_write(slot, register, data);
        }
    }
}

/// Slot and register of an offset into ECAM: bus 27:20, device 19:15, function 14:12. Only bus 0 and
/// functions 0 exist.
fn place(offset: u64, bytes: usize) -> Option<(u8, u16)> {
    let register = (offset & 0xfff) as u16;
    let exists = offset < BUS_BYTES && offset >> 12 & 7 == 0;
    let within = usize::from(register) + bytes <= 0x1000;
    (exists && within).then_some(((offset >> 15 & 0x1f) as u8, register))
}
