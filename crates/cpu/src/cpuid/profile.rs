//! The processor a guest sees, and its table for each vCPU.

use super::{
    Features, Leaf, Level, Table,
    features::Word::{B7, C1, C7, D1, D7, Ext8B, Ext21A, ExtC, ExtD, XsaveA},
};

/// Family 17h, model 31h, stepping 0: second Zen generation.
const SIGNATURE: u32 = 0x0083_0f10;
/// Shown by systems as the processor's name; at most 47 bytes.
const BRAND: &str = "Berth Virtual CPU";

const LAST_BASIC: u32 = 0xd;
const LAST_KVM: u32 = 0x4000_0010;
const LAST_EXTENDED: u32 = 0x8000_0021;

const HYPER_THREADING: u32 = 1 << 28;
/// KVM features: kvmclock by the old and the new MSRs, no delays for port access, stable clock.
const KVM_FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24;
/// The local APIC's timer counts nanoseconds.
const APIC_KHZ: u32 = 1_000_000;

/// A processor: which features, how many vCPUs, how fast its counter.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    features: Features,
    vcpus: u32,
    tsc_khz: u32,
    physical_bits: u32,
}

impl Profile {
    /// With what `level` asks for and `available` has. `vcpus` is at least 1; the counter counts at
    /// `tsc_hz`.
    #[must_use]
    pub fn new(level: Level, available: Features, vcpus: u32, tsc_hz: u64) -> Self {
        Self {
            features: Features::of_level(level)
                .intersection(available)
                .consistent(),
            vcpus: vcpus.clamp(1, 255),
            tsc_khz: u32::try_from(tsc_hz / 1000).unwrap_or(u32::MAX),
            physical_bits: 48,
        }
    }

    /// With another width of physical addresses than 48 bits; on KVM it is the host's.
    #[must_use]
    pub fn with_physical_bits(mut self, bits: u32) -> Self {
        self.physical_bits = bits.clamp(36, 52);
        self
    }

    /// The features it shows.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// The table of the vCPU with this index, which is its APIC id.
    #[must_use]
    pub fn table(&self, index: u32) -> Table {
        let mut table = Table::default();
        self.basic(&mut table, index);
        self.xsave(&mut table);
        self.kvm(&mut table);
        self.extended(&mut table);
        self.caches(&mut table);
        self.topology(&mut table, index);
        table
    }

    fn basic(&self, table: &mut Table, index: u32) {
        let features = self.features;
        let [ebx, edx, ecx] = vendor();
        table.add(0, Leaf::new(LAST_BASIC, ebx, ecx, edx));
        let many = if self.vcpus > 1 { HYPER_THREADING } else { 0 };
        // APIC id, logical processors, lines of 64 bytes.
        let ids = index << 24 | self.vcpus << 16 | 8 << 8;
        table.add(
            1,
            Leaf::new(SIGNATURE, ids, features.word(C1), features.word(D1) | many),
        );
        // The local APIC's timer never stops.
        table.add(6, Leaf::new(1 << 2, 0, 0, 0));
        table.add_subleaf(
            7,
            0,
            Leaf::new(0, features.word(B7), features.word(C7), features.word(D7)),
        );
    }

    /// The standard format of x87, SSE and, with it, AVX (AMD APM 3, E.3.8).
    fn xsave(&self, table: &mut Table) {
        const XSAVE: u32 = 1 << 26;
        const AVX: u32 = 1 << 28;
        if self.features.word(C1) & XSAVE == 0 {
            return;
        }
        let avx = self.features.word(C1) & AVX != 0;
        let (components, bytes) = if avx { (7, 832) } else { (3, 576) };
        table.add_subleaf(0xd, 0, Leaf::new(components, bytes, bytes, 0));
        table.add_subleaf(0xd, 1, Leaf::new(self.features.word(XsaveA), 0, 0, 0));
        if avx {
            table.add_subleaf(0xd, 2, Leaf::new(256, 576, 0, 0));
        }
    }

    fn kvm(&self, table: &mut Table) {
        let [ebx, ecx, edx] = words(b"KVMKVMKVM\0\0\0");
        table.add(0x4000_0000, Leaf::new(LAST_KVM, ebx, ecx, edx));
        table.add(0x4000_0001, Leaf::new(KVM_FEATURES, 0, 0, 0));
        table.add(LAST_KVM, Leaf::new(self.tsc_khz, APIC_KHZ, 0, 0));
    }

