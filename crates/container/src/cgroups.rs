//! From `linux.resources` and `linux.cgroupsPath` to crate `cgroup`'s terms, and the way in.

use cgroup::{Access, Cgroup, CgroupPath, DeviceKind, Limit};

use crate::error::{Failure, Step};
use crate::spec::{self, Mount, Resources, Spec};

/// The group of a container: as configured, else one of its own below `/berth-oci`.
pub(crate) fn path(configured: &str, id: &str) -> Step<CgroupPath> {
    let text = match configured {
        "" => format!("berth-oci/{id}"),
        systemd if systemd.matches(':').count() == 2 && !systemd.contains('/') => {
            from_systemd(systemd)
        }
        path => path.to_owned(),
    };
    CgroupPath::parse(&text)
        .map_err(|error| Failure::new("cannot use linux.cgroupsPath", error.to_string()))
}

/// Puts the calling, single-threaded process into the group's v1 hierarchies (`CLONE_INTO_CGROUP`
/// took care of v2).
pub(crate) fn enter_v1(group: &Cgroup) -> Step<()> {
    group.enter_v1().map_err(|error| {
        Failure::new(
            "cannot enter the control group",
            crate::error::chain(&error),
        )
    })
}

/// Who outside is root of a container that may write to its control group's files: an init inside
/// manages groups of its own below it.
pub(crate) fn delegated_to(spec: &Spec) -> Option<(u32, u32)> {
    let writable = |mount: &Mount| {
        matches!(mount.kind.as_str(), "cgroup" | "cgroup2")
            && !mount.options.iter().any(|option| option == "ro")
    };
    if !spec.mounts.iter().any(writable) {
        return None;
    }
    let root = |mappings| crate::idmap::outside(mappings, 0);
    root(&spec.linux.uid_mappings).zip(root(&spec.linux.gid_mappings))
}

/// `slice:prefix:name` as systemd would place it, since callers that believe in systemd write it so.
fn from_systemd(text: &str) -> String {
    let mut parts = text.splitn(3, ':');
    let mut next = || parts.next().unwrap_or_default();
    let (slice, prefix, name) = (next(), next(), next());
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    let mut path = String::new();
    let stem = slice.strip_suffix(".slice").unwrap_or(slice);
    for (i, _) in stem.match_indices('-') {
        path.push_str(&stem[..i]);
        path.push_str(".slice/");
    }
    let unit = if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}-{name}")
    };
    let suffix = if unit.ends_with(".slice") || unit.ends_with(".scope") {
        ""
    } else {
        ".scope"
    };
    format!("{path}{slice}/{unit}{suffix}")
}

/// Translates limits. `complete` adds the devices every container may use, as for a new container.
///
/// # Errors
/// Names the field that cannot be used.
pub(crate) fn resources(spec: &Resources, complete: bool) -> Step<cgroup::Resources> {
    let mut out = cgroup::Resources {
        pids_max: spec
            .pids
            .as_ref()
            .and_then(|pids| pids.limit)
            .map(|limit| match limit {
                1.. => Limit::At(limit as u64),
                _ => Limit::Max,
            }),
        unified: spec.unified.clone(),
        ..cgroup::Resources::default()
    };
    if let Some(cpu) = &spec.cpu {
        out.cpu = self::cpu(cpu);
    }
    if let Some(memory) = &spec.memory {
        out.memory = self::memory(memory);
    }
    if let Some(block) = &spec.block_io {
        out.block_io = block_io(block)?;
    }
    if let Some(network) = &spec.network {
        out.network.class_id = network.class_id;
        out.network.priorities = network
            .priorities
            .iter()
            .map(|p| cgroup::InterfacePriority {
                interface: p.name.clone(),
                priority: p.priority,
            })
            .collect();
    }
    out.huge_pages = spec
        .hugepage_limits
        .iter()
        .map(|h| cgroup::HugePages {
            page_size: h.page_size.clone(),
            max_bytes: Limit::At(h.limit),
        })
        .collect();
    out.rdma = spec
        .rdma
        .iter()
        .map(|(device, limits)| cgroup::Rdma {
            device: device.clone(),
            handles_max: limits.hca_handles.map(|n| Limit::At(n.into())),
            objects_max: limits.hca_objects.map(|n| Limit::At(n.into())),
        })
        .collect();
    if !spec.devices.is_empty() {
        let mut rules = spec.devices.iter().map(device).collect::<Step<Vec<_>>>()?;
        if complete {
            rules.extend(
                DEFAULT_DEVICES
                    .iter()
                    .map(|(major, minor)| cgroup::DeviceRule {
                        allow: true,
                        kind: DeviceKind::Char,
                        major: Some(*major),
                        minor: *minor,
                        access: Access::ALL,
                    }),
            );
            // Making a node is harmless where opening it is not allowed.
            rules.extend(
                [DeviceKind::Char, DeviceKind::Block].map(|kind| cgroup::DeviceRule {
                    allow: true,
                    kind,
                    major: None,
                    minor: None,
                    access: Access {
                        mknod: true,
                        ..Access::default()
                    },
                }),
            );
        }
        out.devices = Some(rules);
    }
    Ok(out)
}

