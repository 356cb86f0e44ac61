//! A driver for tests: finds a device through its PCI function, sets up queues in guest memory, and
//! talks to it as a guest would.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use memory::{GuestMemory, Ram};
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};

use super::{
    DeviceEvent, Host, VirtioDevice,
    pci::{VirtioPci, place},
};
use crate::{pci::PciFunction, testing::Recorder};

const RAM_BYTES: u64 = 64 << 20;
/// Rings of queue `n` begin at `(n + 1) * RINGS`.
const RINGS: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
/// Buffers of requests begin here.
const BUFFERS: u64 = 16 << 20;
/// No answer in this time is no answer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What the device did to a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// First descriptor.
    pub head: u16,
    /// How many bytes it says it wrote.
    pub written: u32,
    /// What is in the writable buffers, one after another.
    pub data: Vec<u8>,
}

#[derive(Default)]
struct Ring {
    /// Descriptors in use, the rest of the table is free.
    next_descriptor: u16,
    added: u16,
    /// How many were added when the doorbell was last thought of.
    kicked: u16,
    seen: u16,
    /// Writable buffers by head.
    writable: Vec<(u16, Vec<(u64, u32)>)>,
}

/// The driver.
pub struct Driver {
    pub ram: Ram,
    pub function: Arc<VirtioPci>,
    pub interrupts: Arc<Recorder>,
    pub events: Arc<Mutex<Vec<DeviceEvent>>>,
    rings: Vec<Ring>,
    queue_size: u16,
    event_idx: bool,
    /// Asks for an interrupt after each answer, where event indexes were agreed on.
    ask_each: bool,
    next_buffer: u64,
}

/// A host for devices whose events go to the list.
pub fn host() -> (Host, Arc<Mutex<Vec<DeviceEvent>>>) {
    let events: Arc<Mutex<Vec<DeviceEvent>>> = Arc::default();
    let sink = Arc::clone(&events);
    let host = Host {
        event: Arc::new(move |event| sink.lock().unwrap().push(event)),
        ..Host::default()
    };
    (host, events)
}

/// Waits until something is true.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