    fn extended(&self, table: &mut Table) {
        /// Bits of leaf 1's `edx` that AMD repeats here.
        const REPEATED: u32 = 0x0183_f3ff;
        let features = self.features;
        let [ebx, edx, ecx] = vendor();
        table.add(0x8000_0000, Leaf::new(LAST_EXTENDED, ebx, ecx, edx));
        let legacy = if self.vcpus > 1 { 1 << 1 } else { 0 };
        let edx = features.word(ExtD) | features.word(D1) & REPEATED;
        table.add(
            0x8000_0001,
            Leaf::new(SIGNATURE, 0, features.word(ExtC) | legacy, edx),
        );
        let mut brand = [0; 48];
        brand[..BRAND.len()].copy_from_slice(BRAND.as_bytes());
        for (leaf, part) in (0x8000_0002..).zip(brand.chunks_exact(16)) {
            let [eax, ebx, ecx] = words(&part[..12]);
            let [.., edx] = words(&part[4..]);
            table.add(leaf, Leaf::new(eax, ebx, ecx, edx));
        }
        // The counter's rate never changes.
        table.add(0x8000_0007, Leaf::new(0, 0, 0, 1 << 8));
        let bits = self.physical_bits | 48 << 8;
        let cores = (self.vcpus - 1) | self.id_bits() << 12;
        table.add(0x8000_0008, Leaf::new(bits, features.word(Ext8B), cores, 0));
        // Vector units of 256 bits, fast unaligned moves.
        table.add(0x8000_001a, Leaf::new(0b110, 0, 0, 0));
        table.add(LAST_EXTENDED, Leaf::new(features.word(Ext21A), 0, 0, 0));
    }

    /// Sizes of TLBs and caches: 32 KiB, 512 KiB, and 16 MiB for all.
    fn caches(&self, table: &mut Table) {
        const TLB1: u32 = 0xff40_ff40;
        const L1: u32 = 32 << 24 | 8 << 16 | 1 << 8 | 64;
        const L2: u32 = 512 << 16 | 6 << 12 | 1 << 8 | 64;
        const L3: u32 = 32 << 18 | 8 << 12 | 1 << 8 | 64;
        table.add(0x8000_0005, Leaf::new(TLB1, TLB1, L1, L1));
        table.add(0x8000_0006, Leaf::new(0x4800_6400, 0x6800_6400, L2, L3));
        table.add(0x8000_0019, Leaf::new(0xf040_f040, 0, 0, 0));
        let all = self.vcpus - 1;
        // Kind, level, who shares it, ways, sets.
        let caches = [
            (1, 1, 0, 8, 64),
            (2, 1, 0, 8, 64),
            (3, 2, 0, 8, 1024),
            (3, 3, all, 16, 16384),
        ];
        for (subleaf, (kind, level, sharing, ways, sets)) in (0..).zip(caches) {
            let eax = kind | level << 5 | 1 << 8 | sharing << 14;
            let ebx = (ways - 1) << 22 | 63;
            table.add_subleaf(0x8000_001d, subleaf, Leaf::new(eax, ebx, sets - 1, 0));
        }
    }

    /// One package of cores without threads.
    fn topology(&self, table: &mut Table, index: u32) {
        const THREADS: u32 = 1 << 8;
        const CORES: u32 = 2 << 8 | 1;
        table.add_subleaf(0xb, 0, Leaf::new(0, 1, THREADS, index));
        table.add_subleaf(0xb, 1, Leaf::new(self.id_bits(), self.vcpus, CORES, index));
        table.add(0x8000_001e, Leaf::new(index, index & 0xff, 0, 0));
    }

    /// Bits of the APIC id that tell cores of the package apart.
    fn id_bits(&self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }
}

/// "AuthenticAMD", in the order `ebx`, `edx`, `ecx`.
fn vendor() -> [u32; 3] {
    words(b"AuthenticAMD")
}

/// Twelve bytes as three registers.
fn words(bytes: &[u8]) -> [u32; 3] {
    std::array::from_fn(|index| {
        let at = 4 * index;
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    })
}
