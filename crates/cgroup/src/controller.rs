//! The kernel's controllers by name, and small sets of them.
//!
//! Pure data; used by every other module of this crate.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A resource controller. Names follow cgroup v2 where both versions have one
/// (`Io` is called `blkio` in v1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Controller {
    /// CPU time: weight, bandwidth.
    Cpu,
    /// CPU accounting; a controller of its own in v1 only.
    Cpuacct,
    /// Which CPUs and memory nodes may be used.
    Cpuset,
    /// Memory and swap.
    Memory,
    /// Block I/O (`blkio` in v1).
    Io,
    /// Number of processes.
    Pids,
    /// Device access; a controller in v1, an eBPF program in v2.
    Devices,
    /// Freezing; a controller in v1, part of the core in v2.
    Freezer,
    /// Huge pages.
    Hugetlb,
    /// RDMA handles and objects.
    Rdma,
    /// Class id of packets; v1 only.
    NetCls,
    /// Priority of packets per interface; v1 only.
    NetPrio,
    /// perf events by group.
    PerfEvent,
    /// Miscellaneous scalar resources; v2 and late v1.
    Misc,
}

impl Controller {
    /// Every controller this crate knows, in the order of the declaration.
    pub const ALL: [Controller; 14] = [
        Controller::Cpu,
        Controller::Cpuacct,
        Controller::Cpuset,
        Controller::Memory,
        Controller::Io,
        Controller::Pids,
        Controller::Devices,
        Controller::Freezer,
        Controller::Hugetlb,
        Controller::Rdma,
        Controller::NetCls,
        Controller::NetPrio,
        Controller::PerfEvent,
        Controller::Misc,
    ];

    /// The controller with this kernel name (`io` and `blkio` are the same one).
    pub fn from_name(name: &str) -> Option<Controller> {
        Some(match name {
            "cpu" => Controller::Cpu,
            "cpuacct" => Controller::Cpuacct,
            "cpuset" => Controller::Cpuset,
            "memory" => Controller::Memory,
            "io" | "blkio" => Controller::Io,
            "pids" => Controller::Pids,
            "devices" => Controller::Devices,
            "freezer" => Controller::Freezer,
            "hugetlb" => Controller::Hugetlb,
            "rdma" => Controller::Rdma,
            "net_cls" => Controller::NetCls,
            "net_prio" => Controller::NetPrio,
            "perf_event" => Controller::PerfEvent,
            "misc" => Controller::Misc,
            _ => return None,
        })
    }

    /// The name used by cgroup v2 (and by v1, but for `io`).
    pub fn name(self) -> &'static str {
        match self {
            Controller::Cpu => "cpu",
            Controller::Cpuacct => "cpuacct",
            Controller::Cpuset => "cpuset",
            Controller::Memory => "memory",
            Controller::Io => "io",
            Controller::Pids => "pids",
            Controller::Devices => "devices",
            Controller::Freezer => "freezer",
            Controller::Hugetlb => "hugetlb",
            Controller::Rdma => "rdma",
            Controller::NetCls => "net_cls",
            Controller::NetPrio => "net_prio",
            Controller::PerfEvent => "perf_event",
            Controller::Misc => "misc",
        }
    }

    const fn bit(self) -> u16 {
        1 << self as u8
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of [`Controller`]s.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct ControllerSet(u16);

impl ControllerSet {
    /// The empty set.
    pub const EMPTY: ControllerSet = ControllerSet(0);

    /// The set of `controllers`.
    pub const fn of(controllers: &[Controller]) -> ControllerSet {
        let mut bits = 0;
        let mut i = 0;
        while i < controllers.len() {
            bits |= controllers[i].bit();
            i += 1;
        }
        ControllerSet(bits)
    }

    /// Parses names separated by `separator`, ignoring those this crate does not know.
    pub fn parse(names: &str, separator: char) -> ControllerSet {
        let mut set = ControllerSet::EMPTY;
        names
            .split(separator)
            .filter_map(|name| Controller::from_name(name.trim()))
            .for_each(|controller| set.insert(controller));
        set
    }

    /// Adds one.
    pub fn insert(&mut self, controller: Controller) {
        self.0 |= controller.bit();
    }

    /// Whether `controller` is in the set.
    pub fn contains(self, controller: Controller) -> bool {
        self.0 & controller.bit() != 0
    }

    /// Whether nothing is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What is in both.
    pub fn and(self, other: ControllerSet) -> ControllerSet {
        ControllerSet(self.0 & other.0)
    }

    /// What is here and not in `other`.
    pub fn without(self, other: ControllerSet) -> ControllerSet {
        ControllerSet(self.0 & !other.0)
    }

    /// What is in either.
    pub fn or(self, other: ControllerSet) -> ControllerSet {
        ControllerSet(self.0 | other.0)
    }

    /// The members, in the order of [`Controller::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Controller> {
        Controller::ALL
            .into_iter()
            .filter(move |&c| self.contains(c))
    }
}

impl fmt::Debug for ControllerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl fmt::Display for ControllerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, controller) in self.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{controller}")?;
        }
        Ok(())
    }
}
