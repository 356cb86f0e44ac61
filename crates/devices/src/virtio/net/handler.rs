//! Carries packets between one port and one pair of queues.

use std::{io, sync::Arc, time::Instant};

use rustix::event::epoll::EventFlags;

use super::{
    config::{F_MERGE_BUFFERS, HEADER_BUFFERS, HEADER_BYTES, PACKET_BYTES},
    control,
    device::Shared,
    port::Received,
};
use crate::virtio::{Chain, Events, Handler, Interrupt, MAX_VECTORS, QueueError, VirtQueue, fd};

const KICK_RECEIVE: u64 = 0;
const KICK_TRANSMIT: u64 = 1;
const KICK_CONTROL: u64 = 2;
const PORT: u64 = 3;
const BELL: u64 = 4;

/// Packets to the guest before something else has its turn.
const BATCH: usize = 64;
/// The least a packet of the guest can be: its header and an Ethernet header.
const LEAST_BYTES: u64 = HEADER_BYTES as u64 + 14;

#[derive(Debug)]
pub(super) struct NetHandler {
    pub(super) pair: usize,
    pub(super) receive: Option<VirtQueue>,
    pub(super) transmit: Option<VirtQueue>,
    /// With the first pair.
    pub(super) control: Option<VirtQueue>,
    pub(super) features: u64,
    pub(super) shared: Arc<Shared>,
    /// The packet on its way to the guest, header included.
    pub(super) packet: Vec<u8>,
    /// Its length when the guest had no buffers for it yet.
    pub(super) held: Option<usize>,
    /// The port is watched for packets.
    pub(super) watching: bool,
    pub(super) interrupt: Arc<dyn Interrupt>,
}

/// What became of a packet for the guest.
enum Delivery {
    Done,
    /// It never fits into what this guest gives.
    Dropped,
    /// There are no buffers now.
    Starved,
}

impl NetHandler {
    /// Packets to the guest.
    fn receive(&mut self, events: &mut Events) -> Result<(), QueueError> {
        let Some(mut queue) = self.receive.take() else {
            return Ok(());
        };
        queue.clear_kick();
        let more = self.receive_into(&mut queue, events);
        let told = queue.notify();
        let index = queue.index();
        self.receive = Some(queue);
        let more = more?;
        told?;
        self.watch_port(more, events)
            .map_err(|source| QueueError::Host {
                queue: index,
                what: "watch the tap device",
                source,
            })
    }

    /// Gives packets to the guest; the result is whether to wait for more of them.
    fn receive_into(
        &mut self,
        queue: &mut VirtQueue,
        events: &mut Events,
    ) -> Result<bool, QueueError> {
        let shared = Arc::clone(&self.shared);
        if !shared.uses(self.pair) || !shared.link() {
            return Ok(false);
        }
        queue.want_kicks(false)?;
        for _ in 0..BATCH {
            if let Some(wait) = shared.receive_limiter.admit(Instant::now()) {
                events.wake_after(wait);
                return Ok(false);
            }
            let bytes = match self.held.take() {
                Some(bytes) => bytes,
                None => match shared.ports[self.pair].receive(&mut self.packet, self.features) {
                    Ok(Received::Packet(bytes)) => bytes,
                    Ok(Received::Unfit) => {
                        shared.received.dropped();
                        continue;
                    }
                    Ok(Received::Nothing) => return Ok(false),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Ok(error.kind() == io::ErrorKind::WouldBlock),
                },
            };
            match self.deliver(queue, bytes)? {
                Delivery::Done => {
                    shared.receive_limiter.charge(bytes as u64);
                    shared.received.passed((bytes - HEADER_BYTES) as u64);
                }
                Delivery::Dropped => shared.received.dropped(),
                Delivery::Starved => {
                    self.held = Some(bytes);
                    if !queue.want_kicks(true)? {
                        return Ok(false);
                    }
                    queue.want_kicks(false)?;
                }
            }
        }
        if self.held.is_some() {
            queue.kick_again();
        }
        Ok(self.held.is_none())
    }

