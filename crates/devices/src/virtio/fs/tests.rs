//! Tests of `fs`: a driver that speaks FUSE to the device.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};

use proptest::prelude::*;

use super::{
    fuse::{Header, IN_HEADER, MAX_ARGUMENTS, Operation, Request},
    *,
};
use crate::{
    pci::PciFunction,
    virtio::{Host, Limits, fuzzing, testing::Driver},
};

fn folder(path: &std::path::Path, limits: &FolderLimits) -> Folder {
    let root = File::open(path).unwrap().into();
    Folder::new(root, Descriptors::open().unwrap(), false, limits).unwrap()
}

/// A guest's driver, ready to ask.
struct Guest {
    driver: Driver,
    control: FsControl,
    unique: u64,
}

impl Guest {
    fn new(path: &std::path::Path) -> Self {
        let fs = Fs::new(
            "data",
            folder(path, &FolderLimits::default()),
            &Host::default(),
        )
        .unwrap();
        let control = fs.control();
        let mut driver = Driver::new(Box::new(fs));
        driver.start();
        let mut guest = Self {
            driver,
            control,
            unique: 0,
        };
        guest.hello();
        guest
    }

    fn hello(&mut self) {
        let hello = [7u32, 38, 0, u32::MAX].map(u32::to_le_bytes).concat();
        let told = self.ask(26, 0, &[&hello], 64).unwrap();
        assert_eq!((word(&told, 0), word(&told, 4)), (7, 38));
        assert_eq!(word(&told, 20), 1 << 20, "most bytes of a write");
        assert_eq!(word(&told, 28), 256, "most pages of a request");
    }

    /// Asks, and gives the answer, or the error number.
    fn ask(&mut self, opcode: u32, node: u64, parts: &[&[u8]], room: u32) -> Result<Vec<u8>, i32> {
        let body = parts.concat();
        let header = self.header(opcode, node, body.len());
        // As Linux does, headers and pages in buffers of their own.
        let answer = self
            .driver
            .request(1, &[&header, &body], &[16, room.max(1)]);
        assert_eq!(word(&answer.data, 0), answer.written);
        assert_eq!(long(&answer.data, 8), self.unique);
        match word(&answer.data, 4).cast_signed() {
            0 => Ok(answer.data[16..answer.written as usize].to_vec()),
            error => {
                assert_eq!(answer.written, 16);
                Err(-error)
            }
        }
    }

    /// The header of the next request.
    fn header(&mut self, opcode: u32, node: u64, body: usize) -> Vec<u8> {
        self.unique += 1;
        let mut header = Vec::new();
        header.extend((IN_HEADER as u32 + body as u32).to_le_bytes());
        header.extend(opcode.to_le_bytes());
        header.extend(self.unique.to_le_bytes());
        header.extend(node.to_le_bytes());
        header.extend([0; 16]);
        header
    }

    fn create(&mut self, name: &[u8]) -> (u64, u64) {
        let how = [libc::O_RDWR as u32, 0o644, 0, 0]
            .map(u32::to_le_bytes)
            .concat();
        let made = self.ask(35, 1, &[&how, name, b"\0"], 144).unwrap();
        (long(&made, 0), long(&made, 128))
    }

    fn write(&mut self, handle: u64, offset: u64, content: &[u8]) -> Result<u32, i32> {
        let mut how = [handle, offset].map(u64::to_le_bytes).concat();
        how.extend((content.len() as u32).to_le_bytes());
        how.extend([0; 20]);
        Ok(word(&self.ask(16, 0, &[&how, content], 8)?, 0))
    }

