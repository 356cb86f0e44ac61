//! Tests of `console`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use proptest::prelude::*;

use super::{Console, ConsoleControl};
use crate::{
    pci::PciFunction,
    virtio::{
        Host, fuzzing,
        testing::{Driver, eventually},
    },
};

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn driver() -> (Driver, ConsoleControl, Screen) {
    let screen = Screen::default();
    let console = Console::new(Box::new(screen.clone()), &Host::default()).unwrap();
    let control = console.control();
    let mut driver = Driver::new(Box::new(console));
    driver.start();
    (driver, control, screen)
}

#[test]
fn what_the_guest_prints_is_printed_in_order() {
    let (mut driver, _, screen) = driver();
    for line in 0..200 {
        let text = format!("line {line}\n");
        let (first, second) = text.as_bytes().split_at(3);
        let answer = driver.request(1, &[first, second], &[]);
        assert_eq!(answer.written, 0);
    }
    driver.expect_interrupt(2);
    driver.write(0x2008, 4, b'!'.into());
    let expected: String = (0..200)
        .map(|it| format!("line {it}\n"))
        .collect::<String>()
        + "!";
    assert_eq!(String::from_utf8_lossy(&screen.0.lock().unwrap()), expected);
}

#[test]
fn input_waits_for_buffers_and_buffers_wait_for_input() {
    let (mut driver, control, _) = driver();
    assert_eq!(control.input(b"before"), 6);
    let answer = driver.request(0, &[], &[4, 4]);
    assert_eq!((answer.written, &answer.data[..6]), (6, &b"before"[..]));
    driver.add(0, &[], &[3]);
    driver.add(0, &[], &[3]);
    driver.kick(0);
    assert!(driver.try_answer(0).is_none());
    assert_eq!(control.input(b"after"), 5);
    assert_eq!(driver.answer(0).data, b"aft");
    assert_eq!(driver.answer(0).data[..2], *b"er");
    // A guest that never reads does not fill the host.
    let taken: usize = (0..100).map(|_| control.input(&[b'x'; 4096])).sum();
    assert_eq!(taken, 64 << 10);
}

#[test]
fn size_and_waiting_input_are_saved() {
    let (driver, control, _) = driver();
    control.resize(132, 50);
    driver.expect_interrupt(0);
    assert_eq!(driver.read(0x2000, 4), 50 << 16 | 132);
    driver.function.pause();
    assert_eq!(control.input(b"typed while paused"), 18);
    let saved = driver.function.save().unwrap();

    let console = Console::new(Box::new(io::sink()), &Host::default()).unwrap();
    let mut second = Driver::over(Box::new(console), driver.ram.clone());
    second.function.restore(&saved).unwrap();
    assert_eq!(second.read(0x2000, 4), 50 << 16 | 132);
    second.start();
    let answer = second.request(0, &[], &[64]);
    assert_eq!(answer.data[..18], *b"typed while paused");
}

#[test]
fn a_paused_console_prints_when_it_is_resumed() {
    let (mut driver, _, screen) = driver();
    driver.function.pause();
    driver.add(1, &[b"later"], &[]);
    driver.kick(1);
    assert!(driver.try_answer(1).is_none());
    assert!(screen.0.lock().unwrap().is_empty());
    driver.function.resume();
    eventually("the output", || *screen.0.lock().unwrap() == b"later");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn no_driver_harms_the_host(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let console = Console::new(Box::new(io::sink()), &Host::default()).unwrap();
        prop_assert_eq!(console.control().input(&bytes), bytes.len());
        fuzzing::device(Box::new(console), u64::MAX, &[], &bytes);
    }
}
