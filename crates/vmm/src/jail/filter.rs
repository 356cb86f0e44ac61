//! Which system calls each kind of thread may make. Any other ends the process by `SIGSYS`, which
//! the supervisor records.

use std::{borrow::Cow, io};

use cpu::Backend;
use seccomp::{
    Action, Argument, CompileError, NewCalls, Operator, Policy, Program, Rule, compile, install,
};

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs guest code, and devices on its behalf.
    Vcpu,
    /// Serves the queues of a device.
    Device,
    /// Serves the vsock, which connects to sockets of the host.
    Vsock,
    /// Serves the console.
    Console,
    /// Serves the control socket, and ends the process.
    Control,
    /// Serves a folder of the host.
    Share,
}

const KINDS: [ThreadKind; 6] = [
    ThreadKind::Vcpu,
    ThreadKind::Device,
    ThreadKind::Vsock,
    ThreadKind::Console,
    ThreadKind::Control,
    ThreadKind::Share,
];

/// Memory, locks, time, signals, the end: what Rust's and C's libraries need on every thread.
const ALL: &[&str] = &[
    "brk",
    "clock_gettime",
    "clock_getres",
    "clock_nanosleep",
    "close",
    "exit",
    "exit_group",
    "futex",
    "getpid",
    "getrandom",
    "gettid",
    "gettimeofday",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "read",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_yield",
    "set_robust_list",
    "sigaltstack",
    "tgkill",
    "write",
    "writev",
];

/// Refused without ending the process where it is not allowed: C's library opens files of `/proc` to return memory, and
/// Rust's to describe a panic. Both do without.
const REFUSED: &[&str] = &["open", "openat", "readlink", "readlinkat"];
const EACCES: u16 = 13;

/// Waiting for files.
const WAIT: &[&str] = &[
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_wait",
    "poll",
    "ppoll",
];

/// What is done with files of a folder.
const FILES: &[&str] = &[
    "copy_file_range",
    "fallocate",
    "fchmod",
    "fchmodat",
    "fchownat",
    "fdatasync",
    "fgetxattr",
    "flistxattr",
    "fremovexattr",
    "fsetxattr",
    "fstat",
    "fstatfs",
    "fsync",
    "ftruncate",
    "getdents64",
    "linkat",
    "lseek",
    "mkdirat",
    "mknodat",
    "openat2",
    "preadv",
    "pwritev",
    "readlinkat",
    "renameat2",
    "setfsgid",
    "setfsuid",
    "statx",
    "symlinkat",
    "syncfs",
    "unlinkat",
    "utimensat",
];

impl ThreadKind {
    fn calls(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Vcpu => &[
                ALL,
                // The local APIC's timer, and devices that a store to a register starts or stops.
                &[
                    "timer_create",
                    "timer_delete",
                    "timer_gettime",
                    "timer_settime",
                    "epoll_ctl",
                    // The memory that translated code is in.
                    "fcntl",
                    "ftruncate",
                    "memfd_create",
                ],
            ],
            Self::Device => &[
                ALL,
                WAIT,
                &[
                    "fallocate",
                    "fdatasync",
                    "fstat",
                    "fsync",
                    "lseek",
                    "pread64",
                    "preadv",
                    "preadv2",
                    "pwrite64",
                    "pwritev",
                    "pwritev2",
                    "readv",
                    "timerfd_settime",
                ],
            ],
            Self::Vsock => &[
                ALL,
                WAIT,
                &[
                    "accept4",
                    "connect",
                    "fcntl",
                    "getsockopt",
                    "readv",
                    "recvfrom",
                    "recvmsg",
                    "sendmsg",
                    "sendto",
                    "shutdown",
                ],
            ],
            Self::Console => &[
                ALL,
                WAIT,
                &[
                    "accept4",
                    "copy_file_range",
                    "fcntl",
                    "ftruncate",
                    "fstat",
                    "lseek",
                    "recvfrom",
                    "sendfile",
                    "sendto",
                    "shutdown",
                    "splice",
                    "statx",
                ],
            ],
            Self::Control => &[
                ALL,
                WAIT,
                &[
                    "accept4",
                    "fcntl",
                    "fstat",
                    "getrusage",
                    "recvfrom",
                    "sched_setaffinity",
                    "sendto",
                    "shutdown",
                    "timer_delete",
                ],
            ],
            // By descriptors and single names; which files that can be, Landlock says.
            Self::Share => &[ALL, WAIT, FILES],
        }
    }

    /// Calls that are allowed with some arguments only.
    fn conditional(self, backend: Backend) -> Vec<Rule> {
        let mut rules = vec![
            // Advice on memory and names of threads.
            only("prctl", 0, &[libc::PR_SET_NAME as u64, PR_SET_VMA]),
            // Rust's library, built with assertions, looks at files before it closes them.
            only("fcntl", 1, &[libc::F_GETFD as u64]),
        ];
        let requests = self.requests(backend);
        // Without a condition it would allow all.
        if !requests.is_empty() {
            rules.push(only("ioctl", 1, &requests));
        }
        match self {
            Self::Vsock => rules.push(only("socket", 0, &[libc::AF_UNIX as u64])),
            // On the rings there are, which are held to reads of their disks: none can be made or changed.
            Self::Device => rules.push(only("io_uring_enter", 3, &IO_URING_ENTER)),
            _ => {}
        }
        rules
    }

    /// What it may ask of open files by `ioctl`.
    fn requests(self, backend: Backend) -> Vec<u64> {
        let own: &[u64] = match self {
            Self::Vcpu | Self::Device => TUN,
            Self::Vsock | Self::Console | Self::Control => &[FIONBIO],
            Self::Share => &[],
        };
        let kvm: &[&[u64]] = match (backend, self) {
            (Backend::Soft, _) => &[],
            (Backend::Kvm, Self::Vcpu) => &[KVM_INTERRUPT, KVM_VCPU],
            // Any of them may raise an interrupt: with what comes, what is typed, the power button.
            (Backend::Kvm, _) => &[KVM_INTERRUPT],
        };
        [own, &kvm.concat()].concat()
    }
}

