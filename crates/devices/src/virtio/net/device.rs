//! The device, and the handle the host steers it with.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    Port,
    config::{self, CONTROL_SIZE, F_MULTI_QUEUE, PACKET_BYTES, QUEUE_SIZE},
    handler::NetHandler,
};
use crate::{
    StateError, state,
    virtio::{
        ActivateError, Activation, ConfigNotifier, DeviceKind, Host, Limits, RateLimiter,
        VirtQueue, VirtioDevice, Worker, read_config_bytes,
    },
};

/// The most pairs of queues a card can have.
const MOST_PAIRS: usize = 16;

/// How a network card is shown.
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// What people call it; worker threads are named after it.
    pub label: String,
    /// Its address.
    pub mac: [u8; 6],
    /// The largest packet the network behind it takes, where that is known.
    pub mtu: Option<u16>,
    /// Limits of what comes to the guest.
    pub receive_limits: Limits,
    /// Limits of what the guest sends.
    pub transmit_limits: Limits,
}

/// What a card did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetStats {
    /// Bytes given to the guest.
    pub received_bytes: u64,
    /// Packets given to the guest.
    pub received_packets: u64,
    /// Packets that did not fit into the guest's buffers.
    pub receive_drops: u64,
    /// Bytes sent by the guest.
    pub sent_bytes: u64,
    /// Packets sent by the guest.
    pub sent_packets: u64,
    /// Packets of the guest that could not be sent.
    pub send_drops: u64,
}

#[derive(Debug, Default)]
pub(super) struct Direction {
    bytes: AtomicU64,
    packets: AtomicU64,
    drops: AtomicU64,
}

impl Direction {
    pub(super) fn passed(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.packets.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn dropped(&self) {
        self.drops.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the workers of a card and its handle share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) ports: Vec<Port>,
    pub(super) receive_limiter: RateLimiter,
    pub(super) transmit_limiter: RateLimiter,
    pub(super) received: Direction,
    pub(super) sent: Direction,
    /// One a worker: look at the number of pairs again.
    pub(super) bells: Vec<EventFd>,
    /// Pairs of queues in use.
    pairs: AtomicU16,
    link: AtomicBool,
    notifier: ConfigNotifier,
}

/// A network card.
pub struct Net {
    shared: Arc<Shared>,
    mac: [u8; 6],
    mtu: Option<u16>,
    queue_sizes: Vec<u16>,
    workers: Vec<Worker<NetHandler>>,
}

/// How the host steers a card while it is in use.
#[derive(Debug, Clone)]
pub struct NetControl(Arc<Shared>);

/// What is saved of a card beside its queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Pairs of queues in use.
    pub pairs: u16,
    /// Whether a cable is plugged in.
    pub link: bool,
}

impl Net {
    /// A card with a pair of queues for each port, 1 to 16 of the same tap. Its threads are started
    /// here.
    ///
    /// # Errors
    /// When there is no port, or the host gives no thread.
    pub fn new(ports: Vec<Port>, options: &NetOptions, host: &Host) -> io::Result<Self> {
        if !(1..=MOST_PAIRS).contains(&ports.len()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let pairs = ports.len();
        let workers = (0..pairs)
            .map(|index| Worker::spawn(&format!("{}-{index}", options.label), host))
            .collect::<io::Result<_>>()?;
        let bells = (0..pairs).map(|_| EventFd::new(EFD_NONBLOCK));
        let mut queue_sizes = vec![QUEUE_SIZE; pairs * 2];
        queue_sizes.push(CONTROL_SIZE);
        Ok(Self {
            shared: Arc::new(Shared {
                bells: bells.collect::<io::Result<_>>()?,
                ports,
                receive_limiter: RateLimiter::new(options.receive_limits),
                transmit_limiter: RateLimiter::new(options.transmit_limits),
                received: Direction::default(),
                sent: Direction::default(),
                pairs: AtomicU16::new(1),
                link: AtomicBool::new(true),
                notifier: ConfigNotifier::default(),
            }),
            mac: options.mac,
            mtu: options.mtu,
            queue_sizes,
            workers,
        })
    }

    /// The handle to steer it with.
    #[must_use]
    pub fn control(&self) -> NetControl {
        NetControl(Arc::clone(&self.shared))
    }

    fn most_pairs(&self) -> u16 {
        self.shared.ports.len() as u16
    }
}

impl Shared {
    /// Whether a pair is in use.
    pub(super) fn uses(&self, pair: usize) -> bool {
        pair < usize::from(self.pairs.load(Ordering::Acquire))
    }

