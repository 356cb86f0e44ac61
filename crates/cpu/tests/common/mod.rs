//! What the tests on random instructions share: numbers, names of registers, places of flags.

use iced_x86::{Register, RflagsBits};

/// Numbers that look random and are the same every time (xorshift64*).
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The same, for seeds that follow each other: their numbers have nothing in common.
    #[allow(dead_code, reason = "not every test counts its seeds")]
    pub fn spread(seed: u64) -> Self {
        Self::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// One below a limit.
    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    /// Whether it is that one time in `count`.
    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// A number arithmetic finds interesting.
    pub fn value(&mut self) -> u64 {
        let edge = [
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
            0 => edge[self.below(edge.len() as u64) as usize],
            1 => self.below(100).wrapping_sub(50),
            2 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }
}

/// Registers of 8 bits, those of the legacy high bytes last.
pub const GPR8: [Register; 20] = [
    Register::AL,
    Register::CL,
    Register::DL,
    Register::BL,
    Register::SPL,
    Register::BPL,
    Register::SIL,
    Register::DIL,
    Register::R8L,
    Register::R9L,
    Register::R10L,
    Register::R11L,
    Register::R12L,
    Register::R13L,
    Register::R14L,
    Register::R15L,
    Register::AH,
    Register::CH,
    Register::DH,
    Register::BH,
];

/// Some of iced's bits of status flags, in their places in `rflags`.
pub fn status_flags(bits: u32) -> u64 {
    [
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 4),
        (RflagsBits::AF, 0x10),
        (RflagsBits::ZF, 0x40),
        (RflagsBits::SF, 0x80),
        (RflagsBits::OF, 0x800),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(0, |mask, (_, flag)| mask | flag)
}
