//! Which control files take which values, for either version. Pure: reads and writes nothing.

use crate::apply::ApplyError;
use crate::controller::Controller;
use crate::convert;
use crate::group::{Cgroup, Version};
use crate::resources::{BlockIo, Cpu, CpuWeight, DeviceRate, Limit, Memory, Resources};

/// The longest raw value of `unified`.
const MAX_UNIFIED: usize = 4096;

/// One write to a control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) controller: Controller,
    /// The limit as the OCI specification names it, for errors.
    pub(super) limit: String,
    pub(super) file: String,
    pub(super) value: Value,
    /// Another file and value where the kernel lacks `file`.
    pub(super) otherwise: Option<(String, String)>,
}

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    /// A new period for `cpu.max` that keeps the quota.
    PeriodOfCpuMax(u64),
}

/// The writes for all of `resources`, those of one controller together.
pub(super) fn plan(group: &Cgroup, resources: &Resources) -> Result<Vec<Write>, ApplyError> {
    let mut planner = Planner {
        group,
        writes: Vec::new(),
    };
    planner.cpu(&resources.cpu)?;
    planner.cpuset(&resources.cpu)?;
    planner.memory(&resources.memory)?;
    if let Some(limit) = resources.pids_max {
        planner.both(Controller::Pids, "pids.limit", "pids.max", max_text(limit))?;
    }
    planner.block_io(&resources.block_io)?;
    planner.network(resources)?;
    planner.huge_pages(resources)?;
    planner.rdma(resources)?;
    planner.unified(resources)?;
    Ok(planner.writes)
}

/// The error for a controller that `group` has not got.
pub(super) fn unavailable(group: &Cgroup, limit: &str, controller: Controller) -> ApplyError {
    let refusal = group
        .refused()
        .iter()
        .find(|r| r.controllers.contains(controller));
    let reason = match refusal {
        Some(r) => format!("{}: {}", r.mount.display(), std::io::Error::from(r.errno)),
        None => "the host does not offer it".to_owned(),
    };
    ApplyError::Unavailable {
        limit: limit.to_owned(),
        controller,
        reason,
    }
}

struct Planner<'a> {
    group: &'a Cgroup,
    writes: Vec<Write>,
}

type Planned = Result<(), ApplyError>;

fn max_text(limit: Limit) -> String {
    match limit {
        Limit::At(n) => n.to_string(),
        Limit::Max => "max".to_owned(),
    }
}

/// v1 writes "no limit" as -1.
fn minus_text(limit: Limit) -> String {
    match limit {
        Limit::At(n) => n.to_string(),
        Limit::Max => "-1".to_owned(),
    }
}

fn invalid(limit: &str, value: impl ToString, reason: &'static str) -> ApplyError {
    ApplyError::Invalid {
        limit: limit.to_owned(),
        value: value.to_string(),
        reason,
    }
}

