//! The state of one software vCPU, and how handlers reach registers and memory.
//!
//! Handlers call the methods here and those that `memory::access` adds, and nothing below them: how
//! an address is translated is the business of `memory`, what a device does that of the bus.

use std::{ptr::NonNull, sync::Arc};

use memory::Ram;

use super::{
    Flags, Op,
    memory::{journal::Journal, tlb::Tlb},
    op::{HIGH_BYTES, Mem, RIP, Width, ZERO},
    platform::Platform,
    system::{Tables, control::Control, events::Events, msr::Msrs},
    translate::interface::Interface,
    vector::Vector,
};
use crate::Bus;

/// What an instruction moves at once between memory and general-purpose registers.
pub trait Word: Copy + Eq + Ord + std::fmt::Debug + 'static {
    /// Its size.
    const BYTES: usize;
    /// Zero-extended.
    fn wide(self) -> u64;
    /// The low bits of `value`.
    fn low(value: u64) -> Self;
    /// Sign-extended.
    fn signed(self) -> i64;
}

macro_rules! word {
    ($unsigned:ty, $signed:ty) => {
        impl Word for $unsigned {
            const BYTES: usize = size_of::<$unsigned>();
            #[inline(always)]
            fn wide(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn low(value: u64) -> Self {
                value as $unsigned
            }
            #[inline(always)]
            fn signed(self) -> i64 {
                self as $signed as i64
            }
        }
    };
}

word!(u8, i8);
word!(u16, i16);
word!(u32, i32);
word!(u64, i64);

/// A segment register with what is cached of its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// What `mov` reads.
    pub selector: u16,
    /// Bits 8 to 23 of the descriptor's second word: type, S, DPL, P, AVL, L, D/B, G, as
    /// `lar` shows them, shifted right by 8.
    pub attributes: u16,
    /// Highest valid offset, in bytes.
    pub limit: u32,
    /// Linear address of offset 0.
    pub base: u64,
}

/// What an access to memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store, or a load that a store follows.
    Write,
    /// A fetch of code.
    Execute,
}

/// Where an operand was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In RAM, contiguous on the host, until the next instruction.
    Ram(NonNull<u8>),
    /// In RAM or devices, over the end of a page: guest physical addresses of its first byte, and
    /// of the first byte of the second page.
    Split(u64, u64),
    /// In a device, at this guest physical address.
    Device(u64),
}

/// One software vCPU. Translated code reaches its fields by their offsets.
#[repr(C)]
pub struct Core {
    /// `rax` to `r15` in order of their numbers, then [`ZERO`] and [`RIP`].
    pub regs: [u64; 18],
    /// `rflags`.
    pub flags: Flags,
    /// `es`, `cs`, `ss`, `ds`, `fs`, `gs`.
    pub segments: [Segment; 6],
    /// Width of the code that runs: a copy of what `cs` and `efer` say.
    pub width: Width,
    /// The x87 and vector units; they are told the control registers by
    /// [`Vector::set_controls`].
    pub vector: Vector,
    /// Current privilege level, 0 to 3.
    pub privilege: u8,
    /// Control and debug registers.
    pub control: Control,
    /// `gdtr`, `idtr`, `ldtr` and `tr`.
    pub(in crate::soft) tables: Tables,
    /// Model-specific registers that are no part of anything else.
    pub(in crate::soft) msrs: Msrs,
    /// What is held back or about to happen.
    pub(in crate::soft) events: Events,
    /// Cached translations.
    pub(in crate::soft) tlb: Tlb,
    /// Past the last operation of the block that runs; moved to its start to end it early.
    pub(in crate::soft) block_end: *const Op,
    /// What it shares with translated code.
    pub(in crate::soft) interface: Interface,
    /// What is written, while the tiers are compared.
    pub(in crate::soft) journal: Option<Box<Journal>>,
    /// Its local APIC, clocks and peers.
    pub(in crate::soft) platform: Platform,
    /// RAM.
    pub ram: Ram,
    /// Everything else.
    pub bus: Arc<dyn Bus>,
}

impl Core {
    /// `rip`: where the current instruction begins.
    #[inline(always)]
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.regs[RIP as usize]
    }

    /// Sets `rip`; the handler then returns a branch.
    #[inline(always)]
    pub fn set_rip(&mut self, rip: u64) {
        self.regs[RIP as usize] = rip;
    }

    /// A register operand, as [`super::Op`] numbers it.
    #[inline(always)]
    #[must_use]
    pub fn get<T: Word>(&self, register: u8) -> T {
        if T::BYTES == 1 && register >= HIGH_BYTES {
            return T::low(self.regs[(register - HIGH_BYTES) as usize & 3] >> 8);
        }
        T::low(self.regs[register as usize & 15])
    }

    /// Writes a register operand: 32 bits clear the upper half, 8 and 16 leave the rest.
    #[inline(always)]
    pub fn put<T: Word>(&mut self, register: u8, value: T) {
        if T::BYTES == 1 && register >= HIGH_BYTES {
            let whole = &mut self.regs[(register - HIGH_BYTES) as usize & 3];
            *whole = *whole & !0xff00 | value.wide() << 8;
            return;
        }
        let whole = &mut self.regs[register as usize & 15];
        *whole = match T::BYTES {
            1 => *whole & !0xff | value.wide(),
            2 => *whole & !0xffff | value.wide(),
            _ => value.wide(),
        };
    }

    /// The offset of a memory operand in its segment: what `lea` computes.
    #[inline(always)]
    #[must_use]
    pub fn offset(&self, mem: &Mem) -> u64 {
        let sum = self.regs[mem.base as usize]
            .wrapping_add(self.regs[mem.index as usize] << mem.scale)
            .wrapping_add(mem.displacement);
        match mem.address_bytes {
            8 => sum,
            4 => u64::from(sum as u32),
            _ => u64::from(sum as u16),
        }
    }

    /// Ends the running block after the current instruction: what follows may have changed.
    #[inline(always)]
    pub(in crate::soft) fn end_block(&mut self) {
        self.block_end = std::ptr::null();
    }

    /// A core with all registers zero but its flags; whoever makes it sets its state.
    #[must_use]
    pub(in crate::soft) fn new(platform: Platform, ram: Ram, bus: Arc<dyn Bus>) -> Self {
        debug_assert_eq!(ZERO, 16);
        Self {
            regs: [0; 18],
            flags: Flags::default(),
            segments: [Segment::default(); 6],
            width: Width::Code16,
            vector: Vector::default(),
            privilege: 0,
            control: Control::default(),
            tables: Tables::default(),
            msrs: Msrs::default(),
            events: Events::default(),
            tlb: Tlb::default(),
            block_end: std::ptr::null(),
            journal: None,
            interface: Interface::default(),
            platform,
            ram,
            bus,
        }
    }

    /// A core with all registers zero, for the tests of handlers: 64-bit code in ring 0, no paging.
    #[must_use]
    pub fn flat(ram: Ram, bus: Arc<dyn Bus>) -> Self {
        let data = Segment {
            selector: 0,
            attributes: 0xc093,
            limit: u32::MAX,
            base: 0,
        };
        let code = Segment {
            attributes: 0xa09b,
            ..data
        };
        Self {
            segments: [data, code, data, data, data, data],
            width: Width::Code64,
            ..Self::new(Platform::alone(Arc::clone(&bus)), ram, bus)
        }
    }
}

// SAFETY: `block_end` is only compared, never followed; what `interface` points to lives for ever.
unsafe impl Send for Core {}
