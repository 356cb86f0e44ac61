//! The state of one software vCPU, and how handlers reach registers and memory.
//!
//! Handlers call the methods here and nothing below them: how an address is translated is the
//! business of `memory`, what a device does that of the bus.

use std::{ptr::NonNull, sync::Arc};

use memory::Ram;

use super::{
    Fault, Flags,
    op::{FLAT, HIGH_BYTES, Mem, RIP, Width, ZERO},
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

/// One software vCPU.
pub struct Core {
    /// `rax` to `r15` in order of their numbers, then [`ZERO`] and [`RIP`].
    pub regs: [u64; 18],
    /// `rflags`.
    pub flags: Flags,
    /// `es`, `cs`, `ss`, `ds`, `fs`, `gs`.
    pub segments: [Segment; 6],
    /// Width of the code that runs.
    pub width: Width,
    /// The x87 and vector units; they are told the control registers by
    /// [`Vector::set_controls`].
    pub vector: Vector,
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

    /// The linear address of `bytes` at a memory operand, checked against its segment.
    ///
    /// # Errors
    /// `#GP(0)` or `#SS(0)` as the segment or canonical form demands.
    #[inline(always)]
    pub fn linear(&self, mem: &Mem, bytes: usize, access: Access) -> Result<u64, Fault> {
        let offset = self.offset(mem);
        if mem.segment == FLAT {
            return Ok(offset);
        }
        self.linear_at(mem.segment, offset, bytes, access)
    }

    /// The linear address of `bytes` at `segment:offset`, checked against the segment.
    ///
    /// # Errors
    /// `#GP(0)` or `#SS(0)`.
    pub fn linear_at(
        &self,
        segment: u8,
        offset: u64,
        _bytes: usize,
        _access: Access,
    ) -> Result<u64, Fault> {
        let base = self.segments[segment as usize].base;
        if self.width == Width::Code64 {
            return Ok(base.wrapping_add(offset));
        }
        Ok(u64::from(base.wrapping_add(offset) as u32))
    }

    /// Finds `bytes` (1 to 64) at a linear address, as the current privilege may access them.
    ///
    /// # Errors
    /// `#PF`, with `cr2` set.
    #[inline]
    pub fn find(&mut self, linear: u64, bytes: usize, _access: Access) -> Result<Place, Fault> {
        if (linear & 0xfff) + bytes as u64 > 0x1000 {
            return Ok(Place::Split(linear, (linear | 0xfff).wrapping_add(1)));
        }
        Ok(match self.ram.host(linear) {
            Some((host, _)) => Place::Ram(host),
            None => Place::Device(linear),
        })
    }

    /// Loads from a linear address.
    ///
    /// # Errors
    /// `#PF`.
    #[inline]
    pub fn load<T: Word>(&mut self, linear: u64) -> Result<T, Fault> {
        match self.find(linear, T::BYTES, Access::Read)? {
            // SAFETY: `find` returns a mapped address of at least as many bytes.
            Place::Ram(host) => Ok(unsafe { host.cast::<T>().read_unaligned() }),
            place => {
                let mut bytes = [0; 8];
                self.copy_in(place, linear, &mut bytes[..T::BYTES]);
                Ok(T::low(u64::from_le_bytes(bytes)))
            }
        }
    }

    /// Stores to a linear address.
    ///
    /// # Errors
    /// `#PF`.
    #[inline]
    pub fn store<T: Word>(&mut self, linear: u64, value: T) -> Result<(), Fault> {
        match self.find(linear, T::BYTES, Access::Write)? {
            Place::Ram(host) => {
                // SAFETY: `find` returns a mapped address of at least as many bytes.
                unsafe { host.cast::<T>().write_unaligned(value) };
            }
            place => self.copy_out(place, linear, &value.wide().to_le_bytes()[..T::BYTES]),
        }
        Ok(())
    }

    /// Loads a memory operand.
    ///
    /// # Errors
    /// What [`Core::linear`] and [`Core::load`] raise.
    #[inline]
    pub fn read<T: Word>(&mut self, mem: &Mem) -> Result<T, Fault> {
        let linear = self.linear(mem, T::BYTES, Access::Read)?;
        self.load(linear)
    }

    /// Stores to a memory operand.
    ///
    /// # Errors
    /// What [`Core::linear`] and [`Core::store`] raise.
    #[inline]
    pub fn write<T: Word>(&mut self, mem: &Mem, value: T) -> Result<(), Fault> {
        let linear = self.linear(mem, T::BYTES, Access::Write)?;
        self.store(linear, value)
    }

    /// Fills `data` from a place that [`Core::find`] found for as many bytes at `linear`; any
    /// number up to 64.
    #[cold]
    pub fn copy_in(&mut self, place: Place, linear: u64, data: &mut [u8]) {
        match place {
            Place::Ram(host) => {
                // SAFETY: `find` returned a mapped address of as many bytes.
                unsafe {
                    std::ptr::copy_nonoverlapping(host.as_ptr(), data.as_mut_ptr(), data.len())
                };
            }
            Place::Split(first, second) => {
                let (low, high) = data.split_at_mut(0x1000 - (linear & 0xfff) as usize);
                self.physical_read(first, low);
                self.physical_read(second, high);
            }
            Place::Device(address) => self.physical_read(address, data),
        }
    }

    /// Writes `data` to a place that [`Core::find`] found for a write of as many bytes at
    /// `linear`; any number up to 64.
    #[cold]
    pub fn copy_out(&mut self, place: Place, linear: u64, data: &[u8]) {
        match place {
            Place::Ram(host) => {
                // SAFETY: `find` returned a mapped address of as many bytes.
                unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), host.as_ptr(), data.len()) };
            }
            Place::Split(first, second) => {
                let (low, high) = data.split_at(0x1000 - (linear & 0xfff) as usize);
                self.physical_write(first, low);
                self.physical_write(second, high);
            }
            Place::Device(address) => self.physical_write(address, data),
        }
    }

    /// Reads within one page of physical memory, RAM or device.
    pub fn physical_read(&mut self, address: u64, data: &mut [u8]) {
        match self.ram.host(address) {
            // SAFETY: regions are made of whole pages, and `data` does not cross one.
            Some((host, _)) => unsafe {
                std::ptr::copy_nonoverlapping(host.as_ptr(), data.as_mut_ptr(), data.len());
            },
            None => {
                for (index, part) in data.chunks_mut(8).enumerate() {
                    self.bus.mmio_read(address + 8 * index as u64, part);
                }
            }
        }
    }

    /// Writes within one page of physical memory, RAM or device.
    pub fn physical_write(&mut self, address: u64, data: &[u8]) {
        match self.ram.host(address) {
            Some((host, page)) => {
                // SAFETY: regions are made of whole pages, and `data` does not cross one.
                unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), host.as_ptr(), data.len()) };
                self.ram.pages().written(page);
            }
            None => {
                for (index, part) in data.chunks(8).enumerate() {
                    self.bus.mmio_write(address + 8 * index as u64, part);
                }
            }
        }
    }

    /// A core with all registers zero, for the tests of handlers: 64-bit code, no paging.
    #[must_use]
    pub fn flat(ram: Ram, bus: Arc<dyn Bus>) -> Self {
        debug_assert_eq!(ZERO, 16);
        Self {
            regs: [0; 18],
            flags: Flags::default(),
            segments: [Segment::default(); 6],
            width: Width::Code64,
            vector: Vector::default(),
            ram,
            bus,
        }
    }
}
