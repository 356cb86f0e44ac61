//! Tests of `pci`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};

use super::place;
use crate::{
    StateError,
    pci::PciFunction,
    virtio::{
        ActivateError, Activation, DeviceKind, Events, Handler, Host, Interrupt, QueueError,
        VirtQueue, VirtioDevice, Worker, fd, read_config_bytes,
        testing::{Driver, eventually},
    },
};

const FEATURE: u64 = 1 << 5;

/// A device that gives every request back with its own bytes.
struct Echo {
    worker: Worker<EchoHandler>,
    log: Arc<Mutex<Vec<String>>>,
    remembered: u8,
}

#[derive(Debug)]
struct EchoHandler {
    queues: Vec<VirtQueue>,
    interrupt: Arc<dyn Interrupt>,
}

impl Echo {
    fn new() -> (Self, Arc<Mutex<Vec<String>>>) {
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let it = Self {
            worker: Worker::spawn("echo", &Host::default()).unwrap(),
            log: Arc::clone(&log),
            remembered: 0,
        };
        (it, log)
    }
}

impl VirtioDevice for Echo {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }

    fn features(&self) -> u64 {
        FEATURE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 16]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&[1, 2, 3, 4, 5, self.remembered], offset, data);
    }

    fn write_config(&mut self, _offset: u64, data: &[u8]) {
        self.remembered = data[0];
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let text = format!("on {:#x} {}", activation.features, activation.queues.len());
        self.log.lock().unwrap().push(text);
        self.worker.start(EchoHandler {
            queues: activation.queues,
            interrupt: activation.interrupt,
        })
    }

    fn deactivate(&mut self) -> Vec<VirtQueue> {
        self.log.lock().unwrap().push("off".to_owned());
        self.worker.stop().map(|it| it.queues).unwrap_or_default()
    }

    fn reset(&mut self) {
        self.log.lock().unwrap().push("reset".to_owned());
        self.remembered = 0;
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        Ok(vec![self.remembered])
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.remembered = state[0];
        Ok(())
    }
}

impl EchoHandler {
    fn serve(&mut self) -> Result<(), QueueError> {
        for queue in &mut self.queues {
            queue.serve(|memory, chain| {
                let mut bytes = vec![0; chain.readable.bytes() as usize];
                chain.readable.read(memory, &mut bytes).unwrap();
                chain.writable.write(memory, &bytes).unwrap();
                Ok(Some(bytes.len() as u32))
            })?;
        }
        Ok(())
    }
}

impl Handler for EchoHandler {
    fn start(&mut self, events: &mut Events) -> Result<(), QueueError> {
        for queue in &self.queues {
            let flags = rustix::event::epoll::EventFlags::IN;
            events
                .watch(fd(queue.kick()), queue.index().into(), flags)
                .unwrap();
        }
        self.serve()
    }

    fn ready(
        &mut self,
        _: u64,
        _: rustix::event::epoll::EventFlags,
        _: &mut Events,
    ) -> Result<(), QueueError> {
        self.serve()
    }

    fn interrupt(&self) -> &dyn Interrupt {
        &*self.interrupt
    }
}

fn driver() -> (Driver, Arc<Mutex<Vec<String>>>) {
    let (echo, log) = Echo::new();
    (Driver::new(Box::new(echo)), log)
}

fn echo(driver: &mut Driver, text: &[u8]) {
    let answer = driver.request(0, &[text], &[text.len() as u32]);
    assert_eq!(
        (answer.written as usize, &answer.data[..]),
        (text.len(), text)
    );
}

