//! What an instance may use.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::spec::{InstanceSpec, NetworkMode};
use crate::{
    units::{ByteSize, MilliCpus},
    validate::Report,
};

/// Limits on block I/O, each per second over all devices of the instance's root.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IoLimits {
    /// Relative weight, 1 to 10,000; 100 is usual.
    pub weight: Option<u16>,
    /// Bytes read a second.
    pub read_bps: Option<u64>,
    /// Bytes written a second.
    pub write_bps: Option<u64>,
    /// Reads a second.
    pub read_iops: Option<u64>,
    /// Writes a second.
    pub write_iops: Option<u64>,
}

/// Limits on what an instance's network interface carries.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NetLimits {
    /// Bytes a second it may receive.
    pub ingress_bps: Option<u64>,
    /// Bytes a second it may send.
    pub egress_bps: Option<u64>,
    /// Bytes it may receive at once after a pause; as many as fit the engine when `None`: a tenth of a
    /// second's worth for a machine. For a container they come beside a second's worth.
    pub ingress_burst: Option<u64>,
    /// Bytes it may send at once after a pause, in the same way.
    pub egress_burst: Option<u64>,
}

/// What an instance may use. All of it can be changed while the instance runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Processor time.
    pub cpus: Option<MilliCpus>,
    /// Relative processor weight, 1 to 10,000; 100 is usual.
    pub cpu_weight: Option<u16>,
    /// Processors it may run on, as a list such as `0-2,4`.
    pub cpu_set: Option<String>,
    /// Memory it may hold before the kernel ends processes.
    pub memory: Option<ByteSize>,
    /// Memory above which it is slowed down and reclaimed from.
    pub memory_high: Option<ByteSize>,
    /// Swap it may use besides memory.
    pub swap: Option<ByteSize>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Block I/O.
    pub io: IoLimits,
    /// The network.
    #[serde(skip_serializing_if = "is_unlimited")]
    pub net: NetLimits,
}

fn is_unlimited(limits: &NetLimits) -> bool {
    *limits == NetLimits::default()
}

impl InstanceSpec {
    pub(super) fn validate_limits(&self, report: &mut Report) {
        let limits = &self.limits;
        let weight = |value: Option<u16>| value.is_none_or(|w| (1..=10_000).contains(&w));
        report.require(
            weight(limits.cpu_weight),
            "limits.cpu_weight",
            "between 1 and 10000",
        );
        report.require(
            weight(limits.io.weight),
            "limits.io.weight",
            "between 1 and 10000",
        );
        if let Some(set) = &limits.cpu_set {
            report.require(
                cpu_list(set).is_some(),
                "limits.cpu_set",
                "a list of CPUs, such as 0-2,4",
            );
        }
        let cpus = limits.cpus.is_none_or(|cpus| cpus.0 >= 10);
        report.require(cpus, "limits.cpus", "at least 0.01");
        let memory = limits.memory.is_none_or(|size| size.0 >= 4 << 20);
        report.require(
            memory,
            "limits.memory",
            "at least 4M: less does not hold a process",
        );
        report.require(limits.pids != Some(0), "limits.pids", "at least 1");
        if let (Some(high), Some(max)) = (limits.memory_high, limits.memory) {
            report.require(high <= max, "limits.memory_high", "not above limits.memory");
        }
        self.validate_rates(report);
    }

    fn validate_rates(&self, report: &mut Report) {
        let (io, net) = (&self.limits.io, &self.limits.net);
        for (field, rate) in [
            ("io.read_bps", io.read_bps),
            ("io.write_bps", io.write_bps),
            ("io.read_iops", io.read_iops),
            ("io.write_iops", io.write_iops),
            ("net.ingress_bps", net.ingress_bps),
            ("net.egress_bps", net.egress_bps),
            ("net.ingress_burst", net.ingress_burst),
            ("net.egress_burst", net.egress_burst),
        ] {
            let field = format!("limits.{field}");
            report.require(rate != Some(0), &field, "at least 1; none is no limit");
        }
        for (way, rate, burst) in [
            ("ingress", net.ingress_bps, net.ingress_burst),
            ("egress", net.egress_bps, net.egress_burst),
        ] {
            let field = format!("limits.net.{way}_burst");
            let sound = burst.is_none() || rate.is_some();
            report.require(
                sound,
                &field,
                format!("means nothing without net.{way}_bps"),
            );
        }
        if is_unlimited(net) {
            return;
        }
        let own = matches!(self.network, NetworkMode::Network { .. });
        report.require(
            own,
            "limits.net",
            "only an instance on a network has one to limit",
        );
    }
}

/// The CPUs of a list such as `0-2,4`; `None` for what is none.
#[must_use]
pub fn cpu_list(text: &str) -> Option<BTreeSet<u32>> {
    let cpu = |text: &str| text.parse::<u32>().ok().filter(|cpu| *cpu < 65_536);
    if text.len() > 1024 {
        return None;
    }
    let mut cpus = BTreeSet::new();
    for part in text.split(',') {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high) = (cpu(low)?, cpu(high)?);
        if low > high {
            return None;
        }
        cpus.extend(low..=high);
    }
    Some(cpus)
}
