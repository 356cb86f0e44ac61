//! The header of a packet (virtio 1.2, 5.10.6).

/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 44;
/// The host's address.
pub(super) const HOST_CID: u64 = 2;
/// Stream sockets, the only kind here.
pub(super) const STREAM: u16 = 1;
/// The most payload of one packet.
pub(super) const PAYLOAD_BYTES: u32 = 64 << 10;

/// "Will not receive any more."
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// "Will not send any more."
pub(super) const SHUTDOWN_SEND: u32 = 2;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
}

impl Op {
    fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }

    /// The operation of a number; `None` where there is none.
    pub(super) fn from_number(number: u16) -> Option<Self> {
        [
            Self::Request,
            Self::Response,
            Self::Reset,
            Self::Shutdown,
            Self::Data,
            Self::CreditUpdate,
            Self::CreditRequest,
        ]
        .into_iter()
        .find(|it| it.number() == number)
    }
}

/// A header as it came from the guest, nothing checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source_cid: u64,
    pub(super) target_cid: u64,
    pub(super) source_port: u32,
    pub(super) target_port: u32,
    /// Bytes of payload.
    pub(super) bytes: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Bytes the sender of this packet can keep of the connection.
    pub(super) buffer: u32,
    /// Bytes it took out of there so far.
    pub(super) forwarded: u32,
}

impl Header {
    /// One from host to guest without payload.
    pub(super) fn to_guest(guest_cid: u64, ports: Ports, op: Op) -> Self {
        Self {
            source_cid: HOST_CID,
            target_cid: guest_cid,
            source_port: ports.host,
            target_port: ports.guest,
            bytes: 0,
            kind: STREAM,
            op: op.number(),
            flags: 0,
            buffer: 0,
            forwarded: 0,
        }
    }

    /// The answer to a packet that belongs nowhere.
    pub(super) fn refusal(&self) -> Self {
        Self {
            source_cid: self.target_cid,
            target_cid: self.source_cid,
            source_port: self.target_port,
            target_port: self.source_port,
            bytes: 0,
            kind: self.kind,
            op: Op::Reset.number(),
            flags: 0,
            buffer: 0,
            forwarded: 0,
        }
    }

    /// Ports of a packet that came from the guest.
    pub(super) fn ports(&self) -> Ports {
        Ports {
            host: self.target_port,
            guest: self.source_port,
        }
    }

    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let dword = |at: usize| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
        let qword = |at: usize| u64::from(dword(at)) | u64::from(dword(at + 4)) << 32;
        Self {
            source_cid: qword(0),
            target_cid: qword(8),
            source_port: dword(16),
            target_port: dword(20),
            bytes: dword(24),
            kind: word(28),
            op: word(30),
            flags: dword(32),
            buffer: dword(36),
            forwarded: dword(40),
        }
    }

    pub(super) fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.source_cid.to_le_bytes());
        put(8, &self.target_cid.to_le_bytes());
        put(16, &self.source_port.to_le_bytes());
        put(20, &self.target_port.to_le_bytes());
        put(24, &self.bytes.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.op.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buffer.to_le_bytes());
        put(40, &self.forwarded.to_le_bytes());
        bytes
    }
}

/// What a connection is known by, as there is one guest and one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}
