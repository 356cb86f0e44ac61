//! All connections of a guest: who is connected, who waits for a packet, who may connect.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, Read},
    os::unix::net::{UnixListener, UnixStream},
    time::Instant,
};

use memory::GuestMemory;
use rustix::event::epoll::EventFlags;

use super::{
    Dial,
    connection::{Connection, Next, PATIENCE},
    packet::{HOST_CID, Header, Op, Ports, STREAM},
};
use crate::virtio::{Buffers, Events};

/// Connections of a guest, those being set up included.
const CONNECTIONS: usize = 256;
/// Bytes kept for programs over all connections.
const KEPT_BYTES: usize = 16 << 20;
/// Refusals the guest has not fetched. While there are so many its packets wait.
const REFUSALS: usize = 64;
/// The longest line a program may ask with.
const LINE_BYTES: usize = 32;
/// Ports the host's programs come from begin here.
const HOST_PORTS: u32 = 1 << 30;
/// Programs let in at one time, so that a crowd of them does not keep the guest waiting.
const ACCEPTED: usize = 16;

/// Token of the listener. Those of streams are above it.
pub(super) const LISTENER: u64 = 8;
const FIRST_TOKEN: u64 = 16;

const EDGES: EventFlags = EventFlags::IN
    .union(EventFlags::OUT)
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// A program that has not said yet where it wants to go.
struct Caller {
    stream: UnixStream,
    line: Vec<u8>,
    until: Instant,
}

pub(super) struct Mux {
    guest_cid: u64,
    listener: Option<UnixListener>,
    dial: Box<dyn Dial>,
    connections: HashMap<u64, Connection>,
    by_ports: HashMap<Ports, u64>,
    callers: HashMap<u64, Caller>,
    /// Those that have something for the guest.
    talkers: VecDeque<u64>,
    refusals: VecDeque<Header>,
    next_token: u64,
    next_port: u32,
}

impl std::fmt::Debug for Mux {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mux")
            .field("guest_cid", &self.guest_cid)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

impl Mux {
    pub(super) fn new(
        guest_cid: u64,
        listener: Option<UnixListener>,
        dial: Box<dyn Dial>,
    ) -> io::Result<Self> {
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
        }
        Ok(Self {
            guest_cid,
            listener,
            dial,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            callers: HashMap::new(),
            talkers: VecDeque::new(),
            refusals: VecDeque::new(),
            next_token: FIRST_TOKEN,
            next_port: HOST_PORTS,
        })
    }

    /// Ends all connections without a word to the guest, which knows of none.
    pub(super) fn forget_all(&mut self) {
        self.connections.clear();
        self.by_ports.clear();
        self.callers.clear();
        self.talkers.clear();
        self.refusals.clear();
    }

