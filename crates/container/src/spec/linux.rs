//! The `linux` object: namespaces, devices, resources, seccomp (config-linux.md).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::object;

object! {
    /// What a container needs from Linux.
    pub struct Linux {
        /// User ids of a new user namespace.
        #[serde(rename = "uidMappings")]
        pub uid_mappings: Vec<IdMapping>,
        /// Group ids of a new user namespace.
        #[serde(rename = "gidMappings")]
        pub gid_mappings: Vec<IdMapping>,
        /// Kernel parameters set inside the container's namespaces.
        pub sysctl: BTreeMap<String, String>,
        /// Limits of the control group.
        pub resources: Option<Resources>,
        /// Path of the control group below each hierarchy's mount point.
        pub cgroups_path: String,
        /// Namespaces to make or to join.
        pub namespaces: Vec<Namespace>,
        /// Device nodes beyond the standard ones.
        pub devices: Vec<Device>,
        /// Host network interfaces moved into the container, by their host name.
        pub net_devices: BTreeMap<String, NetDevice>,
        /// System call filter. Read only: a policy in memory is not written back as JSON.
        #[serde(skip_serializing)]
        pub seccomp: Option<seccomp::Policy>,
        /// Mount propagation of the root: `shared`, `slave`, `private` or `unbindable`.
        pub rootfs_propagation: String,
        /// Paths made unreadable.
        pub masked_paths: Vec<PathBuf>,
        /// Paths made read-only.
        pub readonly_paths: Vec<PathBuf>,
        /// SELinux context of the mounts.
        pub mount_label: String,
        /// Intel resource director; not supported, present means refused.
        pub intel_rdt: Option<BTreeMap<String, serde_json::Value>>,
        /// NUMA policy of the process.
        pub memory_policy: Option<MemoryPolicy>,
        /// Execution domain.
        pub personality: Option<Personality>,
        /// Clock offsets of a new time namespace, by clock name.
        pub time_offsets: BTreeMap<String, TimeOffset>,
    }
}

/// A kind of namespace (namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceKind {
    /// Process ids.
    Pid,
    /// Network devices, addresses, routes.
    Network,
    /// Mount points.
    Mount,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host and domain name.
    Uts,
    /// User and group ids.
    User,
    /// View of the control groups.
    Cgroup,
    /// Boot and monotonic clocks.
    Time,
}

/// One namespace to make (no path) or to join.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: NamespaceKind,
    /// Absolute path of an existing namespace.
    #[serde(
        default,
        deserialize_with = "super::nullable",
        skip_serializing_if = "super::is_default"
    )]
    pub path: PathBuf,
}

impl Namespace {
    /// A new namespace of this kind.
    pub fn new(kind: NamespaceKind) -> Namespace {
        Namespace {
            kind,
            path: PathBuf::new(),
        }
    }
}

object! {
    /// A range of ids inside a user namespace and where it lies outside.
    pub struct IdMapping {
        /// First id inside.
        #[serde(rename = "containerID")]
        pub container_id: u32,
        /// First id outside.
        #[serde(rename = "hostID")]
        pub host_id: u32,
        /// How many.
        pub size: u32,
    }
}

object! {
    /// One device node.
    pub struct Device {
        /// Absolute path inside the container.
        pub path: PathBuf,
        /// `c` or `u` character, `b` block, `p` named pipe.
        #[serde(rename = "type")]
        pub kind: String,
        /// Major number.
        pub major: i64,
        /// Minor number.
        pub minor: i64,
        /// Permission bits; 0666 when absent.
        pub file_mode: Option<u32>,
        /// Owner inside the container.
        pub uid: Option<u32>,
        /// Group inside the container.
        pub gid: Option<u32>,
    }
}

object! {
    /// A network interface moved into the container.
    pub struct NetDevice {
        /// Its new name; empty keeps the old one.
        pub name: String,
    }
}

object! {
    /// Execution domain (personality(2)).
    pub struct Personality {
        /// `LINUX` or `LINUX32`.
        pub domain: String,
        /// None is defined yet.
        pub flags: Vec<String>,
    }
}

object! {
    /// Offset of a clock in a time namespace.
    pub struct TimeOffset {
        /// Whole seconds.
        pub secs: i64,
        /// Nanoseconds on top.
        pub nanosecs: u32,
    }
}

object! {
    /// NUMA policy (set_mempolicy(2)).
    pub struct MemoryPolicy {
        /// `MPOL_…` name.
        pub mode: String,
        /// Nodes as a list such as `0-1,3`.
        pub nodes: String,
        /// `MPOL_F_…` names.
        pub flags: Vec<String>,
    }
}

object! {
    /// Limits of a control group, in the units of cgroup v1 as the specification has them.
    pub struct Resources {
        /// Device access rules, in order.
        pub devices: Vec<DeviceRule>,
        /// Memory.
        pub memory: Option<Memory>,
        /// Processor time and sets.
        pub cpu: Option<Cpu>,
        /// Number of tasks.
        pub pids: Option<Pids>,
        /// Block devices.
        #[serde(rename = "blockIO")]
        pub block_io: Option<BlockIo>,
        /// Huge pages.
        pub hugepage_limits: Vec<HugepageLimit>,
        /// Network class and priorities.
        pub network: Option<NetworkClass>,
        /// RDMA devices.
        pub rdma: BTreeMap<String, Rdma>,
        /// Files of cgroup v2 written as they are.
        pub unified: BTreeMap<String, String>,
    }
}