/// null, zero, full, random, urandom, tty, console, ptmx, and the ptys.
const DEFAULT_DEVICES: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

fn cpu(cpu: &spec::Cpu) -> cgroup::Cpu {
    let list = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    cgroup::Cpu {
        weight: cpu
            .shares
            .filter(|shares| *shares != 0)
            .map(cgroup::CpuWeight::Shares),
        quota_us: cpu.quota.filter(|quota| *quota != 0).map(Limit::from_oci),
        period_us: cpu.period.filter(|period| *period != 0),
        burst_us: cpu.burst,
        realtime_runtime_us: cpu.realtime_runtime,
        realtime_period_us: cpu.realtime_period.filter(|period| *period != 0),
        idle: cpu.idle.map(|idle| idle != 0),
        cpus: list(&cpu.cpus),
        mems: list(&cpu.mems),
    }
}

fn memory(memory: &spec::Memory) -> cgroup::Memory {
    // 0 means "not given" to every runtime: producers write it for absent numbers.
    let limit = |value: Option<i64>| value.filter(|value| *value != 0).map(Limit::from_oci);
    cgroup::Memory {
        max_bytes: limit(memory.limit),
        reservation_bytes: limit(memory.reservation),
        memory_and_swap_bytes: limit(memory.swap),
        kernel_tcp_bytes: limit(memory.kernel_tcp),
        swappiness: memory.swappiness,
        disable_oom_killer: memory.disable_oom_killer,
        check_before_update: memory.check_before_update.unwrap_or(false),
        ..cgroup::Memory::default()
    }
}

fn block_io(block: &spec::BlockIo) -> Step<cgroup::BlockIo> {
    let rates = |field: &str, list: &[spec::ThrottleDevice]| {
        list.iter()
            .map(|device| {
                let (major, minor) = numbers(field, device.major, device.minor)?;
                Ok(cgroup::DeviceRate {
                    major,
                    minor,
                    rate: device.rate,
                })
            })
            .collect::<Step<Vec<_>>>()
    };
    let mut device_weights = Vec::new();
    for device in &block.weight_device {
        let (major, minor) = numbers("weightDevice", device.major, device.minor)?;
        if let Some(weight) = device.weight {
            device_weights.push(cgroup::DeviceWeight {
                major,
                minor,
                weight,
            });
        }
    }
    Ok(cgroup::BlockIo {
        weight: block.weight.filter(|weight| *weight != 0),
        leaf_weight: block.leaf_weight.filter(|weight| *weight != 0),
        device_weights,
        read_bps: rates("throttleReadBpsDevice", &block.throttle_read_bps_device)?,
        write_bps: rates("throttleWriteBpsDevice", &block.throttle_write_bps_device)?,
        read_iops: rates("throttleReadIOPSDevice", &block.throttle_read_iops_device)?,
        write_iops: rates("throttleWriteIOPSDevice", &block.throttle_write_iops_device)?,
    })
}

fn numbers(field: &str, major: i64, minor: i64) -> Step<(u32, u32)> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) => Ok((major, minor)),
        _ => Err(Failure::new(
            format!("cannot use linux.resources.blockIO.{field}"),
            format!("{major}:{minor} is no device"),
        )),
    }
}

fn device(rule: &spec::DeviceRule) -> Step<cgroup::DeviceRule> {
    let refuse = |why: String| Failure::new("cannot use linux.resources.devices", why);
    let kind = match rule.kind.as_str() {
        "" | "a" => DeviceKind::All,
        "b" => DeviceKind::Block,
        "c" => DeviceKind::Char,
        other => return Err(refuse(format!("type {other:?} is none of a, b, c"))),
    };
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| refuse(format!("{number} is no device number"))),
    };
    let access = match rule.access.as_str() {
        "" => Access::ALL,
        text => Access::parse(text)
            .ok_or_else(|| refuse(format!("access {text:?} is not of r, w, m")))?,
    };
    Ok(cgroup::DeviceRule {
        allow: rule.allow,
        kind,
        major: number(rule.major)?,
        minor: number(rule.minor)?,
        access,
    })
}

#[cfg(test)]
mod tests {
    use crate::cgroups;

    #[test]
    fn paths_of_both_managers_become_groups() {
        let path = |text: &str| cgroups::path(text, "x").unwrap().to_string();
        assert_eq!(path(""), "/berth-oci/x");
        assert_eq!(path("/libpod_parent/libpod-1"), "/libpod_parent/libpod-1");
        assert_eq!(
            path("user-1000.slice:libpod:abc"),
            "/user.slice/user-1000.slice/libpod-abc.scope"
        );
        assert_eq!(path(":p:n"), "/system.slice/p-n.scope");
        assert!(cgroups::path("/../x", "x").is_err());
    }
}