    /// Watches everything, for a worker that starts.
    pub(super) fn watch_all(&self, events: &mut Events) -> io::Result<()> {
        if let Some(listener) = &self.listener {
            events.watch(listener, LISTENER, EventFlags::IN)?;
        }
        for (token, caller) in &self.callers {
            events.watch(&caller.stream, *token, EDGES)?;
        }
        for (token, connection) in &self.connections {
            events.watch(&connection.stream, *token, EDGES)?;
        }
        if !self.callers.is_empty() || self.connections.values().any(|it| it.until.is_some()) {
            events.wake_after(PATIENCE);
        }
        Ok(())
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn is_full(&self) -> bool {
        self.connections.len() + self.callers.len() >= CONNECTIONS
    }

    /// Lets programs in.
    pub(super) fn accept(&mut self, events: &mut Events) {
        for _ in 0..ACCEPTED {
            let Some(Ok((stream, _))) = self.listener.as_ref().map(UnixListener::accept) else {
                return;
            };
            // Closing it is all that can be said to it.
            if self.is_full() || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let token = self.token();
            if events.watch(&stream, token, EDGES).is_ok() {
                let caller = Caller {
                    stream,
                    line: Vec::new(),
                    until: Instant::now() + PATIENCE,
                };
                self.callers.insert(token, caller);
                events.wake_after(PATIENCE);
            }
        }
    }

    /// A stream has something.
    pub(super) fn stream_ready(&mut self, token: u64, flags: EventFlags, events: &mut Events) {
        if let Some(connection) = self.connections.get_mut(&token) {
            let ends = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
            let gone = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            connection.stream_ready(flags.intersects(EventFlags::IN | ends), gone);
            self.list(token);
        } else if let Some(mut caller) = self.callers.remove(&token) {
            match caller.read_line() {
                Ok(None) => drop(self.callers.insert(token, caller)),
                Ok(Some(port)) => {
                    // Whatever else happened to the stream already is to be told again.
                    if events.change(&caller.stream, token, EDGES).is_ok() {
                        self.ask_guest(token, caller.stream, port);
                    }
                }
                // Closing it is the answer.
                Err(_) => {}
            }
        }
    }

    /// A program wants to be connected to a port of the guest.
    fn ask_guest(&mut self, token: u64, stream: UnixStream, port: u32) {
        let mut ports = Ports {
            host: self.next_port,
            guest: port,
        };
        while self.by_ports.contains_key(&ports) {
            ports.host = ports.host.wrapping_add(1).max(HOST_PORTS);
        }
        self.next_port = ports.host.wrapping_add(1).max(HOST_PORTS);
        let connection = Connection::from_host(ports, stream, Instant::now() + PATIENCE);
        self.connections.insert(token, connection);
        self.by_ports.insert(ports, token);
        self.list(token);
    }

    /// Puts a connection on the list if it has something for the guest and is not there.
    fn list(&mut self, token: u64) {
        if let Some(connection) = self.connections.get_mut(&token)
            && !connection.listed
            && connection.has_something()
        {
            connection.listed = true;
            self.talkers.push_back(token);
        }
    }

    /// Whether the guest's packets are taken now.
    pub(super) fn takes_packets(&self) -> bool {
        self.refusals.len() < REFUSALS
    }

    fn refuse(&mut self, header: &Header) {
        self.refusals.push_back(header.refusal());
    }

    /// A packet of the guest.
    pub(super) fn packet(&mut self, header: &Header, payload: &[u8], events: &mut Events) {
        let op = Op::from_number(header.op);
        let ours = header.source_cid == self.guest_cid && header.target_cid == HOST_CID;
        if !ours || header.kind != STREAM {
            // Nothing goes where it was not addressed (5.10.6.4.2), and resets are not answered.
            if header.source_cid == self.guest_cid && op != Some(Op::Reset) {
                self.refuse(header);
            }
            return;
        }
        let Some(token) = self.by_ports.get(&header.ports()).copied() else {
            match op {
                Some(Op::Request) => self.connect_program(header, events),
                Some(Op::Reset) => {}
                _ => self.refuse(header),
            }
            return;
        };
        let over_budget = op == Some(Op::Data) && self.kept() + payload.len() > KEPT_BYTES;
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        connection.credit(header);
        let allowed = match op {
            Some(Op::Reset) => return self.remove(token),
            Some(Op::Response) => connection.accepted(),
            Some(Op::Data) => !over_budget && connection.data(payload),
            Some(Op::Shutdown) => {
                connection.guest_shut(header.flags);
                true
            }
            Some(Op::CreditUpdate) => true,
            Some(Op::CreditRequest) => {
                connection.tell_credit();
                true
            }
            Some(Op::Request) | None => false,
        };
        if !allowed {
            connection.reset();
        }
        self.list(token);
    }

    fn kept(&self) -> usize {
        self.connections.values().map(Connection::kept).sum()
    }

    /// The guest wants to be connected to a program.
    fn connect_program(&mut self, header: &Header, events: &mut Events) {
        if self.is_full() {
            return self.refuse(header);
        }
        let Ok(stream) = self.dial.dial(header.target_port) else {
            return self.refuse(header);
        };
        let token = self.token();
        if stream.set_nonblocking(true).is_err() || events.watch(&stream, token, EDGES).is_err() {
            return self.refuse(header);
        }
        self.connections
            .insert(token, Connection::from_guest(stream, header));
        self.by_ports.insert(header.ports(), token);
        self.list(token);
    }

    fn remove(&mut self, token: u64) {
        if let Some(connection) = self.connections.remove(&token) {
            self.by_ports.remove(&connection.ports);
        }
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn has_packets(&self) -> bool {
        !self.refusals.is_empty() || !self.talkers.is_empty()
    }

    /// The next packet for the guest, its payload already in `payload`.
    pub(super) fn next_packet(
        &mut self,
        memory: &GuestMemory,
        payload: &Buffers,
        events: &mut Events,
    ) -> Option<Header> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some(refusal);
        }
        while let Some(token) = self.talkers.pop_front() {
            let Some(connection) = self.connections.get_mut(&token) else {
                continue;
            };
            connection.listed = false;
            match connection.next(self.guest_cid, memory, payload) {
                Next::Nothing => {}
                Next::Packet(header) => {
                    if connection.until.is_some() {
                        events.wake_after(PATIENCE);
                    }
                    self.list(token);
                    return Some(header);
                }
                Next::Last(header) => {
                    self.remove(token);
                    return Some(header);
                }
            }
        }
        None
    }

    /// Ends what took too long; asks to be called again while there is anything to wait for.
    pub(super) fn expire(&mut self, events: &mut Events) {
        let now = Instant::now();
        self.callers.retain(|_, it| it.until > now);
        let late = |it: &Connection| it.until.is_some_and(|until| until <= now);
        let late: Vec<u64> = self
            .connections
            .iter()
            .filter_map(|(token, it)| late(it).then_some(*token))
            .collect();
        for token in late {
            if let Some(connection) = self.connections.get_mut(&token) {
                connection.until = None;
                connection.reset();
            }
            self.list(token);
        }
        let callers = self.callers.values().map(|it| it.until);
        let waiting = self.connections.values().filter_map(|it| it.until);
        if let Some(first) = callers.chain(waiting).min() {
            events.wake_after(first.saturating_duration_since(now));
        }
    }
}

impl Caller {
    /// Reads up to the end of the line, and not a byte more: what follows is for the guest. The port
    /// once it is complete.
    fn read_line(&mut self) -> io::Result<Option<u32>> {
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if byte == *b"\n" => break,
                Ok(_) if self.line.len() == LINE_BYTES => {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                Ok(_) => self.line.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let line = std::str::from_utf8(&self.line).ok();
        let port = line.and_then(|it| it.trim_end().strip_prefix("CONNECT "));
        let port = port.and_then(|it| it.trim().parse().ok());
        port.map(Some).ok_or(io::ErrorKind::InvalidData.into())
    }
}
