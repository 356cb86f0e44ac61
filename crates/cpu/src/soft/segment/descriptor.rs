//! Descriptors, as tables in memory hold them (Intel SDM 3A, 3.4.5 and 5.8.3).

use super::super::{Core, Fault, core::Segment, memory::tlb::Context};

/// `attributes`: code, not data.
pub const CODE: u16 = 1 << 3;
/// `attributes`: code runs at the caller's privilege.
pub const CONFORMING: u16 = 1 << 2;
/// `attributes`: code can be read, data can be written.
pub const OPEN: u16 = 1 << 1;
/// `attributes`: was loaded.
pub const ACCESSED: u16 = 1 << 0;
/// `attributes`: code or data, not a system descriptor.
pub const MEMORY: u16 = 1 << 4;
/// `attributes`: present.
pub const PRESENT: u16 = 1 << 7;
/// `attributes`: 64-bit code.
pub const LONG: u16 = 1 << 13;
/// `attributes`: 32-bit code or stack.
pub const BIG: u16 = 1 << 14;

/// A descriptor of 8 bytes, or the first half of one of 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// Type, S, DPL, P, AVL, L, D/B, G, as [`Segment::attributes`].
    #[must_use]
    pub fn attributes(self) -> u16 {
        (self.0 >> 40) as u16 & 0xf0ff
    }

    /// Type, with S as bit 4.
    #[must_use]
    pub fn kind(self) -> u16 {
        self.attributes() & 0x1f
    }

    /// Privilege needed.
    #[must_use]
    pub fn dpl(self) -> u8 {
        (self.0 >> 45) as u8 & 3
    }

    /// Whether all of `bits` are set among the attributes.
    #[must_use]
    pub fn has(self, bits: u16) -> bool {
        self.attributes() & bits == bits
    }

    /// Whether it is of a code segment.
    #[must_use]
    pub fn is_code(self) -> bool {
        self.has(MEMORY | CODE)
    }

    /// Whether it is of a data segment that can be written.
    #[must_use]
    pub fn is_writable_data(self) -> bool {
        self.kind() & (MEMORY | CODE | OPEN) == MEMORY | OPEN
    }

    /// Highest valid offset in bytes.
    #[must_use]
    pub fn limit(self) -> u32 {
        let limit = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.0 & 1 << 55 != 0 {
            limit << 12 | 0xfff
        } else {
            limit
        }
    }

    /// Linear address of offset 0, for descriptors of 8 bytes.
    #[must_use]
    pub fn base(self) -> u64 {
        self.0 >> 16 & 0xff_ffff | self.0 >> 32 & 0xff00_0000
    }

    /// What a segment register holds after it was loaded.
    #[must_use]
    pub fn segment(self, selector: u16) -> Segment {
        Segment {
            selector,
            attributes: self.attributes(),
            limit: self.limit(),
            base: self.base(),
        }
    }
}

/// Whether a selector is null.
#[must_use]
pub fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

impl Core {
    /// Loads from what only the processor itself accesses, whatever the privilege.
    pub(in crate::soft) fn system_load<T: super::super::core::Word>(
        &mut self,
        linear: u64,
    ) -> Result<T, Fault> {
        self.as_context(Context::Supervisor, |core| core.load(linear))
    }

    /// Stores to what only the processor itself accesses.
    pub(in crate::soft) fn system_store<T: super::super::core::Word>(
        &mut self,
        linear: u64,
        value: T,
    ) -> Result<(), Fault> {
        self.as_context(Context::Supervisor, |core| core.store(linear, value))
    }

    /// The linear address of the descriptor that a selector names; `None` past the table's limit.
    pub(in crate::soft) fn descriptor_address(&self, selector: u16, bytes: u32) -> Option<u64> {
        let offset = u32::from(selector & !7);
        let (base, limit) = if selector & 4 == 0 {
            (self.tables.gdt.base, u32::from(self.tables.gdt.limit))
        } else if self.tables.ldt.attributes & PRESENT != 0 {
            (self.tables.ldt.base, self.tables.ldt.limit)
        } else {
            return None;
        };
        (offset + bytes - 1 <= limit).then(|| base.wrapping_add(u64::from(offset)))
    }

    /// The descriptor that a selector names.
    ///
    /// # Errors
    /// `refuse(selector)` past the table's limit; `#PF`.
    pub(in crate::soft) fn descriptor(
        &mut self,
        selector: u16,
        refuse: fn(u16) -> Fault,
    ) -> Result<Descriptor, Fault> {
        let address = self
            .descriptor_address(selector, 8)
            .ok_or(refuse(selector & !3))?;
        Ok(Descriptor(self.system_load::<u64>(address)?))
    }

    /// Sets the accessed bit of a descriptor, and returns it with the bit set.
    pub(in crate::soft) fn mark_accessed(
        &mut self,
        selector: u16,
        descriptor: Descriptor,
    ) -> Result<Descriptor, Fault> {
        if descriptor.has(ACCESSED) {
            return Ok(descriptor);
        }
        if let Some(address) = self.descriptor_address(selector, 8) {
            let kind = (descriptor.0 >> 40) as u8 | ACCESSED as u8;
            self.system_store::<u8>(address.wrapping_add(5), kind)?;
        }
        Ok(Descriptor(descriptor.0 | u64::from(ACCESSED) << 40))
    }
}
