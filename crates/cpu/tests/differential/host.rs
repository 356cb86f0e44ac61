//! Executes one instruction on the host's processor, with registers, flags and memory as wanted,
//! and catches the fault it may raise.
//!
//! A stub at a fixed low address loads all registers, the stack pointer included, jumps to the
//! instruction, and stores all registers again. Memory operands lie in a window that has the same
//! addresses on the host as in the guest, with pages around and in it that may not be accessed.
//! 32-bit and 16-bit instructions are executed in compatibility mode, which the stub enters and
//! leaves by far jumps; 16-bit ones with segments of their own, so that all addresses are small.

use std::{
    arch::asm,
    io, ptr, slice,
    sync::{Mutex, MutexGuard, PoisonError},
};

use cpu::soft::op::Width;
use iced_x86::{IcedError, code_asm::*};

/// Where the stub is.
pub const CODE: u64 = 0x0300_0000;
/// Where the instruction under test is.
const SLOT: u64 = CODE + 0x800;
/// Where branches under test go.
const LANDING: u64 = SLOT + 0x40;
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
    /// With a branch to [`landing`].
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
    /// Selectors of flat data, and of 16-bit data.
    flat: u64,
    data16: u64,
}

/// Selectors Linux gives to user code: 32-bit code, 64-bit code, data.
pub const CODE32_SELECTOR: u16 = 0x23;
const CODE64_SELECTOR: u16 = 0x33;
pub const DATA_SELECTOR: u16 = 0x2b;

/// 16-bit code and data, in the local descriptor table.
pub const CODE16_SELECTOR: u16 = 0x07;
pub const DATA16_SELECTOR: u16 = 0x0f;
pub const CODE16_LIMIT: u32 = 0xfff;
/// Ends in the last page of the window.
pub const DATA16_LIMIT: u32 = 0x4007;

/// Where the instruction under test is, as an offset in the code segment.
pub fn slot(width: Width) -> u64 {
    SLOT - code_base(width)
}

/// Where branches under test go, as an offset in the code segment.
pub fn landing(width: Width) -> u64 {
    LANDING - code_base(width)
}

fn code_base(width: Width) -> u64 {
    if width == Width::Code16 { CODE } else { 0 }
}

/// The base of the data segments.
pub fn data_base(width: Width) -> u64 {
    if width == Width::Code16 { WINDOW } else { 0 }
}

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
    width: Width,
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
            Width::Code32 => write_stub32(width),
            Width::Code16 => {
                describe_segment(0, CODE, CODE16_LIMIT, true).expect("modify_ldt");
                describe_segment(1, WINDOW, DATA16_LIMIT, false).expect("modify_ldt");
                write_stub32(width)
            }
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
        Self { width, _one: one }
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
            let after = jump(SLOT + bytes.len() as u64, (*frame).done, self.width);
            ptr::copy_nonoverlapping(after.as_ptr(), slot.add(bytes.len()), after.len());
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

/// A jump at `at` to `target`, which changes nothing else; from 16-bit code it goes to 32-bit code.
fn jump(at: u64, target: u64, width: Width) -> Vec<u8> {
    if width == Width::Code16 {
        return [&[0x66][..], &far_jump(target, CODE32_SELECTOR)].concat();
    }
    let displacement = target.wrapping_sub(at + 5) as u32;
    [&[0xe9][..], &displacement.to_le_bytes()].concat()
}

/// `jmp selector:offset` in 32-bit code.
fn far_jump(offset: u64, selector: u16) -> Vec<u8> {
    [
        &[0xea][..],
        &(offset as u32).to_le_bytes(),
        &selector.to_le_bytes(),
    ]
    .concat()
}

