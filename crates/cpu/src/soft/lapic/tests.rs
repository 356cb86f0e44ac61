//! Tests of `lapic`.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;
use crate::{
    Bus, Msi,
    soft::{Fault, clock::Tsc},
};

const OPEN: Gates = Gates {
    interrupts: true,
    nmi: true,
    sipi: false,
};
const CLOSED: Gates = Gates {
    interrupts: false,
    nmi: false,
    sipi: false,
};
const WAITING_FOR_SIPI: Gates = Gates {
    sipi: true,
    ..CLOSED
};

/// A bus with nothing on it but somebody who hears of ended interrupts.
#[derive(Default)]
struct Ended(Mutex<Vec<u8>>);

impl Bus for Ended {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn end_of_interrupt(&self, vector: u8) {
        self.0.lock().unwrap().push(vector);
    }
}

struct Machine {
    router: Arc<Router>,
    bus: Arc<Ended>,
    tsc: Arc<Tsc>,
}

impl Machine {
    fn new() -> Self {
        Self {
            router: Arc::new(Router::new()),
            bus: Arc::default(),
            tsc: Arc::new(Tsc::new()),
        }
    }

    /// A local APIC that software enabled.
    fn apic(&self, index: u32) -> LocalApic {
        let (router, bus, tsc) = (self.router.clone(), self.bus.clone(), self.tsc.clone());
        let mut apic = LocalApic::new(index, router, bus, tsc).unwrap();
        store(&mut apic, 0xf0, 0x1ff);
        apic
    }

    fn signal(&self, address: u64, data: u32) {
        self.router.signal(Msi { address, data });
    }
}

fn store(apic: &mut LocalApic, offset: u64, value: u32) {
    apic.mmio_write(offset, &value.to_le_bytes());
}

fn load(apic: &mut LocalApic, offset: u64) -> u32 {
    let mut data = [0; 4];
    apic.mmio_read(offset, &mut data);
    u32::from_le_bytes(data)
}

/// All interrupts that can be taken, each ended before the next.
fn drain(apic: &mut LocalApic) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(event) = apic.take(OPEN) {
        if matches!(event, Event::Interrupt(_)) {
            apic.end_of_interrupt();
        }
        events.push(event);
    }
    events
}

/// Ids of those that have something to take.
fn who_took(apics: &mut [LocalApic]) -> Vec<u32> {
    let mut ids = Vec::new();
    for apic in apics {
        if !drain(apic).is_empty() {
            ids.push(apic.inbox().id());
        }
    }
    ids
}

fn to_x2apic(apic: &mut LocalApic) {
    let base = apic.read_msr(0x1b).unwrap();
    apic.write_msr(0x1b, base | 1 << 10).unwrap();
}

#[test]
fn higher_vectors_come_first_and_lower_ones_wait_for_the_end() {
    let machine = Machine::new();
    let mut apic = machine.apic(0);
    for vector in [0x31, 0x52, 0x51, 0x20] {
        machine.signal(0xfee0_0000, vector);
    }
    assert!(apic.inbox().attention());
    assert_eq!(apic.take(CLOSED), None);
    assert!(!apic.inbox().attention());
    apic.look();
    assert!(apic.inbox().attention());
    assert_eq!(apic.take(OPEN), Some(Event::Interrupt(0x52)));
    // The same class has to wait.
    assert_eq!(apic.take(OPEN), None);
    assert_eq!(load(&mut apic, 0x120), 1 << 18);
    assert_eq!(load(&mut apic, 0x220), 1 << 17);
    assert_eq!(load(&mut apic, 0xa0), 0x50);
    // A higher class need not.
    machine.signal(0xfee0_0000, 0xef);
    assert_eq!(apic.take(OPEN), Some(Event::Interrupt(0xef)));
    store(&mut apic, 0xb0, 0);
    assert_eq!(apic.take(OPEN), None);
    store(&mut apic, 0xb0, 0);
    assert!(apic.inbox().attention());
    let rest = [0x51, 0x31, 0x20].map(Event::Interrupt);
    assert_eq!(drain(&mut apic), rest);
    assert!(!apic.inbox().attention());
}

