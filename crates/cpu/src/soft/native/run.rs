//! Executes stubs: finds the memory operand, calls, and settles flags and exceptions.
//!
//! An op for a stub has the stub's address in `imm`, the flags it reads in the upper and those it
//! writes in the lower half of `extra`, and the bytes and the alignment mask of the memory operand
//! in `a` and `b`.

use iced_x86::Instruction;

use super::plan::{Operand, Plan};
use crate::soft::{
    Core, Fault, Flags, Flow, Handler, Op,
    core::{Access, Place},
    memory::access::stack_fault,
    op::Width,
    vector::{Unit, VectorState},
};

/// What a stub is called as: with the core, the operand in memory (null where it has none), and
/// the flags; it returns the flags where it writes any.
type Stub = unsafe extern "sysv64" fn(*mut Core, *mut u8, u64) -> u64;

/// How an instruction uses its memory operand, as a constant.
const REGISTER: u8 = 0;
const READ: u8 = 1;
const WRITE: u8 = 2;
const MODIFY: u8 = 3;

/// `cr4.OSXMMEXCPT`: unmasked SIMD exceptions are `#XM`, not `#UD`.
const CR4_OSXMMEXCPT: u64 = 1 << 10;
/// The flags of `mxcsr`.
const RAISED: u32 = 0x3f;
/// Those of them found before a result is computed: invalid operation, denormal, divide by zero.
const BEFORE_RESULT: u32 = 0x7;
/// A result too small for a normal number.
const UNDERFLOW: u32 = 1 << 4;
/// Masked underflow makes zero.
const FLUSH_TO_ZERO: u32 = 1 << 15;
/// All exceptions masked.
const MASKED: u32 = 0x1f80;

/// What the ops of one stub have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Template {
    run: Handler,
    entry: u64,
    flags: u32,
    bytes: u8,
    alignment_mask: u8,
}

impl Template {
    /// Of a stub that was placed at `entry`.
    pub(super) fn new(plan: &Plan, entry: usize) -> Self {
        Self {
            run: handler(plan),
            entry: entry as u64,
            flags: (plan.flags_read << 16 | plan.flags_written) as u32,
            bytes: plan.memory.map_or(0, |it| it.bytes),
            alignment_mask: plan.memory.map_or(0, |it| it.alignment_mask),
        }
    }

    /// The op of an instruction this was made for.
    pub(super) fn op(&self, instruction: &Instruction, width: Width) -> Op {
        let mut op = Op::new(instruction, width, self.run);
        op.imm = self.entry;
        op.extra = self.flags;
        (op.a, op.b) = (self.bytes, self.alignment_mask);
        op
    }
}

fn handler(plan: &Plan) -> Handler {
    match (plan.unit, plan.mxcsr) {
        (Unit::Sse, false) => by_access::<{ Unit::Sse as u8 }, false>(plan.memory),
        (Unit::Sse, true) => by_access::<{ Unit::Sse as u8 }, true>(plan.memory),
        (Unit::Avx, false) => by_access::<{ Unit::Avx as u8 }, false>(plan.memory),
        (Unit::Avx, true) => by_access::<{ Unit::Avx as u8 }, true>(plan.memory),
        (Unit::X87 | Unit::Wait, _) => by_access::<{ Unit::X87 as u8 }, false>(plan.memory),
        (Unit::Mmx, _) => by_access::<{ Unit::Mmx as u8 }, false>(plan.memory),
        (Unit::Integer | Unit::Xsave, _) => by_access::<0, false>(plan.memory),
    }
}

fn by_access<const UNIT: u8, const MXCSR: bool>(memory: Option<Operand>) -> Handler {
    match memory {
        None => run::<UNIT, MXCSR, REGISTER>,
        Some(it) if it.access == Access::Read => run::<UNIT, MXCSR, READ>,
        Some(it) if it.read => run::<UNIT, MXCSR, MODIFY>,
        Some(_) => run::<UNIT, MXCSR, WRITE>,
    }
}