/// Makes an entry of the local descriptor table: 16 bits, readable code or writable data.
fn describe_segment(entry: u32, base: u64, limit: u32, code: bool) -> io::Result<()> {
    /// `struct user_desc` of the kernel, with its bit fields as one word: contents in bits 1 and 2.
    #[repr(C)]
    struct UserDesc {
        entry: u32,
        base: u32,
        limit: u32,
        bits: u32,
    }
    let description = UserDesc {
        entry,
        base: base as u32,
        limit,
        bits: if code { 2 << 1 } else { 0 },
    };
    // SAFETY: passes a valid structure; a new segment changes nothing for code that does not load
    // it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_modify_ldt,
            0x11,
            &raw const description,
            size_of::<UserDesc>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether the host's kernel lets a process run code of this width.
///
/// # Errors
/// Why not.
pub fn can_run(width: Width) -> Result<(), String> {
    if width == Width::Code64 {
        return Ok(());
    }
    let valid: u8;
    // SAFETY: asks about a selector, and changes nothing.
    unsafe {
        asm!(
            "lar {rights:e}, {selector:e}",
            "setz {valid}",
            selector = in(reg) u32::from(CODE32_SELECTOR),
            rights = out(reg) _,
            valid = out(reg_byte) valid,
            options(nomem, nostack),
        );
    }
    if valid == 0 {
        return Err("the kernel has no segment for 32-bit code".to_owned());
    }
    if width == Width::Code16 {
        describe_segment(1, WINDOW, DATA16_LIMIT, false)
            .map_err(|error| format!("the kernel refuses local descriptors: {error}"))?;
    }
    Ok(())
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

/// The address of the second instruction of a landing: past the store to `taken`.
fn second(bytes: &[u8]) -> u64 {
    iced_x86::Decoder::with_ip(64, bytes, LANDING, 0)
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
    Ok(second(&place(landing, LANDING)?))
}

/// The same for an instruction of 32-bit or 16-bit code.
fn write_stub32(width: Width) -> Result<u64, IcedError> {
    const LOAD: u64 = CODE + 0x200;
    const EXIT: u64 = CODE + 0x400;
    const STORE: u64 = CODE + 0xa00;
    let far = |address: u64, selector: u16| {
        let mut pointer = [0; 8];
        pointer[..6].copy_from_slice(&far_jump(address, selector)[1..]);
        pointer
    };
    // SAFETY: mapped by the caller, and used by this thread only.
    unsafe {
        let frame = FRAME as *mut Frame;
        (*frame).enter = far(LOAD, CODE32_SELECTOR);
        (*frame).leave = far(EXIT, CODE64_SELECTOR);
        (*frame).flat = u64::from(DATA_SELECTOR);
        (*frame).data16 = u64::from(DATA16_SELECTOR);
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
        if register != esp {
            load.mov(register, frame32!(before.gpr) + 8 * number)?;
        }
    }
    let data16 = || word_ptr(at(std::mem::offset_of!(Frame, data16)));
    if width == Width::Code16 {
        load.mov(es, data16())?;
        load.mov(ss, data16())?;
    }
    load.mov(esp, frame32!(before.gpr) + 8 * 4)?;
    if width == Width::Code16 {
        load.mov(ds, data16())?;
        load.db(&far_jump(slot(width), CODE16_SELECTOR))?;
    } else {
        load.jmp(SLOT)?;
    }
    place(load, LOAD)?;

    // From here on in 32-bit code; data segments may be those of 16-bit code.
    let flat = || word_ptr(at(std::mem::offset_of!(Frame, flat)));
    let mut taken = CodeAssembler::new(32)?;
    taken.mov(ds, flat().cs())?;
    taken.mov(frame32!(taken), 1)?;
    let done = STORE + taken.assemble(STORE)?.len() as u64;
    taken.mov(ds, flat().cs())?;
    for (number, register) in GPR32.into_iter().enumerate() {
        taken.mov(frame32!(after.gpr) + 8 * number, register)?;
    }
    let scratch = at(std::mem::offset_of!(Frame, scratch)) + 64;
    taken.mov(ss, flat())?;
    taken.mov(esp, scratch as u32)?;
    taken.pushfd()?;
    taken.pop(frame32!(after.flags))?;
    taken.jmp(fword_ptr(at(std::mem::offset_of!(Frame, leave))))?;
    place(taken, STORE)?;

    let landing = jump(LANDING, STORE, width);
    // SAFETY: within the page that `Host::new` mapped writable.
    unsafe { ptr::copy_nonoverlapping(landing.as_ptr(), LANDING as *mut u8, landing.len()) };

    let mut exit = CodeAssembler::new(64)?;
    exit.xor(eax, eax)?;
    exit.mov(ds, eax)?;
    exit.mov(es, eax)?;
    exit.mov(rsp, frame!(stack))?;
    leave(&mut exit)?;
    place(exit, EXIT)?;
    Ok(done)
}

/// Notes a fault of the instruction under test, and goes on after it with the registers as they
/// are. Any other fault kills the test, as it would have.
extern "C" fn caught(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes valid pointers; the frame is mapped while the handler is in place
    // and a fault in the slot can only come from `Host::run`.
    unsafe {
        let registers = &mut (*context).uc_mcontext.gregs;
        let selectors = &mut registers[libc::REG_CSGSFS as usize];
        let base = if *selectors as u16 == CODE16_SELECTOR {
            *selectors = *selectors & !0xffff | i64::from(CODE32_SELECTOR);
            CODE
        } else {
            0
        };
        let rip = &mut registers[libc::REG_RIP as usize];
        if !(SLOT..LANDING).contains(&(*rip as u64 + base)) {
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        let frame = FRAME as *mut Frame;
        (*frame).signal = signal as u64;
        (*frame).address = (*info).si_addr() as u64;
        *rip = (*frame).done as i64;
    }
}
