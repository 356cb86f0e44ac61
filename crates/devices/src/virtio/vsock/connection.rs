//! One connection: its stream on the host, its credit in both directions, and what the guest is yet
//! to be told about it.
//!
//! ```text
//!   Asked ── RESPONSE ──► Open ── both directions shut, nothing kept ──► gone, RST
//!     │ (host's programs only)  └── RST from either side ──► gone
//!     └── RST, or too long without an answer ──► gone
//! ```

use std::{
    collections::VecDeque,
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use memory::GuestMemory;
use rustix::net::SendFlags;

use super::packet::{Header, Op, PAYLOAD_BYTES, Ports, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::virtio::Buffers;

/// Bytes we keep of a connection for a program that does not read.
pub(super) const BUFFER_BYTES: u32 = 128 << 10;

/// How long the guest may take to answer a request, or to reset what is over.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How the next packet of a connection came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// This is the packet; its payload is in the buffers already.
    Packet(Header),
    /// This is the last packet.
    Last(Header),
    /// There is none now.
    Nothing,
}

/// What the guest is yet to be told.
#[derive(Debug, Clone, Copy, Default)]
struct Pending {
    request: bool,
    response: bool,
    reset: bool,
    credit: bool,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) ports: Ports,
    pub(super) stream: UnixStream,
    /// We asked the guest for it and it did not answer yet.
    asked: bool,
    /// When it ends unless the guest does what is due: answers our request, or, with everything
    /// shut, resets.
    pub(super) until: Option<Instant>,
    /// In the list of those with something to say.
    pub(super) listed: bool,
    pending: Pending,
    /// The stream may have bytes.
    readable: bool,
    /// From the guest, for the stream.
    kept: VecDeque<u8>,
    /// Bytes kept that are ours, not the guest's: the answer to CONNECT, at the front.
    ours: usize,
    received: u32,
    forwarded: u32,
    forwarded_told: u32,
    /// The guest's credit for us.
    peer_buffer: u32,
    peer_forwarded: u32,
    sent: u32,
    /// A request for credit is under way.
    credit_asked: bool,
    guest_sends: bool,
    guest_receives: bool,
    /// What of our own directions is shut, and what of that the guest knows.
    shut: u32,
    shut_told: u32,
}

impl Connection {
    fn new(ports: Ports, stream: UnixStream) -> Self {
        Self {
            ports,
            stream,
            asked: false,
            until: None,
            listed: false,
            pending: Pending::default(),
            readable: true,
            kept: VecDeque::new(),
            ours: 0,
            received: 0,
            forwarded: 0,
            forwarded_told: 0,
            peer_buffer: 0,
            peer_forwarded: 0,
            sent: 0,
            credit_asked: false,
            guest_sends: true,
            guest_receives: true,
            shut: 0,
            shut_told: 0,
        }
    }

    /// One that the guest asked for, connected to its program: to be answered.
    pub(super) fn from_guest(stream: UnixStream, request: &Header) -> Self {
        let mut it = Self::new(request.ports(), stream);
        it.credit(request);
        it.pending.response = true;
        it
    }

    /// One that a program asks for, of the guest.
    pub(super) fn from_host(ports: Ports, stream: UnixStream, until: Instant) -> Self {
        let mut it = Self::new(ports, stream);
        it.pending.request = true;
        it.asked = true;
        it.until = Some(until);
        it
    }

    /// Bytes kept for the program.
    pub(super) fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Takes note of the guest's credit, which every packet tells.
    pub(super) fn credit(&mut self, header: &Header) {
        self.peer_buffer = header.buffer;
        self.peer_forwarded = header.forwarded;
        self.credit_asked = false;
    }

    /// The guest accepts. `false`: nobody asked it.
    pub(super) fn accepted(&mut self) -> bool {
        if !std::mem::take(&mut self.asked) {
            return false;
        }
        self.until = None;
        let answer = format!("OK {}\n", self.ports.host);
        self.kept.extend(answer.as_bytes());
        self.ours = answer.len();
        self.flush();
        true
    }

    /// Ends it with a reset.
    pub(super) fn reset(&mut self) {
        self.pending.reset = true;
        self.kept = VecDeque::new();
    }

    /// The guest wants to know its credit.
    pub(super) fn tell_credit(&mut self) {
        self.pending.credit = true;
    }

    /// The guest shuts directions.
    pub(super) fn guest_shut(&mut self, flags: u32) {
        self.guest_sends &= flags & SHUTDOWN_SEND == 0;
        self.guest_receives &= flags & SHUTDOWN_RECEIVE == 0;
        self.settle();
    }

    /// The guest sent bytes. `false`: it had no right to.
    pub(super) fn data(&mut self, payload: &[u8]) -> bool {
        let kept = self.received.wrapping_sub(self.forwarded);
        let fits = u64::from(kept) + payload.len() as u64 <= u64::from(BUFFER_BYTES);
        if self.asked || !self.guest_sends || !fits {
            return false;
        }
        self.received = self.received.wrapping_add(payload.len() as u32);
        self.kept.extend(payload);
        self.flush();
        true
    }