#[test]
fn a_driver_finds_the_device_as_the_specification_says() {
    let (driver, _) = driver();
    let word = |at: u16| {
        let mut word = [0; 2];
        driver.function.config_read(at, &mut word);
        u16::from_le_bytes(word)
    };
    assert_eq!((word(0), word(2)), (0x1af4, 0x1044));
    let mut regions = Vec::new();
    let mut at = word(0x34) & 0xff;
    while at != 0 {
        let mut raw = [0; 20];
        for (index, part) in raw.chunks_mut(4).enumerate() {
            driver.function.config_read(at + index as u16 * 4, part);
        }
        let dword = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().unwrap());
        if raw[0] == 9 {
            assert_eq!(raw[4], 0, "BAR");
            regions.push((raw[3], u64::from(dword(8)), u64::from(dword(12))));
            if raw[3] == 2 {
                assert_eq!((raw[2], dword(16)), (20, 4), "step of the doorbells");
            }
        }
        at = raw[1].into();
    }
    let expected = [
        (1, place::COMMON, place::COMMON_BYTES),
        (3, place::ISR, place::ISR_BYTES),
        (4, place::DEVICE, place::DEVICE_BYTES),
        (2, place::NOTIFY, place::NOTIFY_BYTES),
        (5, 0, 0),
    ];
    assert_eq!(regions, expected);
    assert_eq!(driver.read(0x12, 2), 2, "queues");
    driver.write(0x16, 2, 1);
    assert_eq!((driver.read(0x18, 2), driver.read(0x1e, 2)), (16, 1));
    driver.write(0x16, 2, 2);
    assert_eq!(driver.read(0x18, 2), 0, "no such queue");
}

#[test]
fn only_offered_features_are_agreed_on_and_only_once() {
    let (driver, _) = driver();
    assert_eq!(driver.offered(), FEATURE | 1 << 28 | 1 << 29 | 1 << 32);
    assert!(driver.negotiate(FEATURE | 1 << 29));
    // Agreed is agreed.
    driver.write(8, 4, 0);
    driver.write(0xc, 4, 0);
    assert_eq!(driver.read(0xc, 4), FEATURE | 1 << 29);
    assert!(!driver.negotiate(1 << 6), "not offered");
    assert!(!driver.negotiate(1 << 63), "not offered");
    driver.write(0x14, 1, 0);
    driver.write(0x14, 1, 3);
    for half in 0..2 {
        driver.write(8, 4, half);
        driver.write(0xc, 4, 0);
    }
    driver.write(0x14, 1, 11);
    assert_eq!(driver.status(), 3, "a legacy driver is not one of ours");
    driver.write(0x14, 1, 15);
    assert_eq!(driver.status(), 3, "nobody is ready without features");
}

#[test]
fn status_leads_from_reset_over_work_to_reset() {
    let (mut driver, log) = driver();
    driver.start_with(FEATURE, 64);
    echo(&mut driver, b"hello");
    driver.expect_interrupt(1);
    assert_eq!(driver.read(place::ISR, 1), 1);
    assert_eq!(driver.read(place::ISR, 1), 0, "reading clears it");
    // Neither taking bits back nor setting the device's own does anything.
    driver.write(0x14, 1, 1 | 64);
    assert_eq!(driver.status(), 15);
    // The queue in use cannot be moved.
    driver.write(0x16, 2, 0);
    driver.write(0x20, 8, 0x5_0000);
    assert_eq!(driver.read(0x20, 8), Driver::rings(0).0);
    echo(&mut driver, b"again");
    driver.write(0x14, 1, 0);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.read(0x1c, 2), 0);
    driver.start_with(0, 4);
    echo(&mut driver, b"anew");
    let log = log.lock().unwrap();
    let on = |features: u64| format!("on {features:#x} 2");
    let expected = [
        "reset",
        &on(FEATURE | 1 << 32),
        "off",
        "reset",
        "reset",
        &on(1 << 32),
    ];
    assert_eq!(*log, expected);
}

#[test]
fn queues_that_lie_nowhere_are_refused_when_the_driver_is_ready() {
    for (register, value) in [
        (0x20, 1 << 40),
        (0x28, u64::MAX),
        (0x30, 7),
        (0x20, 0x1_0008),
    ] {
        let (driver, log) = driver();
        assert!(driver.negotiate(0));
        for (at, value) in [
            (0x20, 0x1_0000),
            (0x28, 0x1_4000),
            (0x30, 0x1_8000),
            (register, value),
        ] {
            driver.write(at, 8, value);
        }
        driver.write(0x1c, 2, 1);
        driver.write(0x14, 1, 15);
        driver.expect_needs_reset();
        assert_eq!(
            *log.lock().unwrap(),
            ["reset"],
            "{register:#x} at {value:#x}"
        );
        assert_eq!(driver.events.lock().unwrap().len(), 1);
    }
}