impl Planner<'_> {
    fn version(&self, controller: Controller, limit: &str) -> Result<Version, ApplyError> {
        match self.group.node(controller) {
            Some((_, version)) => Ok(version),
            None => Err(unavailable(self.group, limit, controller)),
        }
    }

    fn push(&mut self, controller: Controller, limit: &str, file: &str, value: String) {
        self.writes.push(Write {
            controller,
            limit: limit.to_owned(),
            file: file.to_owned(),
            value: Value::Text(value),
            otherwise: None,
        });
    }

    /// A file of the same name and format in both versions.
    fn both(&mut self, c: Controller, limit: &str, file: &str, value: String) -> Planned {
        self.version(c, limit)?;
        self.push(c, limit, file, value);
        Ok(())
    }

    /// A limit that one version only has.
    fn only(
        &mut self,
        needs: Version,
        c: Controller,
        limit: &str,
        file: &str,
        value: String,
    ) -> Planned {
        let has = self.version(c, limit)?;
        if has != needs {
            let name = |v| if v == Version::V1 { "v1" } else { "v2" };
            let limit = limit.to_owned();
            return Err(ApplyError::OtherVersion {
                limit,
                controller: c,
                needs: name(needs),
                has: name(has),
            });
        }
        self.push(c, limit, file, value);
        Ok(())
    }

    fn cpu(&mut self, cpu: &Cpu) -> Planned {
        const C: Controller = Controller::Cpu;
        if let Some(weight) = cpu.weight {
            match (self.version(C, "cpu.shares")?, weight) {
                (Version::V1, CpuWeight::Shares(n)) => {
                    self.push(C, "cpu.shares", "cpu.shares", n.to_string())
                }
                (Version::V1, CpuWeight::Weight(n)) => {
                    self.push(
                        C,
                        "cpu.weight",
                        "cpu.shares",
                        convert::shares_from_weight(n).to_string(),
                    );
                }
                (Version::V2, CpuWeight::Shares(n)) => {
                    self.push(
                        C,
                        "cpu.shares",
                        "cpu.weight",
                        convert::weight_from_shares(n).to_string(),
                    );
                }
                (Version::V2, CpuWeight::Weight(n)) => {
                    self.push(C, "cpu.weight", "cpu.weight", n.to_string())
                }
            }
        }
        if let Some(idle) = cpu.idle {
            self.both(C, "cpu.idle", "cpu.idle", u8::from(idle).to_string())?;
        }
        self.cpu_bandwidth(cpu)?;
        if let Some(n) = cpu.realtime_period_us {
            self.only(
                Version::V1,
                C,
                "cpu.realtimePeriod",
                "cpu.rt_period_us",
                n.to_string(),
            )?;
        }
        if let Some(n) = cpu.realtime_runtime_us {
            self.only(
                Version::V1,
                C,
                "cpu.realtimeRuntime",
                "cpu.rt_runtime_us",
                n.to_string(),
            )?;
        }
        Ok(())
    }

    fn cpu_bandwidth(&mut self, cpu: &Cpu) -> Planned {
        const C: Controller = Controller::Cpu;
        if cpu.quota_us.is_none() && cpu.period_us.is_none() && cpu.burst_us.is_none() {
            return Ok(());
        }
        let version = self.version(C, "cpu.quota")?;
        match (version, cpu.quota_us, cpu.period_us) {
            (_, None, None) => {}
            (Version::V1, quota, period) => {
                if let Some(n) = period {
                    self.push(C, "cpu.period", "cpu.cfs_period_us", n.to_string());
                }
                if let Some(limit) = quota {
                    self.push(C, "cpu.quota", "cpu.cfs_quota_us", minus_text(limit));
                }
            }
            (Version::V2, Some(quota), Some(period)) => {
                self.push(
                    C,
                    "cpu.quota",
                    "cpu.max",
                    format!("{} {period}", max_text(quota)),
                );
            }
            (Version::V2, Some(quota), None) => {
                self.push(C, "cpu.quota", "cpu.max", max_text(quota))
            }
            (Version::V2, None, Some(period)) => {
                self.push(C, "cpu.period", "cpu.max", String::new());
                if let Some(last) = self.writes.last_mut() {
                    last.value = Value::PeriodOfCpuMax(period);
                }
            }
        }
        if let Some(n) = cpu.burst_us {
            let file = if version == Version::V1 {
                "cpu.cfs_burst_us"
            } else {
                "cpu.max.burst"
            };
            self.push(C, "cpu.burst", file, n.to_string());
        }
        Ok(())
    }

    fn cpuset(&mut self, cpu: &Cpu) -> Planned {
        for (limit, list) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
            let Some(list) = list else { continue };
            let clean = |c: char| c.is_ascii_digit() || matches!(c, ',' | '-' | ' ');
            if list.len() > 4096 || !list.chars().all(clean) {
                return Err(invalid(
                    limit,
                    list,
                    "give numbers and ranges such as 0-3,7",
                ));
            }
            self.both(Controller::Cpuset, limit, limit, list.clone())?;
        }
        Ok(())
    }

    fn memory(&mut self, memory: &Memory) -> Planned {
        const C: Controller = Controller::Memory;
        let asked = *memory
            != Memory {
                check_before_update: memory.check_before_update,
                ..Memory::default()
            };
        if !asked {
            return Ok(());
        }
        match self.version(C, "memory.limit")? {
            Version::V1 => self.memory_v1(memory)?,
            Version::V2 => self.memory_v2(memory)?,
        }
        let v1_only = [
            (
                "memory.kernelTCP",
                "memory.kmem.tcp.limit_in_bytes",
                memory.kernel_tcp_bytes.map(minus_text),
            ),
            (
                "memory.swappiness",
                "memory.swappiness",
                memory.swappiness.map(|n| n.to_string()),
            ),
            (
                "memory.disableOOMKiller",
                "memory.oom_control",
                memory.disable_oom_killer.map(|on| u8::from(on).to_string()),
            ),
        ];
        let v2_only = [
            (
                "memory.high",
                "memory.high",
                memory.high_bytes.map(max_text),
            ),
            ("memory.min", "memory.min", memory.min_bytes.map(max_text)),
            (
                "memory.oom.group",
                "memory.oom.group",
                memory.oom_group.map(|on| u8::from(on).to_string()),
            ),
        ];
        for (version, limits) in [(Version::V1, v1_only), (Version::V2, v2_only)] {
            for (limit, file, value) in limits {
                if let Some(value) = value {
                    self.only(version, C, limit, file, value)?;
                }
            }
        }
        Ok(())
    }

    fn memory_v1(&mut self, memory: &Memory) -> Planned {
        const C: Controller = Controller::Memory;
        let total = match (memory.swap_bytes, memory.memory_and_swap_bytes) {
            (Some(swap), _) => Some(convert::total_from_swap(memory.max_bytes, swap).ok_or_else(
                || {
                    invalid(
                        "memory.swap",
                        max_text(swap),
                        "set the memory limit together with it",
                    )
                },
            )?),
            (None, total) => total,
        };
        if let Some(limit) = memory.max_bytes {
            self.push(
                C,
                "memory.limit",
                "memory.limit_in_bytes",
                minus_text(limit),
            );
            // Without a limit on memory there can be none on the sum.
            if limit == Limit::Max && total.is_none() {
                self.push(
                    C,
                    "memory.swap",
                    "memory.memsw.limit_in_bytes",
                    "-1".to_owned(),
                );
            }
        }
        if let Some(limit) = total {
            self.push(
                C,
                "memory.swap",
                "memory.memsw.limit_in_bytes",
                minus_text(limit),
            );
        }
        if let Some(limit) = memory.reservation_bytes {
            self.push(
                C,
                "memory.reservation",
                "memory.soft_limit_in_bytes",
                minus_text(limit),
            );
        }
        Ok(())
    }

    fn memory_v2(&mut self, memory: &Memory) -> Planned {
        const C: Controller = Controller::Memory;
        let swap = match (memory.swap_bytes, memory.memory_and_swap_bytes) {
            (Some(swap), _) => Some(swap),
            (None, Some(total)) => {
                Some(convert::swap_from_total(memory.max_bytes, total).ok_or_else(|| {
                    let reason = "it counts memory and swap, so the memory limit must be set with it and be smaller";
                    invalid("memory.swap", max_text(total), reason)
                })?)
            }
            (None, None) => None,
        };
        for (limit, file, value) in [
            ("memory.swap", "memory.swap.max", swap),
            ("memory.limit", "memory.max", memory.max_bytes),
            ("memory.reservation", "memory.low", memory.reservation_bytes),
        ] {
            if let Some(value) = value {
                self.push(C, limit, file, max_text(value));
            }
        }
        Ok(())
    }

    fn block_io(&mut self, io: &BlockIo) -> Planned {
        const C: Controller = Controller::Io;
        if let Some(weight) = io.weight {
            let (file, value, other) = match self.version(C, "blockIO.weight")? {
                Version::V1 => (
                    "blkio.weight",
                    weight.to_string(),
                    ("blkio.bfq.weight", weight.to_string()),
                ),
                Version::V2 => {
                    let converted = convert::io_weight_from_blkio(weight);
                    (
                        "io.bfq.weight",
                        weight.to_string(),
                        ("io.weight", converted.to_string()),
                    )
                }
            };
            self.push(C, "blockIO.weight", file, value);
            self.otherwise(other);
        }
        if let Some(weight) = io.leaf_weight {
            self.only(
                Version::V1,
                C,
                "blockIO.leafWeight",
                "blkio.leaf_weight",
                weight.to_string(),
            )?;
        }
        for d in &io.device_weights {
            let on = |weight: u16| format!("{}:{} {weight}", d.major, d.minor);
            let (file, other) = match self.version(C, "blockIO.weightDevice")? {
                Version::V1 => (
                    "blkio.weight_device",
                    ("blkio.bfq.weight_device", on(d.weight)),
                ),
                Version::V2 => (
                    "io.bfq.weight",
                    ("io.weight", on(convert::io_weight_from_blkio(d.weight))),
                ),
            };
            self.push(C, "blockIO.weightDevice", file, on(d.weight));
            self.otherwise(other);
        }
        let rates: [(&str, &str, &str, &[DeviceRate]); 4] = [
            (
                "blockIO.throttleReadBpsDevice",
                "read_bps",
                "rbps",
                &io.read_bps,
            ),
            (
                "blockIO.throttleWriteBpsDevice",
                "write_bps",
                "wbps",
                &io.write_bps,
            ),
            (
                "blockIO.throttleReadIOPSDevice",
                "read_iops",
                "riops",
                &io.read_iops,
            ),
            (
                "blockIO.throttleWriteIOPSDevice",
                "write_iops",
                "wiops",
                &io.write_iops,
            ),
        ];
        for (limit, v1, v2, devices) in rates {
            for d in devices {
                match self.version(C, limit)? {
                    Version::V1 => {
                        let file = format!("blkio.throttle.{v1}_device");
                        self.push(
                            C,
                            limit,
                            &file,
                            format!("{}:{} {}", d.major, d.minor, d.rate),
                        );
                    }
                    Version::V2 => {
                        let rate = if d.rate == 0 {
                            "max".to_owned()
                        } else {
                            d.rate.to_string()
                        };
                        self.push(
                            C,
                            limit,
                            "io.max",
                            format!("{}:{} {v2}={rate}", d.major, d.minor),
                        );
                    }
                }
            }
        }
        Ok(())
    }

    fn otherwise(&mut self, (file, value): (&str, String)) {
        if let Some(last) = self.writes.last_mut() {
            last.otherwise = Some((file.to_owned(), value));
        }
    }

    fn network(&mut self, resources: &Resources) -> Planned {
        if let Some(id) = resources.network.class_id {
            let (c, limit) = (Controller::NetCls, "network.classID");
            self.only(Version::V1, c, limit, "net_cls.classid", id.to_string())?;
        }
        for p in &resources.network.priorities {
            let (c, limit) = (Controller::NetPrio, "network.priorities");
            if p.interface.is_empty()
                || p.interface.len() > 15
                || p.interface.contains([' ', '\n', '\0'])
            {
                return Err(invalid(
                    limit,
                    &p.interface,
                    "it is not the name of an interface",
                ));
            }
            self.only(
                Version::V1,
                c,
                limit,
                "net_prio.ifpriomap",
                format!("{} {}", p.interface, p.priority),
            )?;
        }
        Ok(())
    }

    fn huge_pages(&mut self, resources: &Resources) -> Planned {
        for h in &resources.huge_pages {
            let limit = format!("hugepageLimits.{}", h.page_size);
            let digits = h
                .page_size
                .trim_end_matches(|c: char| c.is_ascii_uppercase());
            let unit = &h.page_size[digits.len()..];
            let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            if h.page_size.len() > 12 || !number || !matches!(unit, "KB" | "MB" | "GB") {
                return Err(invalid(
                    "hugepageLimits.pageSize",
                    &h.page_size,
                    "use a size such as 2MB",
                ));
            }
            let c = Controller::Hugetlb;
            let (file, value) = match self.version(c, &limit)? {
                Version::V1 => ("limit_in_bytes", minus_text(h.max_bytes)),
                Version::V2 => ("max", max_text(h.max_bytes)),
            };
            self.push(c, &limit, &format!("hugetlb.{}.{file}", h.page_size), value);
        }
        Ok(())
    }

    fn rdma(&mut self, resources: &Resources) -> Planned {
        for r in &resources.rdma {
            if r.device.is_empty() || r.device.len() > 64 || r.device.contains([' ', '\n', '\0']) {
                return Err(invalid("rdma", &r.device, "it is not the name of a device"));
            }
            let mut value = r.device.clone();
            for (key, limit) in [("hca_handle", r.handles_max), ("hca_object", r.objects_max)] {
                if let Some(limit) = limit {
                    value.push_str(&format!(" {key}={}", max_text(limit)));
                }
            }
            self.both(Controller::Rdma, "rdma", "rdma.max", value)?;
        }
        Ok(())
    }

    fn unified(&mut self, resources: &Resources) -> Planned {
        for (file, value) in &resources.unified {
            let limit = format!("unified.{file}");
            let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            let prefix = file.split('.').next().unwrap_or_default();
            if !file.contains('.')
                || file.len() > 64
                || !file.chars().all(name)
                || prefix == "cgroup"
            {
                return Err(invalid(
                    "unified",
                    file,
                    "use the name of a cgroup v2 controller's file",
                ));
            }
            if value.len() > MAX_UNIFIED {
                return Err(invalid(&limit, "(long)", "it is longer than 4096 bytes"));
            }
            let Some(controller) = Controller::from_name(prefix) else {
                return Err(invalid("unified", file, "this controller is not known"));
            };
            // The kernel takes one device of io.max a write.
            for line in value.lines() {
                self.only(Version::V2, controller, &limit, file, line.to_owned())?;
            }
        }
        Ok(())
    }
}
