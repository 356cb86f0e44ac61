//! The last system calls of a process that becomes the user's program: its filter, its capabilities,
//! `execve`.
//!
//! They are written down first and made then, by one of two players:
//! - [`Tail::play`] makes them from here, in the program's own code;
//! - [`Tail::play_detached`] makes them from a page of anonymous memory that holds a loop of thirty
//!   instructions, after the program's own mappings are gone. Only so can a process stop being an instance of
//!   the runtime's file before it executes another: the kernel changes `/proc/self/exe` for a file of
//!   which nothing is mapped any more ([`crate::guard`] says what that is good for).
//!
//! Used by [`crate::process`] only. Decides nothing: what the calls are and what a failure is called comes
//! from there. Everything the calls point to lies on the heap, never in the program's file.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use crate::channel::{self, Channel};
use crate::error::{Context, Failure, Step};

/// One call, as the loop reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Call {
    number: u64,
    arguments: [u64; 6],
    /// What to send when it fails, with room for the errno.
    message: *mut u8,
    message_len: u64,
}

/// A list of system calls that ends in `execve`.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    calls: Vec<Call>,
    names: Vec<String>,
    memory: Vec<Box<[u64]>>,
    messages: Vec<Vec<u8>>,
}

impl Tail {
    /// Adds a call of which `what` says what failed.
    pub(crate) fn add(&mut self, number: libc::c_long, arguments: &[u64], what: &str) {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        self.calls.push(Call {
            number: number as u64,
            arguments: all,
            message: std::ptr::null_mut(),
            message_len: 0,
        });
        self.names.push(what.to_owned());
    }

    /// Keeps words that a call points to; returns where they are.
    pub(crate) fn keep(&mut self, words: Vec<u64>) -> u64 {
        let words = words.into_boxed_slice();
        let address = words.as_ptr() as u64;
        self.memory.push(words);
        address
    }

    /// Adds the last call. What it points to must outlive the list.
    pub(crate) fn execve(
        &mut self,
        path: &CString,
        argv: &[*const libc::c_char],
        envp: &[*const libc::c_char],
    ) {
        let arguments = [
            path.as_ptr() as u64,
            argv.as_ptr() as u64,
            envp.as_ptr() as u64,
        ];
        let what = format!("cannot run `{}`", path.to_string_lossy());
        self.add(libc::SYS_execve, &arguments, &what);
    }

    /// Makes the calls planned so far. Returns at the first that fails, or if none was `execve`.
    pub(crate) fn play(&mut self) -> Step<()> {
        for (call, what) in self.calls.drain(..).zip(self.names.drain(..)) {
            let [a, b, c, d, e, f] = call.arguments;
            // SAFETY: the numbers come from `add`, whose callers in this crate pass what each call
            // wants; memory they point to is kept by `self` or outlives it.
            let result = unsafe { libc::syscall(call.number as libc::c_long, a, b, c, d, e, f) };
            if result < 0 {
                let failed = Err(std::io::Error::last_os_error()).with(|| what);
                return if is_execve(&call) {
                    failed.map_err(Failure::of_program)
                } else {
                    failed
                };
            }
        }
        Ok(())
    }

    /// Makes the calls as a process that has let go of its file. A failure is told to `channel`, and ends
    /// the process with the status a shell would give it.
    pub(crate) fn play_detached(mut self, detached: &Detachment, channel: &Channel) -> ! {
        let mut all = Tail::default();
        detached.describe(&mut all);
        all.calls.append(&mut self.calls);
        all.names.append(&mut self.names);
        all.memory.append(&mut self.memory);
        for (call, name) in all.calls.iter_mut().zip(&all.names) {
            let mut message = channel::failure(name, is_execve(call));
            call.message = message.as_mut_ptr();
            call.message_len = message.len() as u64;
            all.messages.push(message);
        }
        let first = all.calls.as_ptr();
        detached.enter(first, channel.as_fd().as_raw_fd())
    }
}

fn is_execve(call: &Call) -> bool {
    call.number == libc::SYS_execve as u64
}