const fn unit(number: u8) -> Unit {
    const X87: u8 = Unit::X87 as u8;
    const MMX: u8 = Unit::Mmx as u8;
    const SSE: u8 = Unit::Sse as u8;
    const AVX: u8 = Unit::Avx as u8;
    match number {
        X87 => Unit::X87,
        MMX => Unit::Mmx,
        SSE => Unit::Sse,
        AVX => Unit::Avx,
        _ => Unit::Integer,
    }
}

fn run<const UNIT: u8, const MXCSR: bool, const ACCESS: u8>(
    core: &mut Core,
    op: &Op,
) -> Result<Flow, Fault> {
    let unit = const { unit(UNIT) };
    core.vector.admit(unit)?;
    if matches!(unit, Unit::X87 | Unit::Mmx) {
        core.vector.state.check_pending()?;
    }
    if ACCESS == REGISTER {
        execute::<UNIT, MXCSR>(core, op, std::ptr::null_mut())?;
        return Ok(Flow::Next);
    }
    let access = if ACCESS == READ {
        Access::Read
    } else {
        Access::Write
    };
    let bytes = usize::from(op.a);
    let linear = core.linear(&op.mem, bytes, access)?;
    if linear & u64::from(op.b) != 0 {
        return Err(Fault::GP0);
    }
    match core.find(linear, bytes, access) {
        Err(fault) => return Err(stack_fault(&op.mem, fault)),
        Ok(Place::Ram(host)) => execute::<UNIT, MXCSR>(core, op, host.as_ptr())?,
        Ok(place) => bounce::<UNIT, MXCSR, ACCESS>(core, op, linear, place)?,
    }
    Ok(Flow::Next)
}

/// Room for an operand that is not in one piece of RAM, as aligned as any instruction asks.
#[repr(align(64))]
struct Bounce([u8; 64]);

#[cold]
fn bounce<const UNIT: u8, const MXCSR: bool, const ACCESS: u8>(
    core: &mut Core,
    op: &Op,
    linear: u64,
    place: Place,
) -> Result<(), Fault> {
    let bytes = usize::from(op.a);
    let mut buffer = Bounce([0; 64]);
    if ACCESS != WRITE {
        core.copy_in(place, linear, &mut buffer.0[..bytes]);
    }
    execute::<UNIT, MXCSR>(core, op, buffer.0.as_mut_ptr())?;
    if ACCESS != READ {
        core.copy_out(place, linear, &buffer.0[..bytes]);
    }
    Ok(())
}

/// Calls the stub. When it raises an exception the guest has not masked, nothing has changed but
/// the flags of `mxcsr`.
#[inline(always)]
fn execute<const UNIT: u8, const MXCSR: bool>(
    core: &mut Core,
    op: &Op,
    memory: *mut u8,
) -> Result<(), Fault> {
    if matches!(unit(UNIT), Unit::X87 | Unit::Mmx) {
        return execute_x87(core, op, memory);
    }
    if !MXCSR {
        call(core, op, memory);
        return Ok(());
    }
    let mxcsr = core.vector.state.mxcsr;
    if mxcsr & MASKED != MASKED {
        return execute_unmasked(core, op, memory);
    }
    core.vector.run_mxcsr = mxcsr;
    // Loading another value costs a hundred times what loading the same does. So where the guest
    // computes as the host does, its flags are left in the host's register, which nobody reads.
    core.vector.host_mxcsr = if mxcsr & !RAISED == MASKED {
        mxcsr
    } else {
        MASKED
    };
    call(core, op, memory);
    core.vector.state.mxcsr = core.vector.run_mxcsr;
    Ok(())
}

/// As [`execute`], for a guest that wants to hear of some exception.
#[cold]
fn execute_unmasked(core: &mut Core, op: &Op, memory: *mut u8) -> Result<(), Fault> {
    let before = Snapshot::new(core, op, memory);
    let mxcsr = core.vector.state.mxcsr;
    core.vector.host_mxcsr = MASKED;
    let attempt = |core: &mut Core, controls: u32| {
        core.vector.run_mxcsr = controls & !RAISED | MASKED;
        call(core, op, memory);
        core.vector.run_mxcsr & RAISED
    };
    let mut raised = 0;
    if mxcsr & UNDERFLOW << 7 == 0 {
        // Masked, a tiny result that is exact raises nothing, unless it is to be flushed to zero.
        raised = attempt(core, mxcsr | FLUSH_TO_ZERO) & UNDERFLOW;
        before.restore(core, memory);
    }
    raised |= attempt(core, mxcsr);
    settle(core, mxcsr, raised).inspect_err(|_| before.restore(core, memory))
}