#[test]
fn event_indexes_say_when_to_interrupt_and_the_flag_where_there_are_none() {
    let (mut driver, _) = driver();
    let vector = |driver: &Driver| {
        driver
            .interrupts
            .messages()
            .iter()
            .filter(|it| it.1 == 1)
            .count()
    };
    driver.start_with(1 << 29, 16);
    let (_, available, _) = Driver::rings(0);
    let set_event = |driver: &Driver, event: u16| {
        use vm_memory::Bytes;
        let at = vm_memory::GuestAddress(available + 4 + 16 * 2);
        driver.memory().write_obj(event, at).unwrap();
    };
    // Told once three are done, not before.
    set_event(&driver, 2);
    for _ in 0..2 {
        echo(&mut driver, b"quiet");
    }
    driver.function.pause();
    assert_eq!(vector(&driver), 0);
    driver.function.resume();
    echo(&mut driver, b"loud");
    driver.expect_interrupt(1);
    echo(&mut driver, b"quiet again");
    driver.function.pause();
    assert_eq!(vector(&driver), 0);

    driver.start_with(0, 16);
    {
        use vm_memory::Bytes;
        driver
            .memory()
            .write_obj(1u16, vm_memory::GuestAddress(available))
            .unwrap();
    }
    echo(&mut driver, b"suppressed");
    driver.function.pause();
    assert_eq!(vector(&driver), 0);
}

#[test]
fn indirect_tables_are_followed_and_nested_or_endless_ones_are_not() {
    use vm_memory::{Bytes, GuestAddress};

    const TABLE: u64 = 0x10_0000;
    for (nested, fits) in [(false, true), (true, false)] {
        let (mut driver, _) = driver();
        driver.start_with(1 << 28, 16);
        driver
            .memory()
            .write_slice(b"indirect", GuestAddress(0x20_0000))
            .unwrap();
        driver.write_descriptor(TABLE, 0, 0x20_0000, 8, 1, 1);
        driver.write_descriptor(TABLE, 1, 0x20_1000, 8, if nested { 4 } else { 2 }, 0);
        driver.write_descriptor(Driver::rings(0).0, 0, TABLE, 32, 4, 0);
        driver.publish(0, 0);
        driver.kick(0);
        if fits {
            assert_eq!(driver.answer(0).written, 8);
            let mut text = [0; 8];
            driver
                .memory()
                .read_slice(&mut text, GuestAddress(0x20_1000))
                .unwrap();
            assert_eq!(&text, b"indirect");
        } else {
            driver.expect_needs_reset();
        }
    }
    // Bytes, flags, next of a second descriptor after a good first one.
    let bad = [(16, 1, 1), (16, 1, 999), (u32::MAX, 2, 0), (16, 3, 0)];
    for (bytes, flags, next) in bad {
        let (mut driver, _) = driver();
        driver.start_with(1 << 28, 16);
        let table = Driver::rings(0).0;
        driver.write_descriptor(table, 0, TABLE, 16, 1, 1);
        driver.write_descriptor(table, 1, TABLE, bytes, flags, next);
        driver.publish(0, 0);
        driver.kick(0);
        driver.expect_needs_reset();
        assert!(driver.try_answer(0).is_none());
    }
    // More available than the queue has entries.
    let (mut driver, _) = driver();
    driver.start_with(0, 16);
    driver
        .memory()
        .write_obj(17u16, GuestAddress(Driver::rings(0).1 + 2))
        .unwrap();
    driver.kick(0);
    driver.expect_needs_reset();
    driver.start_with(0, 16);
    echo(&mut driver, b"well again");
}

