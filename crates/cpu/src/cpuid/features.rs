//! Features by name, and sets of them.

use std::arch::x86_64::__cpuid_count;

use kvm_bindings::CpuId;
use serde::{Deserialize, Serialize};

use super::Leaf;

/// Which features a guest sees: the levels of the x86-64 psABI, or all there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Up to SSE2: what every 64-bit processor has.
    V1,
    /// Up to SSE4.2, POPCNT, CMPXCHG16B.
    V2,
    /// Up to AVX2, BMI, FMA, with the instructions for AES and SHA.
    V3,
    /// Everything that host and backend have. Guests cannot move to lesser hosts.
    Host,
}

/// A register of a leaf that holds feature bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// Leaf 1.
    C1,
    D1,
    /// Leaf 7, subleaf 0.
    B7,
    C7,
    D7,
    /// Leaf 0xd, subleaf 1.
    XsaveA,
    /// Leaf 0x8000_0001.
    ExtC,
    ExtD,
    /// Leaf 0x8000_0008.
    Ext8B,
    /// Leaf 0x8000_0021.
    Ext21A,
}

const WORDS: usize = 10;

/// Leaf and subleaf of each word, in their order.
const LEAVES: [(u32, u32); WORDS] = [
    (1, 0),
    (1, 0),
    (7, 0),
    (7, 0),
    (7, 0),
    (0xd, 1),
    (0x8000_0001, 0),
    (0x8000_0001, 0),
    (0x8000_0008, 0),
    (0x8000_0021, 0),
];

/// A set of features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features([u32; WORDS]);

/// A feature: the register and the bit that show it.
type Feature = (Word, u32);

/// In every profile: what a 64-bit kernel needs, and what costs nothing.
const BASE: &[Feature] = &[
    (Word::D1, 0),      // FPU
    (Word::D1, 2),      // DE
    (Word::D1, 3),      // PSE
    (Word::D1, 4),      // TSC
    (Word::D1, 5),      // MSR
    (Word::D1, 6),      // PAE
    (Word::D1, 8),      // CX8
    (Word::D1, 9),      // APIC
    (Word::D1, 11),     // SEP
    (Word::D1, 12),     // MTRR
    (Word::D1, 13),     // PGE
    (Word::D1, 15),     // CMOV
    (Word::D1, 16),     // PAT
    (Word::D1, 17),     // PSE36
    (Word::D1, 19),     // CLFSH
    (Word::D1, 23),     // MMX
    (Word::D1, 24),     // FXSR
    (Word::D1, 25),     // SSE
    (Word::D1, 26),     // SSE2
    (Word::C1, 21),     // x2APIC
    (Word::C1, 24),     // TSC deadline
    (Word::C1, 31),     // hypervisor
    (Word::B7, 0),      // FSGSBASE
    (Word::B7, 7),      // SMEP
    (Word::B7, 9),      // ERMS
    (Word::B7, 20),     // SMAP
    (Word::C7, 2),      // UMIP
    (Word::D7, 4),      // FSRM
    (Word::ExtC, 0),    // LAHF in 64-bit mode
    (Word::ExtC, 4),    // cr8 in 32-bit mode
    (Word::ExtC, 8),    // PREFETCHW
    (Word::ExtC, 22),   // topology leaf 0x8000_001e
    (Word::ExtD, 11),   // SYSCALL
    (Word::ExtD, 20),   // NX
    (Word::ExtD, 26),   // pages of 1 GiB
    (Word::ExtD, 27),   // RDTSCP
    (Word::ExtD, 29),   // long mode
    (Word::Ext8B, 26),  // SSB_NO: no speculative store bypass
    (Word::Ext8B, 29),  // BTC_NO: no branch type confusion (retbleed)
    (Word::Ext21A, 0),  // no nested data breakpoints
    (Word::Ext21A, 2),  // LFENCE always serializes
    (Word::Ext21A, 6),  // a null selector clears the base
    (Word::Ext21A, 8),  // automatic IBRS: no retpolines
    (Word::Ext21A, 29), // SRSO_NO: no speculative return stack overflow
];

/// From v2 on.
const V2: &[Feature] = &[
    (Word::C1, 0),  // SSE3
    (Word::C1, 9),  // SSSE3
    (Word::C1, 13), // CMPXCHG16B
    (Word::C1, 19), // SSE4.1
    (Word::C1, 20), // SSE4.2
    (Word::C1, 23), // POPCNT
    (Word::C1, 30), // RDRAND
    (Word::B7, 18), // RDSEED
];

/// From v3 on.
const V3: &[Feature] = &[
    (Word::C1, 1),   // PCLMULQDQ
    (Word::C1, 12),  // FMA
    (Word::C1, 22),  // MOVBE
    (Word::C1, 25),  // AES
    (Word::C1, 26),  // XSAVE
    (Word::C1, 28),  // AVX
    (Word::C1, 29),  // F16C
    (Word::B7, 3),   // BMI1
    (Word::B7, 5),   // AVX2
    (Word::B7, 8),   // BMI2
    (Word::B7, 19),  // ADX
    (Word::B7, 29),  // SHA
    (Word::ExtC, 5), // LZCNT
];

/// Only with the host's.
const HOST: &[Feature] = &[
    (Word::B7, 23),    // CLFLUSHOPT
    (Word::B7, 24),    // CLWB
    (Word::C7, 8),     // GFNI
    (Word::C7, 9),     // VAES
    (Word::C7, 10),    // VPCLMULQDQ
    (Word::C7, 22),    // RDPID
    (Word::XsaveA, 0), // XSAVEOPT
];

