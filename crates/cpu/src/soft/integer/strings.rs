//! String instructions, in bulk: with a repeat prefix one call does all elements up to the end of
//! a page, then lets interrupts in ([`Flow::Again`]). Registers say how far it came, so a fault
//! leaves exactly what was done before it.

use std::ptr::NonNull;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{by_size, host::Host};
use crate::soft::{
    Core, Fault, Flow, Op,
    core::{Access, Place, Word},
    flags::{DF, Status},
    op::{FLAT, Handler, Width},
};

const A: u8 = 0;
const C: u8 = 1;
const SI: u8 = 6;
const DI: u8 = 7;
/// Number of `es`, where destinations lie whatever the prefixes.
const ES: u8 = 0;
const PAGE: u64 = 4096;

/// A repeat prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// None: one element.
    Once,
    /// `rep`, or `repe` for comparisons.
    While,
    /// `repne`; the same as `rep` for what does not compare.
    WhileNot,
}

/// What `Op::extra` holds: the repeat prefix.
impl Repeat {
    fn of(instruction: &Instruction) -> Self {
        if instruction.has_repne_prefix() {
            Self::WhileNot
        } else if instruction.has_rep_prefix() {
            Self::While
        } else {
            Self::Once
        }
    }

    #[inline(always)]
    fn unpack(extra: u32) -> Self {
        match extra {
            0 => Self::Once,
            1 => Self::While,
            _ => Self::WhileNot,
        }
    }
}

/// A string instruction with its operands packed: the source in `mem`, whose segment and address
/// size count, the repeat prefix in `extra`.
pub fn select(instruction: &Instruction, width: Width) -> Option<Op> {
    let size = match instruction.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Cmpsb | Mnemonic::Stosb | Mnemonic::Lodsb | Mnemonic::Scasb => {
            1
        }
        Mnemonic::Movsw | Mnemonic::Cmpsw | Mnemonic::Stosw | Mnemonic::Lodsw | Mnemonic::Scasw => {
            2
        }
        Mnemonic::Movsd | Mnemonic::Cmpsd | Mnemonic::Stosd | Mnemonic::Lodsd | Mnemonic::Scasd => {
            4
        }
        Mnemonic::Movsq | Mnemonic::Cmpsq | Mnemonic::Stosq | Mnemonic::Lodsq | Mnemonic::Scasq => {
            8
        }
        _ => return None,
    };
    // `movsd` and `cmpsd` are also the names of vector instructions.
    let address_bytes = (0..instruction.op_count())
        .find_map(|operand| address_bytes(instruction.op_kind(operand)))?;
    let run: Handler = match instruction.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
            by_size!(size, movs)
        }
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            by_size!(size, stos)
        }
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            by_size!(size, lods)
        }
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
            by_size!(size, scas)
        }
        _ => by_size!(size, cmps),
    };
    let mut op = Op::new(instruction, width, run);
    op.mem.address_bytes = address_bytes;
    op.extra = Repeat::of(instruction) as u32;
    Some(op)
}

fn address_bytes(kind: OpKind) -> Option<u8> {
    match kind {
        OpKind::MemorySegSI | OpKind::MemoryESDI => Some(2),
        OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(4),
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(8),
        _ => None,
    }
}

/// The registers of one string instruction, as they stand.
struct Run {
    repeat: Repeat,
    /// Bits of an address, and of the count, that count.
    mask: u64,
    /// Elements to do.
    left: u64,
    down: bool,
}

/// One side of a string instruction: where its next element is.
struct Side {
    register: u8,
    segment: u8,
}

impl Run {
    /// `None` when there is nothing to do.
    #[inline(always)]
    fn start(core: &Core, op: &Op) -> Option<Self> {
        let mask = match op.mem.address_bytes {
            8 => u64::MAX,
            4 => u64::from(u32::MAX),
            _ => u64::from(u16::MAX),
        };
        let repeat = Repeat::unpack(op.extra);
        let left = match repeat {
            Repeat::Once => 1,
            _ => core.regs[C as usize] & mask,
        };
        (left > 0).then(|| Self {
            repeat,
            mask,
            left,
            down: core.flags.any(DF),
        })
    }

    fn source(op: &Op) -> Side {
        Side {
            register: SI,
            segment: op.mem.segment,
        }
    }

    fn destination(core: &Core) -> Side {
        Side {
            register: DI,
            segment: if core.width == Width::Code64 {
                FLAT
            } else {
                ES
            },
        }
    }

