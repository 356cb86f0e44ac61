//! Control registers, debug registers, and the bases of `fs` and `gs` (Intel SDM 3A, 2.5).

use super::{
    super::{
        Core, Fault, Flow, Op,
        memory::access::is_canonical,
        op::Width,
        segment::{CS, FS, GS, descriptor::LONG},
    },
    Extra,
    control::{
        CR0_CD, CR0_NW, CR0_PE, CR0_PG, CR0_TS, CR0_WP, CR4_FSGSBASE, CR4_KNOWN, CR4_OSXSAVE,
        CR4_PAE, CR4_PGE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_LME,
    },
};

/// Bits of `cr0` that exist, without the one that is always set.
const CR0_KNOWN: u64 = 0xe005_002f;
/// Extension type: always set.
const CR0_ET: u64 = 0x10;
/// General detect: `dr7` protects the debug registers.
const DR7_GD: u64 = 1 << 13;
/// Parts of the extended state that `xcr0` can turn on: x87, SSE, AVX.
const XCR0_KNOWN: u64 = 7;

impl Core {
    /// Changes `cr0`, with all that follows from it.
    ///
    /// # Errors
    /// `#GP(0)` for combinations that make no sense.
    pub(in crate::soft) fn set_cr0(&mut self, value: u64) -> Result<(), Fault> {
        let value = value & CR0_KNOWN | CR0_ET;
        let old = self.control.cr0;
        let paging = value & CR0_PG != 0;
        if paging && value & CR0_PE == 0 || value & (CR0_NW | CR0_CD) == CR0_NW {
            return Err(Fault::GP0);
        }
        if paging && old & CR0_PG == 0 && self.control.efer & EFER_LME != 0 {
            if self.control.cr4 & CR4_PAE == 0 || self.segments[CS].attributes & LONG != 0 {
                return Err(Fault::GP0);
            }
            self.control.efer |= EFER_LMA;
        }
        if !paging && old & CR0_PG != 0 {
            if self.width == Width::Code64 {
                return Err(Fault::GP0);
            }
            self.control.efer &= !EFER_LMA;
        }
        self.control.cr0 = value;
        if (old ^ value) & (CR0_PG | CR0_PE | CR0_WP) != 0 {
            self.tlb.flush(true);
        }
        if value & CR0_PE == 0 {
            self.privilege = 0;
        }
        self.refresh();
        Ok(())
    }

    /// Changes `cr4`.
    ///
    /// # Errors
    /// `#GP(0)` for bits that do not exist, and for leaving PAE in long mode.
    pub(in crate::soft) fn set_cr4(&mut self, value: u64) -> Result<(), Fault> {
        if value & !CR4_KNOWN != 0 || self.control.long() && value & CR4_PAE == 0 {
            return Err(Fault::GP0);
        }
        let changed = self.control.cr4 ^ value;
        self.control.cr4 = value;
        if changed & (CR4_PSE | CR4_PAE | CR4_PGE | CR4_SMEP | CR4_SMAP) != 0 {
            self.tlb.flush(true);
        }
        self.refresh();
        Ok(())
    }

    fn set_cr3(&mut self, value: u64) -> Result<(), Fault> {
        if self.control.long() && value >> super::super::memory::walk::PHYSICAL_BITS != 0 {
            return Err(Fault::GP0);
        }
        self.control.cr3 = value;
        self.tlb.flush(false);
        Ok(())
    }
}

fn value(core: &Core, op: &Op) -> u64 {
    if core.width == Width::Code64 {
        core.get::<u64>(op.a)
    } else {
        core.get::<u32>(op.a).into()
    }
}

fn put(core: &mut Core, op: &Op, value: u64) {
    if core.width == Width::Code64 {
        core.put::<u64>(op.a, value);
    } else {
        core.put::<u32>(op.a, value as u32);
    }
}

/// `mov` from a control register.
pub(super) fn read_control(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.demand_ring0()?;
    let found = match Extra::of(op).number {
        0 => core.control.cr0,
        2 => core.control.cr2,
        3 => core.control.cr3,
        4 => core.control.cr4,
        8 => core.task_priority(),
        _ => return Err(Fault::INVALID_OPCODE),
    };
    put(core, op, found);
    Ok(Flow::Next)
}

/// `mov` to a control register.
pub(super) fn write_control(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.demand_ring0()?;
    let value = value(core, op);
    match Extra::of(op).number {
        0 if value >> 32 != 0 => return Err(Fault::GP0),
        0 => core.set_cr0(value)?,
        2 => core.control.cr2 = value,
        3 => core.set_cr3(value)?,
        4 => core.set_cr4(value)?,
        8 if value > 15 => return Err(Fault::GP0),
        8 => core.set_task_priority(value),
        _ => return Err(Fault::INVALID_OPCODE),
    }
    Ok(Flow::Sync)
}