/// What the software CPU executes by instructions of the host.
const BORROWED: &[Feature] = &[
    (Word::C1, 0),
    (Word::C1, 1),
    (Word::C1, 9),
    (Word::C1, 12),
    (Word::C1, 19),
    (Word::C1, 20),
    (Word::C1, 22),
    (Word::C1, 23),
    (Word::C1, 25),
    (Word::C1, 28),
    (Word::C1, 29),
    (Word::B7, 3),
    (Word::B7, 5),
    (Word::B7, 8),
    (Word::B7, 19),
    (Word::B7, 29),
    (Word::ExtC, 5),
    (Word::Ext8B, 2),
];

/// What the software CPU does by itself, whatever the host has.
const OWN: &[Feature] = &[
    (Word::C1, 13),
    (Word::C1, 26),
    (Word::C1, 30),
    (Word::B7, 18),
    (Word::C7, 22),
];

/// What is true of any guest, whether the backend's list has it or not.
const PROMISED: &[Feature] = &[
    (Word::C1, 24),
    (Word::C1, 31),
    (Word::ExtC, 22),
    (Word::Ext8B, 26),
    (Word::Ext8B, 29),
    (Word::Ext21A, 0),
    (Word::Ext21A, 29),
];

impl Features {
    const NONE: Self = Self([0; WORDS]);

    fn of(features: &[Feature]) -> Self {
        let mut set = Self::NONE;
        for &(word, bit) in features {
            set.0[word as usize] |= 1 << bit;
        }
        set
    }

    /// All that a function which answers for leaf and subleaf says.
    fn from_leaves(leaf: impl Fn(u32, u32) -> Leaf) -> Self {
        use Word::{B7, C1, C7, D1, D7, Ext8B, Ext21A, ExtC, ExtD, XsaveA};
        let words = [C1, D1, B7, C7, D7, XsaveA, ExtC, ExtD, Ext8B, Ext21A];
        Self(words.map(|word| {
            let (number, subleaf) = LEAVES[word as usize];
            let found = leaf(number, subleaf);
            match word {
                XsaveA | Ext21A => found.eax,
                B7 | Ext8B => found.ebx,
                C1 | C7 | ExtC => found.ecx,
                D1 | D7 | ExtD => found.edx,
            }
        }))
    }

    /// What the software CPU has on this host.
    #[must_use]
    pub fn soft() -> Self {
        let borrowed = Self::of(BORROWED);
        let own = Self::of(BASE).union(Self::of(OWN)).without(borrowed);
        own.union(borrowed.intersection(host()))
    }

    /// What KVM supports on this host, and what it emulates for every guest.
    #[must_use]
    pub fn of_kvm(supported: &CpuId) -> Self {
        let find = |leaf: u32, subleaf: u32| {
            let entries = supported.as_slice().iter();
            let mut found = entries.filter(|it| it.function == leaf && it.index == subleaf);
            found.next().map_or(Leaf::default(), |it| Leaf {
                eax: it.eax,
                ebx: it.ebx,
                ecx: it.ecx,
                edx: it.edx,
            })
        };
        Self::from_leaves(find).union(Self::of(PROMISED))
    }

    /// What a level has.
    #[must_use]
    pub fn of_level(level: Level) -> Self {
        let lists: &[&[Feature]] = match level {
            Level::V1 => &[BASE],
            Level::V2 => &[BASE, V2],
            Level::V3 => &[BASE, V2, V3],
            Level::Host => &[BASE, V2, V3, HOST],
        };
        let sets = lists.iter().map(|list| Self::of(list));
        sets.fold(Self::NONE, Self::union)
    }

    /// What is in either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    /// What is in this one only.
    fn without(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    /// Whether all of `other` is in it.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.intersection(other) == other
    }

    pub(super) fn word(self, word: Word) -> u32 {
        self.0[word as usize]
    }

    /// Without what needs something that is not there: no AVX without XSAVE, and so on.
    pub(super) fn consistent(mut self) -> Self {
        const XSAVE: u32 = 1 << 26;
        const AVX: u32 = 1 << 28;
        if self.word(Word::C1) & XSAVE == 0 {
            self.0[Word::C1 as usize] &= !AVX;
            self.0[Word::XsaveA as usize] = 0;
        }
        if self.word(Word::C1) & AVX == 0 {
            // FMA and F16C; AVX2; VAES and VPCLMULQDQ.
            self.0[Word::C1 as usize] &= !(1 << 12 | 1 << 29);
            self.0[Word::B7 as usize] &= !(1 << 5);
            self.0[Word::C7 as usize] &= !(1 << 9 | 1 << 10);
        }
        self
    }
}

/// All that the host's own `cpuid` says, and what goes without saying on Intel's processors: that
/// error pointers are always saved.
fn host() -> Features {
    let vendor = read(0, 0);
    let intel = [vendor.ebx, vendor.edx, vendor.ecx] == [0x756e_6547, 0x4965_6e69, 0x6c65_746e];
    let implied: &[Feature] = if intel { &[(Word::Ext8B, 2)] } else { &[] };
    let (basic, extended) = (read(0, 0).eax, read(0x8000_0000, 0).eax);
    let said = Features::from_leaves(|leaf, subleaf| {
        let last = if leaf >= 0x8000_0000 { extended } else { basic };
        if leaf <= last {
            read(leaf, subleaf)
        } else {
            Leaf::default()
        }
    });
    said.union(Features::of(implied))
}

fn read(leaf: u32, subleaf: u32) -> Leaf {
    let found = __cpuid_count(leaf, subleaf);
    Leaf {
        eax: found.eax,
        ebx: found.ebx,
        ecx: found.ecx,
        edx: found.edx,
    }
}
