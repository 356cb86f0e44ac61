//! Putting a program in force on the calling thread: the only contact with the kernel.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use crate::compile::Program;
use crate::policy::Flag;

const SET_MODE_FILTER: libc::c_ulong = 1;
const TSYNC: libc::c_ulong = 1;
const LOG: libc::c_ulong = 2;
const SPEC_ALLOW: libc::c_ulong = 4;
const NEW_LISTENER: libc::c_ulong = 8;
const TSYNC_ESRCH: libc::c_ulong = 16;
const WAIT_KILLABLE: libc::c_ulong = 32;

/// The arguments of `seccomp(2)` that put a program in force, for callers that make the call
/// themselves.
#[derive(Clone, Copy, Debug)]
pub struct Installation {
    /// The second argument.
    pub flags: u64,
    /// How many instructions: the first member of the third argument, a `struct sock_fprog`.
    pub len: u16,
    /// The instructions, its second member. They belong to the program.
    pub code: *const crate::Instruction,
}

impl Installation {
    /// The first argument: `SECCOMP_SET_MODE_FILTER`.
    pub const OPERATION: u64 = SET_MODE_FILTER;

    /// What `program` asks for.
    ///
    /// # Errors
    /// EINVAL if it is too long for the kernel.
    pub fn of(program: &Program) -> io::Result<Installation> {
        let mut flags = program.flags.iter().fold(0, |flags, flag| {
            flags
                | match flag {
                    Flag::Tsync => TSYNC,
                    Flag::Log => LOG,
                    Flag::SpecAllow => SPEC_ALLOW,
                    Flag::WaitKillable => WAIT_KILLABLE,
                }
        });
        if program.notifies {
            flags |= NEW_LISTENER;
            flags |= if flags & TSYNC != 0 { TSYNC_ESRCH } else { 0 };
        } else {
            // The kernel takes this flag with a listener only.
            flags &= !WAIT_KILLABLE;
        }
        let len = u16::try_from(program.code.len())
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        Ok(Installation {
            flags,
            len,
            code: program.code.as_ptr(),
        })
    }
}

/// Puts `program` in force on the calling thread and what it executes, for good. Returns the
/// listener's descriptor if the program notifies. The caller has `no_new_privs` set, or
/// CAP_SYS_ADMIN.
///
/// Allocates nothing and takes no lock: fit for a child between fork and exec.
///
/// # Errors
/// What `seccomp(2)` says: EACCES without either privilege, EINVAL for flags that the kernel does
/// not know, EBUSY for a second listener.
pub fn install(program: &Program) -> io::Result<Option<OwnedFd>> {
    let Installation { flags, len, code } = Installation::of(program)?;
    let filter = code.cast::<libc::sock_filter>().cast_mut();
    let prog = libc::sock_fprog { len, filter };
    // SAFETY: `prog` points to `len` instructions that live over the call, and `Instruction` has
    // the layout of `struct sock_filter`; the kernel only reads them, whatever the const says.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const prog) };
    match result {
        0 => Ok(None),
        // SAFETY: with NEW_LISTENER a positive result is a new descriptor that only we know.
        fd if fd > 0 && program.notifies => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) })),
        // With TSYNC: a thread that could not follow.
        thread if thread > 0 => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        _ => Err(io::Error::last_os_error()),
    }
}
