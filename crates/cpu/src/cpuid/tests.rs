//! Tests of `cpuid`.

use std::arch::x86_64::__cpuid_count;

use super::*;

const HZ: u64 = 2_300_000_000;

fn table(level: Level, vcpus: u32, index: u32) -> Table {
    Profile::new(level, Features::soft(), vcpus, HZ).table(index)
}

fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    String::from_utf8(bytes)
        .unwrap()
        .trim_end_matches('\0')
        .to_owned()
}

#[test]
fn it_is_an_amd_processor_in_a_kvm_guest() {
    let table = table(Level::V1, 1, 0);
    let vendor = table.lookup(0, 0);
    assert_eq!(text(&[vendor.ebx, vendor.edx, vendor.ecx]), "AuthenticAMD");
    assert_eq!(
        vendor,
        Leaf {
            eax: 0xd,
            ..table.lookup(0x8000_0000, 0)
        }
    );
    let brand: Vec<u32> = (0x8000_0002..=0x8000_0004)
        .map(|leaf| table.lookup(leaf, 0))
        .flat_map(|it| [it.eax, it.ebx, it.ecx, it.edx])
        .collect();
    assert_eq!(text(&brand), "Berth Virtual CPU");
    let kvm = table.lookup(0x4000_0000, 0);
    assert_eq!(text(&[kvm.ebx, kvm.ecx, kvm.edx]), "KVMKVMKVM");
    assert_eq!(kvm.eax, 0x4000_0010);
    assert_eq!(table.lookup(0x4000_0010, 0).eax, 2_300_000);
    assert_eq!(table.lookup(0x4000_0001, 0).eax, 0x0100_000b);
    assert_eq!(table.lookup(0x1234_5678, 0), Leaf::default());
}

#[test]
fn no_level_shows_what_the_host_cannot_execute() {
    let host = |leaf| __cpuid_count(leaf, 0);
    for level in [Level::V1, Level::V2, Level::V3, Level::Host] {
        let table = table(level, 1, 0);
        // SSE3, PCLMULQDQ, SSSE3, FMA, SSE4, MOVBE, POPCNT, AES, AVX, F16C; BMI, AVX2, ADX, SHA.
        assert_eq!(table.lookup(1, 0).ecx & 0x32d8_1203 & !host(1).ecx, 0);
        assert_eq!(table.lookup(7, 0).ebx & 0x2008_0128 & !host(7).ebx, 0);
        // MONITOR, PCID; TSC adjust, HLE, INVPCID, RTM, MPX, AVX-512.
        assert_eq!(table.lookup(1, 0).ecx & (1 << 3 | 1 << 17), 0);
        let hidden = 1 << 1 | 1 << 4 | 1 << 10 | 1 << 11 | 1 << 14 | 1 << 16;
        assert_eq!(table.lookup(7, 0).ebx & hidden, 0);
        // PKU, LA57, shadow stacks.
        assert_eq!(table.lookup(7, 0).ecx & (1 << 3 | 1 << 16 | 1 << 7), 0);
        // Intel's bits for side channels.
        assert_eq!(table.lookup(7, 0).edx & 0xfc00_0000, 0);
    }
}

#[test]
fn levels_grow() {
    let levels = [Level::V1, Level::V2, Level::V3, Level::Host].map(Features::of_level);
    for pair in levels.windows(2) {
        assert!(pair[1].contains(pair[0]));
        assert!(!pair[0].contains(pair[1]));
    }
    let v1 = table(Level::V1, 1, 0);
    assert_eq!(v1.lookup(1, 0).ecx, 1 << 21 | 1 << 24 | 1 << 31);
    assert_eq!(v1.lookup(0xd, 0), Leaf::default());
}

#[test]
fn avx_goes_with_xsave() {
    let everything = Features::of_level(Level::Host);
    let kvm_without_xsave = kvm_bindings::CpuId::from_entries(&[]).unwrap();
    let nothing = Features::of_kvm(&kvm_without_xsave);
    let bare = Profile::new(Level::Host, nothing, 1, HZ).table(0);
    assert_eq!(bare.lookup(1, 0).edx, 0);
    let full = Profile::new(Level::V3, everything, 1, HZ).table(0);
    assert_eq!(full.lookup(0xd, 0).eax, 7);
    assert_eq!(full.lookup(0xd, 0).ecx, 832);
    assert_eq!(
        full.lookup(0xd, 2),
        Leaf {
            eax: 256,
            ebx: 576,
            ..Leaf::default()
        }
    );
    assert_eq!(full.lookup(0xd, 1).eax, 0);
}

#[test]
fn every_vcpu_finds_itself_in_one_package() {
    for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (255, 8)] {
        for index in [0, vcpus - 1] {
            let table = table(Level::V2, vcpus, index);
            assert_eq!(table.lookup(1, 0).ebx >> 24, index);
            assert_eq!(table.lookup(1, 0).ebx >> 16 & 0xff, vcpus);
            assert_eq!(table.lookup(1, 0).edx >> 28 & 1, u32::from(vcpus > 1));
            assert_eq!(table.lookup(0xb, 0).ebx, 1);
            assert_eq!(
                (table.lookup(0xb, 1).eax, table.lookup(0xb, 1).ebx),
                (bits, vcpus)
            );
            assert_eq!(table.lookup(0xb, 0).edx, index);
            assert_eq!(
                table.lookup(0xb, 7),
                Leaf {
                    ecx: 7,
                    edx: index,
                    ..Leaf::default()
                }
            );
            assert_eq!(table.lookup(0x8000_0008, 0).ecx, bits << 12 | (vcpus - 1));
            assert_eq!(table.lookup(0x8000_001e, 0).eax, index);
            assert_eq!(table.lookup(0x8000_001d, 3).eax >> 14 & 0xfff, vcpus - 1);
            assert_eq!(table.lookup(0x8000_001d, 4), Leaf::default());
        }
    }
}

#[test]
fn cache_sizes_multiply_out() {
    let table = table(Level::V1, 1, 0);
    let bytes = |subleaf| {
        let cache = table.lookup(0x8000_001d, subleaf);
        ((cache.ebx >> 22) + 1) * ((cache.ebx & 0xfff) + 1) * (cache.ecx + 1)
    };
    assert_eq!(
        [0, 1, 2, 3].map(bytes),
        [32 << 10, 32 << 10, 512 << 10, 16 << 20]
    );
}

#[test]
fn kvm_gets_the_same_table() {
    let table = table(Level::V3, 4, 2);
    let kvm = table.to_kvm();
    assert!(kvm.as_slice().len() > 20);
    for entry in kvm.as_slice() {
        let leaf = table.lookup(entry.function, entry.index);
        assert_eq!(
            (entry.eax, entry.ecx),
            (leaf.eax, leaf.ecx),
            "{:#x}",
            entry.function
        );
        assert_eq!(
            entry.flags != 0,
            matches!(entry.function, 7 | 0xb | 0xd | 0x8000_001d)
        );
    }
}
