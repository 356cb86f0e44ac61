//! Arbitrary bytes as guest code: it must not panic, hang, or touch anything but the guest.

use std::sync::Arc;

use memory::Ram;

use crate::{
    Bus,
    soft::{Core, Interpreter, op::Width},
};

/// RAM of the guest.
const RAM_BYTES: u64 = 1 << 20;
/// Where the code is.
const CODE: u64 = 0x8000;
/// Instructions executed at most.
const STEPS: usize = 64;

/// Devices that answer something different each time they are asked where.
struct Echo;

impl Bus for Echo {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(port as u8);
    }
    fn port_write(&self, _port: u16, _data: &[u8]) {}
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        assert!((1..=8).contains(&data.len()), "{} bytes", data.len());
        data.fill(address as u8);
    }
    fn mmio_write(&self, _address: u64, data: &[u8]) {
        assert!((1..=8).contains(&data.len()), "{} bytes", data.len());
    }
    fn end_of_interrupt(&self, _vector: u8) {}
}

/// Executes bytes as code until something happens that only the run loop could handle. The first
/// byte chooses the mode, the next sixteen make the registers: each in RAM, or a small number, or
/// near an edge.
pub fn execute(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else {
        return;
    };
    let (seeds, code) = bytes.split_at(bytes.len().min(16));
    let Ok(ram) = Ram::new(RAM_BYTES) else {
        return;
    };
    let mut core = Core::flat(ram, Arc::new(Echo));
    set_mode(&mut core, mode % 4);
    for (register, seed) in core.regs.iter_mut().zip(seeds) {
        let value = u64::from(seed >> 2);
        *register = match seed & 3 {
            0 => value,
            1 => 0x1_0000 + value * 0x3f1,
            2 => RAM_BYTES.wrapping_sub(32).wrapping_add(value),
            _ => value.wrapping_neg(),
        };
    }
    core.regs[1] &= 0xffff;
    core.flags.set(u64::from(*mode) << 4);
    let first = code.len().min(0x1000);
    core.physical_write(CODE, &code[..first]);
    core.set_rip(CODE);
    let mut interpreter = Interpreter::new(core);
    for _ in 0..STEPS {
        if interpreter.step().is_err() {
            return;
        }
    }
}

/// 64-bit, 32-bit, real and 16-bit protected mode.
fn set_mode(core: &mut Core, mode: u8) {
    const PROTECTED: u64 = 1;
    match mode {
        0 => {}
        1 => {
            core.width = Width::Code32;
            core.segments[1].attributes = 0xc09b;
        }
        _ => {
            core.width = Width::Code16;
            for segment in &mut core.segments {
                segment.limit = 0xffff;
                segment.attributes &= 0xff;
            }
            if mode == 2 {
                core.control.cr0 &= !PROTECTED;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Two thousand, or as many as `PROPTEST_CASES` asks for if those are more.
    fn config() -> ProptestConfig {
        let default = ProptestConfig::default();
        ProptestConfig::with_cases(default.cases.max(2048))
    }

    #[test]
    fn repeated_bytes_at_address_zero_are_counted_without_overflow() {
        let (mut bytes, rcx) = ([0; 19], 2);
        bytes[rcx] = 40 << 2;
        bytes[17..].copy_from_slice(&[0xf3, 0xaa]);
        super::execute(&bytes);
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn any_bytes_are_code_that_does_no_harm(
            bytes in prop::collection::vec(any::<u8>(), 17..96)
        ) {
            super::execute(&bytes);
        }

        #[test]
        fn any_one_instruction_does_no_harm(
            start in prop::collection::vec(any::<u8>(), 17),
            prefix in prop::sample::select(vec![&[] as &[u8], &[0xf0], &[0x66], &[0x67], &[0xf3], &[0xf2], &[0x48], &[0x66, 0x67]]),
            map in prop::sample::select(vec![&[] as &[u8], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]]),
            rest in prop::collection::vec(any::<u8>(), 12),
        ) {
            super::execute(&[&start, prefix, map, &rest].concat());
        }
    }
}
