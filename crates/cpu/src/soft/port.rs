//! Port input and output, singly and in strings.

use super::{
    Core, Fault, Flow, Op,
    core::Access,
    flags::{DF, IOPL},
    op::Width,
    segment::ES,
};

const RCX: u8 = 1;
const DX: u8 = 2;
const RSI: u8 = 6;
const RDI: u8 = 7;
/// Offset of the port bitmap's own offset in a task state segment.
const BITMAP: u64 = 0x66;

struct Extra {
    bytes: usize,
    /// Size of `rsi`, `rdi` and `rcx` in string instructions.
    address_bytes: u16,
    repeat: bool,
}

impl Extra {
    fn of(op: &Op) -> Self {
        let extra = super::system::Extra::of(op);
        Self {
            bytes: extra.bytes.into(),
            address_bytes: extra.number,
            repeat: extra.repeat,
        }
    }
}

impl Core {
    /// Whether ports may be accessed: by privilege, or by the bitmap in the task state segment.
    fn demand_port(&mut self, port: u16, bytes: usize) -> Result<(), Fault> {
        let iopl = ((self.flags.get() & IOPL) >> 12) as u8;
        if !self.control.protected() || self.privilege <= iopl {
            return Ok(());
        }
        let task = self.tables.task;
        if BITMAP + 1 > u64::from(task.limit) {
            return Err(Fault::GP0);
        }
        let offset = self.system_load::<u16>(task.base.wrapping_add(BITMAP))?;
        let first = u64::from(offset) + u64::from(port / 8);
        if first + 1 > u64::from(task.limit) {
            return Err(Fault::GP0);
        }
        let bits = self.system_load::<u16>(task.base.wrapping_add(first))?;
        if bits >> (port % 8) & ((1 << bytes) - 1) != 0 {
            return Err(Fault::GP0);
        }
        Ok(())
    }

    fn port_in(&mut self, port: u16, bytes: usize) -> u32 {
        let mut data = [0; 4];
        self.bus.port_read(port, &mut data[..bytes]);
        u32::from_le_bytes(data)
    }

    fn put_accumulator(&mut self, bytes: usize, value: u32) {
        match bytes {
            1 => self.put::<u8>(0, value as u8),
            2 => self.put::<u16>(0, value as u16),
            _ => self.put::<u32>(0, value),
        }
    }
}

fn input(core: &mut Core, port: u16, bytes: usize) -> Result<Flow, Fault> {
    core.demand_port(port, bytes)?;
    let value = core.port_in(port, bytes);
    core.put_accumulator(bytes, value);
    Ok(Flow::Next)
}

fn output(core: &mut Core, port: u16, bytes: usize) -> Result<Flow, Fault> {
    core.demand_port(port, bytes)?;
    let value = core.get::<u32>(0).to_le_bytes();
    core.bus.port_write(port, &value[..bytes]);
    // The device may have interrupted, or stopped the machine.
    Ok(Flow::Sync)
}

/// `in` with the port as an immediate.
pub(super) fn read_fixed(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    input(core, u16::from(op.imm as u8), Extra::of(op).bytes)
}

/// `in` with the port in `dx`.
pub(super) fn read(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let port = core.get::<u16>(DX);
    input(core, port, Extra::of(op).bytes)
}

/// `out` with the port as an immediate.
pub(super) fn write_fixed(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    output(core, u16::from(op.imm as u8), Extra::of(op).bytes)
}

/// `out` with the port in `dx`.
pub(super) fn write(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let port = core.get::<u16>(DX);
    output(core, port, Extra::of(op).bytes)
}

/// A register of string instructions, in their address size.
fn get(core: &Core, register: u8, address_bytes: u16) -> u64 {
    match address_bytes {
        2 => core.get::<u16>(register).into(),
        4 => core.get::<u32>(register).into(),
        _ => core.get::<u64>(register),
    }
}

fn put(core: &mut Core, register: u8, address_bytes: u16, value: u64) {
    match address_bytes {
        2 => core.put::<u16>(register, value as u16),
        4 => core.put::<u32>(register, value as u32),
        _ => core.put::<u64>(register, value),
    }
}

/// One element of `ins` or `outs`, with repetition: the instruction comes again until the count is
/// used up, so interrupts and faults find exact registers.
fn string(
    core: &mut Core,
    op: &Op,
    pointer: u8,
    element: fn(&mut Core, &Op, u64, usize) -> Result<(), Fault>,
) -> Result<Flow, Fault> {
    let extra = Extra::of(op);
    let size = extra.address_bytes;
    let count = get(core, RCX, size);
    if extra.repeat && count == 0 {
        return Ok(Flow::Next);
    }
    let port = core.get::<u16>(DX);
    core.demand_port(port, extra.bytes)?;
    let offset = get(core, pointer, size);
    element(core, op, offset, extra.bytes)?;
    let step = extra.bytes as u64;
    let step = if core.flags.any(DF) {
        step.wrapping_neg()
    } else {
        step
    };
    put(core, pointer, size, offset.wrapping_add(step));
    if !extra.repeat {
        return Ok(Flow::Sync);
    }
    put(core, RCX, size, count - 1);
    Ok(if count == 1 { Flow::Sync } else { Flow::Again })
}

fn segment_linear(
    core: &Core,
    segment: u8,
    offset: u64,
    bytes: usize,
    access: Access,
) -> Result<u64, Fault> {
    if core.width == Width::Code64 && segment < 4 {
        return Ok(offset);
    }
    core.linear_at(segment, offset, bytes, access)
}

/// `ins`.
pub(super) fn read_string(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    string(core, op, RDI, |core, _, offset, bytes| {
        let linear = segment_linear(core, ES as u8, offset, bytes, Access::Write)?;
        let place = core.find(linear, bytes, Access::Write)?;
        let port = core.get::<u16>(DX);
        let value = core.port_in(port, bytes).to_le_bytes();
        core.copy_out(place, linear, &value[..bytes]);
        Ok(())
    })
}

/// `outs`.
pub(super) fn write_string(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    string(core, op, RSI, |core, op, offset, bytes| {
        let linear = segment_linear(core, op.mem.named, offset, bytes, Access::Read)?;
        let place = core.find(linear, bytes, Access::Read)?;
        let mut data = [0; 4];
        core.copy_in(place, linear, &mut data[..bytes]);
        let port = core.get::<u16>(DX);
        core.bus.port_write(port, &data[..bytes]);
        Ok(())
    })
}