#[test]
fn the_task_priority_holds_back_its_class_and_those_below() {
    let machine = Machine::new();
    let mut apic = machine.apic(0);
    apic.set_cr8(5);
    assert_eq!(load(&mut apic, 0x80), 0x50);
    machine.signal(0xfee0_0000, 0x5f);
    machine.signal(0xfee0_0000, 0x60);
    assert_eq!(drain(&mut apic), [Event::Interrupt(0x60)]);
    apic.set_cr8(4);
    assert!(apic.inbox().attention());
    assert_eq!(drain(&mut apic), [Event::Interrupt(0x5f)]);
}

#[test]
fn ending_a_level_triggered_interrupt_is_told_to_the_bus() {
    let machine = Machine::new();
    let mut apic = machine.apic(0);
    machine.signal(0xfee0_0000, 0x8000 | 0x40);
    machine.signal(0xfee0_0000, 0x41);
    assert_eq!(load(&mut apic, 0x1a0), 1);
    assert_eq!(drain(&mut apic).len(), 2);
    assert_eq!(*machine.bus.0.lock().unwrap(), [0x40]);
}

#[test]
fn a_disabled_apic_takes_no_interrupts_but_nmis() {
    let machine = Machine::new();
    let mut apic = machine.apic(0);
    store(&mut apic, 0xf0, 0xff);
    machine.signal(0xfee0_0000, 0x40);
    machine.signal(0xfee0_0000, 0x400);
    assert_eq!(drain(&mut apic), [Event::Nmi]);
    assert_eq!(load(&mut apic, 0x320), 0x1_0000);
    store(&mut apic, 0x320, 0x30);
    assert_eq!(load(&mut apic, 0x320), 0x1_0030);
}

#[test]
fn messages_reach_whom_they_address() {
    let machine = Machine::new();
    let mut apics: Vec<_> = (0..4).map(|index| machine.apic(index)).collect();
    let mut reached = |machine: &Machine, address: u64, data: u32| {
        machine.signal(address, data);
        who_took(&mut apics)
    };
    assert_eq!(reached(&machine, 0xfee0_2000, 0x40), [2]);
    assert_eq!(reached(&machine, 0xfeef_f000, 0x40), [0, 1, 2, 3]);
    assert!(reached(&machine, 0xfee0_9000, 0x40).is_empty());
    // Extended destination 0x102: nobody, not 2.
    assert!(reached(&machine, 0x0000_0100_fee0_2000, 0x40).is_empty());
    // Logical, flat: nobody has an id yet.
    assert!(reached(&machine, 0xfee0_3004, 0x40).is_empty());
    // Illegal vector, ExtINT, SMI.
    assert!(reached(&machine, 0xfee0_2000, 0x0f).is_empty());
    assert!(reached(&machine, 0xfee0_2000, 0x740).is_empty());
    assert!(reached(&machine, 0xfee0_2000, 0x240).is_empty());
}

#[test]
fn logical_destinations_flat_clustered_and_of_x2apic() {
    let machine = Machine::new();
    let mut apics: Vec<_> = (0..4).map(|index| machine.apic(index)).collect();
    for (index, apic) in apics.iter_mut().enumerate() {
        store(apic, 0xd0, 1 << index << 24);
    }
    let reached = |apics: &mut [LocalApic], destination: u64| {
        machine.signal(0xfee0_0004 | destination << 12, 0x40);
        who_took(apics)
    };
    assert_eq!(reached(&mut apics, 0b1010), [1, 3]);
    for apic in &mut apics {
        let id = apic.inbox().id();
        store(apic, 0xe0, 0x0fff_ffff);
        store(apic, 0xd0, ((id / 2) << 4 | 1 << (id % 2)) << 24);
    }
    assert_eq!(reached(&mut apics, 0x13), [2, 3]);
    assert_eq!(reached(&mut apics, 0xf1), [0, 2]);
    for apic in &mut apics {
        to_x2apic(apic);
    }
    assert_eq!(reached(&mut apics, 0b1100), [2, 3]);
    // From one to another by the register, with a 32-bit destination; 16 would be another cluster.
    apics[0].write_msr(0x830, 0x0000_0006_0000_0841).unwrap();
    apics[0].write_msr(0x830, 0x0001_0001_0000_0842).unwrap();
    assert_eq!(drain(&mut apics[1]), [Event::Interrupt(0x41)]);
    assert_eq!(drain(&mut apics[2]), [Event::Interrupt(0x41)]);
    assert!(drain(&mut apics[0]).is_empty());
}

