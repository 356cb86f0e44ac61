//! Tests of `block`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::File,
    io::{self, Write},
    ops::Range,
    os::{
        fd::AsFd,
        unix::fs::{FileExt, MetadataExt},
    },
    sync::Arc,
    time::Instant,
};

use proptest::prelude::*;

use super::{Block, BlockControl, BlockOptions, Disk, FileDisk};
use crate::{
    pci::PciFunction,
    virtio::{
        DeviceEvent, Host, HostBuffer, Limits, fuzzing,
        testing::{Driver, eventually, host},
    },
};

const BYTES: u64 = 8 << 20;
/// What is over the limit at first would take days to be paid for.
const SLOWEST: Limits = Limits {
    bytes_per_second: 1,
    operations_per_second: 0,
    burst_bytes: 0,
};

fn file() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(BYTES).unwrap();
    file
}

/// Both ways requests can go: one after another, and by an io_uring where the kernel has it.
fn ways() -> Vec<BlockOptions> {
    let ring = BlockOptions {
        ring: true,
        ..options()
    };
    match super::ring::Ring::new(file().as_fd()) {
        Ok(_) => vec![options(), ring],
        Err(error) => {
            writeln!(io::stderr(), "SKIP the io_uring half: {error}").unwrap();
            vec![options()]
        }
    }
}

fn options() -> BlockOptions {
    BlockOptions {
        serial: "serial-of-a-disk-longer-than-twenty".to_owned(),
        queues: 2,
        ..BlockOptions::default()
    }
}

fn driver(options: &BlockOptions) -> (Driver, BlockControl, File) {
    let file = file();
    let disk = Arc::new(FileDisk::new(file.try_clone().unwrap()).unwrap());
    let block = Block::new(disk, options, &Host::default()).unwrap();
    let control = block.control();
    let mut driver = Driver::new(Box::new(block));
    driver.start();
    (driver, control, file)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&sector.to_le_bytes());
    header
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut range = sector.to_le_bytes().to_vec();
    range.extend_from_slice(&sectors.to_le_bytes());
    range.extend_from_slice(&flags.to_le_bytes());
    range
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|it| (it * 7 + it / 256) as u8).collect()
}

/// The last byte of an answer.
fn status(driver: &mut Driver, queue: u16, readable: &[&[u8]], writable: &[u32]) -> u8 {
    *driver
        .request(queue, readable, writable)
        .data
        .last()
        .unwrap()
}

#[test]
fn what_is_written_by_one_queue_is_read_by_another_however_it_is_cut_into_buffers() {
    for options in ways() {
        let (mut driver, control, file) = driver(&options);
        let data = pattern(8192);
        let header_out = header(1, 3);
        let parts: [&[u8]; 4] = [
            &header_out[..5],
            &header_out[5..],
            &data[..700],
            &data[700..],
        ];
        let answer = driver.request(0, &parts, &[1]);
        assert_eq!((answer.written, answer.data), (1, vec![0]));
        let mut stored = vec![0; data.len()];
        file.read_exact_at(&mut stored, 3 * 512).unwrap();
        assert!(stored == data, "the file holds what was written");

        let answer = driver.request(1, &[&header(0, 3)], &[1, 511, 4096, 3000, 584, 1]);
        assert_eq!(answer.written, 8193);
        assert!(
            answer.data[..8192] == data,
            "the guest reads what was written"
        );
        assert_eq!(answer.data[8192], 0);
        driver.expect_interrupt(2);
        let stats = control.stats();
        assert_eq!((stats.read_bytes, stats.written_bytes), (8192, 8192));
        assert_eq!((stats.requests, stats.errors), (2, 0));
    }
}

