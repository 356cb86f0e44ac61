//! Every instruction this module executes, against the host executing the same bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod differential;
mod exceptions;
mod host;
mod random;
mod save;

use std::{io::Write, sync::Arc};

use iced_x86::{Decoder, DecoderOptions};
use memory::Ram;

use super::*;
use crate::{Bus, soft::Core};

/// A bus with one device: a page of bytes at 3 GiB.
struct Device(std::sync::Mutex<[u8; 4096]>);

const DEVICE: u64 = memory::layout::MMIO32_START;

impl Bus for Device {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        let offset = (address - DEVICE) as usize;
        data.copy_from_slice(&self.0.lock().unwrap()[offset..offset + data.len()]);
    }
    fn mmio_write(&self, address: u64, data: &[u8]) {
        let offset = (address - DEVICE) as usize;
        self.0.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
    }
    fn end_of_interrupt(&self, _: u8) {}
}

fn core() -> Core {
    let bus = Arc::new(Device(std::sync::Mutex::new([0; 4096])));
    Core::flat(Ram::new(1 << 20).unwrap(), bus)
}

fn decode(bytes: &[u8]) -> Instruction {
    let mut decoder = Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE);
    decoder.decode()
}

/// Says that a test was not done for want of something.
fn skip(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr().lock(), "SKIP {test}: {reason}");
}
