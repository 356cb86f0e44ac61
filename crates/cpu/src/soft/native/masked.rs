//! Accesses of single elements, as a mask says: `maskmov` and gathers (Intel SDM 2, VMASKMOV and
//! VPGATHERDD). An element whose mask is not set is not accessed and cannot fault.

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};

use crate::soft::{
    Core, Fault, Flow, Handler, Op,
    core::Access,
    memory::access::stack_fault,
    op::{self, FLAT, Mem, Width},
    vector::Unit,
};

/// Number of `rdi`.
const RDI: u8 = 7;

pub(super) fn select(instruction: &Instruction, width: Width) -> Option<Op> {
    if !matches!(
        instruction.encoding(),
        EncodingKind::Legacy | EncodingKind::VEX
    ) {
        return None;
    }
    match instruction.mnemonic() {
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => {
            bytes_op(instruction, width)
        }
        Mnemonic::Vmaskmovps
        | Mnemonic::Vmaskmovpd
        | Mnemonic::Vpmaskmovd
        | Mnemonic::Vpmaskmovq => elements_op(instruction, width),
        _ if instruction.is_vsib() => gather_op(instruction, width),
        _ => None,
    }
}

fn number(register: Register) -> u8 {
    u8::try_from(register.number()).unwrap_or(op::NONE)
}

/// What a handler here remembers in `extra`.
#[derive(Clone, Copy)]
struct Shape {
    /// Bytes of an element.
    element: u8,
    /// Elements.
    count: u8,
    /// Bytes of an index.
    index: u8,
    /// The index is shifted left by this.
    scale: u8,
}

impl Shape {
    fn pack(self) -> u32 {
        u32::from_le_bytes([self.element, self.count, self.index, self.scale])
    }

    fn of(op: &Op) -> Self {
        let [element, count, index, scale] = op.extra.to_le_bytes();
        Self {
            element,
            count,
            index,
            scale,
        }
    }
}

/// The linear address of an element at an offset from the operand.
fn element_address(
    core: &Core,
    mem: &Mem,
    offset: u64,
    bytes: usize,
    access: Access,
) -> Result<u64, Fault> {
    let element = Mem {
        displacement: mem.displacement.wrapping_add(offset),
        ..*mem
    };
    core.linear(&element, bytes, access)
}

/// Loads an element; `linear` is its address.
fn load(core: &mut Core, mem: &Mem, linear: u64, bytes: usize) -> Result<u64, Fault> {
    let loaded = if bytes == 4 {
        core.load::<u32>(linear).map(u64::from)
    } else {
        core.load::<u64>(linear)
    };
    loaded.map_err(|fault| stack_fault(mem, fault))
}

/// `maskmovq mm, mm` and `maskmovdqu xmm, xmm`: single bytes to `[rdi]`.
fn bytes_op(instruction: &Instruction, width: Width) -> Option<Op> {
    let run: Handler = match instruction.mnemonic() {
        Mnemonic::Maskmovq => mask_bytes::<{ Unit::Mmx as u8 }>,
        Mnemonic::Maskmovdqu => mask_bytes::<{ Unit::Sse as u8 }>,
        _ => mask_bytes::<{ Unit::Avx as u8 }>,
    };
    let mut op = Op::new(instruction, width, run);
    let segment = op::segment(instruction.memory_segment());
    op.mem = Mem {
        displacement: 0,
        base: RDI,
        index: op::ZERO,
        scale: 0,
        segment: if width == Width::Code64 && segment < 4 {
            FLAT
        } else {
            segment
        },
        named: segment,
        address_bytes: match instruction.op0_kind() {
            OpKind::MemorySegDI => 2,
            OpKind::MemorySegEDI => 4,
            _ => 8,
        },
    };
    op.a = number(instruction.op1_register());
    op.b = number(instruction.op2_register());
    Some(op)
}

fn mask_bytes<const UNIT: u8>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    const MMX: u8 = Unit::Mmx as u8;
    const AVX: u8 = Unit::Avx as u8;
    core.vector.admit(match UNIT {
        MMX => Unit::Mmx,
        AVX => Unit::Avx,
        _ => Unit::Sse,
    })?;
    if UNIT == MMX {
        core.vector.state.check_pending()?;
    }
    let state = &core.vector.state;
    let registers: &[[u8; 16]] = if UNIT == MMX { &state.st } else { &state.xmm };
    let (data, mask) = if UNIT == MMX {
        // `mm0` is the physical register 0, wherever the top is.
        let top = state.fsw >> 11 & 7;
        let at = |it: u8| usize::from((u16::from(it)).wrapping_sub(top) & 7);
        (registers[at(op.a)], registers[at(op.b)])
    } else {
        (registers[usize::from(op.a)], registers[usize::from(op.b)])
    };
    let bytes = if UNIT == MMX { 8 } else { 16 };
    let masked = |it: &u64| mask[*it as usize] & 0x80 != 0;
    for it in (0..bytes).filter(masked) {
        let linear = element_address(core, &op.mem, it, 1, Access::Write)?;
        core.find(linear, 1, Access::Write)
            .map_err(|fault| stack_fault(&op.mem, fault))?;
    }
    for it in (0..bytes).filter(masked) {
        let linear = element_address(core, &op.mem, it, 1, Access::Write)?;
        core.store(linear, data[it as usize])?;
    }
    if UNIT == MMX {
        core.vector.state.enter_mmx();
    }
    Ok(Flow::Next)
}

