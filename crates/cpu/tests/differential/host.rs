//! Executes one instruction on the host's processor, with registers, flags and memory as wanted,
//! and catches the fault it may raise.
//!
//! A stub at a fixed low address loads all registers, the stack pointer included, jumps to the
//! instruction, and stores all registers again. Memory operands lie in a window that has the same
//! addresses on the host as in the guest, with pages around and in it that may not be accessed.
//! 32-bit instructions are executed in compatibility mode, which the stub enters and leaves by far
//! jumps.

use std::{
    io, ptr, slice,
    sync::{Mutex, MutexGuard, PoisonError},
};

use cpu::soft::op::Width;
use iced_x86::{IcedError, code_asm::*};

/// Where the stub is.
pub const CODE: u64 = 0x0300_0000;
/// Where the instruction under test is.
pub const SLOT: u64 = CODE + 0x800;
/// Where branches under test go.
pub const LANDING: u64 = SLOT + 0x40;
/// Where [`Frame`] is: the page after the code.
const FRAME: u64 = CODE + 0x1000;

/// First page of the window: may not be accessed.
pub const WINDOW: u64 = 0x0200_0000;
/// Pages of the window: a guard, two to write, one to read, a guard.
pub const PAGES: u64 = 5;
/// The part of the window that can be read.
pub const OPEN: u64 = WINDOW + 0x1000;
/// Size of that part; the last page of it cannot be written.
pub const OPEN_BYTES: usize = 0x3000;

/// What an instruction starts from, or ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Registers {
    /// In order of their numbers.
    pub gpr: [u64; 16],
    pub flags: u64,
}

/// How an instruction ended on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With the next instruction.
    Next,
    /// With a branch to [`LANDING`].
    Taken,
    /// With a signal, about this address.
    Signal(i32, u64),
}

#[repr(C)]
struct Frame {
    before: Registers,
    after: Registers,
    stack: u64,
    taken: u64,
    signal: u64,
    address: u64,
    done: u64,
    /// Far pointers into 32-bit code and back.
    enter: [u8; 8],
    leave: [u8; 8],
    /// A stack for 32-bit code to store flags by.
    scratch: [u64; 8],
}

/// Selectors Linux gives to user code: 32-bit code, 64-bit code, data.
pub const CODE32_SELECTOR: u16 = 0x23;
const CODE64_SELECTOR: u16 = 0x33;
pub const DATA_SELECTOR: u16 = 0x2b;

/// Held by the one [`Host`] there may be: addresses are fixed.
static ONE: Mutex<()> = Mutex::new(());

const fn at(offset: usize) -> u64 {
    FRAME + offset as u64
}

macro_rules! frame {
    ($($field:tt)*) => {
        qword_ptr(at(std::mem::offset_of!(Frame, $($field)*)))
    };
}

macro_rules! frame32 {
    ($($field:tt)*) => {
        dword_ptr(at(std::mem::offset_of!(Frame, $($field)*)))
    };
}

/// The host's processor, ready to execute.
pub struct Host {
    _one: MutexGuard<'static, ()>,
}

fn map(address: u64, bytes: usize, protection: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: the flag makes it fail rather than replace a mapping.
    let at = unsafe { libc::mmap(address as *mut _, bytes, protection, flags, -1, 0) };
    assert_eq!(
        at as u64,
        address,
        "map {address:#x}: {}",
        io::Error::last_os_error()
    );
}

