//! What the fuzz targets and property tests call: drivers that write anything anywhere. Nothing here
//! may panic, hang, or reach beyond the device's own backend.

use std::{
    fmt,
    io::{self, Write},
    os::unix::net::{UnixDatagram, UnixStream},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use memory::{GuestMemory, Ram};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    Activation, Host, Interrupt, Limits, QueueError, SavedQueue, VirtQueue, VirtioDevice,
    balloon::Balloon,
    block::{Block, BlockOptions, FileDisk},
    console::Console,
    entropy::Entropy,
    fs::{Descriptors, Folder, FolderLimits, Fs, fuse},
    net::{Net, NetOptions, Port},
    pci::{VirtioPci, place},
    vsock::{Dial, Vsock, VsockOptions},
};
use crate::{Interrupts, pci::PciFunction};

const RAM_BYTES: u64 = 1 << 20;
const QUEUE_SIZE: u16 = 16;
/// Rings of queue `n` begin at `(n + 1) * RINGS`; all of them and the first buffers are near zero.
const RINGS: u64 = 0x1000;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;

/// Every device in turn, the first byte choosing, each with a backend that reaches nothing.
pub fn fuzz(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    if kind % KINDS == FS {
        fuse_requests(bytes);
    }
    for transport_too in [false, true] {
        let Ok((made, header)) = make(*kind) else {
            return;
        };
        if transport_too {
            transport(made, bytes);
        } else {
            device(made, u64::MAX, &header, bytes);
        }
    }
}

/// Nobody is there.
struct Nobody;

impl Dial for Nobody {
    fn dial(&self, port: u32) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        match port % 3 {
            0 => Err(io::ErrorKind::ConnectionRefused.into()),
            1 => Ok(ours),
            _ => {
                theirs.set_nonblocking(true)?;
                (&theirs).write_all(&[7; 1000])?;
                Ok(ours)
            }
        }
    }
}

/// How many devices there are.
const KINDS: u8 = 7;
/// Which of them is a folder.
const FS: u8 = 5;

/// A device, and what its requests begin with.
fn make(kind: u8) -> io::Result<(Box<dyn VirtioDevice>, Vec<u8>)> {
    let host = Host::default();
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    Ok(match kind % KINDS {
        0 => {
            let file = rustix::fs::memfd_create("fuzzed", flags)?;
            rustix::fs::ftruncate(&file, RAM_BYTES)?;
            let disk = Arc::new(FileDisk::new(file.into())?);
            let options = BlockOptions {
                queues: 2,
                ..BlockOptions::default()
            };
            (Box::new(Block::new(disk, &options, &host)?), vec![0; 16])
        }
        1 => {
            let (near, far) = UnixDatagram::pair()?;
            far.send(&[0; 3000])?;
            let options = NetOptions {
                label: "fuzzed".to_owned(),
                mac: [2; 6],
                mtu: None,
                receive_limits: Limits::default(),
                transmit_limits: Limits::default(),
            };
            let net = Net::new(vec![Port::packets(near.into())?], &options, &host)?;
            (Box::new(net), vec![4, 0, 1, 0])
        }
        2 => {
            let console = Console::new(Box::new(io::sink()), &host)?;
            let typed = console.control().input(b"typed");
            assert_eq!(typed, 5, "a new console has room");
            (Box::new(console), Vec::new())
        }
        3 => (Box::new(Entropy::new(&host)?), Vec::new()),
        4 => {
            let balloon = Balloon::new(&host)?;
            balloon.control().start_hinting();
            balloon.control().refresh_stats();
            (Box::new(balloon), vec![2, 0, 0, 0])
        }
        FS => (
            Box::new(Fs::new("fuzzed", empty_folder()?, &host)?),
            fuse_header(),
        ),
        _ => {
            let options = VsockOptions {
                guest_cid: 0,
                listener: None,
                dial: Box::new(Nobody),
            };
            let mut header = vec![0; 44];
            // To the host, a stream, a request.
            (header[8], header[28], header[30]) = (2, 1, 1);
            (Box::new(Vsock::new(options, &host)?), header)
        }
    })
}

/// A folder with nothing in it, to which nothing can be added.
fn empty_folder() -> io::Result<Folder> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let (process, made) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
    let place = std::env::temp_dir().join(format!("berth-fuzz-{process}-{made}"));
    std::fs::create_dir(&place)?;
    let root = std::fs::File::open(&place)?.into();
    // It lives on as long as it is open.
    std::fs::remove_dir(&place)?;
    Folder::new(root, Descriptors::open()?, true, &FolderLimits::default())
}