    /// The linear address of the next element of a side, and how many elements from there lie in
    /// one page; none when the next one crosses into another.
    #[inline(always)]
    fn reach<T: Word>(
        &self,
        core: &Core,
        side: &Side,
        access: Access,
    ) -> Result<(u64, u64), Fault> {
        let offset = core.regs[side.register as usize] & self.mask;
        let linear = match side.segment {
            FLAT => offset,
            segment => core.linear_at(segment, offset, T::BYTES, access)?,
        };
        let size = T::BYTES as u64;
        let in_page = linear % PAGE;
        if in_page + size > PAGE {
            return Ok((linear, 0));
        }
        let (page_elements, offset_elements) = if self.down {
            (in_page / size + 1, (offset / size).saturating_add(1))
        } else {
            // The offset wraps after its last byte; 64-bit ones do not come near.
            (
                (PAGE - in_page) / size,
                ((self.mask - offset) / size).saturating_add(1),
            )
        };
        let elements = page_elements.min(offset_elements).min(self.left);
        if side.segment == FLAT || elements == 1 {
            return Ok((linear, elements));
        }
        let first = if self.down {
            offset - (elements - 1) * size
        } else {
            offset
        };
        let whole = elements as usize * T::BYTES;
        match core.linear_at(side.segment, first, whole, access) {
            Ok(_) => Ok((linear, elements)),
            Err(_) => Ok((linear, 1)),
        }
    }

    /// Moves the register of a side by a number of elements.
    #[inline(always)]
    fn advance<T: Word>(&self, core: &mut Core, side: &Side, elements: u64) {
        let bytes = elements * T::BYTES as u64;
        let old = core.regs[side.register as usize];
        let new = if self.down {
            old.wrapping_sub(bytes)
        } else {
            old.wrapping_add(bytes)
        };
        self.put(core, side.register, new);
    }

    /// Counts elements as done, and says what follows if the instruction does not stop by itself.
    #[inline(always)]
    fn count(&self, core: &mut Core, elements: u64) -> Flow {
        if self.repeat == Repeat::Once {
            return Flow::Next;
        }
        let left = self.left - elements;
        self.put(core, C, left);
        if left == 0 { Flow::Next } else { Flow::Again }
    }

    /// Writes an address register: 16 bits leave the rest, 32 clear it.
    #[inline(always)]
    fn put(&self, core: &mut Core, register: u8, value: u64) {
        let whole = &mut core.regs[register as usize];
        *whole = if self.mask == 0xffff {
            *whole & !0xffff | value & 0xffff
        } else {
            value & self.mask
        };
    }

    /// Counts elements as compared, the last with this result, at which the instruction may stop.
    /// Flags change when it does: a fault in the middle finds them as they were before.
    #[inline(always)]
    fn compared(&self, core: &mut Core, elements: u64, status: Status) -> Flow {
        let goes_on = (self.repeat == Repeat::While) == status.holds::<4>();
        if self.count(core, elements) == Flow::Again && goes_on {
            return Flow::Again;
        }
        core.flags.set_status(status);
        Flow::Next
    }
}

/// An element of a side, `index` elements on from where the host found the first.
#[inline(always)]
fn element<T: Word>(first: NonNull<u8>, index: u64, down: bool) -> *mut T {
    let first = first.as_ptr().cast::<T>();
    if down {
        first.wrapping_sub(index as usize)
    } else {
        first.wrapping_add(index as usize)
    }
}

fn movs<T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let Some(run) = Run::start(core, op) else {
        return Ok(Flow::Next);
    };
    let (source, destination) = (Run::source(op), Run::destination(core));
    let (from, readable) = run.reach::<T>(core, &source, Access::Read)?;
    let (to, writable) = run.reach::<T>(core, &destination, Access::Write)?;
    let mut done = readable.min(writable);
    if done > 0
        && let Place::Ram(from) = core.find(from, T::BYTES, Access::Read)?
        && let Place::Ram(to) = core.find(to, T::BYTES, Access::Write)?
    {
        // SAFETY: `done` elements from each on lie in one page, which `find` returned mapped.
        unsafe { copy::<T>(from, to, done, run.down) };
    } else {
        done = 1;
        let value = core.load::<T>(from)?;
        core.store(to, value)?;
    }
    run.advance::<T>(core, &source, done);
    run.advance::<T>(core, &destination, done);
    Ok(run.count(core, done))
}

/// Copies elements one after the other, as far as anybody can tell.
///
/// # Safety
/// All elements of both sides must be mapped.
#[inline(always)]
unsafe fn copy<T: Word>(from: NonNull<u8>, to: NonNull<u8>, elements: u64, down: bool) {
    let bytes = elements as usize * T::BYTES;
    let ahead = (to.as_ptr() as usize).wrapping_sub(from.as_ptr() as usize);
    // Where the destination begins inside the source, elements are copied that were written
    // before: that must happen one by one.
    if !down && ahead >= bytes {
        // SAFETY: the caller says that all is mapped.
        unsafe { std::ptr::copy(from.as_ptr(), to.as_ptr(), bytes) };
        return;
    }
    for index in 0..elements {
        // SAFETY: as above.
        unsafe {
            let value = element::<T>(from, index, down).read_unaligned();
            element::<T>(to, index, down).write_unaligned(value);
        }
    }
}

