//! Tests of `clock`.

use memory::Ram;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::soft::Fault;

fn page(ram: &Ram, address: u64) -> [u8; 32] {
    ram.guest_memory().read_obj(GuestAddress(address)).unwrap()
}

/// What a guest computes from the page (Linux, `pvclock_scale_delta`).
fn guest_nanos(page: [u8; 32], tsc: u64) -> u64 {
    let dword = |at: usize| u64::from(u32::from_le_bytes(page[at..at + 4].try_into().unwrap()));
    let base = u64::from_le_bytes(page[8..16].try_into().unwrap());
    let system = u64::from_le_bytes(page[16..24].try_into().unwrap());
    let delta = tsc - base;
    let delta = match page[28] as i8 {
        shift @ 0.. => delta << shift,
        shift => delta >> -shift,
    };
    system + ((u128::from(delta) * u128::from(dword(24))) >> 32) as u64
}

#[test]
fn a_guest_reads_nanoseconds_from_its_page() {
    let ram = Ram::new(1 << 20).unwrap();
    let tsc = Tsc::new();
    let mut clock = KvmClock::default();
    clock
        .write_msr(0x4b56_4d01, 0x3000 | 1, &ram, &tsc)
        .unwrap();
    let page = page(&ram, 0x3000);
    let version = u32::from_le_bytes(page[..4].try_into().unwrap());
    assert!(version != 0 && version.is_multiple_of(2));
    assert_eq!(page[29], 1);
    // An hour, to a microsecond.
    let nanos = guest_nanos(page, tsc.hz() * 3600);
    assert!(nanos.abs_diff(3_600_000_000_000) < 4000, "{nanos}");
    assert_eq!(clock.read_msr(0x4b56_4d01), Ok(0x3001));
    // The guest stops it.
    ram.guest_memory()
        .write_obj([0u8; 32], GuestAddress(0x3000))
        .unwrap();
    clock.write_msr(0x12, 0x3000, &ram, &tsc).unwrap();
    assert_eq!(self::page(&ram, 0x3000), [0; 32]);
}

#[test]
fn the_wall_clock_is_when_the_counter_was_zero() {
    let ram = Ram::new(1 << 20).unwrap();
    let tsc = Tsc::new();
    tsc.set(tsc.hz() * 1000);
    KvmClock::default()
        .write_msr(0x4b56_4d00, 0x3000, &ram, &tsc)
        .unwrap();
    let page = page(&ram, 0x3000);
    let boot = u64::from(u32::from_le_bytes(page[4..8].try_into().unwrap()));
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    // A thousand seconds ago, and as long as this test may have taken.
    assert!((1000..1060).contains(&(now.as_secs() - boot)), "{boot}");
}

#[test]
fn pages_outside_of_memory_and_other_registers_do_no_harm() {
    let ram = Ram::new(1 << 20).unwrap();
    let tsc = Tsc::new();
    let mut clock = KvmClock::default();
    for address in [u64::MAX, 0xf_fff1, 0xfee0_0001] {
        assert_eq!(clock.write_msr(0x4b56_4d01, address, &ram, &tsc), Ok(()));
        assert_eq!(clock.write_msr(0x4b56_4d00, address, &ram, &tsc), Ok(()));
    }
    assert_eq!(clock.write_msr(0x4b56_4d02, 0, &ram, &tsc), Err(Fault::GP0));
    assert!(!KvmClock::has(0x4b56_4d02));
}

#[test]
fn a_restored_clock_goes_on_and_says_it_was_stopped() {
    let ram = Ram::new(1 << 20).unwrap();
    let tsc = Tsc::new();
    let mut clock = KvmClock::default();
    clock
        .write_msr(0x4b56_4d01, 0x3000 | 1, &ram, &tsc)
        .unwrap();
    let before = page(&ram, 0x3000);
    let mut restored = KvmClock::default();
    restored.restore(clock.state(), &ram, &tsc);
    let after = page(&ram, 0x3000);
    assert_eq!(after[29], 3);
    assert_eq!(after[24..29], before[24..29]);
    assert_ne!(after[..4], before[..4]);
}

#[test]
fn the_counter_goes_on_from_where_it_is_set() {
    let tsc = Tsc::new();
    let first = tsc.now();
    assert!(tsc.now() >= first);
    tsc.set(1 << 50);
    let now = tsc.now();
    assert!(now >= 1 << 50 && now < (1 << 50) + tsc.hz() * 60);
    assert!(tsc.nanos(tsc.hz()).abs_diff(1_000_000_000) <= 1);
    assert_eq!(tsc.ticks(1_000_000_000), tsc.hz());
}
