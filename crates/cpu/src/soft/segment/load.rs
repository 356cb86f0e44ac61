//! Loading of segment registers, with all checks (Intel SDM 2A, "MOV"; 3A, 5.6 to 5.8).

use super::{
    super::{Core, Fault, core::Segment, flags::AC, memory::tlb::Context, op::Width},
    CS, DS, ES, FS, GS, SS,
    descriptor::{BIG, CODE, CONFORMING, Descriptor, LONG, MEMORY, OPEN, PRESENT, is_null},
};

impl Core {
    /// Loads `es`, `ss`, `ds`, `fs` or `gs` as `mov` does.
    ///
    /// # Errors
    /// `#GP`, `#SS`, `#NP`, `#PF`.
    pub(in crate::soft) fn load_segment(
        &mut self,
        number: usize,
        selector: u16,
    ) -> Result<(), Fault> {
        if !self.control.protected() {
            let segment = &mut self.segments[number];
            segment.selector = selector;
            segment.base = u64::from(selector) << 4;
            return Ok(());
        }
        let loaded = if number == SS {
            self.stack_segment(selector, self.privilege, Fault::gp)?
        } else {
            self.data_segment(selector)?
        };
        self.segments[number] = loaded;
        Ok(())
    }

    fn data_segment(&mut self, selector: u16) -> Result<Segment, Fault> {
        if is_null(selector) {
            return Ok(Segment {
                selector,
                ..Segment::default()
            });
        }
        let descriptor = self.descriptor(selector, Fault::gp)?;
        let kind = descriptor.kind();
        let refused = Err(Fault::gp(selector & !3));
        if kind & MEMORY == 0 || kind & (CODE | OPEN) == CODE {
            return refused;
        }
        let conforming = kind & (CODE | CONFORMING) == CODE | CONFORMING;
        if !conforming && descriptor.dpl() < self.privilege.max(selector as u8 & 3) {
            return refused;
        }
        if !descriptor.has(PRESENT) {
            return Err(Fault::np(selector & !3));
        }
        Ok(self.mark_accessed(selector, descriptor)?.segment(selector))
    }

    /// The stack segment that a selector names, for code at `privilege`. `refuse` is `#GP`, or
    /// `#TS` for one from a task state segment.
    ///
    /// # Errors
    /// `refuse(selector)`, `#SS`, `#PF`.
    pub(in crate::soft) fn stack_segment(
        &mut self,
        selector: u16,
        privilege: u8,
        refuse: fn(u16) -> Fault,
    ) -> Result<Segment, Fault> {
        let rpl = selector as u8 & 3;
        if is_null(selector) {
            // 64-bit code of the system may do without one.
            if self.control.long() && privilege < 3 && rpl == privilege {
                return Ok(null_stack(selector));
            }
            return Err(refuse(0));
        }
        let descriptor = self.descriptor(selector, refuse)?;
        if rpl != privilege || descriptor.dpl() != privilege || !descriptor.is_writable_data() {
            return Err(refuse(selector & !3));
        }
        if !descriptor.has(PRESENT) {
            return Err(Fault::ss(selector & !3));
        }
        Ok(self.mark_accessed(selector, descriptor)?.segment(selector))
    }

    /// Checks a code segment that a far `jmp` or `call` names directly, and returns what `cs` is to
    /// hold.
    ///
    /// # Errors
    /// `#GP`, `#NP`, `#PF`.
    pub(in crate::soft) fn code_segment_of_transfer(
        &mut self,
        selector: u16,
        descriptor: Descriptor,
    ) -> Result<Segment, Fault> {
        let refused = Err(Fault::gp(selector & !3));
        let rpl = selector as u8 & 3;
        let permitted = if descriptor.has(CONFORMING) {
            descriptor.dpl() <= self.privilege
        } else {
            rpl <= self.privilege && descriptor.dpl() == self.privilege
        };
        if !permitted {
            return refused;
        }
        self.present_code(selector & !3 | u16::from(self.privilege), descriptor)
    }

    /// Checks a code segment that `ret` or `iret` names.
    ///
    /// # Errors
    /// `#GP`, `#NP`, `#PF`.
    pub(in crate::soft) fn code_segment_of_return(
        &mut self,
        selector: u16,
    ) -> Result<Segment, Fault> {
        if is_null(selector) {
            return Err(Fault::GP0);
        }
        let descriptor = self.descriptor(selector, Fault::gp)?;
        let rpl = selector as u8 & 3;
        let permitted = rpl >= self.privilege
            && descriptor.is_code()
            && if descriptor.has(CONFORMING) {
                descriptor.dpl() <= rpl
            } else {
                descriptor.dpl() == rpl
            };
        if !permitted {
            return Err(Fault::gp(selector & !3));
        }
        self.present_code(selector, descriptor)
    }

    /// What every new `cs` must be: present, and not both 64-bit and 32-bit.
    ///
    /// # Errors
    /// `#GP`, `#NP`, `#PF`.
    pub(in crate::soft) fn present_code(
        &mut self,
        selector: u16,
        descriptor: Descriptor,
    ) -> Result<Segment, Fault> {
        if self.control.long() && descriptor.has(LONG | BIG) {
            return Err(Fault::gp(selector & !3));
        }
        if !descriptor.has(PRESENT) {
            return Err(Fault::np(selector & !3));
        }
        Ok(self.mark_accessed(selector, descriptor)?.segment(selector))
    }

    /// Puts a code segment in `cs`; the privilege becomes what its selector requests.
    pub(in crate::soft) fn set_code_segment(&mut self, segment: Segment) {
        self.segments[CS] = segment;
        if self.control.protected() {
            self.privilege = segment.selector as u8 & 3;
        }
        self.refresh_width();
        self.refresh_context();
    }

    /// After a return to lesser privilege: data segments that it may not use become null.
    pub(in crate::soft) fn drop_data_segments(&mut self) {
        for number in [ES, DS, FS, GS] {
            let segment = &mut self.segments[number];
            let dpl = (segment.attributes >> 5) as u8 & 3;
            let conforming = segment.attributes & (CODE | CONFORMING) == CODE | CONFORMING;
            if segment.attributes & PRESENT != 0 && !conforming && dpl < self.privilege {
                *segment = Segment::default();
            }
        }
    }

    /// Draws the conclusions from `cs`, privilege, flags and control registers: how wide code is,
    /// on whose behalf memory is accessed, which units may be used. To be called after a change of
    /// any of them.
    pub(in crate::soft) fn refresh(&mut self) {
        self.refresh_width();
        self.refresh_context();
        let control = &self.control;
        self.vector
            .set_controls(control.cr0, control.cr4, control.xcr0);
    }

    /// The part of [`Core::refresh`] that follows from `cs`.
    fn refresh_width(&mut self) {
        let attributes = self.segments[CS].attributes;
        self.width = if self.control.long() && attributes & LONG != 0 {
            Width::Code64
        } else if attributes & BIG != 0 {
            Width::Code32
        } else {
            Width::Code16
        };
    }

    /// The part of [`Core::refresh`] that follows from privilege and flags.
    #[inline]
    pub(in crate::soft) fn refresh_context(&mut self) {
        self.tlb.set_context(if self.privilege == 3 {
            Context::User
        } else if self.flags.any(AC) {
            Context::SupervisorOpen
        } else {
            Context::Supervisor
        });
    }
}

/// What `ss` holds when 64-bit code runs without a stack segment.
#[must_use]
pub fn null_stack(selector: u16) -> Segment {
    Segment {
        selector,
        attributes: 0,
        limit: 0,
        base: 0,
    }
}
