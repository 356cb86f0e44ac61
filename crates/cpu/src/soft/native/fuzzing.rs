//! What the fuzz target and a property test call: arbitrary bytes as code.

use std::{cell::RefCell, sync::Arc};

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};
use memory::Ram;

use super::{plan, select};
use crate::{
    Bus,
    soft::{Core, op::Width},
};

/// A bus with nothing on it.
struct Nothing;

impl Bus for Nothing {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn end_of_interrupt(&self, _: u8) {}
}

thread_local! {
    static CORE: RefCell<Option<Core>> = const { RefCell::new(None) };
}

/// Decodes the bytes in each width and, if it is an instruction of this module, looks at its stub
/// and executes it. Registers come from the bytes too.
///
/// # Panics
/// When a stub does what none may do.
pub fn fuzz(data: &[u8]) {
    for width in [Width::Code16, Width::Code32, Width::Code64] {
        let mut decoder = Decoder::with_ip(width.bits(), data, 0x1000, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            continue;
        }
        if let Some(plan) = plan::plan(&instruction) {
            audit(&instruction, &plan.stub);
        }
        let Some(op) = select(&instruction, width) else {
            continue;
        };
        CORE.with_borrow_mut(|core| {
            let core = core.get_or_insert_with(|| {
                let ram = Ram::new(1 << 20).expect("a megabyte can be had");
                Core::flat(ram, Arc::new(Nothing))
            });
            core.width = width;
            for (number, register) in core.regs[..16].iter_mut().enumerate() {
                let byte = |at: usize| u64::from(data[at % data.len()]);
                *register = byte(number) << 12 | byte(number + 5) << 6 | byte(number + 9) << 56;
            }
            // Faults are as good as none.
            let _ = (op.run)(core, &op);
            // What the next stub relies on: another value would be a fault of the host's.
            assert_eq!(
                core.vector.state.mxcsr & !crate::soft::vector::MXCSR_MASK,
                0
            );
        });
    }
}

/// Looks at every instruction of a stub.
///
/// # Panics
/// When one of them is privileged, branches, or touches what is neither the core nor the operand.
fn audit(instruction: &Instruction, stub: &[u8]) {
    let mut decoder = Decoder::with_ip(64, stub, 0, DecoderOptions::NONE);
    let mut info = InstructionInfoFactory::new();
    let mut operands = 0;
    while decoder.can_decode() {
        let it = decoder.decode();
        assert!(
            !it.is_invalid() && !it.is_privileged(),
            "{instruction}: {it}"
        );
        match it.flow_control() {
            FlowControl::Next => {}
            FlowControl::Return => assert!(!decoder.can_decode(), "{instruction}: early {it}"),
            _ => panic!("{instruction}: {it}"),
        }
        let on_stack = matches!(
            it.mnemonic(),
            Mnemonic::Push | Mnemonic::Pop | Mnemonic::Pushfq | Mnemonic::Popfq | Mnemonic::Ret
        );
        let used = info.info(&it);
        for register in used.used_registers() {
            let read = matches!(register.access(), OpAccess::Read | OpAccess::CondRead);
            let kept = matches!(
                register.register().full_register(),
                Register::RBX
                    | Register::RSP
                    | Register::RBP
                    | Register::RSI
                    | Register::RDI
                    | Register::R12
                    | Register::R13
                    | Register::R14
                    | Register::R15
            );
            assert!(
                read || !kept || on_stack,
                "{instruction}: {it} changes a register"
            );
        }
        if on_stack {
            continue;
        }
        for memory in used.used_memory() {
            assert_eq!(memory.index(), Register::None, "{instruction}: {it}");
            let end = memory.displacement() as usize + memory.memory_size().size();
            match memory.base() {
                Register::RDI => assert!(end <= size_of::<Core>(), "{instruction}: {it}"),
                Register::RSI => {
                    assert_eq!(memory.displacement(), 0, "{instruction}: {it}");
                    assert!(end <= 32, "{instruction}: {it}");
                    operands += 1;
                }
                _ => panic!("{instruction}: {it} addresses something else"),
            }
        }
    }
    let named = (0..instruction.op_count())
        .filter(|&operand| instruction.op_kind(operand) == OpKind::Memory)
        .count();
    assert!(operands >= named, "{instruction}: its operand is not used");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes that begin as vector and x87 instructions do, more often than others would.
    fn code() -> impl Strategy<Value = Vec<u8>> {
        let legacy = prop_oneof![
            Just(vec![]),
            Just(vec![0x66]),
            Just(vec![0xf2]),
            Just(vec![0xf3]),
            Just(vec![0x48]),
            Just(vec![0x66, 0x48]),
        ];
        let start = prop_oneof![
            Just(vec![0x0f]),
            Just(vec![0x0f, 0x38]),
            Just(vec![0x0f, 0x3a]),
            (0xd8u8..=0xdf).prop_map(|it| vec![it]),
            (1u8..=3, any::<u8>()).prop_map(|(map, it)| vec![0xc4, map | 0xe0, it]),
            any::<u8>().prop_map(|it| vec![0xc5, it]),
            Just(vec![]),
        ];
        (legacy, start, prop::collection::vec(any::<u8>(), 15))
            .prop_map(|(prefix, start, rest)| [prefix, start, rest].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn no_bytes_make_a_stub_that_does_more_than_compute(data in code()) {
            fuzz(&data);
        }
    }
}