object! {
    /// Allows or denies access to devices.
    pub struct DeviceRule {
        /// Allow or deny.
        pub allow: bool,
        /// `a` all, `c` character, `b` block.
        #[serde(rename = "type")]
        pub kind: String,
        /// Major number; all when absent.
        pub major: Option<i64>,
        /// Minor number; all when absent.
        pub minor: Option<i64>,
        /// Letters of `rwm`.
        pub access: String,
    }
}

object! {
    /// Memory limits in bytes; -1 is no limit.
    pub struct Memory {
        /// Hard limit.
        pub limit: Option<i64>,
        /// Soft limit.
        pub reservation: Option<i64>,
        /// Memory plus swap.
        pub swap: Option<i64>,
        /// Kernel memory; ignored by kernels since 5.4.
        pub kernel: Option<i64>,
        /// Kernel memory of TCP buffers.
        #[serde(rename = "kernelTCP")]
        pub kernel_tcp: Option<i64>,
        /// Eagerness to swap, 0 to 100.
        pub swappiness: Option<u64>,
        /// Pauses instead of killing (v1).
        #[serde(rename = "disableOOMKiller")]
        pub disable_oom_killer: Option<bool>,
        /// Hierarchical accounting (v1).
        pub use_hierarchy: Option<bool>,
        /// Refuses an update below current usage.
        pub check_before_update: Option<bool>,
    }
}

object! {
    /// Processor limits.
    pub struct Cpu {
        /// Relative weight, 2 to 262144.
        pub shares: Option<u64>,
        /// Microseconds a period; -1 is no limit.
        pub quota: Option<i64>,
        /// Microseconds that may be saved up.
        pub burst: Option<u64>,
        /// Length of a period, microseconds.
        pub period: Option<u64>,
        /// Real-time microseconds a real-time period.
        pub realtime_runtime: Option<i64>,
        /// Length of a real-time period, microseconds.
        pub realtime_period: Option<u64>,
        /// Processors allowed, as a list.
        pub cpus: String,
        /// Memory nodes allowed, as a list.
        pub mems: String,
        /// 1 makes the group run only when nobody else does.
        pub idle: Option<i64>,
    }
}

object! {
    /// Task limit.
    pub struct Pids {
        /// Most tasks; 0 or negative is no limit.
        pub limit: Option<i64>,
    }
}

object! {
    /// Block device limits.
    pub struct BlockIo {
        /// Relative weight, 10 to 1000.
        pub weight: Option<u16>,
        /// Weight against child groups (old schedulers).
        pub leaf_weight: Option<u16>,
        /// Weight for one device.
        pub weight_device: Vec<WeightDevice>,
        /// Bytes read a second.
        pub throttle_read_bps_device: Vec<ThrottleDevice>,
        /// Bytes written a second.
        pub throttle_write_bps_device: Vec<ThrottleDevice>,
        /// Reads a second.
        #[serde(rename = "throttleReadIOPSDevice")]
        pub throttle_read_iops_device: Vec<ThrottleDevice>,
        /// Writes a second.
        #[serde(rename = "throttleWriteIOPSDevice")]
        pub throttle_write_iops_device: Vec<ThrottleDevice>,
    }
}

object! {
    /// Weight of the group on one device.
    pub struct WeightDevice {
        /// Major number.
        pub major: i64,
        /// Minor number.
        pub minor: i64,
        /// Relative weight.
        pub weight: Option<u16>,
        /// Weight against child groups.
        pub leaf_weight: Option<u16>,
    }
}

object! {
    /// Rate of the group on one device.
    pub struct ThrottleDevice {
        /// Major number.
        pub major: i64,
        /// Minor number.
        pub minor: i64,
        /// Bytes or operations a second.
        pub rate: u64,
    }
}

object! {
    /// Limit on huge pages of one size.
    pub struct HugepageLimit {
        /// Size such as `2MB`.
        #[serde(rename = "pageSize")]
        pub page_size: String,
        /// Bytes.
        pub limit: u64,
    }
}

object! {
    /// Network class and priorities (v1).
    pub struct NetworkClass {
        /// Class id of packets.
        #[serde(rename = "classID")]
        pub class_id: Option<u32>,
        /// Priority by interface.
        pub priorities: Vec<InterfacePriority>,
    }
}

object! {
    /// Priority of the group's traffic on one interface.
    pub struct InterfacePriority {
        /// Interface name.
        pub name: String,
        /// Priority.
        pub priority: u32,
    }
}

object! {
    /// Limits on one RDMA device.
    pub struct Rdma {
        /// Most handles.
        pub hca_handles: Option<u32>,
        /// Most objects.
        pub hca_objects: Option<u32>,
    }
}