#[test]
fn lowest_priority_reaches_exactly_one_and_takes_turns() {
    let machine = Machine::new();
    let mut apics: Vec<_> = (0..2).map(|index| machine.apic(index)).collect();
    let mut counts = [0; 2];
    for _ in 0..4 {
        machine.signal(0xfeef_f000, 0x140);
        for (count, apic) in counts.iter_mut().zip(&mut apics) {
            *count += drain(apic).len();
        }
    }
    assert_eq!(counts, [2, 2]);
    store(&mut apics[1], 0xf0, 0);
    machine.signal(0xfeef_f000, 0x140);
    assert_eq!(drain(&mut apics[0]).len(), 1);
}

#[test]
fn shorthands_name_self_all_and_the_others() {
    let machine = Machine::new();
    let mut apics: Vec<_> = (0..3).map(|index| machine.apic(index)).collect();
    for (command, expected) in [
        (0x4_0050, [0, 1, 0]),
        (0x8_0050, [1; 3]),
        (0xc_0050, [1, 0, 1]),
    ] {
        store(&mut apics[1], 0x300, command);
        let counts: Vec<_> = apics.iter_mut().map(|it| drain(it).len()).collect();
        assert_eq!(counts, expected, "{command:#x}");
    }
    // Physical, by the high half.
    store(&mut apics[1], 0x310, 2 << 24);
    store(&mut apics[1], 0x300, 0x60);
    assert_eq!(drain(&mut apics[2]), [Event::Interrupt(0x60)]);
    to_x2apic(&mut apics[0]);
    apics[0].write_msr(0x83f, 0x77).unwrap();
    assert_eq!(drain(&mut apics[0]), [Event::Interrupt(0x77)]);
}

#[test]
fn a_processor_is_started_by_init_and_sipi_in_this_order() {
    let machine = Machine::new();
    let (mut first, mut second) = (machine.apic(0), machine.apic(1));
    store(&mut first, 0x310, 1 << 24);
    store(&mut first, 0x300, 0x4500);
    store(&mut first, 0x300, 0x8500);
    store(&mut first, 0x300, 0x469f);
    assert_eq!(second.take(OPEN), Some(Event::Init));
    second.init();
    assert!(second.inbox().attention());
    assert_eq!(second.take(WAITING_FOR_SIPI), Some(Event::Sipi(0x9f)));
    // A second SIPI finds it running.
    store(&mut first, 0x300, 0x469f);
    assert_eq!(second.take(OPEN), None);
    assert_eq!(second.take(WAITING_FOR_SIPI), None);
    // Interrupts do not pass while it waits.
    store(&mut first, 0x300, 0x4400);
    assert_eq!(second.take(WAITING_FOR_SIPI), None);
    assert_eq!(second.take(OPEN), Some(Event::Nmi));
}