    fn read(&mut self, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        let mut how = [handle, offset].map(u64::to_le_bytes).concat();
        how.extend(size.to_le_bytes());
        how.extend([0; 20]);
        self.ask(15, 0, &[&how], size)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn host_and_guest_see_each_others_content() {
    let place = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(place.path());
    let (node, handle) = guest.create(b"f");
    let large: Vec<u8> = (0..1u32 << 20).map(|it| (it % 251) as u8).collect();
    assert_eq!(guest.write(handle, 3, &large), Ok(1 << 20));
    let path = place.path().join("f");
    assert_eq!(fs::read(&path).unwrap()[3..], large);
    assert_eq!(guest.read(handle, 3, 1 << 20).unwrap(), large);
    fs::write(&path, "from the host").unwrap();
    assert_eq!(guest.read(handle, 5, 4096).unwrap(), b"the host");
    assert_eq!(guest.read(handle, 1 << 40, 10).unwrap(), b"");
    // A time after which it is looked at again.
    let told = guest.ask(3, node, &[&[0; 16]], 104).unwrap();
    assert_eq!((long(&told, 0), long(&told, 24)), (1, 13));
    // Copied on the host.
    let (_, copy) = guest.create(b"copy");
    let how = [handle, 0, node, copy, 0, 13, 0]
        .map(u64::to_le_bytes)
        .concat();
    assert_eq!(word(&guest.ask(47, node, &[&how], 8).unwrap(), 0), 13);
    assert_eq!(
        fs::read(place.path().join("copy")).unwrap(),
        b"from the host"
    );
    // The hole behind is found.
    let mut how = [copy, 0, 1 << 20].map(u64::to_le_bytes).concat();
    how.extend([0; 8]);
    guest.ask(43, node, &[&how], 0).unwrap();
    assert_eq!(
        fs::metadata(place.path().join("copy")).unwrap().len(),
        1 << 20
    );
}

#[test]
fn content_is_limited_each_way_until_the_limit_is_lifted_and_names_are_not() {
    // What is over the limit at first would take days to be paid for.
    let slowest = Limits {
        bytes_per_second: 1,
        ..Limits::default()
    };
    let place = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(place.path());
    let (_, handle) = guest.create(b"f");
    guest.control.set_limits(Limits::default(), slowest);
    let large = vec![1; 1 << 20];
    assert_eq!(
        guest.write(handle, 0, &large),
        Ok(1 << 20),
        "the bucket is full at first"
    );
    // Reads and names pass, and neither writes nor copies.
    assert_eq!(guest.read(handle, 0, 10).unwrap(), [1; 10]);
    let (node, copy) = guest.create(b"copy");
    let body = [handle, 0, node, copy, 0, 13, 0].map(u64::to_le_bytes);
    let header = guest.header(47, node, body.concat().len());
    guest.driver.add(1, &[&header, &body.concat()], &[16, 8]);
    guest.driver.kick(1);
    std::thread::sleep(std::time::Duration::from_millis(120));
    assert!(guest.driver.try_answer(1).is_none());
    let limits = guest.control.limits();
    assert_eq!(limits, (Limits::default(), slowest));
    guest.control.set_limits(slowest, Limits::default());
    assert_eq!(word(&guest.driver.answer(1).data, 16), 13);
    assert_eq!(guest.write(handle, 0, b"fine"), Ok(4));
}

#[test]
fn what_makes_no_sense_is_answered_with_an_error() {
    let place = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(place.path());
    let (_, handle) = guest.create(b"f");
    assert_eq!(guest.ask(1, 1, &[b"no end"], 128), Err(libc::EINVAL));
    assert_eq!(guest.ask(1, 1, &[b"../etc\0"], 128), Err(libc::EINVAL));
    assert_eq!(
        guest.ask(1, 1, &[&[b'n'; 256], b"\0"], 128),
        Err(libc::ENAMETOOLONG)
    );
    assert_eq!(guest.ask(1, 77, &[b"f\0"], 128), Err(libc::ESTALE));
    assert_eq!(
        guest.ask(1, 1, &[b"f\0"], 100),
        Err(libc::EOVERFLOW),
        "no room to answer"
    );
    assert_eq!(
        guest.ask(1, 1, &[&vec![b'n'; MAX_ARGUMENTS + 1]], 128),
        Err(libc::E2BIG)
    );
    assert_eq!(guest.ask(4096, 1, &[], 128), Err(libc::ENOSYS));
    assert_eq!(guest.read(handle + 1, 0, 10), Err(libc::EBADF));
    assert_eq!(guest.write(handle, u64::MAX, b"x"), Err(libc::EINVAL));
    // It says that it writes more than there is.
    let mut how = [handle, 0].map(u64::to_le_bytes).concat();
    how.extend(100u32.to_le_bytes());
    how.extend([0; 20]);
    assert_eq!(guest.ask(16, 0, &[&how, b"short"], 8), Err(libc::EINVAL));
    // And it goes on.
    assert_eq!(guest.write(handle, 0, b"fine"), Ok(4));
}

#[test]
fn a_request_without_room_for_an_answer_stops_the_device() {
    let place = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(place.path());
    guest.driver.add(1, &[&[0; 39]], &[16]);
    guest.driver.kick(1);
    guest.driver.expect_needs_reset();
    // After a reset it knows nothing of before.
    guest.driver.start();
    assert_eq!(guest.ask(3, 1, &[&[0; 16]], 104), Err(libc::EIO));
    guest.hello();
    assert!(guest.ask(3, 1, &[&[0; 16]], 104).is_ok());
}

#[test]
fn a_pause_keeps_what_is_open() {
    let place = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(place.path());
    let (node, handle) = guest.create(b"f");
    guest.write(handle, 0, b"before").unwrap();
    guest.driver.function.pause();
    fs::rename(place.path().join("f"), place.path().join("g")).unwrap();
    guest.driver.function.resume();
    assert_eq!(guest.read(handle, 0, 100).unwrap(), b"before");
    // Forgetting is never answered, in the queue of its own.
    let mut header = 48u32.to_le_bytes().to_vec();
    header.extend(2u32.to_le_bytes());
    header.extend([0; 8]);
    header.extend(node.to_le_bytes());
    header.extend([0; 16]);
    header.extend(1u64.to_le_bytes());
    assert_eq!(guest.driver.request(0, &[&header], &[]).written, 0);
    assert_eq!(guest.ask(3, node, &[&[0; 16]], 104), Err(libc::ESTALE));
}

#[test]
fn what_was_saved_elsewhere_goes_on_with_stale_files() {
    let place = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(place.path());
    let (node, handle) = guest.create(b"f");
    guest.driver.function.pause();
    let saved = guest.driver.function.save().unwrap();
    guest.driver.function.restore(&saved).unwrap();
    guest.driver.function.resume();
    assert_eq!(guest.read(handle, 0, 1), Err(libc::EBADF));
    assert_eq!(guest.ask(3, node, &[&[0; 16]], 104), Err(libc::ESTALE));
    let found = guest.ask(1, 1, &[b"f\0"], 128).unwrap();
    assert_ne!(long(&found, 0), node, "no number is used twice");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn no_driver_harms_the_host(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let place = tempfile::tempdir().unwrap();
        let inside = place.path().join("in");
        fs::create_dir(&inside).unwrap();
        let limits = FolderLimits { nodes: 8, cached_files: 2, open_files: 2 };
        let fs = Fs::new("fuzzed", folder(&inside, &limits), &Host::default()).unwrap();
        fuzzing::device(Box::new(fs), u64::MAX, &fuzzing::fuse_header(), &bytes);
        prop_assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn any_requests_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzzing::fuse_requests(&bytes);
    }

    #[test]
    fn any_bytes_are_a_request_or_an_error(opcode in 0..54u32, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let header = Header { length: 0, opcode, unique: 0, node: 0, uid: 0, gid: 0 };
        if let Ok(Request { operation: Operation::Lookup { name }, .. }) = Request::parse(header, &bytes) {
            let name = name.as_c_str().to_bytes();
            prop_assert!(!name.is_empty() && !name.contains(&b'/') && name != b"..");
        }
    }
}