/// `clts`.
pub(super) fn clear_task_switched(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    core.demand_ring0()?;
    core.control.cr0 &= !CR0_TS;
    core.refresh();
    Ok(Flow::Next)
}

/// `lmsw`: the low four bits of `cr0`; protected mode is not left.
pub(super) fn load_machine_status(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.demand_ring0()?;
    let status = core.operand(op)? & 0xf | core.control.cr0 & CR0_PE;
    core.set_cr0(core.control.cr0 & !0xf | status)?;
    Ok(Flow::Sync)
}

/// `smsw`.
pub(super) fn store_machine_status(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.demand_user_tables()?;
    let status = core.control.cr0;
    core.set_operand(op, status)?;
    Ok(Flow::Next)
}

fn demand_debug(core: &Core) -> Result<(), Fault> {
    core.demand_ring0()?;
    if core.control.dr7 & DR7_GD != 0 {
        return Err(Fault::DEBUG);
    }
    Ok(())
}

/// `mov` from a debug register.
pub(super) fn read_debug(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    demand_debug(core)?;
    let found = match Extra::of(op).number {
        number @ 0..=3 => core.control.breakpoints[number as usize],
        4 | 6 => core.control.dr6,
        5 | 7 => core.control.dr7,
        _ => return Err(Fault::INVALID_OPCODE),
    };
    put(core, op, found);
    Ok(Flow::Next)
}

/// `mov` to a debug register.
pub(super) fn write_debug(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    demand_debug(core)?;
    let value = value(core, op);
    let number = Extra::of(op).number;
    if number > 3 && value >> 32 != 0 {
        return Err(Fault::GP0);
    }
    match number {
        0..=3 => core.control.breakpoints[number as usize] = value,
        4 | 6 => core.control.dr6 = value & 0xe00f | 0xffff_0ff0,
        5 | 7 => core.control.dr7 = value & 0xffff_2fff | 0x400,
        _ => return Err(Fault::INVALID_OPCODE),
    }
    Ok(Flow::Sync)
}

/// `xgetbv`.
pub(super) fn read_extended(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    if core.control.cr4 & CR4_OSXSAVE == 0 {
        return Err(Fault::INVALID_OPCODE);
    }
    if core.get::<u32>(1) != 0 {
        return Err(Fault::GP0);
    }
    let value = core.control.xcr0;
    core.put::<u32>(0, value as u32);
    core.put::<u32>(2, (value >> 32) as u32);
    Ok(Flow::Next)
}

/// `xsetbv`.
pub(super) fn write_extended(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    if core.control.cr4 & CR4_OSXSAVE == 0 {
        return Err(Fault::INVALID_OPCODE);
    }
    core.demand_ring0()?;
    let value = u64::from(core.get::<u32>(2)) << 32 | u64::from(core.get::<u32>(0));
    if core.get::<u32>(1) != 0 || value & 1 == 0 || value & !XCR0_KNOWN != 0 || value & 6 == 4 {
        return Err(Fault::GP0);
    }
    core.control.xcr0 = value;
    core.refresh();
    Ok(Flow::Sync)
}

fn demand_bases(core: &Core) -> Result<(), Fault> {
    if core.control.cr4 & CR4_FSGSBASE == 0 || core.width != Width::Code64 {
        return Err(Fault::INVALID_OPCODE);
    }
    Ok(())
}

fn read_base(core: &mut Core, op: &Op, segment: usize) -> Result<Flow, Fault> {
    demand_bases(core)?;
    let base = core.segments[segment].base;
    core.set_operand(op, base)?;
    Ok(Flow::Next)
}

fn write_base(core: &mut Core, op: &Op, segment: usize) -> Result<Flow, Fault> {
    demand_bases(core)?;
    let base = core.operand(op)?;
    if !is_canonical(base) {
        return Err(Fault::GP0);
    }
    core.segments[segment].base = base;
    Ok(Flow::Next)
}

/// `rdfsbase`.
pub(super) fn read_fs_base(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    read_base(core, op, FS)
}

/// `rdgsbase`.
pub(super) fn read_gs_base(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    read_base(core, op, GS)
}

/// `wrfsbase`.
pub(super) fn write_fs_base(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    write_base(core, op, FS)
}

/// `wrgsbase`.
pub(super) fn write_gs_base(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    write_base(core, op, GS)
}

/// `swapgs`.
pub(super) fn swap_gs(core: &mut Core, _: &Op) -> Result<Flow, Fault> {
    if core.width != Width::Code64 {
        return Err(Fault::INVALID_OPCODE);
    }
    core.demand_ring0()?;
    std::mem::swap(&mut core.segments[GS].base, &mut core.msrs.kernel_gs_base);
    Ok(Flow::Next)
}