#[test]
fn modes_change_as_the_manual_allows() {
    let machine = Machine::new();
    let mut apic = machine.apic(3);
    assert_eq!(apic.read_msr(0x1b), Ok(0xfee0_0800));
    assert_eq!(apic.read_msr(0x802), Err(Fault::GP0));
    assert_eq!(load(&mut apic, 0x20), 3 << 24);
    assert_eq!(apic.base(), Some(0xfee0_0000));
    assert_eq!(apic.write_msr(0x1b, 0xfee0_0400), Err(Fault::GP0));
    to_x2apic(&mut apic);
    assert_eq!(apic.base(), None);
    assert_eq!(apic.read_msr(0x802), Ok(3));
    assert_eq!(apic.read_msr(0x80d), Ok(0b1000));
    assert_eq!(apic.read_msr(0x803), Ok(0x0005_0014));
    assert_eq!(apic.write_msr(0x80b, 1), Err(Fault::GP0));
    assert_eq!(apic.write_msr(0x80b, 0), Ok(()));
    assert_eq!(apic.write_msr(0x808, 1 << 32), Err(Fault::GP0));
    assert_eq!(apic.write_msr(0x802, 0), Err(Fault::GP0));
    assert_eq!(apic.read_msr(0x80e), Err(Fault::GP0));
    assert_eq!(apic.write_msr(0x1b, 0xfee0_0800), Err(Fault::GP0));
    assert_eq!(apic.write_msr(0x1b, 0xfee0_0000), Ok(()));
    assert_eq!(apic.write_msr(0x1b, 0xfee0_0c00), Err(Fault::GP0));
    machine.signal(0xfee0_3000, 0x40);
    assert_eq!(apic.take(OPEN), None);
    assert_eq!(apic.write_msr(0x1b, 0xfee0_0800), Ok(()));
}

#[test]
fn an_illegal_vector_is_an_error_and_may_interrupt() {
    let machine = Machine::new();
    let mut apic = machine.apic(0);
    store(&mut apic, 0x370, 0xfe);
    store(&mut apic, 0x300, 0x4_0003);
    assert_eq!(drain(&mut apic), [Event::Interrupt(0xfe)]);
    assert_eq!(load(&mut apic, 0x280), 0);
    store(&mut apic, 0x280, 0);
    assert_eq!(load(&mut apic, 0x280), 0x20);
    store(&mut apic, 0x280, 0);
    assert_eq!(load(&mut apic, 0x280), 0);
}

/// Waits as the run loop does after `hlt`.
fn halt(apic: &mut LocalApic) -> Event {
    let started = Instant::now();
    loop {
        if let Some(event) = apic.take(OPEN) {
            return event;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "nothing came");
        apic.inbox().wait(None);
    }
}

#[test]
fn a_deadline_wakes_a_waiting_vcpu_and_not_before() {
    let machine = Machine::new();
    let mut apic = machine.apic(0);
    apic.bind().unwrap();
    store(&mut apic, 0x320, 2 << 17 | 0xec);
    for micros in [0, 30, 2_000] {
        let deadline = machine.tsc.now() + machine.tsc.ticks(micros * 1000);
        apic.write_msr(0x6e0, deadline).unwrap();
        assert_eq!(apic.read_msr(0x6e0), Ok(deadline));
        assert_eq!(halt(&mut apic), Event::Interrupt(0xec));
        assert!(machine.tsc.now() >= deadline);
        assert_eq!(apic.read_msr(0x6e0), Ok(0));
        apic.end_of_interrupt();
    }
}

#[test]
fn a_timer_reaches_a_vcpu_that_runs() {
    let machine = Machine::new();
    let mut apic = machine.apic(0);
    apic.bind().unwrap();
    store(&mut apic, 0x320, 0xec);
    store(&mut apic, 0x3e0, 0b1011);
    store(&mut apic, 0x380, 3_000_000);
    assert!(load(&mut apic, 0x390) > 0);
    let started = Instant::now();
    while !apic.inbox().attention() {
        assert!(started.elapsed() < Duration::from_secs(20), "nothing came");
        std::hint::spin_loop();
    }
    assert_eq!(apic.take(OPEN), Some(Event::Interrupt(0xec)));
    assert!(started.elapsed() >= Duration::from_millis(3));
    assert_eq!(load(&mut apic, 0x390), 0);
}