#[test]
fn the_bar_is_reached_through_configuration_space() {
    let (driver, _) = driver();
    let mut at = [0];
    driver.function.config_read(0x34, &mut at);
    let access = loop {
        let mut header = [0; 4];
        driver.function.config_read(at[0].into(), &mut header);
        if header[0] == 9 && header[3] == 5 {
            break u16::from(at[0]);
        }
        at[0] = header[1];
    };
    let go = |bar: u8, offset: u32, bytes: u32| {
        driver.function.config_write(access + 4, &[bar]);
        driver
            .function
            .config_write(access + 8, &offset.to_le_bytes());
        driver
            .function
            .config_write(access + 12, &bytes.to_le_bytes());
    };
    let read = || {
        let mut data = [0; 4];
        driver.function.config_read(access + 16, &mut data);
        u32::from_le_bytes(data)
    };
    go(0, 0x2001, 2);
    assert_eq!(read(), 0x0302);
    go(0, 0x14, 1);
    driver.function.config_write(access + 16, &[3]);
    assert_eq!(driver.status(), 3);
    assert_eq!(read(), 3);
    go(0, 0x2000, 3);
    driver.function.config_write(access + 16, &[9; 4]);
    go(1, 0x2000, 1);
    driver.function.config_write(access + 16, &[9; 4]);
    go(0, u32::MAX, 4);
    driver.function.config_write(access + 16, &[9; 4]);
    assert_eq!(driver.read(0x2005, 1), 0, "none of these is an access");
}

#[test]
fn everything_the_driver_sees_survives_save_and_restore() {
    let (mut driver, _) = driver();
    driver.start_with(FEATURE | 1 << 29, 16);
    driver.write(0x2000, 1, 77);
    echo(&mut driver, b"first");
    driver.function.pause();
    let before: Vec<u64> = (0..0x38).step_by(4).map(|it| driver.read(it, 4)).collect();
    let table: Vec<u64> = (0..48)
        .step_by(4)
        .map(|it| driver.read(place::MSIX_TABLE + it, 4))
        .collect();
    let saved = driver.function.save().unwrap();

    let (device, log) = Echo::new();
    let second = Driver::over(Box::new(device), driver.ram.clone());
    second.function.restore(&saved).unwrap();
    let after: Vec<u64> = (0..0x38).step_by(4).map(|it| second.read(it, 4)).collect();
    assert_eq!(before, after);
    let restored: Vec<u64> = (0..48)
        .step_by(4)
        .map(|it| second.read(place::MSIX_TABLE + it, 4))
        .collect();
    assert_eq!(table, restored);
    assert_eq!(second.read(0x2005, 1), 77);
    assert_eq!(
        log.lock().unwrap().last().unwrap(),
        "reset",
        "it holds still"
    );
    second.function.resume();
    driver.function = Arc::clone(&second.function);
    echo(&mut driver, b"second");
    assert_eq!(second.function.save().unwrap().len(), saved.len());

    let mut other: serde_json::Value = serde_json::from_slice(&saved).unwrap();
    other["device_number"] = 1.into();
    let other = serde_json::to_vec(&other).unwrap();
    assert!(second.function.restore(&other).is_err());
    assert!(second.function.restore(b"nonsense").is_err());
}

#[test]
fn a_worker_that_dies_is_noticed_and_the_device_can_be_reset() {
    #[derive(Debug)]
    struct Fragile(Arc<dyn Interrupt>);
    impl Handler for Fragile {
        fn start(&mut self, _: &mut Events) -> Result<(), QueueError> {
            panic!("on purpose");
        }
        fn ready(
            &mut self,
            _: u64,
            _: rustix::event::epoll::EventFlags,
            _: &mut Events,
        ) -> Result<(), QueueError> {
            Ok(())
        }
        fn interrupt(&self) -> &dyn Interrupt {
            &*self.0
        }
    }
    #[derive(Debug)]
    struct Deaf;
    impl Interrupt for Deaf {
        fn queue_used(&self, _: u16) {}
        fn config_changed(&self) {}
        fn needs_reset(&self, _: &QueueError) {}
    }
    let (host, events) = crate::virtio::testing::host();
    let mut worker = Worker::spawn("fragile", &host).unwrap();
    worker.start(Fragile(Arc::new(Deaf))).unwrap();
    assert!(worker.stop().is_none());
    assert_eq!(events.lock().unwrap().len(), 1);
    eventually("no more work is taken", || {
        worker.start(Fragile(Arc::new(Deaf))).is_err()
    });
}