#[test]
fn requests_that_make_no_sense_end_with_a_status_and_touch_nothing() {
    for options in ways() {
        let (mut driver, control, file) = driver(&options);
        file.write_all_at(&pattern(BYTES as usize), 0).unwrap();
        let sectors = BYTES / 512;
        let data = vec![1; 1024];
        let bad_transfers = [
            (sectors, 1024),
            (sectors - 1, 1024),
            (u64::MAX, 512),
            (u64::MAX / 512 + 1, 512),
            (0, 511),
        ];
        for (sector, bytes) in bad_transfers {
            let out = [&header(1, sector)[..], &data[..bytes]];
            assert_eq!(status(&mut driver, 0, &out, &[1]), 1, "write at {sector}");
            let read = status(&mut driver, 0, &[&header(0, sector)], &[bytes as u32, 1]);
            assert_eq!(read, 1, "read at {sector}");
        }
        let bad_ranges = [
            (range(sectors, 1, 0), 1),
            (range(0, u32::MAX, 0), 1),
            (range(u64::MAX, 1, 0), 1),
            (range(0, 8, 1), 2),
            (vec![0; 15], 1),
            (range(0, 0, 0).repeat(17), 1),
        ];
        for (ranges, expected) in bad_ranges {
            let out = [&header(11, 0)[..], &ranges];
            assert_eq!(status(&mut driver, 0, &out, &[1]), expected, "{ranges:?}");
        }
        assert_eq!(status(&mut driver, 0, &[&header(77, 0)], &[1]), 2);
        assert_eq!(driver.status() & 64, 0);
        assert_eq!(control.stats().errors, 17);
        let mut stored = vec![0; BYTES as usize];
        file.read_exact_at(&mut stored, 0).unwrap();
        assert!(stored == pattern(BYTES as usize), "the disk is untouched");
    }
}

#[test]
fn discarded_and_zeroed_ranges_give_their_space_back_and_read_as_zeroes() {
    for options in ways() {
        let (mut driver, _, file) = driver(&options);
        file.write_all_at(&pattern(BYTES as usize), 0).unwrap();
        file.sync_all().unwrap();
        let before = file.metadata().unwrap().blocks();
        let out = [
            &header(11, 0)[..],
            &[range(0, 2048, 0), range(4096, 2048, 0)].concat(),
        ];
        assert_eq!(status(&mut driver, 0, &out, &[1]), 0);
        let out = [&header(13, 0)[..], &range(8192, 1024, 1)];
        assert_eq!(status(&mut driver, 0, &out, &[1]), 0);
        let out = [&header(13, 0)[..], &range(10000, 9, 0)];
        assert_eq!(status(&mut driver, 0, &out, &[1]), 0);
        assert_eq!(status(&mut driver, 0, &[&header(4, 0)], &[1]), 0);
        // Some of it may have become the file system's own bookkeeping of the holes.
        let given_back = before - file.metadata().unwrap().blocks();
        assert!(given_back >= 2 * 2048 + 1024 - 64, "{given_back} sectors");
        for (sector, sectors) in [(8192, 1024), (10000, 9)] {
            let mut stored = vec![1; sectors * 512];
            file.read_exact_at(&mut stored, sector * 512).unwrap();
            assert!(stored.iter().all(|it| *it == 0));
        }
        let mut after = [0; 512];
        file.read_exact_at(&mut after, 10009 * 512).unwrap();
        assert_ne!(after, [0; 512]);
    }
}

#[test]
fn a_read_only_disk_says_so_and_takes_no_writes() {
    let read_only = BlockOptions {
        read_only: true,
        ..options()
    };
    let (mut driver, _, file) = driver(&read_only);
    assert_ne!(driver.offered() & 1 << 5, 0);
    let out = [&header(1, 0)[..], &[1; 512]];
    assert_eq!(status(&mut driver, 0, &out, &[1]), 1);
    let out = [&header(13, 0)[..], &range(0, 8, 0)];
    assert_eq!(status(&mut driver, 0, &out, &[1]), 1);
    let answer = driver.request(0, &[&header(8, 0)], &[20, 1]);
    assert_eq!(answer.data, b"serial-of-a-disk-lon\0");
    let mut stored = [1; 512];
    file.read_exact_at(&mut stored, 0).unwrap();
    assert_eq!(stored, [0; 512]);
}