#[test]
fn a_periodic_timer_goes_on_until_stopped_and_a_masked_one_is_silent() {
    let machine = Machine::new();
    let mut apic = machine.apic(0);
    apic.bind().unwrap();
    store(&mut apic, 0x320, 1 << 17 | 0xec);
    // Divided by 16: 16 * 12500 ns.
    store(&mut apic, 0x3e0, 0b0011);
    store(&mut apic, 0x380, 12_500);
    for _ in 0..5 {
        assert_eq!(halt(&mut apic), Event::Interrupt(0xec));
        apic.end_of_interrupt();
    }
    store(&mut apic, 0x380, 0);
    drain(&mut apic);
    std::thread::sleep(Duration::from_millis(1));
    assert_eq!(apic.take(OPEN), None);
    store(&mut apic, 0x320, 1 << 16 | 0xec);
    store(&mut apic, 0x380, 1000);
    std::thread::sleep(Duration::from_millis(1));
    assert_eq!(apic.take(OPEN), None);
}

#[test]
fn nothing_is_lost_between_threads() {
    const ROUNDS: u64 = 20_000;
    let machine = Machine::new();
    let mut here = machine.apic(0);
    let mut there = machine.apic(1);
    let answered = Arc::new(AtomicU64::new(0));
    let count = answered.clone();
    let other = std::thread::spawn(move || {
        for _ in 0..ROUNDS {
            assert_eq!(halt(&mut there), Event::Interrupt(0x44));
            there.end_of_interrupt();
            count.fetch_add(1, Ordering::Relaxed);
            // To vCPU 0.
            store(&mut there, 0x300, 0x55);
        }
    });
    store(&mut here, 0x310, 1 << 24);
    for _ in 0..ROUNDS {
        store(&mut here, 0x300, 0x44);
        assert_eq!(halt(&mut here), Event::Interrupt(0x55));
        here.end_of_interrupt();
    }
    other.join().unwrap();
    assert_eq!(answered.load(Ordering::Relaxed), ROUNDS);
}

#[test]
fn a_saved_apic_goes_on_elsewhere() {
    let machine = Machine::new();
    let mut apic = machine.apic(1);
    machine.signal(0xfee0_1000, 0x8000 | 0x40);
    machine.signal(0xfee0_1000, 0x91);
    machine.signal(0xfee0_1000, 0x400);
    store(&mut apic, 0x320, 1 << 17 | 0x31);
    store(&mut apic, 0x380, 300_000);
    assert_eq!(apic.take(CLOSED), None);
    apic.take(Gates { nmi: false, ..OPEN });
    let state = apic.state();
    assert_eq!(state.registers.len(), 1024);
    assert!(state.nmi);
    let elsewhere = Machine::new();
    let mut restored = elsewhere.apic(1);
    restored.bind().unwrap();
    restored.restore(&state).unwrap();
    assert_eq!(load(&mut restored, 0x380), 300_000);
    assert_eq!(restored.take(OPEN), Some(Event::Nmi));
    restored.end_of_interrupt();
    assert_eq!(restored.take(OPEN), Some(Event::Interrupt(0x40)));
    restored.end_of_interrupt();
    assert_eq!(*elsewhere.bus.0.lock().unwrap(), [0x40]);
    assert_eq!(halt(&mut restored), Event::Interrupt(0x31));
    let short = LapicState {
        registers: vec![0; 8],
        ..state
    };
    assert!(restored.restore(&short).is_err());
}

#[test]
fn an_index_is_taken_once() {
    let machine = Machine::new();
    let _apic = machine.apic(0);
    let again = |index| {
        let (router, bus) = (machine.router.clone(), machine.bus.clone());
        LocalApic::new(index, router, bus, machine.tsc.clone()).is_err()
    };
    assert!(again(0));
    assert!(again(MAX_VCPUS));
    assert!(!again(MAX_VCPUS - 1));
}

proptest! {
    #[test]
    fn hostile_accesses_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2400)) {
        crate::fuzzing::lapic(&bytes);
    }
}
