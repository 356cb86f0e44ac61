//! Access to operands: segment checks, then the translation lookaside buffer, then the slow path
//! over the page walk, and devices.
//!
//! Handlers call these methods. Before a pointer for a store is handed out the page is said to be
//! written ([`Core::about_to_write`]), so a handler has nothing to announce afterwards.

use super::{
    super::{
        Fault,
        core::{Access, Core, Place, Segment, Word},
        op::{FLAT, Mem, Width},
    },
    tlb::{Context, Fill},
};

/// Number of `ss` among the segment registers.
const SS: u8 = 2;
const CS: usize = 1;
const PAGE: u64 = 0x1000;

/// Whether bits 63 to 47 are all the same.
#[inline(always)]
#[must_use]
pub fn is_canonical(linear: u64) -> bool {
    (linear as i64) << 16 >> 16 == linear as i64
}

/// The segment's own objection to an access, if it has one (Intel SDM 3A, 6.3 and 6.4).
pub(in crate::soft) fn permits(
    segment: &Segment,
    offset: u64,
    bytes: usize,
    access: Access,
    protected: bool,
) -> bool {
    const PRESENT: u16 = 1 << 7;
    const CODE: u16 = 1 << 3;
    /// Readable code or writable data.
    const OPEN: u16 = 1 << 1;
    const EXPAND_DOWN: u16 = 1 << 2;
    const BIG: u16 = 1 << 14;
    let attributes = segment.attributes;
    if protected {
        let code = attributes & CODE != 0;
        let permitted = match access {
            Access::Read => !code || attributes & OPEN != 0,
            Access::Write => !code && attributes & OPEN != 0,
            Access::Execute => true,
        };
        if attributes & PRESENT == 0 || !permitted {
            return false;
        }
    }
    let last = offset + bytes as u64 - 1;
    if attributes & (CODE | EXPAND_DOWN) == EXPAND_DOWN {
        let top = if attributes & BIG == 0 {
            0xffff
        } else {
            0xffff_ffff
        };
        offset > u64::from(segment.limit) && last <= top
    } else {
        // A segment of 4 GiB has no end: what goes past it wraps.
        last <= u64::from(segment.limit) || segment.limit == u32::MAX
    }
}

