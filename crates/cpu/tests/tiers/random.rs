//! Numbers that look random and are the same every time, and that arithmetic and memory find interesting.

use crate::guest::{DATA, PAGE};

/// xorshift64*.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    pub fn value(&mut self) -> u64 {
        const EDGES: [u64; 14] = [
            0,
            1,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            i64::MAX as u64,
            i64::MIN as u64,
            u64::MAX,
        ];
        match self.below(4) {
            0 => EDGES[self.below(EDGES.len() as u64) as usize],
            1 => self.below(100).wrapping_sub(50),
            2 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }

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
