//! Tests of `balloon`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::{Balloon, BalloonControl, config::FEATURES};
use crate::{
    pci::PciFunction,
    virtio::{
        Host, fuzzing,
        testing::{Driver, eventually},
    },
};

fn driver(features: u64) -> (Driver, BalloonControl) {
    let balloon = Balloon::new(&Host::default()).unwrap();
    let control = balloon.control();
    let mut driver = Driver::new(Box::new(balloon));
    driver.start_with(features, 64);
    (driver, control)
}

fn fill(driver: &Driver, address: u64, pages: usize) {
    let data = vec![0xaa; pages * 4096];
    driver
        .memory()
        .write_slice(&data, GuestAddress(address))
        .unwrap();
}

fn sum(driver: &Driver, address: u64, bytes: usize) -> u64 {
    let mut data = vec![0; bytes];
    driver
        .memory()
        .read_slice(&mut data, GuestAddress(address))
        .unwrap();
    data.iter().map(|it| u64::from(*it)).sum()
}

fn held(driver: &Driver) -> u64 {
    driver.ram.file().metadata().unwrap().blocks() * 512
}

fn pages(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|it| it.to_le_bytes()).collect()
}

#[test]
fn pages_in_the_balloon_go_back_to_the_host_and_count_as_written() {
    let (mut driver, control) = driver(FEATURES);
    control.set_target((300 << 12) + 5);
    driver.expect_interrupt(0);
    assert_eq!(driver.read(0x2000, 4), 300);
    fill(&driver, 8 << 20, 300);
    let before = held(&driver);
    driver.ram.pages().set_logging(true);
    let mut list: Vec<u32> = (2048..2048 + 299).rev().collect();
    // Nonsense among them: outside memory, twice the same.
    list.extend([u32::MAX, 1 << 20, 2048]);
    driver.request(0, &[&pages(&list)], &[]);
    // The list itself may have taken a page.
    let given_back = before - held(&driver);
    assert!(
        (298 << 12..=299 << 12).contains(&given_back),
        "{given_back} bytes"
    );
    assert_eq!(sum(&driver, 8 << 20, 299 << 12), 0);
    assert_eq!(sum(&driver, (8 << 20) + (299 << 12), 4096), 0xaa * 4096);
    assert!(driver.ram.pages().is_dirty(2048) && !driver.ram.pages().is_dirty(2347));
    driver.write(0x2004, 4, 299);
    assert_eq!((control.target(), control.actual()), (300 << 12, 299 << 12));
    driver.request(1, &[&pages(&list)], &[]);
    fill(&driver, 8 << 20, 1);
    assert_ne!(sum(&driver, 8 << 20, 4096), 0);

    driver.function.pause();
    let saved = driver.function.save().unwrap();
    let second = Balloon::new(&Host::default()).unwrap();
    let control = second.control();
    let second = Driver::over(Box::new(second), driver.ram.clone());
    second.function.restore(&saved).unwrap();
    assert_eq!((control.target(), control.actual()), (300 << 12, 299 << 12));
}

#[test]
fn a_list_that_is_no_list_stops_the_device() {
    for list in [vec![0; 3], vec![0; 4097 * 4]] {
        let (mut driver, _) = driver(0);
        driver.add(0, &[&list], &[]);
        driver.kick(0);
        driver.expect_needs_reset();
    }
}

#[test]
fn reported_memory_goes_back_and_the_queues_are_numbered_by_what_was_negotiated() {
    for (features, queue) in [(FEATURES, 4), (1 << 5, 2), (1 << 5 | 1 << 1, 3)] {
        let (mut driver, _) = driver(features);
        fill(&driver, 16 << 20, 32);
        // Buffers of the test's driver begin at 16 MiB; it fills them before it hands them over.
        let answer = driver.request(queue, &[], &[64 << 10, 4096, 100]);
        assert_eq!(answer.written, 0);
        assert_eq!(answer.data[..68 << 10], [0; 68 << 10]);
        assert_eq!(answer.data[68 << 10..], [0xee; 100], "less than a page");
    }
}

fn stats(values: &[(u16, u64)]) -> Vec<u8> {
    let entry = |it: &(u16, u64)| [&it.0.to_le_bytes()[..], &it.1.to_le_bytes()].concat();
    values.iter().flat_map(entry).collect()
}

#[test]
fn statistics_come_when_asked_for_also_after_a_pause() {
    let (mut driver, control) = driver(FEATURES | 1 << 29);
    let first = driver.add(2, &[&stats(&[(5, 1 << 30), (4, 77), (999, 1)])], &[]);
    driver.kick(2);
    eventually("the first statistics", || {
        control.stats().free_bytes == Some(77)
    });
    assert_eq!(control.stats().total_bytes, Some(1 << 30));
    assert_eq!(control.stats().major_faults, None);
    assert!(
        driver.try_answer(2).is_none(),
        "the buffer is kept until more is wanted"
    );
    driver.function.pause();
    driver.function.resume();
    control.refresh_stats();
    assert_eq!(driver.answer(2).head, first);
    driver.add(2, &[&stats(&[(4, 78)])], &[]);
    driver.kick(2);
    eventually("the next statistics", || {
        control.stats().free_bytes == Some(78)
    });
}

#[test]
fn hints_of_the_round_that_is_on_are_listed_and_nothing_is_freed() {
    let (mut driver, control) = driver(FEATURES);
    control.start_hinting();
    driver.expect_interrupt(0);
    let round = driver.read(0x2008, 4) as u32;
    assert!(round > 1);
    driver.request(3, &[&(round + 1).to_le_bytes()], &[]);
    driver.request(3, &[], &[4096]);
    assert!(control.hints().is_empty(), "another round's");
    driver.request(3, &[&round.to_le_bytes()], &[]);
    let answer = driver.request(3, &[], &[1 << 16, 4096]);
    assert_eq!(answer.data, vec![0xee; (1 << 16) + 4096]);
    assert!(!control.hinting_ended());
    driver.request(3, &[&0u32.to_le_bytes()], &[]);
    assert!(control.hinting_ended());
    let sizes: Vec<u64> = control.hints().iter().map(|it| it.1).collect();
    assert_eq!(sizes, [1 << 16, 4096]);
    control.stop_hinting();
    assert_eq!(driver.read(0x2008, 4), 1);
    control.start_hinting();
    assert!(
        driver.read(0x2008, 4) > u64::from(round),
        "no round has another's number"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn no_driver_harms_the_host(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let balloon = Balloon::new(&Host::default()).unwrap();
        let control = balloon.control();
        control.start_hinting();
        control.refresh_stats();
        fuzzing::device(Box::new(balloon), u64::MAX, &[2, 0, 0, 0], &bytes);
        for (address, bytes) in control.hints() {
            prop_assert!(address + bytes <= 1 << 20);
        }
    }
}
