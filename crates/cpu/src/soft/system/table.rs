//! Descriptor-table registers and the task register.

use super::{
    super::{
        Core, Fault, Flow, Op,
        core::{Access, Segment},
        memory::access::is_canonical,
        op::{FLAT, Mem, Width},
        segment::descriptor::{Descriptor, PRESENT, is_null},
    },
    Extra, Table,
    control::CR4_UMIP,
};

const LDT: u16 = 0x2;
const TASK_16: u16 = 0x1;
const TASK: u16 = 0x9;
const BUSY: u64 = 1 << 41;

/// The linear addresses of the two parts of a table operand: limit, then base.
fn parts(core: &Core, mem: &Mem, access: Access) -> Result<(u64, u64), Fault> {
    let bytes = if core.width == Width::Code64 { 8 } else { 4 };
    let offset = core.offset(mem);
    if mem.segment == FLAT {
        return Ok((offset, offset.wrapping_add(2)));
    }
    let limit = core.linear_at(mem.segment, offset, 2, access)?;
    let base = core.linear_at(mem.segment, offset.wrapping_add(2), bytes, access)?;
    Ok((limit, base))
}

fn load(core: &mut Core, op: &Op) -> Result<Table, Fault> {
    core.demand_ring0()?;
    let (limit, base) = parts(core, &op.mem, Access::Read)?;
    let limit = core.load::<u16>(limit)?;
    let base = if core.width == Width::Code64 {
        core.load::<u64>(base)?
    } else {
        u64::from(core.load::<u32>(base)?)
    };
    if !is_canonical(base) {
        return Err(Fault::GP0);
    }
    Ok(Table { base, limit })
}

fn store(core: &mut Core, op: &Op, table: Table) -> Result<Flow, Fault> {
    core.demand_user_tables()?;
    let (limit, base) = parts(core, &op.mem, Access::Write)?;
    core.store::<u16>(limit, table.limit)?;
    if core.width == Width::Code64 {
        core.store::<u64>(base, table.base)?;
    } else {
        core.store::<u32>(base, table.base as u32)?;
    }
    Ok(Flow::Next)
}

impl Core {
    /// Refuses users a look at the tables when UMIP is on.
    pub(super) fn demand_user_tables(&self) -> Result<(), Fault> {
        if self.privilege > 0 && self.control.cr4 & CR4_UMIP != 0 {
            return Err(Fault::GP0);
        }
        Ok(())
    }

    /// A system descriptor of one of two types, whole: of 16 bytes in long mode.
    fn system_segment(
        &mut self,
        selector: u16,
        kinds: [u16; 2],
    ) -> Result<(u64, Descriptor, Segment), Fault> {
        let refused = Fault::gp(selector & !3);
        if selector & 4 != 0 {
            return Err(refused);
        }
        let bytes = if self.control.long() { 16 } else { 8 };
        let address = self.descriptor_address(selector, bytes).ok_or(refused)?;
        let descriptor = Descriptor(self.system_load::<u64>(address)?);
        if !kinds.contains(&descriptor.kind()) {
            return Err(refused);
        }
        if !descriptor.has(PRESENT) {
            return Err(Fault::np(selector & !3));
        }
        let mut segment = descriptor.segment(selector);
        if self.control.long() {
            let high = self.system_load::<u64>(address.wrapping_add(8))?;
            segment.base |= high << 32;
            if !is_canonical(segment.base) {
                return Err(refused);
            }
        }
        Ok((address, descriptor, segment))
    }
}

/// `lgdt`.
pub(super) fn load_gdt(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.tables.gdt = load(core, op)?;
    Ok(Flow::Next)
}

/// `lidt`.
pub(super) fn load_idt(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.tables.idt = load(core, op)?;
    Ok(Flow::Next)
}

/// `sgdt`.
pub(super) fn store_gdt(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    store(core, op, core.tables.gdt)
}

/// `sidt`.
pub(super) fn store_idt(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    store(core, op, core.tables.idt)
}

/// `lldt`.
pub(super) fn load_ldt(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    if !core.control.protected() {
        return Err(Fault::INVALID_OPCODE);
    }
    core.demand_ring0()?;
    let selector = core.operand(op)? as u16;
    core.tables.ldt = if is_null(selector) {
        Segment {
            selector,
            ..Segment::default()
        }
    } else {
        core.system_segment(selector, [LDT, LDT])?.2
    };
    Ok(Flow::Next)
}

/// `ltr`.
pub(super) fn load_task(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    if !core.control.protected() {
        return Err(Fault::INVALID_OPCODE);
    }
    core.demand_ring0()?;
    let selector = core.operand(op)? as u16;
    if is_null(selector) {
        return Err(Fault::GP0);
    }
    let kinds = if core.control.long() {
        [TASK, TASK]
    } else {
        [TASK, TASK_16]
    };
    let (address, descriptor, mut segment) = core.system_segment(selector, kinds)?;
    core.system_store::<u64>(address, descriptor.0 | BUSY)?;
    segment.attributes |= 2;
    core.tables.task = segment;
    Ok(Flow::Next)
}

/// `sldt`.
pub(super) fn store_ldt(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    store_selector(core, op, core.tables.ldt.selector)
}

/// `str`.
pub(super) fn store_task(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    store_selector(core, op, core.tables.task.selector)
}

fn store_selector(core: &mut Core, op: &Op, selector: u16) -> Result<Flow, Fault> {
    if !core.control.protected() {
        return Err(Fault::INVALID_OPCODE);
    }
    core.demand_user_tables()?;
    debug_assert!(Extra::of(op).bytes >= 2);
    core.set_operand(op, selector.into())?;
    Ok(Flow::Next)
}