/// What a process needs to let go of its file, made before the fork: a page with the loop, and the file it
/// becomes an instance of instead, which is empty.
#[derive(Debug)]
pub struct Detachment {
    code: usize,
    exe: OwnedFd,
}

const PAGE: usize = 4096;
const PR_SET_MM: u64 = 35;
const PR_SET_MM_MAP: u64 = 14;
const PR_SET_MM_MAP_SIZE: u64 = 15;

/// `struct prctl_mm_map` of prctl(2), PR_SET_MM_MAP.
#[repr(C)]
#[derive(Clone, Copy)]
struct MemoryMap {
    /// Code, data, brk, stack, arguments and environment: eleven addresses.
    addresses: [u64; 11],
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

const MAP_WORDS: usize = size_of::<MemoryMap>() / 8;

impl Detachment {
    /// Prepares; `None` where the kernel, its configuration or a policy (no executable anonymous memory,
    /// no executable memory files) does not let a process do this.
    pub(crate) fn prepare() -> Option<Detachment> {
        let mut size = 0u32;
        // SAFETY: the kernel stores one 32-bit number at the address given.
        let known = unsafe {
            libc::syscall(
                libc::SYS_prctl,
                PR_SET_MM,
                PR_SET_MM_MAP_SIZE,
                &raw mut size,
                0,
                0,
            )
        };
        if known != 0 || size as usize != size_of::<MemoryMap>() {
            return None;
        }
        let exe = empty_program()?;
        let code = player::code()?;
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let page = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .ok()?;
        // SAFETY: the page is ours, writable, and larger than the code (`player::code`).
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), page.cast::<u8>(), code.len()) };
        // SAFETY: the page is ours and nothing refers to its contents.
        let done =
            unsafe { rustix::mm::mprotect(page, PAGE, MprotectFlags::READ | MprotectFlags::EXEC) };
        done.ok()?;
        Some(Detachment {
            code: page as usize,
            exe,
        })
    }

    /// Adds the calls that unmap the program's file and put the empty one in its place.
    fn describe(&self, tail: &mut Tail) {
        let what = "cannot let go of the runtime's own file";
        let (start, end) = program_range();
        tail.add(libc::SYS_munmap, &[start, end - start], what);
        // The kernel wants plausible addresses; nothing reads them until `execve` sets them anew.
        let at = |pages: u64| start + pages * PAGE as u64;
        let map = MemoryMap {
            addresses: [
                at(0),
                at(1),
                at(1),
                at(2),
                at(3),
                at(3),
                at(4),
                at(4),
                at(5),
                at(5),
                at(6),
            ],
            auxv: 0,
            auxv_size: 0,
            exe_fd: self.exe.as_raw_fd() as u32,
        };
        let mut words = map.addresses.to_vec();
        words.push(map.auxv);
        words.push(u64::from(map.auxv_size) | u64::from(map.exe_fd) << 32);
        debug_assert_eq!(words.len(), MAP_WORDS);
        let address = tail.keep(words);
        let arguments = [
            PR_SET_MM,
            PR_SET_MM_MAP,
            address,
            size_of::<MemoryMap>() as u64,
        ];
        tail.add(libc::SYS_prctl, &arguments, what);
    }

    fn enter(&self, first: *const Call, channel: i32) -> ! {
        // SAFETY: the page holds the player's code, whose calling convention this is; it never returns,
        // so that it does not matter that the code of this function is unmapped meanwhile.
        let play: extern "C" fn(*const Call, i32) -> ! = unsafe {
            std::mem::transmute::<usize, extern "C" fn(*const Call, i32) -> !>(self.code)
        };
        play(first, channel)
    }
}

