//! Carries packets between the queues and the connections.

use std::sync::Arc;

use memory::GuestMemory;
use rustix::event::epoll::EventFlags;

use super::{
    mux::{LISTENER, Mux},
    packet::{HEADER_BYTES, Header, PAYLOAD_BYTES},
};
use crate::virtio::{Chain, Events, Handler, Interrupt, QueueError, VirtQueue, fd};

const KICK_RECEIVE: u64 = 0;
const KICK_TRANSMIT: u64 = 1;
const KICK_EVENT: u64 = 2;

/// All connections are gone, and the guest's address may have changed (5.10.6.5).
const EVENT_TRANSPORT_RESET: [u8; 4] = [0; 4];

#[derive(Debug)]
pub(super) struct VsockHandler {
    pub(super) receive: Option<VirtQueue>,
    pub(super) transmit: Option<VirtQueue>,
    pub(super) event: Option<VirtQueue>,
    pub(super) mux: Mux,
    /// The guest is to be told that its connections are gone.
    pub(super) tell_reset: bool,
    pub(super) interrupt: Arc<dyn Interrupt>,
}

impl VsockHandler {
    /// Takes packets from the guest until it has none, or until too many answers wait for it.
    fn transmit(&mut self, events: &mut Events) -> Result<(), QueueError> {
        let Some(queue) = &mut self.transmit else {
            return Ok(());
        };
        let (index, mux) = (queue.index(), &mut self.mux);
        let served = queue.serve(|memory, chain| {
            if !mux.takes_packets() {
                return Ok(None);
            }
            let (header, payload) =
                packet(memory, chain).map_err(|part| QueueError::Request { queue: index, part })?;
            mux.packet(&header, &payload, events);
            Ok(Some(0))
        });
        served.map(drop)
    }

    /// Gives packets to the guest while there are any and it has room.
    fn receive(&mut self, events: &mut Events) -> Result<(), QueueError> {
        let Some(queue) = &mut self.receive else {
            return Ok(());
        };
        let (index, mux) = (queue.index(), &mut self.mux);
        let served = queue.serve(|memory, chain| {
            if !mux.has_packets() {
                return Ok(None);
            }
            let no_room = |_| QueueError::Request {
                queue: index,
                part: "header",
            };
            let mut head = chain.writable.take(HEADER_BYTES as u64).map_err(no_room)?;
            let Some(header) = mux.next_packet(memory, &chain.writable, events) else {
                return Ok(None);
            };
            head.write(memory, &header.bytes()).map_err(no_room)?;
            Ok(Some(HEADER_BYTES as u32 + header.bytes))
        });
        served.map(drop)
    }

    /// Gives the guest what there is for it; when that lets its packets in again, they come next.
    fn exchange(&mut self, events: &mut Events) -> Result<(), QueueError> {
        let waited = !self.mux.takes_packets();
        self.receive(events)?;
        if waited
            && self.mux.takes_packets()
            && let Some(queue) = &self.transmit
        {
            queue.kick_again();
        }
        Ok(())
    }

    fn tell_reset(&mut self) -> Result<(), QueueError> {
        let Some(queue) = &mut self.event else {
            return Ok(());
        };
        let tell = &mut self.tell_reset;
        let served = queue.serve(|memory, chain| {
            if !*tell {
                return Ok(None);
            }
            *tell = false;
            let written = chain.writable.write(memory, &EVENT_TRANSPORT_RESET);
            Ok(Some(
                written.map_or(0, |()| EVENT_TRANSPORT_RESET.len() as u32),
            ))
        });
        served.map(drop)
    }
}

/// Header and payload of a packet of the guest; or which part is missing.
fn packet(memory: &GuestMemory, chain: &mut Chain) -> Result<(Header, Vec<u8>), &'static str> {
    let mut header = [0; HEADER_BYTES];
    chain
        .readable
        .read(memory, &mut header)
        .map_err(|_| "header")?;
    let header = Header::parse(&header);
    if header.bytes > PAYLOAD_BYTES || u64::from(header.bytes) > chain.readable.bytes() {
        return Err("payload");
    }
    let mut payload = vec![0; header.bytes as usize];
    chain
        .readable
        .read(memory, &mut payload)
        .map_err(|_| "payload")?;
    Ok((header, payload))
}

impl Handler for VsockHandler {
    fn start(&mut self, events: &mut Events) -> Result<(), QueueError> {
        let queues = [
            (&self.receive, KICK_RECEIVE),
            (&self.transmit, KICK_TRANSMIT),
            (&self.event, KICK_EVENT),
        ];
        for (queue, token) in queues {
            if let Some(queue) = queue {
                let watched = events.watch(fd(queue.kick()), token, EventFlags::IN);
                watched.map_err(|source| queue.unwatched(source))?;
            }
        }
        self.mux
            .watch_all(events)
            .map_err(|source| QueueError::Host {
                queue: 0,
                what: "watch its connections",
                source,
            })?;
        self.tell_reset()?;
        self.transmit(events)?;
        self.exchange(events)
    }

    fn ready(
        &mut self,
        token: u64,
        flags: EventFlags,
        events: &mut Events,
    ) -> Result<(), QueueError> {
        match token {
            KICK_RECEIVE => {}
            KICK_TRANSMIT => self.transmit(events)?,
            KICK_EVENT => self.tell_reset()?,
            LISTENER => self.mux.accept(events),
            stream => self.mux.stream_ready(stream, flags, events),
        }
        self.exchange(events)
    }

    fn timeout(&mut self, events: &mut Events) -> Result<(), QueueError> {
        self.mux.expire(events);
        self.exchange(events)
    }

    fn interrupt(&self) -> &dyn Interrupt {
        &*self.interrupt
    }
}