#[test]
fn many_requests_at_once_are_all_answered_also_across_pauses() {
    for options in ways() {
        let (mut driver, control, file) = driver(&options);
        let data = pattern(4096 * 20);
        for round in 0..20u64 {
            for part in 0..20 {
                let sector = 8 * (round * 20 + part);
                let bytes = &data[part as usize * 4096..][..4096];
                driver.add(0, &[&header(1, sector), bytes], &[1]);
            }
            driver.kick(0);
            driver.function.pause();
            driver.function.resume();
            for _ in 0..20 {
                assert_eq!(driver.answer(0).data, [0]);
            }
        }
        let mut stored = vec![0; data.len() * 20];
        file.read_exact_at(&mut stored, 0).unwrap();
        assert!(stored == data.repeat(20));
        assert_eq!(control.stats().written_bytes, 20 * data.len() as u64);
        assert_eq!(status(&mut driver, 0, &[&header(4, 0)], &[1]), 0);
    }
}

#[test]
fn a_disk_cut_short_behind_its_back_is_an_error_not_half_an_answer() {
    for options in ways() {
        let (mut driver, control, file) = driver(&options);
        file.set_len(4096).unwrap();
        let answer = driver.request(0, &[&header(0, 0)], &[8192, 1]);
        assert_eq!((answer.written, answer.data[8192]), (1, 1));
        assert_eq!(control.stats().errors, 1);
        assert_eq!(status(&mut driver, 0, &[&header(0, 0)], &[4096, 1]), 0);
    }
}

/// Fails every request with an error number.
struct Failing(i32);

impl Disk for Failing {
    fn bytes(&self) -> u64 {
        BYTES
    }

    fn read(&self, _: &[HostBuffer<'_>], _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(self.0))
    }

    fn write(&self, _: &[HostBuffer<'_>], _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(self.0))
    }

    fn flush(&self) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(self.0))
    }

    fn discard(&self, _: Range<u64>) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(self.0))
    }

    fn write_zeroes(&self, _: Range<u64>, _: bool) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(self.0))
    }
}

#[test]
fn a_full_or_broken_disk_is_an_error_to_the_guest_and_an_event_to_the_host() {
    for (number, full) in [(libc::ENOSPC, true), (libc::EIO, false)] {
        let (host, events) = host();
        let block = Block::new(Arc::new(Failing(number)), &options(), &host).unwrap();
        let mut driver = Driver::new(Box::new(block));
        driver.start();
        let out = [&header(1, 0)[..], &[1; 512]];
        assert_eq!(status(&mut driver, 0, &out, &[1]), 1);
        let event = events.lock().unwrap().pop().unwrap();
        assert_eq!(
            matches!(event, DeviceEvent::DiskFull { .. }),
            full,
            "{event:?}"
        );
        assert_eq!(driver.status() & 64, 0);
    }
}

#[test]
fn a_malformed_request_stops_the_device_until_it_is_reset() {
    for options in ways() {
        let (mut driver, _, _) = driver(&options);
        let malformed: [(&[&[u8]], &[u32]); 3] =
            [(&[&[0; 16]], &[]), (&[&[0; 15]], &[512, 1]), (&[], &[1])];
        for (readable, writable) in malformed {
            driver.add(0, readable, writable);
            driver.kick(0);
            driver.expect_needs_reset();
            driver.expect_interrupt(0);
            let event = driver.events.lock().unwrap().pop().unwrap();
            assert!(matches!(event, DeviceEvent::NeedsReset { .. }), "{event:?}");
            driver.start();
            assert_eq!(status(&mut driver, 0, &[&header(4, 0)], &[1]), 0);
        }
        // A descriptor that leads to itself.
        let (table, ..) = Driver::rings(0);
        driver.write_descriptor(table, 9, 0x10_0000, 16, 1, 9);
        driver.publish(0, 9);
        driver.kick(0);
        driver.expect_needs_reset();
    }
}

