//! A stack while several values are pushed or popped: `rsp` and `ss` change only when all went
//! well.

use super::{
    super::{
        Core, Fault,
        core::{Access, Segment},
        flags,
        memory::access::permits,
        op::Width,
    },
    SS,
    descriptor::BIG,
};

const RSP: usize = 4;

/// A stack being worked on.
#[derive(Debug, Clone, Copy)]
pub struct Stack {
    /// Where it is; of the bits its width leaves out the original ones.
    pub pointer: u64,
    /// `None` for a 64-bit stack.
    segment: Option<Segment>,
}

impl Stack {
    /// The one in use.
    #[must_use]
    pub fn current(core: &Core) -> Self {
        if core.width == Width::Code64 {
            Self::wide(core.regs[RSP])
        } else {
            Self::segmented(core.regs[RSP], core.segments[SS])
        }
    }

    /// A 64-bit stack.
    #[must_use]
    pub fn wide(pointer: u64) -> Self {
        Self {
            pointer,
            segment: None,
        }
    }

    /// A stack in a segment.
    #[must_use]
    pub fn segmented(pointer: u64, segment: Segment) -> Self {
        Self {
            pointer,
            segment: Some(segment),
        }
    }

    fn mask(&self) -> u64 {
        match self.segment {
            None => u64::MAX,
            Some(segment) if segment.attributes & BIG != 0 => 0xffff_ffff,
            Some(_) => 0xffff,
        }
    }

    fn linear(&self, core: &Core, bytes: usize, access: Access) -> Result<u64, Fault> {
        let offset = self.pointer & self.mask();
        let Some(segment) = &self.segment else {
            return Ok(offset);
        };
        if !permits(segment, offset, bytes, access, core.control.protected()) {
            return Err(Fault::ss(0));
        }
        Ok(u64::from(segment.base.wrapping_add(offset) as u32))
    }

    /// Moves the pointer, within its width.
    pub fn add(&mut self, bytes: u64) {
        let mask = self.mask();
        self.pointer = self.pointer & !mask | self.pointer.wrapping_add(bytes) & mask;
    }

    /// Pushes a value of 2, 4 or 8 bytes.
    ///
    /// # Errors
    /// `#SS(0)`, `#PF`.
    pub fn push(&mut self, core: &mut Core, bytes: usize, value: u64) -> Result<(), Fault> {
        let before = self.pointer;
        self.add((bytes as u64).wrapping_neg());
        let stored = self
            .linear(core, bytes, Access::Write)
            .and_then(|linear| match bytes {
                2 => core.store::<u16>(linear, value as u16),
                4 => core.store::<u32>(linear, value as u32),
                _ => core.store::<u64>(linear, value),
            });
        if stored.is_err() {
            self.pointer = before;
        }
        stored.map_err(as_stack_fault)
    }

    /// Pops a value of 2, 4 or 8 bytes.
    ///
    /// # Errors
    /// `#SS(0)`, `#PF`.
    pub fn pop(&mut self, core: &mut Core, bytes: usize) -> Result<u64, Fault> {
        let linear = self.linear(core, bytes, Access::Read)?;
        let value = match bytes {
            2 => core.load::<u16>(linear).map(u64::from),
            4 => core.load::<u32>(linear).map(u64::from),
            _ => core.load::<u64>(linear),
        };
        self.add(bytes as u64);
        value.map_err(as_stack_fault)
    }

    /// Makes it the one in use, where it has not changed segments.
    pub fn commit(self, core: &mut Core) {
        core.regs[RSP] = if core.width == Width::Code32 && self.mask() == 0xffff_ffff {
            self.pointer & 0xffff_ffff
        } else {
            self.pointer
        };
    }
}

/// An address that is not canonical is `#SS` here.
fn as_stack_fault(fault: Fault) -> Fault {
    if fault == Fault::GP0 {
        Fault::ss(0)
    } else {
        fault
    }
}

/// What `iret` and `popf` may change, given the privilege (Intel SDM 2B, "POPF").
#[must_use]
pub fn changeable_flags(core: &Core) -> u64 {
    let mut mask = flags::STATUS | flags::TF | flags::DF | flags::NT | flags::AC | flags::ID;
    let iopl = ((core.flags.get() & flags::IOPL) >> 12) as u8;
    if core.privilege == 0 {
        mask |= flags::IOPL;
    }
    if core.privilege <= iopl || !core.control.protected() {
        mask |= flags::IF;
    }
    mask
}
