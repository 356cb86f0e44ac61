//! Tests of `serial`.

use std::{
    io,
    sync::{Arc, Mutex},
};

use proptest::prelude::*;

use super::*;
use crate::{Registers, fuzzing, testing::Recorder};

/// What was sent.
#[derive(Clone, Default)]
struct Sent(Arc<Mutex<Vec<u8>>>);

impl io::Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn serial() -> (Serial, Sent, Arc<Recorder>) {
    let (sent, line) = (Sent::default(), Arc::new(Recorder::default()));
    (
        Serial::new(Box::new(sent.clone()), line.clone()),
        sent,
        line,
    )
}

fn get(serial: &Serial, register: u64) -> u8 {
    let mut data = [0xee];
    serial.read(register, &mut data);
    data[0]
}

fn put(serial: &Serial, register: u64, value: u8) {
    serial.write(register, &[value]);
}

#[test]
fn bytes_go_out_at_once_and_the_transmitter_is_always_empty() {
    let (serial, sent, line) = serial();
    for byte in b"hello" {
        assert_eq!(get(&serial, 5), 0x60);
        put(&serial, 0, *byte);
    }
    assert_eq!(*sent.0.lock().unwrap(), b"hello");
    assert!(line.levels().is_empty());
}

#[test]
fn every_byte_sent_is_an_edge_while_the_interrupt_is_on() {
    let (serial, _, line) = serial();
    put(&serial, 1, 2);
    assert_eq!(line.levels(), [true]);
    assert_eq!(get(&serial, 2), 0b0010);
    assert_eq!(line.levels(), [false]);
    assert_eq!(get(&serial, 2), 0b0001);
    put(&serial, 0, b'a');
    put(&serial, 0, b'b');
    assert_eq!(line.levels(), [true, false, true]);
    put(&serial, 1, 0);
    assert_eq!(line.levels(), [false]);
}

#[test]
fn received_bytes_interrupt_until_they_are_read() {
    let (serial, _, line) = serial();
    assert_eq!(serial.input(b"ab"), 2);
    assert!(line.levels().is_empty());
    put(&serial, 1, 1);
    assert_eq!(line.levels(), [true]);
    assert_eq!(get(&serial, 2), 0b0100);
    assert_eq!(get(&serial, 5), 0x61);
    assert_eq!(get(&serial, 0), b'a');
    assert!(line.levels().is_empty());
    assert_eq!(get(&serial, 0), b'b');
    assert_eq!(line.levels(), [false]);
    assert_eq!(get(&serial, 5), 0x60);
}

#[test]
fn the_queue_has_an_end() {
    let (serial, ..) = serial();
    assert_eq!(serial.input(&[1; 5000]), 4096);
    assert_eq!(serial.input(&[1]), 0);
    get(&serial, 0);
    assert_eq!(serial.room(), 1);
    // Clearing the FIFO empties it.
    put(&serial, 2, 3);
    assert_eq!(serial.room(), 4096);
}

#[test]
fn a_driver_finds_a_16550a() {
    let (serial, sent, _) = serial();
    // What Linux does in `autoconfig`: the scratch register, the loop, the FIFO's bits, the
    // divisor behind its bit.
    put(&serial, 7, 0x5a);
    assert_eq!(get(&serial, 7), 0x5a);
    put(&serial, 1, 0xff);
    assert_eq!(get(&serial, 1), 0x0f);
    put(&serial, 4, 0x1a);
    assert_eq!(get(&serial, 6) & 0xf0, 0x90);
    put(&serial, 0, b'x');
    assert_eq!(get(&serial, 0), b'x');
    assert!(sent.0.lock().unwrap().is_empty());
    put(&serial, 4, 0x08);
    assert_eq!(get(&serial, 6), 0xb0);
    put(&serial, 1, 0);
    put(&serial, 2, 1);
    assert_eq!(get(&serial, 2) & 0xf0, 0xc0);
    put(&serial, 3, 0x83);
    put(&serial, 0, 1);
    put(&serial, 1, 2);
    assert_eq!((get(&serial, 0), get(&serial, 1)), (1, 2));
    put(&serial, 3, 3);
    assert_eq!(get(&serial, 1), 0);
}

#[test]
fn a_saved_port_goes_on_elsewhere() {
    let (saved, ..) = serial();
    put(&saved, 1, 1);
    put(&saved, 7, 0x77);
    assert_eq!(saved.input(b"later"), 5);
    let (restored, _, line) = serial();
    restored.restore(&saved.state());
    assert_eq!(line.levels(), [true]);
    assert_eq!(get(&restored, 0), b'l');
    assert_eq!(get(&restored, 7), 0x77);
}

proptest! {
    #[test]
    fn hostile_accesses_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..1000)) {
        fuzzing::serial(&bytes);
    }
}