fn stos<T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let Some(run) = Run::start(core, op) else {
        return Ok(Flow::Next);
    };
    let destination = Run::destination(core);
    let value = core.get::<T>(A);
    let (to, mut done) = run.reach::<T>(core, &destination, Access::Write)?;
    if done > 0
        && let Place::Ram(first) = core.find(to, T::BYTES, Access::Write)?
    {
        let lowest = if run.down {
            element::<T>(first, done - 1, true)
        } else {
            first.as_ptr().cast()
        };
        // SAFETY: `done` elements from the lowest on lie in one page, which `find` returned mapped.
        unsafe { fill(lowest, done as usize, value) };
    } else {
        done = 1;
        core.store(to, value)?;
    }
    run.advance::<T>(core, &destination, done);
    Ok(run.count(core, done))
}

/// Fills `elements` from `lowest` on.
///
/// # Safety
/// They must be mapped.
#[inline(always)]
unsafe fn fill<T: Word>(lowest: *mut T, elements: usize, value: T) {
    let byte = value.wide() as u8;
    let same = u64::from_ne_bytes([byte; 8]) & (u64::MAX >> (64 - 8 * T::BYTES));
    if value.wide() == same {
        // SAFETY: the caller says that all is mapped.
        unsafe { std::ptr::write_bytes(lowest.cast::<u8>(), byte, elements * T::BYTES) };
        return;
    }
    for index in 0..elements {
        // SAFETY: as above.
        unsafe { lowest.add(index).write_unaligned(value) };
    }
}

/// With a repeat prefix, which nobody uses, only the last element of a page is seen.
fn lods<T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let Some(run) = Run::start(core, op) else {
        return Ok(Flow::Next);
    };
    let source = Run::source(op);
    let (from, _) = run.reach::<T>(core, &source, Access::Read)?;
    let value = core.load::<T>(from)?;
    core.put(A, value);
    run.advance::<T>(core, &source, 1);
    Ok(run.count(core, 1))
}

fn scas<T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let Some(run) = Run::start(core, op) else {
        return Ok(Flow::Next);
    };
    let destination = Run::destination(core);
    let wanted = core.get::<T>(A);
    let (at, reach) = run.reach::<T>(core, &destination, Access::Read)?;
    let (done, last) = if reach > 0
        && let Place::Ram(first) = core.find(at, T::BYTES, Access::Read)?
    {
        let value = |index| {
            // SAFETY: `reach` elements lie in one page, which `find` returned mapped.
            unsafe { element::<T>(first, index, run.down).read_unaligned() }
        };
        let equal = run.repeat == Repeat::While;
        let same = (0..reach - 1)
            .take_while(|index| (value(*index) == wanted) == equal)
            .count() as u64;
        (same + 1, value(same))
    } else {
        (1, core.load::<T>(at)?)
    };
    run.advance::<T>(core, &destination, done);
    Ok(run.compared(core, done, wanted.cmp_status(last)))
}

fn cmps<T: Host>(core: &mut Core, op: &Op) -> Result<Flow, Fault> {
    let Some(run) = Run::start(core, op) else {
        return Ok(Flow::Next);
    };
    let (source, destination) = (Run::source(op), Run::destination(core));
    // Where both would fault, processors report the destination.
    let (two, comparable) = run.reach::<T>(core, &destination, Access::Read)?;
    let (one, readable) = run.reach::<T>(core, &source, Access::Read)?;
    let reach = readable.min(comparable);
    let (done, a, b) = if reach > 0
        && let Place::Ram(second) = core.find(two, T::BYTES, Access::Read)?
        && let Place::Ram(first) = core.find(one, T::BYTES, Access::Read)?
    {
        let pair = |index| {
            // SAFETY: `reach` elements of each lie in one page, which `find` returned mapped.
            unsafe {
                (
                    element::<T>(first, index, run.down).read_unaligned(),
                    element::<T>(second, index, run.down).read_unaligned(),
                )
            }
        };
        let equal = run.repeat == Repeat::While;
        let same = (0..reach - 1)
            .take_while(|index| {
                let (a, b) = pair(*index);
                (a == b) == equal
            })
            .count() as u64;
        let (a, b) = pair(same);
        (same + 1, a, b)
    } else {
        let b = core.load::<T>(two)?;
        (1, core.load::<T>(one)?, b)
    };
    run.advance::<T>(core, &source, done);
    run.advance::<T>(core, &destination, done);
    Ok(run.compared(core, done, a.cmp_status(b)))
}
