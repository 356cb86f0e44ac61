//! The configuration space of one function: a type 0 header, BARs, a list of capabilities.

use serde::{Deserialize, Serialize};

use super::Window;
use crate::StateError;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
/// Memory space, bus master, parity error response, SERR, interrupt disable.
const COMMAND_WRITABLE: u16 = 0x0546;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Bytes of the space that exist; the extended space reads as absent.
const BYTES: usize = 256;

/// What a function says it is (PCI Local Bus 3.0, 6.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code: base class, sub-class, interface, as `0x060000`.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// What kind of memory a BAR asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// Below 4 GiB.
    Memory32,
    /// Anywhere, and it takes two BARs.
    Memory64,
    /// Anywhere, and reads have no side effects.
    Prefetchable64,
}

/// Configuration space as the guest sees it. The function that owns it locks it.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; BYTES],
    /// Bits that a store of the guest changes.
    writable: [u8; BYTES],
    /// Size of the BAR that begins at each of the six.
    bars: [u64; 6],
    /// As built, for a reset.
    initial: Box<[u8; BYTES]>,
    /// Where the next capability goes, and where its pointer is.
    next: usize,
    link: usize,
}

/// What is saved of a [`ConfigSpace`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    /// All its bytes.
    pub bytes: Vec<u8>,
}

impl ConfigSpace {
    /// One with no BARs and no capabilities.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let mut it = Self {
            bytes: [0; BYTES],
            writable: [0; BYTES],
            bars: [0; 6],
            initial: Box::new([0; BYTES]),
            next: 0x40,
            link: CAPABILITIES,
        };
        it.put(0x00, &identity.vendor.to_le_bytes());
        it.put(0x02, &identity.device.to_le_bytes());
        it.put(
            0x08,
            &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes(),
        );
        it.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        it.put(0x2e, &identity.subsystem.to_le_bytes());
        it.writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_WRITABLE.to_le_bytes());
        it.writable[INTERRUPT_LINE] = 0xff;
        it
    }

    fn put(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
        self.initial[offset..offset + data.len()].copy_from_slice(data);
    }

    /// Gives it BAR `index` (and the next one, for the 64-bit kinds) of `bytes`: a power of two, at
    /// least 16. To be called only while the function is made.
    ///
    /// # Panics
    /// When the size or the index is none that a BAR can have: a mistake of the device's author.
    pub fn add_bar(&mut self, index: u8, kind: BarKind, bytes: u64) {
        let wide = kind != BarKind::Memory32;
        let slots = if wide { 2 } else { 1 };
        let index = usize::from(index);
        assert!(
            bytes.is_power_of_two() && bytes >= 16,
            "BAR of {bytes} bytes"
        );
        assert!(index + slots <= 6, "BAR {index}");
        assert!(wide || bytes <= 1 << 31, "32-bit BAR of {bytes} bytes");
        self.bars[index] = bytes;
        let kind: u64 = match kind {
            BarKind::Memory32 => 0,
            BarKind::Memory64 => 0b0100,
            BarKind::Prefetchable64 => 0b1100,
        };
        let at = BAR0 + 4 * index;
        self.put(at, &kind.to_le_bytes()[..4 * slots]);
        let mask = !(bytes - 1);
        self.writable[at..at + 4 * slots].copy_from_slice(&mask.to_le_bytes()[..4 * slots]);
    }

    /// Appends a capability: `id`, then `body`, which follows the two bytes of id and next pointer.
    /// `writable` has the bits of the body that a store of the guest changes; what it is shorter
    /// than the body is read-only. The result is the offset of the id. To be called only while the
    /// function is made.
    ///
    /// # Panics
    /// When the space is full: a mistake of the device's author.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        let at = self.next;
        assert!(
            at + 2 + body.len() <= BYTES,
            "no room for capability {id:#x}"
        );
        assert!(
            writable.len() <= body.len(),
            "more writable bits than capability {id:#x} has"
        );
        self.put(self.link, &[at as u8]);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        let status = STATUS_CAPABILITIES.to_le_bytes();
        self.put(STATUS, &status);
        self.link = at + 1;
        self.next = (at + 2 + body.len()).next_multiple_of(4);
        at as u16
    }

    /// A load within one four-byte register.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let at = usize::from(offset);
        match self.bytes.get(at..at + data.len()) {
            Some(bytes) => data.copy_from_slice(bytes),
            None => data.fill(0xff),
        }
    }

    /// A store within one four-byte register: changes the writable bits.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let at = usize::from(offset);
        if at + data.len() > BYTES {
            return;
        }
        for (index, new) in data.iter().enumerate() {
            let (byte, mask) = (&mut self.bytes[at + index], self.writable[at + index]);
            *byte = *byte & !mask | new & mask;
        }
    }

    /// Two bytes at an even offset below 256; for capabilities that a function gives meaning to.
    #[must_use]
    pub fn word(&self, offset: u16) -> u16 {
        let mut word = [0; 2];
        self.read(offset, &mut word);
        u16::from_le_bytes(word)
    }

    /// Four bytes at an offset that is a multiple of four, below 256.
    #[must_use]
    pub fn dword(&self, offset: u16) -> u32 {
        let mut dword = [0; 4];
        self.read(offset, &mut dword);
        u32::from_le_bytes(dword)
    }

    /// Replaces bytes, whether the guest may write them or not.
    ///
    /// # Panics
    /// Past the end of the space.
    pub fn set(&mut self, offset: u16, data: &[u8]) {
        let at = usize::from(offset);
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }

    /// Whether the function may access memory and signal (command register, bus master).
    #[must_use]
    pub fn bus_master(&self) -> bool {
        self.word(COMMAND as u16) & COMMAND_MASTER != 0
    }

    /// The BARs with their addresses, while the command register says that memory is decoded. One
    /// at address 0 is taken as not assigned.
    #[must_use]
    pub fn windows(&self) -> Vec<Window> {
        if self.word(COMMAND as u16) & COMMAND_MEMORY == 0 {
            return Vec::new();
        }
        let windows = (0..6).filter(|index| self.bars[*index] != 0).map(|index| {
            let at = (BAR0 + 4 * index) as u16;
            let low = self.dword(at);
            let high = if low & 0b0100 == 0 {
                0
            } else {
                self.dword(at + 4)
            };
            Window {
                bar: index as u8,
                start: u64::from(high) << 32 | u64::from(low & !0xf),
                bytes: self.bars[index],
            }
        });
        windows.filter(|it| it.start != 0).collect()
    }

    /// Back to how it was built.
    pub fn reset(&mut self) {
        self.bytes = *self.initial;
    }

    /// What to save.
    #[must_use]
    pub fn state(&self) -> ConfigState {
        ConfigState {
            bytes: self.bytes.to_vec(),
        }
    }

    /// Takes a saved state, of a function built alike.
    ///
    /// # Errors
    /// When what the guest cannot write differs.
    pub fn restore(&mut self, state: &ConfigState) -> Result<(), StateError> {
        let mismatch = |reason: String| StateError::Mismatch {
            device: "PCI configuration space",
            reason,
        };
        let bytes: [u8; BYTES] = state
            .bytes
            .as_slice()
            .try_into()
            .map_err(|_| mismatch(format!("{} bytes instead of {BYTES}", state.bytes.len())))?;
        // The header and the skeleton of capabilities must be the same.
        let fixed = (0..0x40).find(|&at| (bytes[at] ^ self.initial[at]) & !self.writable[at] != 0);
        if let Some(at) = fixed {
            return Err(mismatch(format!("byte {at:#x} is another")));
        }
        self.bytes = bytes;
        Ok(())
    }
}
