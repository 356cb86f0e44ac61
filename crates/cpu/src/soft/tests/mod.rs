//! Tests of what `memory`, `interrupt`, `segment`, `system` and `block` do together.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod code;
mod delivery;
mod paging;

use std::sync::{Arc, atomic::AtomicU32};

use iced_x86::code_asm::CodeAssembler;
use memory::Ram;

use super::{
    Core, Interpreter,
    core::Segment,
    interpreter::Outcome,
    interrupt::{self, TripleFault},
};
use crate::Bus;

/// Where guests of these tests begin.
pub(in crate::soft) const CODE: u64 = 0x1_0000;

struct Nothing;

impl Bus for Nothing {
    fn port_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&self, _port: u16, _data: &[u8]) {}

    fn mmio_read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&self, _address: u64, _data: &[u8]) {}

    fn end_of_interrupt(&self, _vector: u8) {}
}

/// 4 MiB, no paging, 64-bit code in ring 0.
pub(in crate::soft) fn core() -> Core {
    let mut core = Core::flat(Ram::new(4 << 20).unwrap(), Arc::new(Nothing));
    core.set_rip(CODE);
    core.regs[4] = 0x9000;
    core
}

fn put(core: &mut Core, address: u64, value: u64) {
    core.physical_write(address, &value.to_le_bytes());
}

fn get(core: &mut Core, address: u64) -> u64 {
    let mut bytes = [0; 8];
    core.physical_read(address, &mut bytes);
    u64::from_le_bytes(bytes)
}

/// Puts code at an address.
pub(in crate::soft) fn assemble(
    core: &mut Core,
    bits: u32,
    address: u64,
    write: impl FnOnce(&mut CodeAssembler),
) {
    let mut assembler = CodeAssembler::new(bits).unwrap();
    write(&mut assembler);
    let bytes = assembler.assemble(address).unwrap();
    for (index, part) in bytes.chunks(8).enumerate() {
        core.physical_write(address + 8 * index as u64, part);
    }
}

/// Runs until `hlt`, delivering faults.
fn run(interpreter: &mut Interpreter) -> Result<(), TripleFault> {
    let calm = AtomicU32::new(0);
    loop {
        match interpreter.run(&calm) {
            Outcome::Fault(fault) => interrupt::raise(&mut interpreter.core, fault.into())?,
            Outcome::Sync if interpreter.core.events.halted => return Ok(()),
            Outcome::Sync | Outcome::Attention => {}
        }
    }
}

fn segment(selector: u16, attributes: u16) -> Segment {
    Segment {
        selector,
        attributes,
        limit: u32::MAX,
        base: 0,
    }
}
