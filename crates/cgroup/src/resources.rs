//! What a caller asks of a group: plain data in units, independent of the kernel's version.
//!
//! Every field is optional; what is `None` is left as it is, so the same type serves the start of
//! a container and a live update. The meanings are those of `linux.resources` of the OCI runtime
//! specification 1.3, with the v2-only limits beside them; [`crate::convert`] translates.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::devices::DeviceRule;

/// An amount, or no limit at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// At most this much.
    At(u64),
    /// As much as the parents allow.
    Max,
}

impl Limit {
    /// From the OCI specification's signed numbers, where a negative one means no limit.
    pub fn from_oci(value: i64) -> Limit {
        u64::try_from(value).map_or(Limit::Max, Limit::At)
    }
}

/// Limits and weights of one group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// CPU time and placement.
    pub cpu: Cpu,
    /// Memory and swap.
    pub memory: Memory,
    /// The most processes and threads.
    pub pids_max: Option<Limit>,
    /// Block devices.
    pub block_io: BlockIo,
    /// Network marks; cgroup v1 only.
    pub network: Network,
    /// Huge pages by size.
    pub huge_pages: Vec<HugePages>,
    /// RDMA by device.
    pub rdma: Vec<Rdma>,
    /// Device access, in order, later rules win. `None` leaves it as it is; an empty list denies
    /// nothing and allows nothing new.
    pub devices: Option<Vec<DeviceRule>>,
    /// Raw cgroup v2 files and their contents (the specification's `unified`), written last.
    pub unified: BTreeMap<String, String>,
}

/// CPU time and placement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// Share of the CPU time under contention.
    pub weight: Option<CpuWeight>,
    /// CPU time per period, in µs.
    pub quota_us: Option<Limit>,
    /// Length of the period, in µs (1,000 to 1,000,000).
    pub period_us: Option<u64>,
    /// Unused quota that may be saved up, in µs.
    pub burst_us: Option<u64>,
    /// Real-time CPU time per real-time period, in µs; v1 only.
    pub realtime_runtime_us: Option<i64>,
    /// Length of the real-time period, in µs; v1 only.
    pub realtime_period_us: Option<u64>,
    /// Run only when nobody else wants to (`cpu.idle`).
    pub idle: Option<bool>,
    /// CPUs that may be used, as the kernel's list format `0-3,7`.
    pub cpus: Option<String>,
    /// Memory nodes that may be used, as the kernel's list format.
    pub mems: Option<String>,
}

/// A CPU weight on either version's scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuWeight {
    /// v1 shares: 2 to 262,144, usual 1,024.
    Shares(u64),
    /// v2 weight: 1 to 10,000, usual 100.
    Weight(u64),
}

/// Memory and swap, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Hard limit; beyond it the kernel reclaims, then kills.
    pub max_bytes: Option<Limit>,
    /// Throttle and reclaim beyond this; v2 only.
    pub high_bytes: Option<Limit>,
    /// Protected from reclaim (v2 `memory.low`), or the v1 soft limit.
    pub reservation_bytes: Option<Limit>,
    /// Hard protection; v2 only.
    pub min_bytes: Option<Limit>,
    /// Memory *and* swap together, as v1 and the OCI specification count.
    pub memory_and_swap_bytes: Option<Limit>,
    /// Swap alone, as v2 counts. Wins over `memory_and_swap_bytes`.
    pub swap_bytes: Option<Limit>,
    /// Kernel memory for TCP buffers; v1 only.
    pub kernel_tcp_bytes: Option<Limit>,
    /// Eagerness to swap, 0 to 100; v1 only.
    pub swappiness: Option<u64>,
    /// Do not kill on exhaustion, wait instead; v1 only.
    pub disable_oom_killer: Option<bool>,
    /// Kill the whole group on exhaustion (`memory.oom.group`); v2 only.
    pub oom_group: Option<bool>,
    /// Refuse a `max_bytes` below what is in use instead of killing for it.
    pub check_before_update: bool,
}

/// Block devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockIo {
    /// Weight on the v1 scale, 10 to 1,000.
    pub weight: Option<u16>,
    /// Weight against child groups, v1 with the long gone CFQ scheduler only.
    pub leaf_weight: Option<u16>,
    /// Weights per device.
    pub device_weights: Vec<DeviceWeight>,
    /// Read limits in bytes/s.
    pub read_bps: Vec<DeviceRate>,
    /// Write limits in bytes/s.
    pub write_bps: Vec<DeviceRate>,
    /// Read limits in operations/s.
    pub read_iops: Vec<DeviceRate>,
    /// Write limits in operations/s.
    pub write_iops: Vec<DeviceRate>,
}

/// The weight of one block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceWeight {
    /// Major device number.
    pub major: u32,
    /// Minor device number.
    pub minor: u32,
    /// Weight on the v1 scale, 10 to 1,000.
    pub weight: u16,
}

/// The rate limit of one block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRate {
    /// Major device number.
    pub major: u32,
    /// Minor device number.
    pub minor: u32,
    /// Bytes or operations a second; 0 removes the limit.
    pub rate: u64,
}

/// Network marks; cgroup v1 only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Class id put on every packet.
    pub class_id: Option<u32>,
    /// Priority per interface.
    pub priorities: Vec<InterfacePriority>,
}

/// Priority of the packets of one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfacePriority {
    /// Interface name.
    pub interface: String,
    /// Priority.
    pub priority: u32,
}

/// The limit of one size of huge page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugePages {
    /// Page size as in the kernel's file names: `2MB`, `1GB`, `64KB`.
    pub page_size: String,
    /// The most, in bytes.
    pub max_bytes: Limit,
}

/// The limits of one RDMA device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rdma {
    /// Device name.
    pub device: String,
    /// Handles.
    pub handles_max: Option<Limit>,
    /// Objects.
    pub objects_max: Option<Limit>,
}
