//! The reference: the same bytes, executed by the host from a complete state to a complete state.

use std::{cell::Cell, mem::offset_of, ptr::NonNull, sync::Once};

use iced_x86::code_asm::*;
use rustix::mm::{MapFlags, ProtFlags};

use crate::soft::vector::VectorState;

/// Everything an instruction can read and write besides memory.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct State {
    pub vector: VectorState,
    /// `rsp` is not loaded.
    pub regs: [u64; 16],
    pub flags: u64,
    host_rsp: u64,
    host_mxcsr: u32,
    /// The signal its fault became, or 0.
    pub signal: u64,
}

impl State {
    pub fn new(vector: VectorState, regs: [u64; 16], flags: u64) -> Self {
        Self {
            vector,
            regs,
            flags,
            host_rsp: 0,
            host_mxcsr: 0x1f80,
            signal: 0,
        }
    }
}

/// A page of code around the instruction under test.
pub struct Host {
    page: NonNull<u8>,
    state: Box<State>,
}

const PAGE: usize = 4096;
/// Where in the page a faulting instruction goes on.
const RECOVERY: usize = 2048;

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

extern "C" fn recover(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a context to a handler with SA_SIGINFO.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let page = CURRENT.get();
    let rip = context.uc_mcontext.gregs[libc::REG_RIP as usize] as usize;
    if page != 0 && (page..page + PAGE).contains(&rip) {
        context.uc_mcontext.gregs[libc::REG_RIP as usize] = (page + RECOVERY) as i64;
        context.uc_mcontext.gregs[libc::REG_RCX as usize] = i64::from(signal);
        context.uc_mcontext.gregs[libc::REG_EFL as usize] &= !0x0004_0100;
        return;
    }
    // SAFETY: restores what every process starts with; the instruction faults again.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

impl Host {
    pub fn new() -> Self {
        static HANDLERS: Once = Once::new();
        HANDLERS.call_once(|| {
            for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL] {
                // SAFETY: `recover` is a handler of this kind, and async-signal-safe.
                unsafe {
                    let mut action: libc::sigaction = std::mem::zeroed();
                    action.sa_sigaction = recover as *const () as usize;
                    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                    assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
                }
            }
        });
        // SAFETY: a new mapping.
        let page = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                PAGE,
                ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC,
                MapFlags::PRIVATE,
            )
        }
        .unwrap();
        Self {
            page: NonNull::new(page.cast()).unwrap(),
            state: Box::new(State::new(VectorState::default(), [0; 16], 0)),
        }
    }

    /// Executes one instruction. What it did to `state` is in the result, whose `signal` says
    /// whether it faulted.
    pub fn execute(&mut self, instruction: &[u8], state: &State) -> State {
        *self.state = state.clone();
        let code = self.code(instruction).unwrap();
        assert!(code.len() <= RECOVERY);
        let recovery = self.recovery().unwrap();
        let page = self.page.as_ptr();
        // SAFETY: both fit the page, which is ours; the code returns as a C function does.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), page, code.len());
            std::ptr::copy_nonoverlapping(recovery.as_ptr(), page.add(RECOVERY), recovery.len());
            CURRENT.set(page as usize);
            let run: extern "sysv64" fn(*mut State) = std::mem::transmute(page);
            run(&raw mut *self.state);
            CURRENT.set(0);
        }
        (*self.state).clone()
    }

    const REGS: [AsmRegister64; 16] = [
        rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
    ];

    fn at(number: usize) -> usize {
        offset_of!(State, regs) + 8 * number
    }

    fn code(&self, instruction: &[u8]) -> Result<Vec<u8>, iced_x86::IcedError> {
        let state = &raw const *self.state as u64;
        let mut a = CodeAssembler::new(64)?;
        for it in [rbx, rbp, r12, r13, r14, r15] {
            a.push(it)?;
        }
        a.mov(qword_ptr(rdi + offset_of!(State, host_rsp)), rsp)?;
        a.mov(eax, 7)?;
        a.xor(edx, edx)?;
        a.xrstor64(ptr(rdi))?;
        a.push(qword_ptr(rdi + offset_of!(State, flags)))?;
        a.popfq()?;
        for number in (0..16).filter(|it| !matches!(it, 4 | 7)).chain([7]) {
            a.mov(Self::REGS[number], qword_ptr(rdi + Self::at(number)))?;
        }
        a.db(instruction)?;
        a.mov(qword_ptr(rsp - 256), rax)?;
        a.mov(rax, state)?;
        for number in (1..16).filter(|&it| it != 4) {
            a.mov(qword_ptr(rax + Self::at(number)), Self::REGS[number])?;
        }
        a.mov(rdi, rax)?;
        a.mov(rax, qword_ptr(rsp - 256))?;
        a.mov(qword_ptr(rdi + Self::at(0)), rax)?;
        a.pushfq()?;
        a.pop(qword_ptr(rdi + offset_of!(State, flags)))?;
        self.leave(&mut a)?;
        a.assemble(self.page.as_ptr() as u64)
    }

    fn recovery(&self) -> Result<Vec<u8>, iced_x86::IcedError> {
        let mut a = CodeAssembler::new(64)?;
        a.mov(rdi, &raw const *self.state as u64)?;
        a.mov(qword_ptr(rdi + offset_of!(State, signal)), rcx)?;
        self.leave(&mut a)?;
        a.assemble((self.page.as_ptr() as usize + RECOVERY) as u64)
    }

    fn leave(&self, a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
        a.mov(eax, 7)?;
        a.xor(edx, edx)?;
        a.xsave64(ptr(rdi))?;
        a.fninit()?;
        a.ldmxcsr(dword_ptr(rdi + offset_of!(State, host_mxcsr)))?;
        a.vzeroupper()?;
        a.mov(rsp, qword_ptr(rdi + offset_of!(State, host_rsp)))?;
        for it in [r15, r14, r13, r12, rbp, rbx] {
            a.pop(it)?;
        }
        a.ret()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nothing runs there.
        let _ = unsafe { rustix::mm::munmap(self.page.as_ptr().cast(), PAGE) };
    }
}
