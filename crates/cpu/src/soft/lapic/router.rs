//! Finds the local APICs a message is for.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use super::Inbox;
use crate::{CpuError, Msi};

/// The most vCPUs of one guest; APIC id 255 is the broadcast.
pub const MAX_VCPUS: u32 = 255;

/// Delivery modes (Intel SDM 3A, 12.6.1).
pub(super) const FIXED: u8 = 0;
const LOWEST: u8 = 1;
const NMI: u8 = 4;
const INIT: u8 = 5;
const SIPI: u8 = 6;

/// A message on its way: from an MSI or an interrupt command register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub destination: u32,
    pub logical: bool,
    /// One of those addressed is enough.
    pub any: bool,
    pub mode: u8,
    pub vector: u8,
    pub level: bool,
}

impl Message {
    /// What an MSI says (Intel SDM 3A, 12.11).
    pub fn from_msi(msi: Msi) -> Self {
        let low = (msi.address >> 12 & 0xff) as u32;
        Self {
            destination: low | (msi.address >> 32) as u32 & !0xff,
            logical: msi.address & 1 << 2 != 0,
            any: msi.address & 1 << 3 != 0,
            mode: (msi.data >> 8 & 7) as u8,
            vector: msi.data as u8,
            level: msi.data & 1 << 15 != 0,
        }
    }

    /// Puts it into one inbox.
    pub fn deliver(&self, inbox: &Inbox) {
        match self.mode {
            FIXED | LOWEST if self.vector >= 16 => inbox.request(self.vector, self.level),
            NMI => inbox.nmi(),
            INIT => inbox.init(),
            SIPI => inbox.sipi(self.vector),
            // SMI and ExtINT have nobody to take them; vectors below 16 are illegal.
            _ => {}
        }
    }
}

/// All inboxes of a partition, by APIC id.
pub struct Router {
    inboxes: Box<[OnceLock<Arc<Inbox>>]>,
    /// Takes turns among those that may all have a message of lowest priority.
    turn: AtomicUsize,
}

impl Router {
    /// With no APICs.
    #[must_use]
    pub fn new() -> Self {
        Self {
            inboxes: (0..MAX_VCPUS).map(|_| OnceLock::new()).collect(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Makes the inbox of the vCPU with this index.
    ///
    /// # Errors
    /// When there is one already, or the index is [`MAX_VCPUS`] or more.
    pub(super) fn add(&self, index: u32) -> Result<Arc<Inbox>, CpuError> {
        let taken = || CpuError::System {
            what: "make a vCPU with an index that is taken, or too many",
            source: std::io::ErrorKind::AlreadyExists.into(),
        };
        let slot = self.inboxes.get(index as usize).ok_or_else(taken)?;
        let inbox = Arc::new(Inbox::new(index));
        slot.set(Arc::clone(&inbox)).map_err(|_| taken())?;
        Ok(inbox)
    }

    /// The inbox of a vCPU.
    #[must_use]
    pub fn inbox(&self, index: u32) -> Option<&Arc<Inbox>> {
        self.inboxes.get(index as usize)?.get()
    }

    /// All inboxes, in order of index.
    pub fn inboxes(&self) -> impl Iterator<Item = &Arc<Inbox>> {
        self.inboxes.iter().filter_map(OnceLock::get)
    }

    /// Delivers a message-signalled interrupt. Never waits; one to nobody is lost.
    pub fn signal(&self, msi: Msi) {
        self.send(Message::from_msi(msi));
    }

    pub(super) fn send(&self, message: Message) {
        let addressed = |it: &&Arc<Inbox>| it.is_addressed(message.destination, message.logical);
        if !message.any && message.mode != LOWEST {
            self.inboxes()
                .filter(addressed)
                .for_each(|it| message.deliver(it));
            return;
        }
        let enabled = |it: &&Arc<Inbox>| it.enabled.load(Ordering::Relaxed);
        let candidates = self.inboxes().filter(addressed).filter(enabled).count();
        if candidates == 0 {
            return;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % candidates;
        let chosen = self.inboxes().filter(addressed).filter(enabled).nth(turn);
        if let Some(inbox) = chosen {
            message.deliver(inbox);
        }
    }
}

impl Default for Router {
    fn default() -> Self {
        Self::new()
    }
}