    /// The stream says that something is there to be read (its end, too), or that it takes bytes.
    pub(super) fn stream_ready(&mut self, readable: bool, gone: bool) {
        self.readable |= readable;
        if gone {
            // The program closed it: it will neither send nor take anything.
            self.shut |= SHUTDOWN_RECEIVE;
        }
        self.flush();
    }

    /// Gives the program what is kept, as much as it takes.
    fn flush(&mut self) {
        while !self.kept.is_empty() {
            let (front, _) = self.kept.as_slices();
            match rustix::net::send(&self.stream, front, SendFlags::NOSIGNAL) {
                Ok(taken) => {
                    self.kept.drain(..taken);
                    let ours = taken.min(self.ours);
                    self.ours -= ours;
                    self.forwarded = self.forwarded.wrapping_add((taken - ours) as u32);
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => {
                    self.reset();
                    return;
                }
            }
        }
        if self.kept.is_empty() && self.kept.capacity() > 4096 {
            self.kept = VecDeque::new();
        }
        // Tell it before the guest runs dry.
        if self.forwarded.wrapping_sub(self.forwarded_told) >= BUFFER_BYTES / 4 {
            self.pending.credit = true;
        }
        self.settle();
    }

    /// Does what the guest's shutdown asks for, once what it sent before is with the program.
    fn settle(&mut self) {
        if self.guest_sends || !self.kept.is_empty() {
            return;
        }
        if self.guest_receives {
            // Fails when the program is gone: that shows otherwise.
            let _ = self.stream.shutdown(std::net::Shutdown::Write);
        } else {
            self.pending.reset = true;
        }
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn has_something(&self) -> bool {
        let pending = self.pending;
        let open = !self.asked;
        let control =
            pending.request || pending.response || pending.reset || open && pending.credit;
        let data = self.guest_receives && self.readable && (self.room() > 0 || !self.credit_asked);
        control || open && (data || self.shut & !self.shut_told != 0)
    }

    /// Bytes the guest can take.
    fn room(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_buffer.saturating_sub(under_way)
    }

    /// The next packet for the guest; its payload goes to `payload`.
    pub(super) fn next(&mut self, guest_cid: u64, memory: &GuestMemory, payload: &Buffers) -> Next {
        let packet = |op| Header::to_guest(guest_cid, self.ports, op);
        if self.pending.reset {
            return Next::Last(packet(Op::Reset));
        }
        let op = if std::mem::take(&mut self.pending.request) {
            Op::Request
        } else if std::mem::take(&mut self.pending.response) {
            Op::Response
        } else if self.asked {
            return Next::Nothing;
        } else if std::mem::take(&mut self.pending.credit) {
            Op::CreditUpdate
        } else {
            return self.next_of_stream(guest_cid, memory, payload);
        };
        Next::Packet(self.stamp(packet(op)))
    }

    /// Bytes of the stream, or its end.
    fn next_of_stream(&mut self, guest_cid: u64, memory: &GuestMemory, payload: &Buffers) -> Next {
        let packet = |ports, op| Header::to_guest(guest_cid, ports, op);
        if self.readable && self.guest_receives {
            let room = self.room();
            if room == 0 && !std::mem::replace(&mut self.credit_asked, true) {
                return Next::Packet(self.stamp(packet(self.ports, Op::CreditRequest)));
            }
            let most = u64::from(room.min(PAYLOAD_BYTES)).min(payload.bytes());
            match self.read(memory, payload, most) {
                Ok(0) => {}
                Ok(bytes) => {
                    let mut header = packet(self.ports, Op::Data);
                    header.bytes = bytes;
                    self.sent = self.sent.wrapping_add(bytes);
                    return Next::Packet(self.stamp(header));
                }
                Err(_) => return Next::Last(packet(self.ports, Op::Reset)),
            }
        }
        // The guest hears of the end only after the last byte.
        if self.shut & !self.shut_told != 0 && (!self.readable || !self.guest_receives) {
            self.shut_told = self.shut;
            if self.shut == SHUTDOWN_SEND | SHUTDOWN_RECEIVE {
                self.until = Some(Instant::now() + PATIENCE);
            }
            let mut header = packet(self.ports, Op::Shutdown);
            header.flags = self.shut;
            return Next::Packet(self.stamp(header));
        }
        Next::Nothing
    }

    /// Reads at most `most` bytes; zero when there are none now, or when the end was reached.
    fn read(&mut self, memory: &GuestMemory, payload: &Buffers, most: u64) -> io::Result<u32> {
        if most == 0 {
            return Ok(0);
        }
        let Ok(buffers) = payload.clone().take(most) else {
            return Ok(0);
        };
        loop {
            match buffers.read_from(memory, self.stream.as_fd()) {
                Ok(0) => {
                    self.readable = false;
                    self.shut |= SHUTDOWN_SEND;
                    return Ok(0);
                }
                Ok(bytes) => return Ok(bytes as u32),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(0);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Puts our credit into a header.
    fn stamp(&mut self, mut header: Header) -> Header {
        header.buffer = BUFFER_BYTES;
        header.forwarded = self.forwarded;
        self.forwarded_told = self.forwarded;
        header
    }
}
