//! Far transfers of control: `jmp`, `call` and `ret` between segments, `int`, `iret` (Intel SDM 2A;
//! 3A, 5.8 and 6.12). Hardware task switches are refused with `#GP`.

use super::{
    super::{
        Core, Fault, Flow, Op,
        core::Segment,
        flags::{IF, IOPL, NT, OF, RF, VM},
        interrupt::{self, Event, Source},
        memory::access::is_canonical,
        op::Width,
        segment::{
            CS, SS,
            descriptor::{BIG, Descriptor, LONG, PRESENT, is_null},
            stack::{Stack, changeable_flags},
        },
    },
    Extra,
    segment::far_pointer,
};

const CALL_GATE_16: u16 = 0x4;
const CALL_GATE: u16 = 0xc;

/// Where a far transfer leads.
struct Target {
    code: Segment,
    offset: u64,
    /// Through a gate: size of what a call pushes.
    bytes: usize,
}

fn operand(core: &mut Core, op: &Op) -> Result<(u64, u16), Fault> {
    let extra = Extra::of(op);
    if extra.memory {
        far_pointer(core, op, extra.bytes.into())
    } else {
        Ok((op.imm, extra.number))
    }
}

fn real_code(core: &Core, selector: u16) -> Segment {
    Segment {
        selector,
        base: u64::from(selector) << 4,
        ..core.segments[CS]
    }
}

/// An offset must lie within the new code segment.
fn check_offset(core: &Core, code: &Segment, offset: u64) -> Result<(), Fault> {
    let within = if core.control.long() && code.attributes & LONG != 0 {
        is_canonical(offset)
    } else {
        offset <= u64::from(code.limit)
    };
    if within { Ok(()) } else { Err(Fault::GP0) }
}

/// Resolves the operand of a far `jmp` or `call`.
fn target(core: &mut Core, op: &Op, call: bool) -> Result<Target, Fault> {
    let (offset, selector) = operand(core, op)?;
    let bytes = usize::from(Extra::of(op).bytes);
    if !core.control.protected() {
        let code = real_code(core, selector);
        check_offset(core, &code, offset)?;
        return Ok(Target {
            code,
            offset,
            bytes,
        });
    }
    if is_null(selector) {
        return Err(Fault::GP0);
    }
    let descriptor = core.descriptor(selector, Fault::gp)?;
    if descriptor.is_code() {
        let code = core.code_segment_of_transfer(selector, descriptor)?;
        check_offset(core, &code, offset)?;
        return Ok(Target {
            code,
            offset,
            bytes,
        });
    }
    gate(core, selector, descriptor, call)
}

/// Resolves a call gate.
fn gate(core: &mut Core, selector: u16, gate: Descriptor, call: bool) -> Result<Target, Fault> {
    let refused = Err(Fault::gp(selector & !3));
    let long = core.control.long();
    let bytes = match gate.kind() {
        CALL_GATE if long => 8,
        CALL_GATE => 4,
        CALL_GATE_16 if !long => 2,
        _ => return refused,
    };
    if gate.dpl() < core.privilege.max(selector as u8 & 3) {
        return refused;
    }
    if !gate.has(PRESENT) {
        return Err(Fault::np(selector & !3));
    }
    let mut offset = gate.0 & 0xffff | gate.0 >> 32 & 0xffff_0000;
    if long {
        let address = core
            .descriptor_address(selector, 16)
            .ok_or(Fault::gp(selector & !3))?;
        offset |= core.system_load::<u64>(address.wrapping_add(8))? << 32;
    } else if bytes == 2 {
        offset &= 0xffff;
    }
    let named = (gate.0 >> 16) as u16;
    if is_null(named) {
        return Err(Fault::GP0);
    }
    let descriptor = core.descriptor(named, Fault::gp)?;
    let bad = || Fault::gp(named & !3);
    if !descriptor.is_code() || descriptor.dpl() > core.privilege || long && !descriptor.has(LONG) {
        return Err(bad());
    }
    let conforming = descriptor.has(super::super::segment::descriptor::CONFORMING);
    let privilege = if conforming || descriptor.dpl() == core.privilege {
        core.privilege
    } else if call {
        descriptor.dpl()
    } else {
        return Err(bad());
    };
    if privilege < core.privilege && gate.0 >> 32 & 0x1f != 0 && !long {
        // Parameters copied from stack to stack: nothing uses them.
        return Err(bad());
    }
    let code = core.present_code(named & !3 | u16::from(privilege), descriptor)?;
    check_offset(core, &code, offset)?;
    Ok(Target {
        code,
        offset,
        bytes,
    })
}

/// Far `jmp`.
pub(super) fn jump(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let target = target(core, op, false)?;
    core.set_code_segment(target.code);
    core.set_rip(target.offset);
    Ok(Flow::SyncBranch)
}

/// Far `call`.
pub(super) fn call(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let next = core.next_rip(op);
    let target = target(core, op, true)?;
    let privilege = target.code.selector as u8 & 3;
    let selector = u64::from(core.segments[CS].selector);
    let bytes = target.bytes;
    if core.control.protected() && privilege < core.privilege {
        let (mut stack, segment) = if core.control.long() {
            let pointer = interrupt::task_pointer(core, 4 + u64::from(privilege) * 8)?;
            let segment = super::super::segment::load::null_stack(privilege.into());
            (Stack::wide(pointer), segment)
        } else {
            interrupt::inner_stack(core, privilege)?
        };
        let old = (core.segments[SS].selector, core.regs[4]);
        core.as_context(super::super::memory::tlb::Context::Supervisor, |core| {
            stack.push(core, bytes, old.0.into())?;
            stack.push(core, bytes, old.1)?;
            stack.push(core, bytes, selector)?;
            stack.push(core, bytes, next)
        })?;
        core.segments[SS] = segment;
        core.regs[4] = stack.pointer;
    } else {
        let mut stack = Stack::current(core);
        stack.push(core, bytes, selector)?;
        stack.push(core, bytes, next)?;
        stack.commit(core);
    }
    core.set_code_segment(target.code);
    core.set_rip(target.offset);
    Ok(Flow::SyncBranch)
}

