//! The system calls that rustix does not wrap. Thin, typed, one call each.
//!
//! Used all over the crate; holds no policy. Every function returns the kernel's errno unchanged.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, Result};

/// `struct clone_args` of clone3(2), version 2 (with a cgroup).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// libc's constant of this name is an i32 that overflows.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What [`clone3`] returns to the parent.
pub(crate) struct Child {
    /// Process id in the caller's pid namespace.
    pub pid: i32,
    /// Descriptor of the process.
    pub pidfd: OwnedFd,
}

fn check(result: libc::c_long) -> Result<libc::c_long> {
    if result < 0 {
        Err(last_errno())
    } else {
        Ok(result)
    }
}

fn last_errno() -> Errno {
    // SAFETY: errno is a thread-local integer, always readable.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

/// Has the kernel kill the caller when the thread that made it dies. Lost when ids change.
pub(crate) fn die_with_parent() -> Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).map(drop)
}

/// Forks into the namespaces of `flags` and, with `cgroup`, straight into that v2 group.
/// Returns `None` in the child.
///
/// # Safety
/// As fork(2): the caller must have a single thread, since the child gets a copy of a heap whose locks
/// nobody else could release.
pub(crate) unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Option<Child>> {
    let mut args = CloneArgs {
        flags,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: the caller vouches for being single-threaded.
    unsafe { clone_with(args) }
}

/// As [`clone3`], but the new process is another child of the caller's parent, and signals its end as
/// the caller does.
///
/// # Safety
/// As [`clone3`].
pub(crate) unsafe fn clone3_sibling(flags: u64) -> Result<Option<Child>> {
    let args = CloneArgs {
        flags: flags | libc::CLONE_PARENT as u64,
        ..CloneArgs::default()
    };
    // SAFETY: the caller vouches for being single-threaded.
    unsafe { clone_with(args) }
}

/// # Safety
/// As [`clone3`].
unsafe fn clone_with(mut args: CloneArgs) -> Result<Option<Child>> {
    let mut pidfd: RawFd = -1;
    args.flags |= libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    // SAFETY: `args` is a valid clone_args of the size given; without CLONE_VM the child runs on its
    // own copy of this stack; the caller vouches for being single-threaded.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel stored a new descriptor in `pidfd`, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Some(Child {
        pid: pid as i32,
        pidfd,
    }))
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// One of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0.
    pub propagation: u64,
    /// User namespace for `MOUNT_ATTR_IDMAP`.
    pub userns_fd: u64,
}

/// Changes a mount's attributes, with `recursive` those of all mounts below it too.
pub(crate) fn mount_setattr(
    dir: impl AsFd,
    path: &CStr,
    recursive: bool,
    attr: &MountAttr,
) -> Result<()> {
    let mut flags = if path.is_empty() {
        libc::AT_EMPTY_PATH
    } else {
        0
    };
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `path` is NUL-terminated and `attr` is a mount_attr of the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_fd().as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Marks every descriptor from `first` on as closed on `execve`.
pub(crate) fn cloexec_from(first: u32) -> Result<()> {
    // SAFETY: close_range takes integers only; with CLOEXEC it closes nothing now.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })
    .map(drop)
}

/// prctl(2) with integer arguments.
pub(crate) fn prctl(option: i32, a: u64, b: u64) -> Result<i32> {
    // SAFETY: callers in this crate pass only options whose arguments are integers.
    check(unsafe { libc::syscall(libc::SYS_prctl, option, a, b, 0u64, 0u64) }).map(|v| v as i32)
}

/// `struct sched_attr` of sched_setattr(2), first version.
#[repr(C)]
#[derive(Default)]
pub(crate) struct SchedAttr {
    /// Size of this structure.
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// Deadline policy, ns.
    pub runtime: u64,
    /// Deadline policy, ns.
    pub deadline: u64,
    /// Deadline policy, ns.
    pub period: u64,
}

/// Sets the caller's scheduling attributes.
pub(crate) fn sched_setattr(attr: &SchedAttr) -> Result<()> {
    // SAFETY: `attr` is a sched_attr whose `size` field tells its size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(attr), 0) })
        .map(drop)
}

/// Sets the caller's I/O priority (`class << 13 | level`).
pub(crate) fn ioprio_set(value: i32) -> Result<()> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) }).map(drop)
}

/// Sets the caller's execution domain.
pub(crate) fn personality(domain: u64) -> Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_personality, domain) }).map(drop)
}

/// Sets the caller's NUMA policy.
pub(crate) fn set_mempolicy(mode: i32, nodes: &[u64]) -> Result<()> {
    let bits = nodes.len() * 64;
    let mask = if nodes.is_empty() {
        std::ptr::null()
    } else {
        nodes.as_ptr()
    };
    // SAFETY: `mask` points to `bits` bits or is null with a length of 0 (+1 as the kernel counts).
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits + 1) }).map(drop)
}

/// Sets a resource limit of another process.
pub(crate) fn prlimit(pid: i32, resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` is a valid rlimit64; the old value is not asked for.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    })
    .map(drop)
}

/// The hard limit of a resource of the calling process.
pub(crate) fn hard_limit(resource: u32) -> Result<u64> {
    let mut limit = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for an rlimit64; nothing is set.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            std::ptr::null::<libc::rlimit64>(),
            &raw mut limit,
        )
    })?;
    Ok(limit.rlim_max)
}

/// Replaces the process image; returns only on failure. Both lists end in a null pointer.
pub(crate) fn execve(
    path: &CStr,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
) -> Errno {
    // SAFETY: the lists hold pointers to NUL-terminated strings that outlive the call and end in null.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    last_errno()
}

/// Executes the file behind `fd`; returns only on failure.
pub(crate) fn execveat(
    fd: BorrowedFd<'_>,
    argv: &[*const libc::c_char],
    envp: *const *const libc::c_char,
) -> Errno {
    // SAFETY: as in `execve`; the empty path with AT_EMPTY_PATH names the file of `fd`.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp,
            libc::AT_EMPTY_PATH,
        )
    };
    last_errno()
}

/// The environment as execve(2) wants it.
pub(crate) fn environ() -> *const *const libc::c_char {
    unsafe extern "C" {
        static environ: *const *const libc::c_char;
    }
    // SAFETY: the C library sets `environ` before main; nothing in this crate changes it.
    unsafe { environ }
}

/// Gives every signal its default action, except those the kernel does not let us touch.
pub(crate) fn reset_signals() {
    for signal in 1..=31 {
        // SAFETY: SIG_DFL installs no code of ours; failures (KILL, STOP) are meant to be ignored.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// A set of signals as the kernel takes it: bit `n - 1` is signal `n`.
pub(crate) type SigSet = u64;

/// Replaces the signal mask of this thread and returns the old one.
pub(crate) fn set_signal_mask(mask: SigSet) -> Result<SigSet> {
    let mut old: SigSet = 0;
    // SAFETY: both point to 8 bytes, the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            &raw mut old,
            size_of::<SigSet>(),
        )
    })?;
    Ok(old)
}

/// Waits for one of the signals of `mask`, all of which must be blocked. Returns its number.
pub(crate) fn wait_signal(mask: SigSet) -> Result<i32> {
    // SAFETY: `mask` points to 8 bytes; no siginfo and no timeout are asked for.
    check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigtimedwait,
            &raw const mask,
            std::ptr::null_mut::<libc::siginfo_t>(),
            std::ptr::null::<libc::timespec>(),
            size_of::<SigSet>(),
        )
    })
    .map(|signal| signal as i32)
}

/// Leaves at once, running no destructors and no exit handlers of the parent's.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}