/// The header of a lookup in the root of a folder, and what follows of a greeting.
pub fn fuse_header() -> Vec<u8> {
    let mut header = vec![0; fuse::IN_HEADER];
    (header[0], header[4], header[16]) = (56, 26, 1);
    header.extend(
        [fuse::MAJOR, fuse::MINOR, 0, 0]
            .map(u32::to_le_bytes)
            .concat(),
    );
    header
}

/// Requests as a guest could write them, to a folder that greeted it.
pub fn fuse_requests(bytes: &[u8]) {
    let Ok(mut folder) = empty_folder() else {
        return;
    };
    let mut reply = fuse::Reply::default();
    let mut ask = |header: fuse::Header, arguments: &[u8]| {
        reply.clear();
        if let Ok(request) = fuse::Request::parse(header, arguments) {
            let _ = folder.call(&request, arguments.len() * 8, &mut reply);
        }
    };
    let mut header = fuse::Header {
        length: 0,
        opcode: 26,
        unique: 0,
        node: 1,
        uid: 0,
        gid: 0,
    };
    ask(
        header,
        &[fuse::MAJOR, fuse::MINOR, 0, 0]
            .map(u32::to_le_bytes)
            .concat(),
    );
    let mut rest = bytes;
    while let [opcode, node, length, more @ ..] = rest {
        (header.opcode, header.node) = (u32::from(*opcode % 54), u64::from(*node % 4));
        let (arguments, after) = more.split_at(usize::from(*length).min(more.len()));
        ask(header, arguments);
        rest = after;
    }
}

/// Counts what a device does to its driver.
#[derive(Debug, Default)]
struct Calls {
    resets: AtomicU32,
}

impl Interrupt for Calls {
    fn queue_used(&self, _queue: u16) {}

    fn config_changed(&self) {}

    fn needs_reset(&self, _why: &QueueError) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reads choices out of the fuzzer's bytes; zeroes when they are used up.
struct Choices<'a>(&'a [u8]);

impl fmt::Debug for Choices<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes left", self.0.len())
    }
}

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from(self.byte()) << 8 | u16::from(self.byte())
    }

    /// Mostly within RAM, sometimes anywhere.
    fn address(&mut self) -> u64 {
        let (kind, value) = (self.byte(), u64::from(self.word()));
        match kind {
            0 => u64::MAX - value,
            1 => RAM_BYTES - value % 64,
            _ => value << 2 & (RAM_BYTES - 1),
        }
    }

    /// Mostly short, sometimes huge.
    fn length(&mut self) -> u32 {
        let (kind, value) = (self.byte(), u32::from(self.byte()));
        match kind {
            0 => u32::MAX - value,
            1 => value << 12,
            2..100 => value,
            100..200 => 512 * (value % 4),
            _ => [1, 4, 12, 16, 44, 512][value as usize % 6],
        }
    }
}

/// Drives a device through rounds of changed memory. `header` fills the front of buffers of round
/// after round, so that requests get past their first checks; `features` are what the driver took.
pub fn device(mut device: Box<dyn VirtioDevice>, features: u64, header: &[u8], bytes: &[u8]) {
    let Ok(ram) = Ram::new(RAM_BYTES) else { return };
    let memory = ram.guest_memory();
    let queues = device.queue_sizes().len() as u16;
    let mut choices = Choices(bytes);
    let mut saved: Vec<_> = (0..queues).map(fresh).collect();
    let features = features & device.features() | 1 << 32;
    while !choices.0.is_empty() {
        for _ in 0..8 {
            change(memory, queues, header, &mut choices);
        }
        let config = u64::from(choices.byte());
        device.write_config(config, &choices.word().to_le_bytes());
        device.read_config(config, &mut [0; 8]);
        let calls = Arc::new(Calls::default());
        let Some(activation) = activation(memory, features, &saved, &calls) else {
            return;
        };
        if device.activate(activation).is_ok() {
            for queue in device.deactivate() {
                saved[usize::from(queue.index())] = queue.save();
            }
        }
        if calls.resets.load(Ordering::Relaxed) > 0 {
            device.reset();
            saved = (0..queues).map(fresh).collect();
            for index in 0..queues {
                let at = GuestAddress(rings(index) + AVAILABLE);
                let cleared = memory.write_slice(&[0; 4], at);
                assert!(cleared.is_ok(), "rings are in memory");
            }
        }
    }
}

fn rings(index: u16) -> u64 {
    (u64::from(index) + 1) * RINGS
}

fn fresh(index: u16) -> SavedQueue {
    SavedQueue {
        size: QUEUE_SIZE,
        ready: true,
        descriptors: rings(index),
        available: rings(index) + AVAILABLE,
        used: rings(index) + USED,
        next_available: 0,
        next_used: 0,
    }
}