fn protect(address: u64, bytes: usize, protection: i32) {
    // SAFETY: changes pages that `Host::new` mapped.
    let result = unsafe { libc::mprotect(address as *mut _, bytes, protection) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

impl Host {
    /// To execute code of 64 or of 32 bits.
    pub fn new(width: Width) -> Self {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        const ALL: i32 = libc::PROT_READ | libc::PROT_WRITE;
        map(CODE, 0x2000, ALL | libc::PROT_EXEC);
        map(WINDOW, PAGES as usize * 0x1000, libc::PROT_NONE);
        protect(OPEN, OPEN_BYTES, ALL);
        let stub = match width {
            Width::Code64 => write_stub(),
            _ => write_stub32(),
        };
        let done = stub.expect("the stub is valid code");
        // SAFETY: mapped above, and used by this thread only.
        unsafe {
            (*(FRAME as *mut Frame)).done = done;
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = caught as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL] {
                assert_eq!(libc::sigaction(signal, &action, ptr::null_mut()), 0);
            }
        }
        Self { _one: one }
    }

    /// The part of the window that can be read.
    pub fn open(&self) -> &[u8] {
        // SAFETY: mapped readable as long as the process lives; written by `run` and `fill` only.
        unsafe { slice::from_raw_parts(OPEN as *const u8, OPEN_BYTES) }
    }

    /// Fills the open part of the window.
    pub fn fill(&mut self, content: &[u8]) {
        let last = OPEN + OPEN_BYTES as u64 - 0x1000;
        protect(last, 0x1000, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: mapped, writable, and of this size at least.
        unsafe {
            ptr::copy_nonoverlapping(content.as_ptr(), OPEN as *mut u8, OPEN_BYTES);
        }
        protect(last, 0x1000, libc::PROT_READ);
    }

    /// Executes the instruction in `bytes`.
    pub fn run(&mut self, bytes: &[u8], before: &Registers) -> (Registers, Ending) {
        let frame = FRAME as *mut Frame;
        // SAFETY: the stub was written by `new`; the instruction changes registers, which the stub
        // restores, and memory in the window. The caller answers for its being such a one.
        unsafe {
            let slot = SLOT as *mut u8;
            ptr::copy_nonoverlapping(bytes.as_ptr(), slot, bytes.len());
            jump_to_done(slot.add(bytes.len()), (*frame).done);
            (*frame).before = *before;
            (*frame).taken = 0;
            (*frame).signal = 0;
            let entry: extern "sysv64" fn() = std::mem::transmute(CODE as *const ());
            entry();
            let ending = match ((*frame).signal, (*frame).taken) {
                (0, 0) => Ending::Next,
                (0, _) => Ending::Taken,
                (signal, _) => Ending::Signal(signal as i32, (*frame).address),
            };
            ((*frame).after, ending)
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: unmaps what `new` mapped; nothing borrows from it any more.
        unsafe {
            libc::munmap(CODE as *mut _, 0x2000);
            libc::munmap(WINDOW as *mut _, PAGES as usize * 0x1000);
        }
    }
}

/// `jmp done`, at `at`.
unsafe fn jump_to_done(at: *mut u8, done: u64) {
    let displacement = (done as i64 - (at as i64 + 5)) as i32;
    // SAFETY: the caller says that there is room.
    unsafe {
        at.write(0xe9);
        at.add(1).cast::<i32>().write_unaligned(displacement);
    }
}

const GPR: [AsmRegister64; 16] = [
    rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
];
const GPR32: [AsmRegister32; 8] = [eax, ecx, edx, ebx, esp, ebp, esi, edi];
/// What a function must leave as it was.
const KEPT: [AsmRegister64; 6] = [rbx, rbp, r12, r13, r14, r15];

/// Writes code to where it was assembled for.
fn place(mut code: CodeAssembler, address: u64) -> Result<Vec<u8>, IcedError> {
    let bytes = code.assemble(address)?;
    assert!(address + bytes.len() as u64 <= CODE + 0x1000, "no room");
    // SAFETY: within the page that `Host::new` mapped writable.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
    Ok(bytes)
}

/// The address of the second instruction: past the store to `taken`.
fn second(bytes: &[u8], width: Width) -> u64 {
    iced_x86::Decoder::with_ip(width.bits(), bytes, LANDING, 0)
        .decode()
        .next_ip()
}

fn keep(code: &mut CodeAssembler) -> Result<(), IcedError> {
    for register in KEPT {
        code.push(register)?;
    }
    code.mov(frame!(stack), rsp)
}

fn leave(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.cld()?;
    for register in KEPT.into_iter().rev() {
        code.pop(register)?;
    }
    code.ret()
}

/// Writes what is around the slot; returns where it goes on after the instruction.
fn write_stub() -> Result<u64, IcedError> {
    let mut entry = CodeAssembler::new(64)?;
    keep(&mut entry)?;
    entry.push(frame!(before.flags))?;
    entry.popfq()?;
    for (number, register) in GPR.into_iter().enumerate() {
        if register != rsp {
            entry.mov(register, frame!(before.gpr) + 8 * number)?;
        }
    }
    entry.mov(rsp, frame!(before.gpr) + 8 * 4)?;
    entry.jmp(SLOT)?;
    place(entry, CODE)?;

    let mut landing = CodeAssembler::new(64)?;
    landing.mov(frame!(taken), 1)?;
    for (number, register) in GPR.into_iter().enumerate() {
        landing.mov(frame!(after.gpr) + 8 * number, register)?;
    }
    landing.mov(rsp, frame!(stack))?;
    landing.pushfq()?;
    landing.pop(frame!(after.flags))?;
    leave(&mut landing)?;
    Ok(second(&place(landing, LANDING)?, Width::Code64))
}

/// The same for an instruction of 32-bit code.
fn write_stub32() -> Result<u64, IcedError> {
    const LOAD: u64 = CODE + 0x200;
    const EXIT: u64 = CODE + 0x400;
    let far = |address: u64, selector: u16| {
        let mut pointer = [0; 8];
        pointer[..4].copy_from_slice(&(address as u32).to_le_bytes());
        pointer[4..6].copy_from_slice(&selector.to_le_bytes());
        pointer
    };
    // SAFETY: mapped by the caller, and used by this thread only.
    unsafe {
        (*(FRAME as *mut Frame)).enter = far(LOAD, CODE32_SELECTOR);
        (*(FRAME as *mut Frame)).leave = far(EXIT, CODE64_SELECTOR);
    }
    let mut entry = CodeAssembler::new(64)?;
    keep(&mut entry)?;
    entry.mov(eax, u32::from(DATA_SELECTOR))?;
    entry.mov(ds, eax)?;
    entry.mov(es, eax)?;
    entry.push(frame!(before.flags))?;
    entry.popfq()?;
    entry.jmp(fword_ptr(at(std::mem::offset_of!(Frame, enter))))?;
    place(entry, CODE)?;

    let mut load = CodeAssembler::new(32)?;
    for (number, register) in GPR32.into_iter().enumerate() {
        load.mov(register, frame32!(before.gpr) + 8 * number)?;
    }
    load.jmp(SLOT)?;
    place(load, LOAD)?;

    let mut landing = CodeAssembler::new(32)?;
    landing.mov(frame32!(taken), 1)?;
    for (number, register) in GPR32.into_iter().enumerate() {
        landing.mov(frame32!(after.gpr) + 8 * number, register)?;
    }
    let scratch = at(std::mem::offset_of!(Frame, scratch)) + 64;
    landing.mov(esp, scratch as u32)?;
    landing.pushfd()?;
    landing.pop(frame32!(after.flags))?;
    landing.jmp(fword_ptr(at(std::mem::offset_of!(Frame, leave))))?;
    let bytes = place(landing, LANDING)?;

    let mut exit = CodeAssembler::new(64)?;
    exit.xor(eax, eax)?;
    exit.mov(ds, eax)?;
    exit.mov(es, eax)?;
    exit.mov(rsp, frame!(stack))?;
    leave(&mut exit)?;
    place(exit, EXIT)?;
    Ok(second(&bytes, Width::Code32))
}

/// Notes a fault of the instruction under test, and goes on after it with the registers as they
/// are. Any other fault kills the test, as it would have.
extern "C" fn caught(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes valid pointers; the frame is mapped while the handler is in place
    // and a fault in the slot can only come from `Host::run`.
    unsafe {
        let rip = &mut (*context).uc_mcontext.gregs[libc::REG_RIP as usize];
        if !(SLOT..LANDING).contains(&(*rip as u64)) {
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        let frame = FRAME as *mut Frame;
        (*frame).signal = signal as u64;
        (*frame).address = (*info).si_addr() as u64;
        *rip = (*frame).done as i64;
    }
}
