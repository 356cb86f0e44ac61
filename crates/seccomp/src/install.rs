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
    let len = u16::try_from(program.code.len());
    let len = len.map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let filter = program.code.as_ptr().cast::<libc::sock_filter>().cast_mut();
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
