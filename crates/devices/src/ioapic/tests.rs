//! Tests of `ioapic`.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{Registers, fuzzing, testing::Recorder};

fn ioapic() -> (Arc<Ioapic>, Arc<Recorder>) {
    let interrupts = Arc::new(Recorder::default());
    (Arc::new(Ioapic::new(interrupts.clone())), interrupts)
}

fn put(ioapic: &Ioapic, register: u8, value: u32) {
    ioapic.write(0, &u32::from(register).to_le_bytes());
    ioapic.write(0x10, &value.to_le_bytes());
}

fn get(ioapic: &Ioapic, register: u8) -> u32 {
    let mut data = [0; 4];
    ioapic.write(0, &[register]);
    ioapic.read(0x10, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn it_is_an_82093aa_with_24_masked_lines() {
    let (ioapic, _) = ioapic();
    assert_eq!(get(&ioapic, 1), 0x0017_0011);
    for pin in 0..24 {
        assert_eq!(get(&ioapic, 0x10 + 2 * pin), 0x1_0000);
    }
    assert_eq!(get(&ioapic, 0x40), 0);
    put(&ioapic, 0, 0x0f00_1234);
    assert_eq!(get(&ioapic, 0), 0x0f00_0000);
}

#[test]
fn an_edge_is_one_message_and_nothing_while_masked() {
    let (ioapic, interrupts) = ioapic();
    let line = ioapic.line(4);
    line.set(true);
    assert_eq!(interrupts.messages(), []);
    line.set(false);
    put(&ioapic, 0x19, 0x0300_0000);
    put(&ioapic, 0x18, 0x31);
    assert_eq!(interrupts.messages(), []);
    line.set(true);
    line.set(true);
    assert_eq!(interrupts.messages(), [(0xfee0_3000, 0x31)]);
    line.set(false);
    line.set(true);
    assert_eq!(interrupts.messages().len(), 1);
    // Logical destination, lowest priority.
    put(&ioapic, 0x18, 0x932);
    line.set(false);
    line.set(true);
    assert_eq!(interrupts.messages(), [(0xfee0_3004, 0x132)]);
}

#[test]
fn a_level_interrupts_again_after_its_end_until_it_falls() {
    let (ioapic, interrupts) = ioapic();
    put(&ioapic, 0x22, 0x8051);
    let message = (0xfee0_0000, 0xc051);
    ioapic.set_line(9, true);
    ioapic.set_line(9, true);
    assert_eq!(interrupts.messages(), [message]);
    assert_eq!(get(&ioapic, 0x22), 0xc051);
    ioapic.end_of_interrupt(0x50);
    assert_eq!(interrupts.messages(), []);
    ioapic.end_of_interrupt(0x51);
    assert_eq!(interrupts.messages(), [message]);
    ioapic.set_line(9, false);
    ioapic.end_of_interrupt(0x51);
    assert_eq!(interrupts.messages(), []);
    assert_eq!(get(&ioapic, 0x22), 0x8051);
    // Asserted while masked: seen when unmasked.
    put(&ioapic, 0x22, 0x1_8051);
    ioapic.set_line(9, true);
    assert_eq!(interrupts.messages(), []);
    put(&ioapic, 0x22, 0x8051);
    assert_eq!(interrupts.messages(), [message]);
}

#[test]
fn a_saved_ioapic_does_not_take_a_held_line_for_an_edge() {
    let (saved, _) = ioapic();
    put(&saved, 0x18, 0x31);
    saved.set_line(4, true);
    let (restored, interrupts) = ioapic();
    restored.restore(&saved.state());
    restored.set_line(4, true);
    assert_eq!(interrupts.messages(), []);
    restored.set_line(4, false);
    restored.set_line(4, true);
    assert_eq!(interrupts.messages(), [(0xfee0_0000, 0x31)]);
}

proptest! {
    #[test]
    fn hostile_accesses_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..1000)) {
        fuzzing::ioapic(&bytes);
    }
}
