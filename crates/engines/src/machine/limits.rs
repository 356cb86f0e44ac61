//! What limits a machine: its process by its control group, its devices and vCPUs by itself.
//!
//! The disk and each folder of the host are limited where the guest sees them, not where its process meets
//! the host's: what the page cache absorbs counts too, and one request is one operation. Each has the
//! whole limit for itself.

use model::{
    ByteSize,
    instance::{IoLimits, Limits, NetLimits, limits},
};
use serde_json::{Value, json};

use super::config::{self, Started};

/// What the process may hold besides the guest's memory: its own, page tables, buffers, and the
/// page cache of the disks it writes.
const OVERHEAD_BYTES: u64 = 256 << 20;
/// And for each vCPU: the code that the software CPU makes for a guest that runs much, and what
/// finds it.
const OVERHEAD_BYTES_PER_VCPU: u64 = 64 << 20;

/// What the control group of a machine's process is limited to, for what is asked of the instance: but
/// for memory, which is the guest's and its own, and rates, which the machine keeps itself. A guest's
/// vCPUs cannot use more CPUs than there are of them: only a part of one needs a limit.
pub(super) fn of_group(asked: &Limits, memory_bytes: u64, vcpus: u32) -> Limits {
    let overhead = OVERHEAD_BYTES + OVERHEAD_BYTES_PER_VCPU * u64::from(vcpus);
    Limits {
        cpus: asked.cpus.filter(|cpus| !cpus.0.is_multiple_of(1000)),
        memory: Some(ByteSize(memory_bytes + overhead)),
        memory_high: None,
        pids: None,
        io: IoLimits {
            weight: asked.io.weight,
            ..IoLimits::default()
        },
        net: NetLimits::default(),
        ..asked.clone()
    }
}

/// A rate of `berth-vmm`, in which nothing and zero are no limit.
fn rate(bytes: Option<u64>, operations: Option<u64>, burst: Option<u64>) -> Value {
    json!({
        "bytes_per_second": bytes.unwrap_or(0),
        "operations_per_second": operations.unwrap_or(0),
        "burst_bytes": burst.unwrap_or(0),
    })
}

/// What the guest may read, from its root disk and from each folder.
pub(super) fn reads(limits: &Limits) -> Value {
    rate(limits.io.read_bps, limits.io.read_iops, None)
}

/// What the guest may write, likewise.
pub(super) fn writes(limits: &Limits) -> Value {
    rate(limits.io.write_bps, limits.io.write_iops, None)
}

/// What the guest may receive.
pub(super) fn ingress(limits: &Limits) -> Value {
    rate(limits.net.ingress_bps, None, limits.net.ingress_burst)
}

/// What the guest may send.
pub(super) fn egress(limits: &Limits) -> Value {
    rate(limits.net.egress_bps, None, limits.net.egress_burst)
}

/// For each vCPU the CPUs of the host it may run on: one of its own where the instance has as many CPUs
/// as vCPUs. Else nothing: the control group keeps all of them within the instance's CPUs.
pub(super) fn pinning(limits: &Limits, vcpus: u32) -> Vec<[u32; 1]> {
    let cpus = limits.cpu_set.as_deref().and_then(limits::cpu_list);
    let cpus = cpus.unwrap_or_default();
    if cpus.len() != vcpus as usize {
        return Vec::new();
    }
    cpus.into_iter().map(|cpu| [cpu]).collect()
}

/// The request to `berth-vmm` to keep to other limits, for a machine by what it was started with.
pub(super) fn request(limits: &Limits, started: &Started) -> Value {
    let limited = |id: &str| json!({ "id": id, "read": reads(limits), "write": writes(limits) });
    let shares: Vec<Value> = started.shares().map(limited).collect();
    let nets = started.is_networked().then(|| {
        json!({
            "id": config::INTERFACE,
            "receive": ingress(limits),
            "transmit": egress(limits),
        })
    });
    json!({
        "type": "set-limits",
        "disks": [limited(config::DISK_SERIAL)],
        "shares": shares,
        "nets": nets.into_iter().collect::<Vec<_>>(),
        "pinning": pinning(limits, started.vcpus),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use vmm::control::{Request, protocol};

    use super::*;

    /// A machine with so many vCPUs, network cards and folders.
    fn started(vcpus: u32, nets: Value, shares: Value) -> Started {
        let text = json!({
            "memory_bytes": 1 << 30,
            "vcpus": vcpus,
            "nets": nets,
            "shares": shares,
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn the_machines_process_understands_what_it_is_asked() {
        let asked = Limits {
            cpu_set: Some("1,3".into()),
            io: IoLimits {
                read_bps: Some(1),
                write_iops: Some(2),
                ..IoLimits::default()
            },
            net: NetLimits {
                ingress_bps: Some(3),
                egress_bps: Some(4),
                egress_burst: Some(5),
                ..NetLimits::default()
            },
            ..Limits::default()
        };
        let understood: Request = {
            let started = started(2, json!([{}]), json!([{ "tag": "mount0" }]));
            serde_json::from_value(request(&asked, &started)).unwrap()
        };
        let Request::SetLimits(limits) = understood else {
            panic!("{understood:?}");
        };
        let disk = &limits.disks[0];
        assert_eq!(disk.read.bytes_per_second, 1);
        assert_eq!(
            (
                disk.write.bytes_per_second,
                disk.write.operations_per_second
            ),
            (0, 2)
        );
        let share = &limits.shares[0];
        assert_eq!((&*share.id, share.read), ("mount0", disk.read));
        let net = &limits.nets[0];
        assert_eq!(net.receive.bytes_per_second, 3);
        assert_eq!(
            (net.transmit.bytes_per_second, net.transmit.burst_bytes),
            (4, 5)
        );
        assert_eq!(limits.pinning, Some(vec![vec![1], vec![3]]));
        let none: Request = {
            let started = started(1, json!([]), json!([]));
            serde_json::from_value(request(&asked, &started)).unwrap()
        };
        let wanted = protocol::Limits {
            disks: limits.disks,
            pinning: Some(Vec::new()),
            ..protocol::Limits::default()
        };
        assert_eq!(
            none,
            Request::SetLimits(wanted),
            "two CPUs are not one for each vCPU"
        );
    }

    #[test]
    fn rates_are_kept_by_the_machine_and_not_by_its_group() {
        let asked = Limits {
            io: IoLimits {
                weight: Some(7),
                read_bps: Some(1),
                ..IoLimits::default()
            },
            ..Limits::default()
        };
        let group = of_group(&asked, 1 << 30, 2);
        assert_eq!((group.io.weight, group.io.read_bps), (Some(7), None));
        assert!(group.memory.unwrap().0 > 1 << 30);
    }
}
