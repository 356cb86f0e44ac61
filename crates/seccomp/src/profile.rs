//! The default profile: what a container that asks for nothing special may call.
//!
//! Equivalent in effect to the profile that container engines have shared since 2015 (moby's and
//! its descendants'): everyday calls are allowed, kernel administration is only for holders of the
//! capability it takes, sockets of families with a bad record are out, the rest gets EPERM, and
//! calls newer than this table ENOSYS, so that programs fall back to older ones.

use std::borrow::Cow;

use crate::action::Action;
use crate::arch::Arch;
use crate::policy::{Argument, NewCalls, Operator, Policy, Rule};

/// Sockets; `socket` itself has conditions.
const SOCKETS: &str = "\
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall \
    socketpair";

/// Clocks, timers, sleeping.
const TIME: &str = "\
    adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep \
    pause setitimer time timer_create timer_delete timer_getoverrun timer_gettime \
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime \
    timerfd_gettime64 timerfd_settime timerfd_settime64 times";

/// Waiting for descriptors and other events.
const EVENTS: &str = "\
    _newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 \
    epoll_wait epoll_wait_old eventfd eventfd2 fanotify_mark futex futex_requeue futex_time64 \
    futex_wait futex_waitv futex_wake get_robust_list inotify_add_watch inotify_init \
    inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents \
    io_pgetevents_time64 io_setup io_submit poll ppoll ppoll_time64 pselect6 pselect6_time64 \
    select set_robust_list signalfd signalfd4";

/// Memory.
const MEMORY: &str = "\
    brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 \
    mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc \
    pkey_free pkey_mprotect process_mrelease remap_file_pages";

/// Users, groups, sessions, capabilities, limits.
const IDENTITY: &str = "\
    capget capset getcpu getcwd getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups \
    getgroups32 getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 \
    getresuid getresuid32 getrlimit getrusage getsid gettid getuid getuid32 ioprio_get \
    ioprio_set prlimit64 sched_get_priority_max sched_get_priority_min sched_getaffinity \
    sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval \
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
    sched_setscheduler sched_yield setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 \
    setgroups setgroups32 setpgid setpriority setregid setregid32 setresgid setresgid32 \
    setresuid setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32 sysinfo \
    ugetrlimit umask uname";

/// Signals.
const SIGNALS: &str = "\
    kill pidfd_open pidfd_send_signal rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo \
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo \
    sigaltstack sigprocmask sigreturn tgkill tkill";

/// Processes and threads.
const PROCESSES: &str = "\
    arch_prctl breakpoint cacheflush execve execveat exit exit_group fork get_thread_area \
    landlock_add_rule landlock_create_ruleset landlock_restrict_self modify_ldt prctl \
    process_vm_readv process_vm_writev ptrace restart_syscall riscv_flush_icache riscv_hwprobe \
    rseq seccomp set_thread_area set_tid_address set_tls uretprobe vfork wait4 waitid waitpid";

/// System V and POSIX message passing.
const IPC: &str = "\
    ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
    mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop \
    semtimedop_time64 shmat shmctl shmdt shmget";

/// Files, directories, descriptors, attributes.
const FILES: &str = "\
    _llseek access arm_fadvise64_64 arm_sync_file_range cachestat chdir chmod chown chown32 \
    close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 \
    fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl \
    fcntl64 fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 \
    fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getdents getdents64 getxattr \
    getxattrat ioctl lchown lchown32 lgetxattr link linkat listmount listxattr listxattrat \
    llistxattr lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat \
    name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 \
    pwritev pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename \
    renameat renameat2 rmdir sendfile sendfile64 setxattr setxattrat splice stat stat64 statfs \
    statfs64 statmount statx symlink symlinkat sync sync_file_range sync_file_range2 syncfs tee \
    truncate truncate64 unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write \
    writev";

const EVERYDAY: [&str; 9] = [
    SOCKETS, TIME, EVENTS, MEMORY, IDENTITY, SIGNALS, PROCESSES, IPC, FILES,
];

/// What each capability opens. Without any of its capabilities a call is refused.
const BY_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie \
         lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog \
         umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    (
        "CAP_SYS_TIME",
        "settimeofday stime clock_settime clock_settime64",
    ),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    (
        "CAP_SYS_NICE",
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// `CLONE_NEW*` but `CLONE_NEWTIME`: the flags that make namespaces.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
const EPERM: u16 = 1;
const ENOSYS: u16 = 38;
/// `personality(2)`: Linux, 32 bits on 64, with or without old `uname` numbers, and a mere query.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The default profile for a container with these capabilities (`CAP_SYS_ADMIN`, …), for all
/// architectures of this machine's family.
pub fn default_profile<C: AsRef<str>>(capabilities: &[C]) -> Policy {
    let holds = |name: &str| capabilities.iter().any(|c| c.as_ref() == name);
    let mut names: Vec<Cow<'static, str>> = Vec::with_capacity(448);
    let mut open = |list: &'static str| {
        names.extend(list.split_ascii_whitespace().map(Cow::Borrowed));
    };
    EVERYDAY.into_iter().for_each(&mut open);
    BY_CAPABILITY
        .iter()
        .filter(|(cap, _)| holds(cap))
        .for_each(|(_, list)| open(list));
    let mut rules = vec![Rule {
        names,
        action: Action::Allow,
        arguments: Vec::new(),
    }];

    let mut allow = |name: &'static str, operator, value, value_two| {
        let argument = Argument {
            index: 0,
            operator,
            value,
            value_two,
        };
        let names = vec![Cow::Borrowed(name)];
        rules.push(Rule {
            names,
            action: Action::Allow,
            arguments: vec![argument],
        });
    };
    // The crypto API and, for its host services, vsock.
    allow("socket", Operator::Less, AF_ALG, 0);
    allow("socket", Operator::Equal, AF_ALG + 1, 0);
    allow("socket", Operator::Greater, AF_VSOCK, 0);
    for persona in PERSONALITIES {
        allow("personality", Operator::Equal, persona, 0);
    }
    if !holds("CAP_SYS_ADMIN") {
        allow("clone", Operator::MaskedEqual, NEW_NAMESPACES, 0);
        // A filter cannot see clone3's flags; ENOSYS makes libraries use clone.
        let names = vec![Cow::Borrowed("clone3")];
        rules.push(Rule {
            names,
            action: Action::Errno(ENOSYS),
            arguments: Vec::new(),
        });
    }
    Policy {
        default_action: Action::Errno(EPERM),
        architectures: Arch::native().map_or(Vec::new(), |arch| arch.family().to_vec()),
        rules,
        flags: Vec::new(),
        new_calls: NewCalls::Enosys,
        listener_path: None,
        listener_metadata: None,
    }
}
