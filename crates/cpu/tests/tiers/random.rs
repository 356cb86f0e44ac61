//! Numbers that look random and are the same every time, and that arithmetic and memory find interesting.

use crate::guest::{DATA, PAGE};

use crate::common::Random;

impl Random {
    /// A number that is, one in two times, a floating point one of ordinary size or a special one.
    pub fn float(&mut self) -> u64 {
        match self.below(8) {
            0 => f64::NAN.to_bits(),
            1 => f64::INFINITY.to_bits() | self.below(2) << 63,
            2 => self.below(1 << 20) << self.below(2).wrapping_mul(63),
            3 => (self.below(2000) as f64 / 8.0 - 100.0).to_bits(),
            4 => {
                let half = (self.below(2000) as f32 / 8.0 - 100.0).to_bits();
                u64::from(half) << 32 | u64::from(half ^ 1)
            }
            _ => self.value(),
        }
    }

    /// An address of data: mostly good and aligned, now and then about an edge of a page.
    pub fn address(&mut self) -> u64 {
        match self.below(10) {
            0 => DATA + PAGE * (1 + self.below(8)) + self.below(80) - 40,
            1 => DATA + PAGE * 3 + self.below(PAGE),
            2 => DATA + PAGE * 6 + self.below(PAGE),
            3..8 => DATA + PAGE + 0x100 + (self.below(0x1e00) & !31),
            _ => DATA + PAGE + 0x100 + self.below(0x1e00),
        }
    }
}
