//! The `process` object: what runs, as whom, with which rights (config.md, "Process").

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::object;

object! {
    /// A program to run inside the container.
    pub struct Process {
        /// Gives it a terminal as its standard streams.
        pub terminal: bool,
        /// Size of that terminal.
        pub console_size: Option<ConsoleSize>,
        /// Ids it runs as.
        pub user: User,
        /// The program (looked up in `PATH` of `env`) and its arguments.
        pub args: Vec<String>,
        /// Environment, `KEY=value`.
        pub env: Vec<String>,
        /// Absolute working directory inside the container.
        pub cwd: PathBuf,
        /// Capability sets; absent means none at all.
        pub capabilities: Option<Capabilities>,
        /// Resource limits.
        pub rlimits: Vec<Rlimit>,
        /// Forbids gaining privileges through `execve`.
        pub no_new_privileges: bool,
        /// AppArmor profile entered on `execve`.
        pub apparmor_profile: String,
        /// Preference of the out-of-memory killer, -1000 to 1000.
        pub oom_score_adj: Option<i32>,
        /// CPU scheduling policy.
        pub scheduler: Option<Scheduler>,
        /// SELinux label entered on `execve`.
        pub selinux_label: String,
        /// I/O scheduling class and priority.
        #[serde(rename = "ioPriority")]
        pub io_priority: Option<IoPriority>,
        /// CPUs an `exec`ed process is bound to.
        #[serde(rename = "execCPUAffinity")]
        pub exec_cpu_affinity: Option<CpuAffinity>,
    }
}

object! {
    /// Size of a terminal in characters.
    pub struct ConsoleSize {
        /// Rows.
        pub height: u16,
        /// Columns.
        pub width: u16,
    }
}

object! {
    /// Ids a process runs as, counted inside the container's user namespace.
    pub struct User {
        /// User id.
        pub uid: u32,
        /// Group id.
        pub gid: u32,
        /// File creation mask; 0022 when absent.
        pub umask: Option<u32>,
        /// Supplementary groups.
        pub additional_gids: Vec<u32>,
    }
}

object! {
    /// The five capability sets, as `CAP_…` names (capabilities(7)).
    pub struct Capabilities {
        /// Upper bound for what `execve` can grant.
        pub bounding: Vec<String>,
        /// What the kernel checks.
        pub effective: Vec<String>,
        /// Kept across `execve` of files that ask for it.
        pub inheritable: Vec<String>,
        /// Upper bound for `effective`.
        pub permitted: Vec<String>,
        /// Kept across `execve` by processes that are not root.
        pub ambient: Vec<String>,
    }
}

object! {
    /// One resource limit (getrlimit(2)).
    pub struct Rlimit {
        /// Its name, such as `RLIMIT_NOFILE`.
        #[serde(rename = "type")]
        pub kind: String,
        /// Ceiling of the soft limit.
        pub hard: u64,
        /// The limit in force.
        pub soft: u64,
    }
}

object! {
    /// CPU scheduling attributes (sched_setattr(2)).
    pub struct Scheduler {
        /// Policy name, such as `SCHED_BATCH`.
        pub policy: String,
        /// Nice value for the time-sharing policies.
        pub nice: i32,
        /// Static priority for the real-time policies.
        pub priority: i32,
        /// `SCHED_FLAG_…` names.
        pub flags: Vec<String>,
        /// Deadline policy: run time per period, nanoseconds.
        pub runtime: u64,
        /// Deadline policy: relative deadline, nanoseconds.
        pub deadline: u64,
        /// Deadline policy: period, nanoseconds.
        pub period: u64,
    }
}

/// I/O scheduling class (ioprio_set(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoClass {
    /// Real time.
    #[serde(rename = "IOPRIO_CLASS_RT")]
    RealTime,
    /// Best effort.
    #[default]
    #[serde(rename = "IOPRIO_CLASS_BE")]
    BestEffort,
    /// Only when nobody else wants the disk.
    #[serde(rename = "IOPRIO_CLASS_IDLE")]
    Idle,
}

object! {
    /// I/O priority of a process.
    pub struct IoPriority {
        /// Scheduling class.
        pub class: IoClass,
        /// Level inside the class, 0 (highest) to 7.
        pub priority: i32,
    }
}

object! {
    /// CPU sets of an `exec`ed process, as lists such as `0-3,7`.
    pub struct CpuAffinity {
        /// Set before the process joins the container's cgroup.
        pub initial: String,
        /// Set after it joined.
        #[serde(rename = "final")]
        pub last: String,
    }
}