#[test]
fn a_saved_disk_goes_on_where_it_was_with_requests_it_had_not_seen() {
    for options in ways() {
        let (mut driver, _, file) = driver(&options);
        let data = pattern(4096);
        assert_eq!(status(&mut driver, 0, &[&header(1, 8), &data], &[1]), 0);
        driver.function.pause();
        driver.add(0, &[&header(0, 8)], &[4096, 1]);
        driver.kick(0);
        let saved = driver.function.save().unwrap();
        assert!(
            driver.try_answer(0).is_none(),
            "a paused device does nothing"
        );

        let disk = Arc::new(FileDisk::new(file).unwrap());
        let block = Block::new(disk, &options, &Host::default()).unwrap();
        let second = Driver::over(Box::new(block), driver.ram.clone());
        second.function.restore(&saved).unwrap();
        assert!(
            driver.try_answer(0).is_none(),
            "a restored device holds still"
        );
        second.function.resume();
        let answer = driver.answer(0);
        assert!(answer.data[..4096] == data);
        second.expect_interrupt(1);
        assert_eq!(
            second.function.save().unwrap().len() / 100,
            saved.len() / 100
        );
    }
}

#[test]
fn a_throttled_disk_goes_on_at_once_when_the_limit_is_lifted() {
    for options in ways() {
        let (mut driver, control, _) = driver(&options);
        control.set_limits(Limits::default(), SLOWEST);
        let out = [&header(1, 0)[..], &[1; 1 << 20]];
        assert_eq!(
            status(&mut driver, 0, &out, &[1]),
            0,
            "the bucket is full at first"
        );
        driver.add(0, &out, &[1]);
        driver.kick(0);
        // Its debt would take twelve days to pay.
        std::thread::sleep(std::time::Duration::from_millis(120));
        assert!(driver.try_answer(0).is_none());
        // Reads pass by what waits to be written, also in the same queue.
        let read = driver.request(0, &[&header(0, 0)], &[4096, 1]);
        assert_eq!(read.data[..], [&[1; 4096][..], &[0]].concat());
        control.set_limits(Limits::default(), Limits::default());
        assert_eq!(driver.answer(0).data, [0]);
    }
}

#[test]
fn what_a_limit_holds_back_is_not_lost_when_the_disk_holds_still() {
    for options in ways() {
        let (mut driver, control, file) = driver(&options);
        control.set_limits(Limits::default(), SLOWEST);
        for sector in 0..3 {
            driver.add(0, &[&header(1, sector), &[7; 512]], &[1]);
        }
        driver.kick(0);
        driver.answer(0);
        driver.function.pause();
        let mut stored = [0; 1536];
        file.read_exact_at(&mut stored, 0).unwrap();
        assert_eq!(stored, [7; 1536]);
        driver.answer(0);
        driver.answer(0);
    }
}

#[test]
fn a_larger_file_is_a_larger_disk_once_the_guest_is_told() {
    let file = file();
    let disk = Arc::new(FileDisk::new(file.try_clone().unwrap()).unwrap());
    let block = Block::new(Arc::clone(&disk) as _, &options(), &Host::default()).unwrap();
    let control = block.control();
    let mut driver = Driver::new(Box::new(block));
    driver.start();
    assert_eq!(driver.read(0x2000, 8), BYTES / 512);
    let generation = driver.read(0x15, 1);
    file.set_len(2 * BYTES + 100).unwrap();
    disk.refresh().unwrap();
    control.size_changed();
    driver.expect_interrupt(0);
    assert_ne!(driver.read(0x15, 1), generation);
    assert_eq!(driver.read(0x2000, 8), 2 * BYTES / 512);
    eventually("a write past the old end", || {
        let out = [&header(1, BYTES / 512)[..], &[1; 512]];
        status(&mut driver, 0, &out, &[1]) == 0
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_driver_harms_the_host(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let started = Instant::now();
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let disk = Arc::new(FileDisk::new(file.try_clone().unwrap()).unwrap());
        for options in [options(), BlockOptions { ring: true, ..options() }] {
            let block = Block::new(Arc::clone(&disk) as _, &options, &Host::default()).unwrap();
            fuzzing::device(Box::new(block), u64::MAX, &header(0, 0), &bytes);
        }
        prop_assert_eq!(file.metadata().unwrap().len(), 1 << 20);
        let block = Block::new(Arc::new(FileDisk::new(file).unwrap()), &options(), &Host::default());
        fuzzing::transport(Box::new(block.unwrap()), &bytes);
        // Not a measurement: whatever is unbounded would take hours.
        prop_assert!(started.elapsed().as_secs() < 60);
    }
}