fn activation(
    memory: &GuestMemory,
    features: u64,
    saved: &[SavedQueue],
    calls: &Arc<Calls>,
) -> Option<Activation> {
    let mut queues = Vec::new();
    for (index, saved) in saved.iter().enumerate() {
        let queue = VirtQueue::new(
            index as u16,
            QUEUE_SIZE,
            saved,
            false,
            memory.clone(),
            EventFd::new(EFD_NONBLOCK).ok()?,
            Arc::clone(calls) as _,
        );
        queues.push(queue.ok()?);
    }
    Some(Activation {
        memory: memory.clone(),
        features,
        queues,
        interrupt: Arc::clone(calls) as _,
    })
}

/// One change of what a driver could change; what lies outside memory is not changed.
fn change(memory: &GuestMemory, queues: u16, header: &[u8], choices: &mut Choices<'_>) {
    let rings = rings(u16::from(choices.byte()) % queues);
    match choices.byte() % 8 {
        0..3 => {
            let mut raw = [0; 16];
            let index = u64::from(choices.byte()) % u64::from(QUEUE_SIZE);
            raw[..8].copy_from_slice(&choices.address().to_le_bytes());
            raw[8..12].copy_from_slice(&choices.length().to_le_bytes());
            raw[12] = choices.byte() & 7;
            raw[14] = choices.byte() % (QUEUE_SIZE as u8 + 1);
            let _ = memory.write_slice(&raw, GuestAddress(rings + index * 16));
        }
        3..5 => {
            // A chain as a driver would build it, at the table's start: so many readable buffers
            // with the header in front, then writable ones.
            let (readable, writable) = (choices.byte() % 4, choices.byte() % 4);
            let total = readable + writable;
            for index in 0..total {
                let mut raw = [0; 16];
                let address = choices.address();
                raw[..8].copy_from_slice(&address.to_le_bytes());
                raw[8..12].copy_from_slice(&choices.length().to_le_bytes());
                raw[12] = u8::from(index + 1 < total) | u8::from(index >= readable) << 1;
                raw[14] = index + 1;
                let _ = memory.write_slice(&raw, GuestAddress(rings + u64::from(index) * 16));
                if index == 0 {
                    let _ = memory.write_slice(header, GuestAddress(address));
                    let _ = memory.write_slice(&[choices.byte()], GuestAddress(address));
                }
            }
            publish(memory, rings, 0, 1);
        }
        5 => publish(memory, rings, choices.byte().into(), 1),
        6 => publish(memory, rings, choices.byte().into(), choices.word() % 24),
        _ => {
            let address = choices.address();
            let word = choices.word().to_le_bytes();
            let _ = memory.write_slice(&word, GuestAddress(address));
        }
    }
}

/// Adds `count` entries to the available ring, all of them `head`.
fn publish(memory: &GuestMemory, rings: u64, head: u16, count: u16) {
    let available = rings + AVAILABLE;
    let index: u16 = memory.read_obj(GuestAddress(available + 2)).unwrap_or(0);
    for entry in 0..count {
        let slot = u64::from(index.wrapping_add(entry) % QUEUE_SIZE);
        let _ = memory.write_obj(head, GuestAddress(available + 4 + slot * 2));
    }
    let _ = memory.write_obj(index.wrapping_add(count), GuestAddress(available + 2));
}

struct Nowhere;

impl Interrupts for Nowhere {
    fn signal_msi(&self, _address: u64, _data: u32) {}
}

/// Accesses of any kind to the transport: configuration space and BAR.
pub fn transport(device: Box<dyn VirtioDevice>, bytes: &[u8]) {
    let Ok(ram) = Ram::new(RAM_BYTES) else { return };
    let memory = ram.guest_memory().clone();
    let function = VirtioPci::new("fuzzed", device, memory, Arc::new(Nowhere), Host::default());
    let Ok(function) = function else { return };
    let mut choices = Choices(bytes);
    while !choices.0.is_empty() {
        let (kind, at) = (choices.byte(), u64::from(choices.word()));
        let size = 1 << (kind & 3);
        let value = [
            choices.byte(),
            choices.byte(),
            choices.byte(),
            0,
            0,
            choices.byte(),
            0,
            0,
        ];
        // Most accesses go where most happens.
        let bar = match kind >> 5 {
            0..5 => at % place::COMMON_BYTES,
            5 => place::NOTIFY + at % 64,
            _ => at % place::BAR_BYTES,
        };
        let within = size.min(4 - usize::from(at as u16 % 4));
        match kind >> 2 & 7 {
            0 => function.config_read(at as u16 % 4096, &mut [0; 4][..within]),
            1 => function.config_write(at as u16 % 256, &value[..within]),
            2 => function.bar_read(0, bar, &mut [0; 8][..size]),
            3 => drop(function.save().map(|it| function.restore(&it))),
            4 => function.bar_write(0, 0x14, &value[..1]),
            _ => function.bar_write(0, bar, &value[..size]),
        }
    }
}
