//! MSI-X: the table of messages and the bits of those that wait (PCI Local Bus 3.0, 6.8.2).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::ConfigSpace;
use crate::{Interrupts, StateError};

const CAPABILITY: u8 = 0x11;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;
const ENTRY_BYTES: usize = 16;
const ENTRY_MASKED: u32 = 1;
/// The most vectors one function can have.
const MAX_VECTORS: u16 = 2048;

/// Where a function shows its table and its pending bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixPlace {
    /// BAR of the table.
    pub table_bar: u8,
    /// Offset of the table in it, a multiple of 8.
    pub table_offset: u32,
    /// BAR of the pending bits.
    pub pending_bar: u8,
    /// Offset of the pending bits in it, a multiple of 8.
    pub pending_offset: u32,
}

/// One message, as the guest wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

/// The table of one function. It locks itself: any thread may signal.
pub struct MsixTable {
    inner: Mutex<Inner>,
    interrupts: Arc<dyn Interrupts>,
}

struct Inner {
    entries: Vec<Entry>,
    pending: Vec<u64>,
    /// What the function's configuration space says: may messages be sent, and are all masked.
    enabled: bool,
    masked: bool,
    master: bool,
}

/// What is saved of a [`MsixTable`]; the rest is in the function's configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    entries: Vec<Entry>,
    pending: Vec<u64>,
}

impl Entry {
    const RESET: Self = Self {
        address: 0,
        data: 0,
        control: ENTRY_MASKED,
    };

    fn bytes(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.data.to_le_bytes());
        bytes[12..].copy_from_slice(&self.control.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; ENTRY_BYTES]) -> Self {
        let dword = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            address: u64::from(dword(4)) << 32 | u64::from(dword(0) & !3),
            data: dword(8),
            control: dword(12) & ENTRY_MASKED,
        }
    }
}

impl MsixTable {
    /// A table of `vectors` (1 to 2048) messages, all masked.
    ///
    /// # Panics
    /// When the number is none that a function can have: a mistake of the device's author.
    #[must_use]
    pub fn new(vectors: u16, interrupts: Arc<dyn Interrupts>) -> Self {
        assert!((1..=MAX_VECTORS).contains(&vectors), "{vectors} vectors");
        Self {
            inner: Mutex::new(Inner {
                entries: vec![Entry::RESET; usize::from(vectors)],
                pending: vec![0; usize::from(vectors).div_ceil(64)],
                enabled: false,
                masked: false,
                master: false,
            }),
            interrupts,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of vectors.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        self.lock().entries.len() as u16
    }

    /// Bytes the table takes in its BAR.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        (self.lock().entries.len() * ENTRY_BYTES) as u64
    }