/// `vmaskmov`: elements to or from memory.
fn elements_op(instruction: &Instruction, width: Width) -> Option<Op> {
    let stores = instruction.op0_kind() == OpKind::Memory;
    let run: Handler = if stores { mask_store } else { mask_load };
    let mut op = Op::new(instruction, width, run);
    let element = match instruction.mnemonic() {
        Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq => 8,
        _ => 4,
    };
    let bytes = u8::try_from(instruction.memory_size().size()).ok()?;
    op.extra = Shape {
        element,
        count: bytes / element,
        index: 0,
        scale: 0,
    }
    .pack();
    op.a = number(instruction.op_register(if stores { 2 } else { 0 }));
    op.b = number(instruction.op1_register());
    Some(op)
}

/// The element of a register, in the low bits.
fn lane(register: &[u8; 32], index: usize, bytes: usize) -> u64 {
    let mut whole = [0; 8];
    whole[..bytes].copy_from_slice(&register[index * bytes..][..bytes]);
    u64::from_le_bytes(whole)
}

/// Whether the highest bit of an element of the mask is set.
fn is_set(mask: &[u8; 32], index: usize, bytes: usize) -> bool {
    mask[index * bytes + bytes - 1] & 0x80 != 0
}

fn mask_load(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::Avx)?;
    let shape = Shape::of(op);
    let bytes = usize::from(shape.element);
    let mask = core.vector.state.ymm(usize::from(op.b));
    let mut result = [0; 32];
    for index in (0..usize::from(shape.count)).filter(|&it| is_set(&mask, it, bytes)) {
        let offset = (index * bytes) as u64;
        let linear = element_address(core, &op.mem, offset, bytes, Access::Read)?;
        let value = load(core, &op.mem, linear, bytes)?;
        result[index * bytes..][..bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    }
    core.vector.state.set_ymm(usize::from(op.a), &result);
    Ok(Flow::Next)
}

fn mask_store(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::Avx)?;
    let shape = Shape::of(op);
    let bytes = usize::from(shape.element);
    let mask = core.vector.state.ymm(usize::from(op.b));
    let data = core.vector.state.ymm(usize::from(op.a));
    let set = |it: &usize| is_set(&mask, *it, bytes);
    for index in (0..usize::from(shape.count)).filter(set) {
        let offset = (index * bytes) as u64;
        let linear = element_address(core, &op.mem, offset, bytes, Access::Write)?;
        core.find(linear, bytes, Access::Write)
            .map_err(|fault| stack_fault(&op.mem, fault))?;
    }
    for index in (0..usize::from(shape.count)).filter(set) {
        let offset = (index * bytes) as u64;
        let linear = element_address(core, &op.mem, offset, bytes, Access::Write)?;
        let value = lane(&data, index, bytes);
        if bytes == 4 {
            core.store(linear, value as u32)?;
        } else {
            core.store(linear, value)?;
        }
    }
    Ok(Flow::Next)
}

/// `vgather`: elements from addresses that a register of indexes gives.
fn gather_op(instruction: &Instruction, width: Width) -> Option<Op> {
    use Mnemonic as M;
    let (index, element) = match instruction.mnemonic() {
        M::Vgatherdps | M::Vpgatherdd => (4, 4),
        M::Vgatherdpd | M::Vpgatherdq => (4, 8),
        M::Vgatherqps | M::Vpgatherqd => (8, 4),
        M::Vgatherqpd | M::Vpgatherqq => (8, 8),
        _ => return None,
    };
    let indexes = instruction.memory_index();
    let (to, mask) = (instruction.op0_register(), instruction.op2_register());
    if number(to) == number(mask)
        || number(to) == number(indexes)
        || number(mask) == number(indexes)
    {
        // `#UD`, as for whatever nobody knows.
        return None;
    }
    let mut op = Op::new(instruction, width, gather);
    let by_data = to.size() / usize::from(element);
    let by_index = indexes.size() / usize::from(index);
    op.extra = Shape {
        element,
        count: u8::try_from(by_data.min(by_index)).ok()?,
        index,
        scale: op.mem.scale,
    }
    .pack();
    (op.a, op.b, op.c) = (number(to), number(mask), number(indexes));
    Some(op)
}

/// A fault leaves what was gathered before it, with its mask cleared: executed again, the
/// instruction goes on from there.
fn gather(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    core.vector.admit(Unit::Avx)?;
    let shape = Shape::of(op);
    let bytes = usize::from(shape.element);
    let indexes = core.vector.state.ymm(usize::from(op.c));
    let (to, mask_number) = (usize::from(op.a), usize::from(op.b));
    for position in 0..usize::from(shape.count) {
        let mut mask = core.vector.state.ymm(mask_number);
        if !is_set(&mask, position, bytes) {
            continue;
        }
        let index = lane(&indexes, position, usize::from(shape.index));
        let index = if shape.index == 4 {
            index as u32 as i32 as u64
        } else {
            index
        };
        let offset = index << shape.scale;
        let linear = element_address(core, &op.mem, offset, bytes, Access::Read)?;
        let value = load(core, &op.mem, linear, bytes)?;
        let mut result = core.vector.state.ymm(to);
        let range = position * bytes..(position + 1) * bytes;
        result[range.clone()].copy_from_slice(&value.to_le_bytes()[..bytes]);
        mask[range].fill(0);
        core.vector.state.set_ymm(to, &result);
        core.vector.state.set_ymm(mask_number, &mask);
    }
    // What is not gathered of the destination is zero, and so is all of the mask.
    let mut result = core.vector.state.ymm(to);
    result[usize::from(shape.count) * bytes..].fill(0);
    core.vector.state.set_ymm(to, &result);
    core.vector.state.set_ymm(mask_number, &[0; 32]);
    Ok(Flow::Next)
}