impl Core {
    /// The linear address of `bytes` at a memory operand, checked against its segment.
    ///
    /// # Errors
    /// `#GP(0)` or `#SS(0)` as the segment demands. Whether a 64-bit address is canonical is
    /// checked when it is used.
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
        bytes: usize,
        access: Access,
    ) -> Result<u64, Fault> {
        let cached = &self.segments[segment as usize % 6];
        if self.width == Width::Code64 {
            let base = if segment < 4 { 0 } else { cached.base };
            return Ok(base.wrapping_add(offset));
        }
        if !permits(cached, offset, bytes, access, self.control.protected()) {
            return Err(if segment == SS {
                Fault::ss(0)
            } else {
                Fault::GP0
            });
        }
        Ok(u64::from(cached.base.wrapping_add(offset) as u32))
    }

    /// Finds `bytes` (1 to 64) at a linear address, as the current privilege may access them. For
    /// [`Access::Write`] the page counts as written from now on.
    ///
    /// # Errors
    /// `#PF`, with `cr2` set; `#GP(0)` for an address that is not canonical.
    #[inline(always)]
    pub fn find(&mut self, linear: u64, bytes: usize, access: Access) -> Result<Place, Fault> {
        match self.tlb.data(linear, bytes, access) {
            Some(host) => Ok(Place::Ram(host)),
            None => self.find_slow(linear, bytes, access),
        }
    }

    #[cold]
    #[inline(never)]
    fn find_slow(&mut self, linear: u64, bytes: usize, access: Access) -> Result<Place, Fault> {
        self.counters().tlb_misses.increment();
        let found = self.look_up(linear, bytes, access);
        if found.is_err() {
            self.counters().faults.increment();
        }
        found
    }

    /// Walks the page tables, and enters what it finds into the buffer.
    fn look_up(&mut self, linear: u64, bytes: usize, access: Access) -> Result<Place, Fault> {
        let mut last = linear.wrapping_add(bytes as u64 - 1);
        if self.width != Width::Code64 && linear <= u64::from(u32::MAX) {
            // Linear addresses have 32 bits outside 64-bit code.
            last = u64::from(last as u32);
        }
        if !is_canonical(linear) || !is_canonical(last) {
            return Err(Fault::GP0);
        }
        let context = self.tlb.context();
        let first = self.translate(linear, access, context)?;
        if linear & !(PAGE - 1) != last & !(PAGE - 1) {
            let second = self.translate(last & !(PAGE - 1), access, context)?;
            self.counters().crossings.increment();
            return Ok(Place::Split(first.physical, second.physical));
        }
        let Some((host, page)) = self.ram.host(first.physical) else {
            self.counters().device_accesses.increment();
            return Ok(Place::Device(first.physical));
        };
        if access == Access::Write {
            self.about_to_write(page);
            if let Some(journal) = &mut self.journal {
                journal.note(Some(linear), host, bytes);
            }
        }
        let journalled = self.journal.is_some();
        let pages = self.ram.pages();
        let fill = Fill {
            linear,
            host,
            page,
            global: first.global,
            writable: first.writable
                && !journalled
                && !pages.is_code(page)
                && (!pages.is_logging() || pages.is_dirty(page)),
        };
        let counters = self.counters();
        match access {
            Access::Write if !fill.writable => counters.watched_stores.increment(),
            _ => counters.tlb_fills.increment(),
        }
        self.tlb.fill_data(context, &fill);
        Ok(Place::Ram(host))
    }

    /// Says that a page of RAM is about to be written by this vCPU. Should it hold code, blocks
    /// made of it are void, and the running one ends with the current instruction.
    pub(in crate::soft) fn about_to_write(&mut self, page: usize) {
        if self.ram.pages().written(page) {
            self.interface.note_written(page);
            self.cannot_take_back();
            self.end_block();
        }
    }

    /// Tells the journal, if there is one, of what cannot be taken back.
    pub(in crate::soft) fn cannot_take_back(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.is_final = true;
        }
    }

    /// The linear address of the next instruction.
    ///
    /// # Errors
    /// `#GP(0)` past the limit of `cs`.
    #[inline(always)]
    pub(in crate::soft) fn code_address(&mut self) -> Result<u64, Fault> {
        if self.width == Width::Code64 {
            return Ok(self.rip());
        }
        let code = &self.segments[CS];
        let mask = if self.width == Width::Code32 {
            0xffff_ffff
        } else {
            0xffff
        };
        let rip = self.rip() & mask;
        if rip > u64::from(code.limit) {
            return Err(Fault::GP0);
        }
        let linear = u64::from(code.base.wrapping_add(rip) as u32);
        self.set_rip(rip);
        Ok(linear)
    }

    /// Finds code: the host address of the byte at a linear address, and the number of its page.
    ///
    /// # Errors
    /// `#PF`, `#GP(0)`. `None` where no RAM is.
    #[inline(always)]
    pub(in crate::soft) fn find_code(
        &mut self,
        linear: u64,
    ) -> Result<Option<(u64, usize)>, Fault> {
        match self.tlb.code(linear) {
            Some(found) => Ok(Some(found)),
            None => self.find_code_slow(linear),
        }
    }

    #[cold]
    #[inline(never)]
    fn find_code_slow(&mut self, linear: u64) -> Result<Option<(u64, usize)>, Fault> {
        if !is_canonical(linear) {
            return Err(Fault::GP0);
        }
        self.counters().tlb_code_misses.increment();
        let context = self.tlb.context();
        let found = self.translate(linear, Access::Execute, context)?;
        let Some((host, page)) = self.ram.host(found.physical) else {
            return Ok(None);
        };
        let fill = Fill {
            linear,
            host,
            page,
            global: found.global,
            writable: false,
        };
        self.tlb.fill_code(context, &fill);
        Ok(Some((host.as_ptr() as u64, page)))
    }

    /// Runs `body` with memory accessed on behalf of `context`, as what the processor itself does
    /// to descriptor tables and stacks of other privileges.
    pub(in crate::soft) fn as_context<T>(
        &mut self,
        context: Context,
        body: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let saved = self.tlb.context();
        self.tlb.set_context(context);
        let result = body(self);
        self.tlb.set_context(saved);
        result
    }

    /// Loads from a linear address.
    ///
    /// # Errors
    /// What [`Core::find`] raises.
    #[inline(always)]
    pub fn load<T: Word>(&mut self, linear: u64) -> Result<T, Fault> {
        if let Some(host) = self.tlb.data(linear, T::BYTES, Access::Read) {
            // SAFETY: the buffer holds mapped addresses only, of as many bytes as asked for.
            return Ok(unsafe { host.cast::<T>().read_unaligned() });
        }
        self.load_slow(linear)
    }

    #[cold]
    #[inline(never)]
    fn load_slow<T: Word>(&mut self, linear: u64) -> Result<T, Fault> {
        let place = self.find_slow(linear, T::BYTES, Access::Read)?;
        let mut bytes = [0; 8];
        self.copy_in(place, linear, &mut bytes[..T::BYTES]);
        Ok(T::low(u64::from_le_bytes(bytes)))
    }

    /// Stores to a linear address.
    ///
    /// # Errors
    /// What [`Core::find`] raises.
    #[inline(always)]
    pub fn store<T: Word>(&mut self, linear: u64, value: T) -> Result<(), Fault> {
        if let Some(host) = self.tlb.data(linear, T::BYTES, Access::Write) {
            // SAFETY: the buffer holds mapped addresses only, of as many bytes as asked for.
            unsafe { host.cast::<T>().write_unaligned(value) };
            return Ok(());
        }
        self.store_slow(linear, value)
    }

    #[cold]
    #[inline(never)]
    fn store_slow<T: Word>(&mut self, linear: u64, value: T) -> Result<(), Fault> {
        let place = self.find_slow(linear, T::BYTES, Access::Write)?;
        self.copy_out(place, linear, &value.wide().to_le_bytes()[..T::BYTES]);
        Ok(())
    }

    /// Loads a memory operand.
    ///
    /// # Errors
    /// What [`Core::linear`] and [`Core::load`] raise.
    #[inline(always)]
    pub fn read<T: Word>(&mut self, mem: &Mem) -> Result<T, Fault> {
        let linear = self.linear(mem, T::BYTES, Access::Read)?;
        match self.load(linear) {
            Err(fault) => Err(stack_fault(mem, fault)),
            loaded => loaded,
        }
    }

    /// Stores to a memory operand.
    ///
    /// # Errors
    /// What [`Core::linear`] and [`Core::store`] raise.
    #[inline(always)]
    pub fn write<T: Word>(&mut self, mem: &Mem, value: T) -> Result<(), Fault> {
        let linear = self.linear(mem, T::BYTES, Access::Write)?;
        match self.store(linear, value) {
            Err(fault) => Err(stack_fault(mem, fault)),
            stored => stored,
        }
    }

    /// Fills `data` from a place that [`Core::find`] found for as many bytes at `linear`; any
    /// number up to 64.
    #[cold]
    pub fn copy_in(&mut self, place: Place, linear: u64, data: &mut [u8]) {
        match place {
            Place::Ram(host) => {
                // SAFETY: `find` returned a mapped address of as many bytes.
                unsafe {
                    std::ptr::copy_nonoverlapping(host.as_ptr(), data.as_mut_ptr(), data.len());
                };
            }
            Place::Split(first, second) => {
                let (low, high) = data.split_at_mut((PAGE - linear % PAGE) as usize);
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
                let (low, high) = data.split_at((PAGE - linear % PAGE) as usize);
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
                    self.device_read(address + 8 * index as u64, part);
                }
            }
        }
    }

    /// Writes within one page of physical memory, RAM or device.
    pub fn physical_write(&mut self, address: u64, data: &[u8]) {
        match self.ram.host(address) {
            Some((host, page)) => {
                self.about_to_write(page);
                if let Some(journal) = &mut self.journal {
                    journal.note(None, host, data.len());
                }
                // SAFETY: regions are made of whole pages, and `data` does not cross one.
                unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), host.as_ptr(), data.len()) };
            }
            None => {
                for (index, part) in data.chunks(8).enumerate() {
                    self.device_write(address + 8 * index as u64, part);
                }
            }
        }
    }
}

/// A `#GP(0)` for an operand that names the stack segment is a `#SS(0)`.
#[cold]
#[inline(never)]
pub(in crate::soft) fn stack_fault(mem: &Mem, fault: Fault) -> Fault {
    if mem.named == SS && fault == Fault::GP0 {
        Fault::ss(0)
    } else {
        fault
    }
}