    /// Puts the packet into as many of the guest's buffers as it takes.
    fn deliver(&mut self, queue: &mut VirtQueue, bytes: usize) -> Result<Delivery, QueueError> {
        let most = if self.features & F_MERGE_BUFFERS != 0 {
            queue.size()
        } else {
            1
        };
        let mut chains: Vec<Chain> = Vec::new();
        let mut room = 0;
        while room < bytes as u64 {
            let chain = if chains.len() < usize::from(most) {
                queue.pop()?
            } else {
                None
            };
            match chain {
                Some(chain) if chain.writable.bytes() < HEADER_BYTES as u64 => {
                    return Err(queue.no_room("packet"));
                }
                Some(chain) => {
                    room += chain.writable.bytes();
                    chains.push(chain);
                }
                None => {
                    chains.iter().for_each(|_| queue.unpop());
                    let never = chains.len() == usize::from(most);
                    return Ok(if never {
                        Delivery::Dropped
                    } else {
                        Delivery::Starved
                    });
                }
            }
        }
        let count = (chains.len() as u16).to_le_bytes();
        self.packet[HEADER_BUFFERS..HEADER_BYTES].copy_from_slice(&count);
        let memory = queue.memory().clone();
        let mut rest = &self.packet[..bytes];
        let mut answers = Vec::with_capacity(chains.len());
        for mut chain in chains {
            let part = chain.writable.bytes().min(rest.len() as u64) as usize;
            let (now, later) = rest.split_at(part);
            let written = chain.writable.write(&memory, now);
            written.map_err(|_| queue.no_room("packet"))?;
            answers.push((chain.head, part as u32));
            rest = later;
        }
        queue.complete_together(&answers)?;
        Ok(Delivery::Done)
    }

    /// Watches the port for packets, or not, as the guest can take them.
    fn watch_port(&mut self, on: bool, events: &mut Events) -> io::Result<()> {
        let port = &self.shared.ports[self.pair];
        if on && !self.watching {
            events.watch(port, PORT, EventFlags::IN)?;
        } else if !on && self.watching {
            events.forget(port);
        }
        self.watching = on;
        Ok(())
    }

    /// Packets from the guest.
    fn transmit(&mut self, events: &mut Events) -> Result<(), QueueError> {
        let Some(queue) = &mut self.transmit else {
            return Ok(());
        };
        let (shared, mut wait) = (&self.shared, None);
        let port = &shared.ports[self.pair];
        queue.serve(|memory, chain| {
            wait = shared.transmit_limiter.admit(Instant::now());
            if wait.is_some() {
                return Ok(None);
            }
            let packet = &chain.readable;
            let bytes = packet.bytes();
            let fits = (LEAST_BYTES..=PACKET_BYTES as u64).contains(&bytes)
                && packet.list().len() <= MAX_VECTORS;
            // What the kernel does not take now is lost, as on any wire.
            if fits && shared.link() && port.send(memory, packet).is_ok() {
                shared.sent.passed(bytes - HEADER_BYTES as u64);
            } else {
                shared.sent.dropped();
            }
            shared.transmit_limiter.charge(bytes);
            Ok(Some(0))
        })?;
        if let Some(wait) = wait {
            events.wake_after(wait);
        }
        Ok(())
    }

    fn control(&mut self) -> Result<(), QueueError> {
        let Some(queue) = &mut self.control else {
            return Ok(());
        };
        let (index, shared) = (queue.index(), &self.shared);
        let served = queue.serve(|memory, chain| {
            control::command(shared, memory, chain)
                .map(Some)
                .map_err(|part| QueueError::Request { queue: index, part })
        });
        served.map(drop)
    }
}

impl Handler for NetHandler {
    fn start(&mut self, events: &mut Events) -> Result<(), QueueError> {
        let queues = [
            (&self.receive, KICK_RECEIVE),
            (&self.transmit, KICK_TRANSMIT),
            (&self.control, KICK_CONTROL),
        ];
        for (queue, token) in queues {
            if let Some(queue) = queue {
                let watched = events.watch(fd(queue.kick()), token, EventFlags::IN);
                watched.map_err(|source| queue.unwatched(source))?;
            }
        }
        let watched = events.watch(fd(&self.shared.bells[self.pair]), BELL, EventFlags::IN);
        watched.map_err(|source| QueueError::Host {
            queue: 0,
            what: "watch for changes",
            source,
        })?;
        self.control()?;
        self.transmit(events)?;
        self.receive(events)
    }

    fn ready(&mut self, token: u64, _: EventFlags, events: &mut Events) -> Result<(), QueueError> {
        match token {
            KICK_TRANSMIT => self.transmit(events),
            KICK_CONTROL => self.control(),
            BELL => {
                // Fails when nobody rang: nothing to forget.
                let _ = self.shared.bells[self.pair].read();
                self.receive(events)
            }
            _ => self.receive(events),
        }
    }

    fn timeout(&mut self, events: &mut Events) -> Result<(), QueueError> {
        self.transmit(events)?;
        self.receive(events)
    }

    fn interrupt(&self) -> &dyn Interrupt {
        &*self.interrupt
    }
}