/// To submit, and to submit and wait (`IORING_ENTER_GETEVENTS`).
const IO_URING_ENTER: [u64; 2] = [0, 1];
/// Names of anonymous memory, which glibc and Rust may set.
const PR_SET_VMA: u64 = 0x5356_4d41;
/// Makes a file non-blocking.
const FIONBIO: u64 = 0x5421;
/// `KVM_SIGNAL_MSI`. Request numbers are those of the kernel's `linux/kvm.h`.
const KVM_INTERRUPT: &[u64] = &[0x4020_aea5];
/// `KVM_RUN`; `KVM_GET_REGS`, to say where it failed; `KVM_KVMCLOCK_CTRL`, after a pause. All else is
/// asked before the filter is there.
const KVM_VCPU: &[u64] = &[0xae80, 0x8090_ae81, 0xaead];
/// `TUNSETOFFLOAD` and `TUNSETVNETHDRSZ`, once a driver has said what it takes.
const TUN: &[u64] = &[0x4004_54d0, 0x4004_54d8];

/// Allows a call if its argument `index` is one of `values`.
fn only(name: &'static str, index: u8, values: &[u64]) -> Rule {
    // Several conditions on one argument are alternatives.
    let arguments = values.iter().map(|&value| Argument {
        index,
        operator: Operator::MaskedEqual,
        value: u64::from(u32::MAX),
        value_two: value,
    });
    Rule {
        names: vec![Cow::Borrowed(name)],
        action: Action::Allow,
        arguments: arguments.collect(),
    }
}

fn policy(kind: ThreadKind, backend: Backend) -> Policy {
    let allowed = kind.calls().concat();
    let names = allowed.iter().copied().map(Cow::Borrowed);
    let mut rules = vec![Rule {
        names: names.collect(),
        action: Action::Allow,
        arguments: Vec::new(),
    }];
    rules.extend(kind.conditional(backend));
    let refused = REFUSED.iter().filter(|name| !allowed.contains(name));
    rules.push(Rule {
        names: refused.copied().map(Cow::Borrowed).collect(),
        action: Action::Errno(EACCES),
        arguments: Vec::new(),
    });
    Policy {
        default_action: Action::KillProcess,
        architectures: Vec::new(),
        rules,
        flags: Vec::new(),
        new_calls: NewCalls::Default,
        listener_path: None,
        listener_metadata: None,
    }
}

/// The compiled filters.
#[derive(Debug, Clone)]
pub struct Filters(Vec<Program>);

impl Filters {
    /// Compiles them all, for machines on `backend`.
    ///
    /// # Errors
    /// On a machine whose system calls are not known.
    pub fn new(backend: Backend) -> Result<Self, CompileError> {
        let programs = KINDS.iter().map(|&kind| compile(&policy(kind, backend)));
        Ok(Self(programs.collect::<Result<_, _>>()?))
    }

    /// Puts the filter of a kind in force on the calling thread, for good.
    ///
    /// # Errors
    /// When the kernel refuses: the thread must not go on.
    pub fn install(&self, kind: ThreadKind) -> io::Result<()> {
        install(&self.0[kind as usize]).map(drop)
    }
}