impl Driver {
    /// A driver that found the device and did nothing yet.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::over(device, Ram::new(RAM_BYTES).unwrap())
    }

    /// The same with given memory.
    pub fn over(device: Box<dyn VirtioDevice>, ram: Ram) -> Self {
        let interrupts = Arc::new(Recorder::default());
        let (host, events) = host();
        let queues = device.queue_sizes().len();
        let memory = ram.guest_memory().clone();
        let function =
            VirtioPci::new("device", device, memory, Arc::clone(&interrupts) as _, host).unwrap();
        // Memory decoding and bus mastering on, MSI-X enabled with every vector its own message.
        function.config_write(4, &6u16.to_le_bytes());
        let mut it = Self {
            ram,
            function: Arc::new(function),
            interrupts,
            events,
            rings: std::iter::repeat_with(Ring::default).take(queues).collect(),
            queue_size: 0,
            event_idx: false,
            ask_each: false,
            next_buffer: BUFFERS,
        };
        it.enable_msix();
        it
    }

    fn enable_msix(&mut self) {
        let mut at = [0];
        self.function.config_read(0x34, &mut at);
        loop {
            let mut header = [0; 4];
            self.function.config_read(at[0].into(), &mut header);
            if header[0] == 0x11 {
                break;
            }
            at[0] = header[1];
            assert_ne!(at[0], 0, "a capability for MSI-X");
        }
        self.function
            .config_write(u16::from(at[0]) + 2, &0x8000u16.to_le_bytes());
        for vector in 0..=self.rings.len() as u64 {
            let entry = place::MSIX_TABLE + vector * 16;
            self.function
                .bar_write(0, entry, &0xfee0_0000u32.to_le_bytes());
            self.function
                .bar_write(0, entry + 8, &(vector as u32).to_le_bytes());
            self.function.bar_write(0, entry + 12, &0u32.to_le_bytes());
        }
    }

    pub fn read(&self, offset: u64, bytes: usize) -> u64 {
        let mut data = [0; 8];
        self.function.bar_read(0, offset, &mut data[..bytes]);
        u64::from_le_bytes(data)
    }

    pub fn write(&self, offset: u64, bytes: usize, value: u64) {
        self.function
            .bar_write(0, offset, &value.to_le_bytes()[..bytes]);
    }

    pub fn status(&self) -> u8 {
        self.read(0x14, 1) as u8
    }

    pub fn memory(&self) -> &GuestMemory {
        self.ram.guest_memory()
    }

    /// Feature bits on offer.
    pub fn offered(&self) -> u64 {
        self.write(0, 4, 0);
        let low = self.read(4, 4);
        self.write(0, 4, 1);
        low | self.read(4, 4) << 32
    }

    /// Negotiates `features` beside `VERSION_1`; returns whether the device agrees.
    pub fn negotiate(&self, features: u64) -> bool {
        let features = features | 1 << 32;
        self.write(0x14, 1, 0);
        self.write(0x14, 1, 1 | 2);
        for half in 0..2 {
            self.write(8, 4, half);
            self.write(0xc, 4, features >> (32 * half) & 0xffff_ffff);
        }
        self.write(0x14, 1, 1 | 2 | 8);
        self.status() & 8 != 0
    }

    /// Sets up all queues with `size` entries (or what the device allows) and is ready.
    pub fn start_with(&mut self, features: u64, size: u16) {
        assert!(
            self.negotiate(features),
            "features {features:#x} are accepted"
        );
        self.event_idx = features & 1 << 29 != 0;
        // One size for all queues, which the smallest of them takes.
        self.queue_size = size;
        for queue in 0..self.rings.len() as u64 {
            self.write(0x16, 2, queue);
            self.queue_size = self.queue_size.min(self.read(0x18, 2) as u16);
        }
        self.write(0x10, 2, 0);
        for queue in 0..self.rings.len() {
            self.rings[queue] = Ring::default();
            let rings = (queue as u64 + 1) * RINGS;
            self.memory()
                .write_slice(&[0; RINGS as usize], GuestAddress(rings))
                .unwrap();
            self.write(0x16, 2, queue as u64);
            self.write(0x18, 2, self.queue_size.into());
            self.write(0x1a, 2, queue as u64 + 1);
            self.write(0x20, 8, rings);
            self.write(0x28, 8, rings + AVAILABLE);
            self.write(0x30, 8, rings + USED);
            self.write(0x1c, 2, 1);
        }
        self.write(0x14, 1, 1 | 2 | 8 | 4);
        assert_eq!(self.status(), 1 | 2 | 4 | 8);
    }

    /// Ready with everything the device offers.
    pub fn start(&mut self) {
        self.start_with(self.offered() & (0xff_ffff | 1 << 28 | 1 << 29), 64);
        self.ask_each = true;
    }

    fn allocate(&mut self, bytes: u32) -> u64 {
        let end = self.ram.bytes();
        if self.next_buffer + u64::from(bytes) > end {
            self.next_buffer = BUFFERS;
        }
        let at = self.next_buffer;
        self.next_buffer += u64::from(bytes).next_multiple_of(16);
        at
    }

    /// Where the rings of a queue are: descriptors, available, used.
    pub fn rings(queue: u16) -> (u64, u64, u64) {
        let rings = (u64::from(queue) + 1) * RINGS;
        (rings, rings + AVAILABLE, rings + USED)
    }

    pub fn write_descriptor(
        &self,
        table: u64,
        index: u16,
        address: u64,
        bytes: u32,
        flags: u16,
        next: u16,
    ) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&bytes.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        let at = GuestAddress(table + u64::from(index) * 16);
        self.memory().write_slice(&raw, at).unwrap();
    }

    /// Puts a request into a queue without ringing; returns its head.
    pub fn add(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let (table, ..) = Self::rings(queue);
        let mut buffers = Vec::new();
        for part in readable {
            let at = self.allocate(part.len() as u32);
            self.memory().write_slice(part, GuestAddress(at)).unwrap();
            buffers.push((at, part.len() as u32, 0));
        }
        for bytes in writable {
            let at = self.allocate(*bytes);
            self.memory()
                .write_slice(&vec![0xee; *bytes as usize], GuestAddress(at))
                .unwrap();
            buffers.push((at, *bytes, VRING_DESC_F_WRITE as u16));
        }
        let size = self.queue_size;
        let ring = &mut self.rings[usize::from(queue)];
        let head = ring.next_descriptor % size;
        let writes = buffers
            .iter()
            .filter(|it| it.2 != 0)
            .map(|it| (it.0, it.1))
            .collect();
        ring.writable.retain(|it| it.0 != head);
        ring.writable.push((head, writes));
        let first = ring.next_descriptor;
        ring.next_descriptor = ring.next_descriptor.wrapping_add(buffers.len() as u16);
        for (index, (at, bytes, flags)) in buffers.iter().enumerate() {
            let this = first.wrapping_add(index as u16) % size;
            let last = index + 1 == buffers.len();
            let next = if last { 0 } else { VRING_DESC_F_NEXT as u16 };
            let after = this.wrapping_add(1) % size;
            self.write_descriptor(table, this, *at, *bytes, flags | next, after);
        }
        self.publish(queue, head);
        head
    }

    /// Makes a chain that is in the table available, without ringing.
    pub fn publish(&mut self, queue: u16, head: u16) {
        let (_, available, _) = Self::rings(queue);
        let ring = &mut self.rings[usize::from(queue)];
        let slot = u64::from(ring.added % self.queue_size);
        ring.added = ring.added.wrapping_add(1);
        let added = ring.added;
        let memory = self.ram.guest_memory();
        memory
            .write_obj(head, GuestAddress(available + 4 + slot * 2))
            .unwrap();
        let order = std::sync::atomic::Ordering::Release;
        memory
            .store(added, GuestAddress(available + 2), order)
            .unwrap();
    }

    /// Rings the doorbell of a queue, if the device wants to hear of what was added since the last
    /// time (virtio 1.2, 2.7.13.4); always when nothing was.
    pub fn kick(&mut self, queue: u16) {
        use std::sync::atomic::{Ordering, fence};

        let (.., used) = Self::rings(queue);
        let ring = &mut self.rings[usize::from(queue)];
        let (old, new) = (std::mem::replace(&mut ring.kicked, ring.added), ring.added);
        fence(Ordering::SeqCst);
        let load = |at: u64| -> u16 {
            let memory = self.ram.guest_memory();
            memory.load(GuestAddress(at), Ordering::Relaxed).unwrap()
        };
        let wanted = if self.event_idx {
            let event = load(used + 4 + u64::from(self.queue_size) * 8);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            load(used) & 1 == 0
        };
        if wanted || old == new {
            let bell = place::NOTIFY + u64::from(queue) * place::NOTIFY_STEP;
            self.write(bell, 2, queue.into());
        }
    }

    /// The next answer of a queue if there is one.
    pub fn try_answer(&mut self, queue: u16) -> Option<Answer> {
        let (_, available, used) = Self::rings(queue);
        let memory = self.ram.guest_memory().clone();
        let ring = &mut self.rings[usize::from(queue)];
        let order = std::sync::atomic::Ordering::Acquire;
        let index: u16 = memory.load(GuestAddress(used + 2), order).unwrap();
        if index == ring.seen {
            return None;
        }
        let entry = used + 4 + u64::from(ring.seen % self.queue_size) * 8;
        ring.seen = ring.seen.wrapping_add(1);
        if self.ask_each {
            let event = GuestAddress(available + 4 + u64::from(self.queue_size) * 2);
            memory.write_obj(ring.seen, event).unwrap();
        }
        let head: u32 = memory.read_obj(GuestAddress(entry)).unwrap();
        let written = memory.read_obj(GuestAddress(entry + 4)).unwrap();
        let writable = ring.writable.iter().find(|it| u32::from(it.0) == head);
        let mut data = Vec::new();
        for (at, bytes) in writable.map(|it| it.1.clone()).unwrap_or_default() {
            let mut part = vec![0; bytes as usize];
            memory.read_slice(&mut part, GuestAddress(at)).unwrap();
            data.extend_from_slice(&part);
        }
        Some(Answer {
            head: head as u16,
            written,
            data,
        })
    }

    /// The next answer of a queue.
    pub fn answer(&mut self, queue: u16) -> Answer {
        let start = Instant::now();
        loop {
            if let Some(answer) = self.try_answer(queue) {
                return answer;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "no answer in queue {queue}, status {:#x}, {:?}",
                self.status(),
                self.events.lock().unwrap()
            );
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// One request and its answer.
    pub fn request(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> Answer {
        self.add(queue, readable, writable);
        self.kick(queue);
        self.answer(queue)
    }

    /// Waits until the device says that it needs a reset.
    pub fn expect_needs_reset(&self) {
        eventually("the device needs a reset", || self.status() & 64 != 0);
    }

    /// Waits for an interrupt of a vector (0: configuration, `n + 1`: queue `n`).
    pub fn expect_interrupt(&self, vector: u32) {
        eventually("an interrupt", || {
            self.interrupts.messages().iter().any(|it| it.1 == vector)
        });
    }
}