/// x87 and MMX: their registers, those of SSE and `mxcsr` go in and out together.
fn execute_x87(core: &mut Core, op: &Op, memory: *mut u8) -> Result<(), Fault> {
    let mxcsr = core.vector.state.mxcsr;
    let before = (mxcsr & MASKED != MASKED).then(|| Snapshot::new(core, op, memory));
    core.vector.state.mxcsr = mxcsr & !RAISED | MASKED;
    core.vector.host_mxcsr = MASKED;
    call(core, op, memory);
    let raised = core.vector.state.mxcsr & RAISED;
    core.vector.state.forget_last_x87();
    settle(core, mxcsr, raised).inspect_err(|_| {
        if let Some(before) = before {
            before.restore(core, memory);
        }
    })
}

/// Adds the flags an instruction raised to the guest's `mxcsr`.
///
/// # Errors
/// `#XM` or `#UD` when one of them is not masked.
fn settle(core: &mut Core, mxcsr: u32, raised: u32) -> Result<(), Fault> {
    let unmasked = raised & !(mxcsr >> 7);
    // Those found before a result is computed leave none to be computed (Intel SDM 1, 4.9.2).
    let raised = if unmasked & BEFORE_RESULT != 0 {
        raised & BEFORE_RESULT
    } else {
        raised
    };
    core.vector.state.mxcsr = mxcsr | raised;
    if unmasked == 0 {
        return Ok(());
    }
    Err(if core.vector.cr4() & CR4_OSXMMEXCPT != 0 {
        Fault::SIMD
    } else {
        Fault::INVALID_OPCODE
    })
}

/// Everything a stub may change, as it was.
struct Snapshot {
    state: VectorState,
    regs: [u64; 18],
    flags: Flags,
    operand: [u8; 32],
    operand_bytes: usize,
}

impl Snapshot {
    fn new(core: &Core, op: &Op, memory: *mut u8) -> Self {
        let mut operand = [0; 32];
        let operand_bytes = if memory.is_null() {
            0
        } else {
            usize::from(op.a)
        };
        // SAFETY: an operand of as many bytes, at most 32, lies there.
        unsafe { std::ptr::copy_nonoverlapping(memory, operand.as_mut_ptr(), operand_bytes) };
        Self {
            state: core.vector.state.clone(),
            regs: core.regs,
            flags: core.flags,
            operand,
            operand_bytes,
        }
    }

    /// Puts all back but the flags of `mxcsr`.
    fn restore(&self, core: &mut Core, memory: *mut u8) {
        let mxcsr = core.vector.state.mxcsr;
        core.vector.state = self.state.clone();
        core.vector.state.mxcsr = mxcsr;
        (core.regs, core.flags) = (self.regs, self.flags);
        for (index, &byte) in self.operand[..self.operand_bytes].iter().enumerate() {
            // SAFETY: as in `new`; what did not change is not written, so an operand that is only
            // read stays so.
            unsafe {
                let at = memory.add(index);
                if at.read() != byte {
                    at.write(byte);
                }
            }
        }
    }
}

#[inline(always)]
fn call(core: &mut Core, op: &Op, memory: *mut u8) {
    let (reads, writes) = (u64::from(op.extra >> 16), u64::from(op.extra & 0xffff));
    let flags = if reads != 0 {
        core.flags.get() & reads
    } else {
        0
    };
    // SAFETY: `super::select` put the address of a stub there, which lives as long as the process.
    // It is made for this operand: it touches the core's registers, and as many bytes of `memory`
    // as its callers found.
    let flags = unsafe {
        let stub: Stub = std::mem::transmute(op.imm as usize as *const ());
        stub(core, memory, flags)
    };
    if writes != 0 {
        core.flags.replace(writes, flags);
    }
}