/// An executable file without contents, which no path leads to.
fn empty_program() -> Option<OwnedFd> {
    const MFD_EXEC: libc::c_uint = 0x10;
    let make = |flags| {
        // SAFETY: the name is NUL-terminated; a result that is not negative is a new descriptor.
        unsafe { libc::memfd_create(c"berth-oci".as_ptr(), flags) }
    };
    let fd = match make(libc::MFD_CLOEXEC | MFD_EXEC) {
        // Before Linux 6.3 all of them are executable, and the flag is unknown.
        -1 => make(libc::MFD_CLOEXEC),
        fd => fd,
    };
    // SAFETY: checked to be a descriptor, which the kernel just made for us.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Where the program's own segments lie in memory, from the first page to the last.
fn program_range() -> (u64, u64) {
    unsafe extern "C" fn note(
        info: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        range: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: the C library passes a valid description, and the pointer that was given to it.
        let (info, range) = unsafe { (&*info, &mut *range.cast::<(u64, u64)>()) };
        // SAFETY: the headers are as many as their number says, and stay mapped.
        let headers =
            unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
        let mask = PAGE as u64 - 1;
        for header in headers
            .iter()
            .filter(|header| header.p_type == libc::PT_LOAD)
        {
            let start = info.dlpi_addr + header.p_vaddr;
            range.0 = range.0.min(start & !mask);
            range.1 = range.1.max((start + header.p_memsz + mask) & !mask);
        }
        // The first object is the program; the rest are its libraries.
        1
    }
    let mut range = (u64::MAX, 0);
    // SAFETY: `note` has the signature asked for, and uses the pointer as the pair it is.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut range).cast()) };
    range
}

/// The loop, for the one architecture it is written for.
#[cfg(target_arch = "x86_64")]
mod player {
    use super::{Call, PAGE};

    // Position independent, without a stack and without data of its own. rdi: the first call; rsi: the
    // socket on which a failure is told.
    std::arch::global_asm!(
        ".pushsection .text.berth_player,\"ax\",@progbits",
        ".globl berth_player_start",
        ".globl berth_player_end",
        "berth_player_start:",
        "mov rbx, rdi",
        "mov r12d, esi",
        "20:",
        "mov rax, [rbx]",
        "mov rdi, [rbx + 8]",
        "mov rsi, [rbx + 16]",
        "mov rdx, [rbx + 24]",
        "mov r10, [rbx + 32]",
        "mov r8, [rbx + 40]",
        "mov r9, [rbx + 48]",
        "syscall",
        "cmp rax, -4095",
        "jae 30f",
        "add rbx, {call}",
        "jmp 20b",
        // It failed: the errno into the message (after its first byte), the message into the socket.
        "30:",
        "neg eax",
        "mov r13d, eax",
        "mov rsi, [rbx + 56]",
        "mov [rsi + 1], eax",
        "mov rdx, [rbx + 64]",
        "mov edi, r12d",
        "mov r10d, {nosignal}",
        "xor r8d, r8d",
        "xor r9d, r9d",
        "mov eax, {sendto}",
        "syscall",
        // 127 if it does not exist, 126 if it may not be executed, 1 else.
        "mov edi, 127",
        "cmp r13d, {enoent}",
        "je 40f",
        "mov edi, 126",
        "cmp r13d, {eacces}",
        "je 40f",
        "mov edi, 1",
        "40:",
        "mov eax, {exit_group}",
        "syscall",
        "ud2",
        "berth_player_end:",
        ".popsection",
        call = const size_of::<Call>(),
        nosignal = const libc::MSG_NOSIGNAL,
        sendto = const libc::SYS_sendto,
        enoent = const libc::ENOENT,
        eacces = const libc::EACCES,
        exit_group = const libc::SYS_exit_group,
    );

    unsafe extern "C" {
        static berth_player_start: u8;
        static berth_player_end: u8;
    }

    /// Its instructions.
    pub(super) fn code() -> Option<&'static [u8]> {
        let (start, end) = (&raw const berth_player_start, &raw const berth_player_end);
        let len = end as usize - start as usize;
        // SAFETY: both labels delimit the code above, which is mapped and never written.
        let code = unsafe { std::slice::from_raw_parts(start, len) };
        (len <= PAGE).then_some(code)
    }
}

/// Elsewhere processes keep their file, and the guard takes its other ways.
#[cfg(not(target_arch = "x86_64"))]
mod player {
    /// None is written.
    pub(super) fn code() -> Option<&'static [u8]> {
        None
    }
}