    /// Bytes the pending bits take in their BAR.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        (self.lock().pending.len() * 8) as u64
    }

    /// Appends the capability that announces the table. The result is its offset, which
    /// [`MsixTable::configure`] wants.
    pub fn add_capability(&self, config: &mut ConfigSpace, place: MsixPlace) -> u16 {
        let control = self.vectors() - 1;
        let table = place.table_offset & !7 | u32::from(place.table_bar);
        let pending = place.pending_offset & !7 | u32::from(place.pending_bar);
        let mut body = [0; 10];
        body[..2].copy_from_slice(&control.to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..].copy_from_slice(&pending.to_le_bytes());
        let writable = (CONTROL_ENABLE | CONTROL_MASK_ALL).to_le_bytes();
        config.add_capability(CAPABILITY, &body, &writable)
    }

    /// Follows the function's configuration space, where the capability is at `capability`. To be
    /// called after every store to it, after a reset and a restore; sends what may be sent now.
    pub fn configure(&self, config: &ConfigSpace, capability: u16) {
        let control = config.word(capability + 2);
        let mut inner = self.lock();
        inner.enabled = control & CONTROL_ENABLE != 0;
        inner.masked = control & CONTROL_MASK_ALL != 0;
        inner.master = config.bus_master();
        self.flush(&mut inner);
    }

    /// Whether the guest uses MSI-X.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.lock().enabled
    }

    /// Sends the message of a vector, or remembers to while it is masked. Ignored where there is
    /// no such vector or MSI-X is off.
    pub fn signal(&self, vector: u16) {
        let vector = usize::from(vector);
        let mut inner = self.lock();
        if !inner.enabled || vector >= inner.entries.len() {
            return;
        }
        if inner.is_open(vector) {
            let entry = inner.entries[vector];
            self.interrupts.signal_msi(entry.address, entry.data);
        } else {
            inner.pending[vector / 64] |= 1 << (vector % 64);
        }
    }

    /// Sends all pending messages that are not masked any more.
    fn flush(&self, inner: &mut Inner) {
        for vector in 0..inner.entries.len() {
            let bit = 1 << (vector % 64);
            if inner.pending[vector / 64] & bit != 0 && inner.is_open(vector) {
                inner.pending[vector / 64] &= !bit;
                let entry = inner.entries[vector];
                self.interrupts.signal_msi(entry.address, entry.data);
            }
        }
    }

    /// A load from the table: 4 or 8 aligned bytes, as the specification demands; anything else
    /// reads as zero.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let inner = self.lock();
        let Some((index, within)) = entry_at(offset, data.len()) else {
            return;
        };
        if let Some(entry) = inner.entries.get(index) {
            data.copy_from_slice(&entry.bytes()[within..within + data.len()]);
        }
    }

    /// A store to the table: 4 or 8 aligned bytes; anything else is ignored. A vector that was
    /// pending and is unmasked by it is sent.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let Some((index, within)) = entry_at(offset, data.len()) else {
            return;
        };
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(index) else {
            return;
        };
        let mut bytes = entry.bytes();
        bytes[within..within + data.len()].copy_from_slice(data);
        *entry = Entry::from_bytes(&bytes);
        let bit = 1 << (index % 64);
        if inner.pending[index / 64] & bit != 0 {
            self.flush(&mut inner);
        }
    }

    /// A load from the pending bits: 4 or 8 aligned bytes; anything else reads as zero. Stores to
    /// them do nothing.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let word = usize::try_from(offset / 8).unwrap_or(usize::MAX);
        if let Some(bits) = self.lock().pending.get(word) {
            let within = (offset % 8) as usize;
            data.copy_from_slice(&bits.to_le_bytes()[within..within + data.len()]);
        }
    }

    /// All vectors masked, none pending, MSI-X off.
    pub fn reset(&self) {
        let mut inner = self.lock();
        inner.entries.fill(Entry::RESET);
        inner.pending.fill(0);
        inner.enabled = false;
        inner.masked = false;
        inner.master = false;
    }

    /// What to save.
    #[must_use]
    pub fn state(&self) -> MsixState {
        let inner = self.lock();
        MsixState {
            entries: inner.entries.clone(),
            pending: inner.pending.clone(),
        }
    }

    /// Takes a saved state. The function restores its configuration space first and calls
    /// [`MsixTable::configure`] after this.
    ///
    /// # Errors
    /// When it has another number of vectors.
    pub fn restore(&self, state: &MsixState) -> Result<(), StateError> {
        let mut inner = self.lock();
        let fits = state.entries.len() == inner.entries.len()
            && state.pending.len() == inner.pending.len();
        if !fits {
            return Err(StateError::Mismatch {
                device: "MSI-X table",
                reason: format!(
                    "{} vectors instead of {}",
                    state.entries.len(),
                    inner.entries.len()
                ),
            });
        }
        inner.entries.clone_from(&state.entries);
        inner.pending.clone_from(&state.pending);
        Ok(())
    }
}

impl Inner {
    /// Whether a message of this vector may be sent.
    fn is_open(&self, vector: usize) -> bool {
        self.enabled
            && self.master
            && !self.masked
            && self.entries[vector].control & ENTRY_MASKED == 0
    }
}

/// Entry and offset in it of an access to the table.
fn entry_at(offset: u64, bytes: usize) -> Option<(usize, usize)> {
    if !matches!(bytes, 4 | 8) || !offset.is_multiple_of(bytes as u64) {
        return None;
    }
    let index = usize::try_from(offset / ENTRY_BYTES as u64).ok()?;
    Some((index, (offset % ENTRY_BYTES as u64) as usize))
}