    /// Whether the cable is plugged in.
    pub(super) fn link(&self) -> bool {
        self.link.load(Ordering::Acquire)
    }

    /// Uses so many pairs from now on. `false`: there are not so many.
    pub(super) fn set_pairs(&self, pairs: u16) -> bool {
        if pairs == 0 || usize::from(pairs) > self.ports.len() {
            return false;
        }
        if self.ports.len() > 1 {
            for (index, port) in self.ports.iter().enumerate() {
                if port.attach(index < usize::from(pairs)).is_err() {
                    return false;
                }
            }
        }
        self.pairs.store(pairs, Ordering::Release);
        self.ring();
        true
    }

    fn ring(&self) {
        for bell in &self.bells {
            // Fails only when the counter is full: then it rings already.
            let _ = bell.write(1);
        }
    }
}

impl NetControl {
    /// The rate limits of what comes to the guest, and of what it sends.
    #[must_use]
    pub fn limits(&self) -> (Limits, Limits) {
        let shared = &self.0;
        let (receive, transmit) = (&shared.receive_limiter, &shared.transmit_limiter);
        (receive.limits(), transmit.limits())
    }

    /// Changes the rate limits.
    pub fn set_limits(&self, receive: Limits, transmit: Limits) {
        self.0.receive_limiter.set(receive);
        self.0.transmit_limiter.set(transmit);
    }

    /// Plugs the cable in or out.
    pub fn set_link(&self, up: bool) {
        self.0.link.store(up, Ordering::Release);
        self.0.ring();
        self.0.notifier.config_changed();
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> NetStats {
        let load = |it: &AtomicU64| it.load(Ordering::Relaxed);
        let (received, sent) = (&self.0.received, &self.0.sent);
        NetStats {
            received_bytes: load(&received.bytes),
            received_packets: load(&received.packets),
            receive_drops: load(&received.drops),
            sent_bytes: load(&sent.bytes),
            sent_packets: load(&sent.packets),
            send_drops: load(&sent.drops),
        }
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        let offloads = self.shared.ports.iter().all(Port::offloads);
        config::features(offloads, self.most_pairs(), self.mtu)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = config::space(self.mac, self.shared.link(), self.most_pairs(), self.mtu);
        read_config_bytes(&space, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let failed = |what| move |source| ActivateError::Host { what, source };
        // They are the whole tap's, and its first queue is never detached.
        let told = self.shared.ports[0].set_offloads(activation.features);
        told.map_err(failed("set the offloads of the tap device"))?;
        if !self
            .shared
            .set_pairs(self.shared.pairs.load(Ordering::Acquire))
        {
            return Err(failed("attach the queues of the tap device")(
                io::ErrorKind::Other.into(),
            ));
        }
        self.shared
            .notifier
            .set(Some(Arc::clone(&activation.interrupt)));
        // Without multi-queue there is one pair, and the control queue follows it (5.1.2).
        let pairs = if activation.features & F_MULTI_QUEUE != 0 {
            self.workers.len()
        } else {
            1
        };
        let mut control = activation.take(pairs as u16 * 2);
        for (pair, worker) in self.workers.iter_mut().enumerate().take(pairs) {
            worker.start(NetHandler {
                pair,
                receive: activation.take(pair as u16 * 2),
                transmit: activation.take(pair as u16 * 2 + 1),
                control: control.take(),
                features: activation.features,
                shared: Arc::clone(&self.shared),
                packet: vec![0; PACKET_BYTES],
                held: None,
                watching: false,
                interrupt: Arc::clone(&activation.interrupt),
            })?;
        }
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<VirtQueue> {
        self.shared.notifier.set(None);
        let handlers = self.workers.iter_mut().filter_map(Worker::stop);
        handlers
            .flat_map(|it| [it.receive, it.transmit, it.control])
            .flatten()
            .collect()
    }

    fn reset(&mut self) {
        self.shared.pairs.store(1, Ordering::Release);
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        let saved = NetState {
            pairs: self.shared.pairs.load(Ordering::Acquire),
            link: self.shared.link(),
        };
        state::encode("virtio-net", &saved)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let saved: NetState = state::decode("virtio-net", bytes)?;
        if saved.pairs == 0 || saved.pairs > self.most_pairs() {
            return Err(StateError::Mismatch {
                device: "virtio-net",
                reason: format!("{} pairs of queues in use", saved.pairs),
            });
        }
        self.shared.pairs.store(saved.pairs, Ordering::Release);
        self.shared.link.store(saved.link, Ordering::Release);
        Ok(())
    }
}
