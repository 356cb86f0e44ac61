//! Writing netlink messages: headers, attributes, nesting, batches.
//!
//! Everything is in the machine's byte order unless a caller writes big-endian bytes itself
//! (nfnetlink does). Messages are built from our own data only, so lengths always fit.

/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 0x01;
/// `NLM_F_ACK`: answer even on success.
pub(crate) const ACK: u16 = 0x04;
/// `NLM_F_EXCL`: fail if it exists.
pub(crate) const EXCL: u16 = 0x200;
/// `NLM_F_REPLACE`.
pub(crate) const REPLACE: u16 = 0x100;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`: beside what is like it.
pub(crate) const APPEND: u16 = 0x800;
/// `NLM_F_DUMP`: list everything.
pub(crate) const DUMP: u16 = 0x300;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;

/// One request under construction.
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request of `kind` with `flags` beside `REQUEST`, opened by the fixed `body` of its family.
    pub(crate) fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(body);
        let mut message = Self { bytes };
        message.pad();
        message
    }

    /// Appends an attribute of raw bytes.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let at = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(at)
    }

    /// Appends a byte.
    pub(crate) fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    /// Appends a 32-bit number in the machine's order.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Appends zero-terminated text.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let at = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(at)
    }

    /// Appends bytes that are no attribute: the fixed part some nested attributes open with.
    pub(crate) fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Appends an attribute whose value is what `fill` appends.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let at = self.open(kind | NESTED);
        fill(self);
        self.close(at)
    }

    fn open(&mut self, kind: u16) -> usize {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&0_u16.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        at
    }

    fn close(&mut self, at: usize) -> &mut Self {
        let length = u16::try_from(self.bytes.len() - at).unwrap_or(u16::MAX);
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Requests that go to the kernel in one system call and are answered one by one, in order.
///
/// rtnetlink goes on after a failed request; nfnetlink undoes the whole batch.
#[derive(Default)]
pub(crate) struct Batch {
    messages: Vec<Message>,
    /// What each request was for.
    pub(crate) labels: Vec<String>,
    /// How many of them the kernel answers even on success.
    pub(crate) answers: usize,
}

impl Batch {
    /// Adds a request the kernel must acknowledge; `label` names it in errors.
    pub(crate) fn push(&mut self, label: impl Into<String>, mut message: Message) {
        let flags = u16::from_ne_bytes([message.bytes[6], message.bytes[7]]) | ACK;
        message.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.answers += 1;
        self.push_silent(label, message);
    }

    /// Adds a request that is answered only if it fails.
    pub(crate) fn push_silent(&mut self, label: impl Into<String>, message: Message) {
        self.labels.push(label.into());
        self.messages.push(message);
    }

    /// The bytes to send, numbered from `base` on.
    pub(crate) fn encode(&self, base: u32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.messages.iter().map(|m| m.bytes.len()).sum());
        for (sequence, message) in (base..=u32::MAX).chain(0..).zip(&self.messages) {
            let at = bytes.len();
            bytes.extend_from_slice(&message.bytes);
            let length = u32::try_from(message.bytes.len()).unwrap_or(u32::MAX);
            bytes[at..at + 4].copy_from_slice(&length.to_ne_bytes());
            bytes[at + 8..at + 12].copy_from_slice(&sequence.to_ne_bytes());
        }
        bytes
    }
}
