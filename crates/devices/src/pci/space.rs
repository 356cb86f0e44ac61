//! What firmware does with BARs: it finds their sizes and gives them addresses, by loads and
//! stores of configuration space (PCI Local Bus 3.0, 6.2.5.1).

use std::{collections::BTreeMap, ops::Range};

use super::PciFunction;

const BAR0: u16 = 0x10;

/// A BAR as the sizing protocol shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bar {
    /// Which, 0 to 5.
    pub index: u8,
    /// Whether it takes two.
    pub wide: bool,
    /// Its size.
    pub bytes: u64,
}

impl Bar {
    /// All memory BARs of a function. They are left with no address.
    pub fn probe(function: &dyn PciFunction) -> Vec<Self> {
        let mut found = Vec::new();
        let mut index = 0;
        while index < 6 {
            let low = size(function, index);
            let wide = low & 0b0111 == 0b0100 && index < 5;
            let high = if wide {
                size(function, index + 1)
            } else {
                u32::MAX
            };
            let mask = u64::from(high) << 32 | u64::from(low & !0xf);
            // Bit 0 would be an I/O BAR.
            if low & !0xf != 0 && low & 1 == 0 || wide && mask != 0 {
                found.push(Self {
                    index,
                    wide,
                    bytes: mask.wrapping_neg(),
                });
            }
            index += if wide { 2 } else { 1 };
        }
        found
    }

    /// Stores its address.
    pub fn assign(self, function: &dyn PciFunction, address: u64) {
        let register = BAR0 + 4 * u16::from(self.index);
        function.config_write(register, &(address as u32).to_le_bytes());
        if self.wide {
            function.config_write(register + 4, &((address >> 32) as u32).to_le_bytes());
        }
    }
}

/// What one BAR register reads as after ones were stored to it.
fn size(function: &dyn PciFunction, index: u8) -> u32 {
    let register = BAR0 + 4 * u16::from(index);
    let mut value = [0; 4];
    function.config_write(register, &[0xff; 4]);
    function.config_read(register, &mut value);
    function.config_write(register, &[0; 4]);
    u32::from_le_bytes(value)
}

/// Free and taken addresses for BARs. First fit, in order of address.
#[derive(Debug)]
pub(super) struct AddressSpace {
    range: Range<u64>,
    /// End of each taken range, by its start.
    taken: BTreeMap<u64, u64>,
}

impl AddressSpace {
    pub fn new(range: Range<u64>) -> Self {
        Self {
            range,
            taken: BTreeMap::new(),
        }
    }

    /// Takes `bytes`, a power of two, aligned to their size; `None` when there is no such gap.
    pub fn take(&mut self, bytes: u64) -> Option<u64> {
        let mut start = self.range.start.checked_next_multiple_of(bytes)?;
        for (&taken, &end) in &self.taken {
            if start.checked_add(bytes)? <= taken {
                break;
            }
            start = start.max(end.checked_next_multiple_of(bytes)?);
        }
        let end = start.checked_add(bytes)?;
        if end > self.range.end {
            return None;
        }
        self.taken.insert(start, end);
        Some(start)
    }

    /// Gives back what [`AddressSpace::take`] gave.
    pub fn give(&mut self, start: u64) {
        self.taken.remove(&start);
    }
}