/// Far `ret`.
pub(super) fn far_return(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let bytes = usize::from(Extra::of(op).bytes);
    let mut stack = Stack::current(core);
    let offset = stack.pop(core, bytes)?;
    let selector = stack.pop(core, bytes)? as u16;
    if !core.control.protected() {
        let code = real_code(core, selector);
        check_offset(core, &code, offset)?;
        stack.add(op.imm);
        stack.commit(core);
        core.set_code_segment(code);
        core.set_rip(offset);
        return Ok(Flow::SyncBranch);
    }
    let code = core.code_segment_of_return(selector)?;
    check_offset(core, &code, offset)?;
    stack.add(op.imm);
    let outer = code.selector as u8 & 3 > core.privilege;
    if outer {
        let pointer = stack.pop(core, bytes)?;
        let selector = stack.pop(core, bytes)? as u16;
        let mut stack = outer_stack(core, &code, pointer, selector)?;
        stack.add(op.imm);
        leave(core, code, stack, offset);
    } else {
        stack.commit(core);
        core.set_code_segment(code);
        core.set_rip(offset);
    }
    Ok(Flow::SyncBranch)
}

/// The stack that a return to `code` switches to. `ss` is changed here already: nothing may fail
/// after this.
fn outer_stack(
    core: &mut Core,
    code: &Segment,
    pointer: u64,
    selector: u16,
) -> Result<Stack, Fault> {
    let ring = code.selector as u8 & 3;
    let wide = core.control.long() && code.attributes & LONG != 0;
    if is_null(selector) && !(wide && ring < 3) {
        return Err(Fault::GP0);
    }
    let segment = core.stack_segment(selector, ring, Fault::gp)?;
    core.segments[SS] = segment;
    Ok(if wide {
        Stack::wide(pointer)
    } else if segment.attributes & BIG != 0 {
        Stack::segmented(pointer & 0xffff_ffff, segment)
    } else {
        Stack::segmented(core.regs[4] & !0xffff | pointer & 0xffff, segment)
    })
}

/// Completes a return to lesser privilege.
fn leave(core: &mut Core, code: Segment, stack: Stack, offset: u64) {
    core.regs[4] = stack.pointer;
    core.set_code_segment(code);
    core.set_rip(offset);
    core.drop_data_segments();
}

/// `iret`.
pub(super) fn interrupt_return(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let bytes = usize::from(Extra::of(op).bytes);
    if core.control.protected() && core.flags.any(NT) {
        // The return from a nested task.
        return Err(Fault::GP0);
    }
    let mut stack = Stack::current(core);
    let offset = stack.pop(core, bytes)?;
    let selector = stack.pop(core, bytes)? as u16;
    let image = stack.pop(core, bytes)?;
    let mut mask = changeable_flags(core) | RF;
    if bytes == 2 {
        mask &= 0xffff;
    }
    if !core.control.protected() {
        let code = real_code(core, selector);
        check_offset(core, &code, offset)?;
        stack.commit(core);
        core.flags.replace(mask | IF | IOPL, image & !RF);
        core.set_code_segment(code);
        core.set_rip(offset);
        core.events.nmi_masked = false;
        return Ok(Flow::SyncBranch);
    }
    if image & VM != 0 && bytes == 4 && core.privilege == 0 && !core.control.long() {
        // Virtual 8086 mode: not had.
        return Err(Fault::GP0);
    }
    let code = core.code_segment_of_return(selector)?;
    check_offset(core, &code, offset)?;
    let outer = code.selector as u8 & 3 > core.privilege;
    // No breakpoint ever hits, so there is nothing to resume past.
    let image = image & !(RF | VM);
    if outer || core.width == Width::Code64 {
        let pointer = stack.pop(core, bytes)?;
        let selector = stack.pop(core, bytes)? as u16;
        let stack = outer_stack(core, &code, pointer, selector)?;
        core.flags.replace(mask, image);
        leave(core, code, stack, offset);
    } else {
        stack.commit(core);
        core.flags.replace(mask, image);
        core.set_code_segment(code);
        core.set_rip(offset);
    }
    core.events.nmi_masked = false;
    Ok(Flow::SyncBranch)
}

/// Delivers what an instruction asked for, with `rip` after it.
fn deliver(core: &mut Core, op: &Op, vector: u8, source: Source) -> Result<Flow, Fault> {
    let rip = core.rip();
    core.set_rip(core.next_rip(op));
    if let Err(fault) = interrupt::deliver(core, Event::new(vector, source)) {
        core.set_rip(rip);
        return Err(fault);
    }
    Ok(Flow::SyncBranch)
}

/// `int`.
pub(super) fn interrupt(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    deliver(core, op, op.imm as u8, Source::Software)
}

/// `int3`.
pub(super) fn breakpoint(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    deliver(core, op, 3, Source::Software)
}

/// `int1`: as if a debugger's hardware had asked.
pub(super) fn debug(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    deliver(core, op, 1, Source::External)
}

/// `into`.
pub(super) fn overflow(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    if !core.flags.any(OF) {
        return Ok(Flow::Next);
    }
    deliver(core, op, 4, Source::Software)
}
