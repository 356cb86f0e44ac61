//! The spec of an instance, both ways.

use std::net::IpAddr;

use model::{
    ByteSize,
    instance::{
        Accel, DeviceSpec, HealthCheck, InstanceSpec, IoLimits, Kind, Limits, LogSpec, MachineSpec,
        Mount, MountSource, NetLimits, NetworkMode, PortSpec, ProcessSpec, Protocol, RestartPolicy,
        Security, Ulimit,
    },
    units::MilliCpus,
    validate::{Invalid, Report},
};

/// Name of the network used when none is named.
pub(crate) const DEFAULT_NETWORK: &str = "default";

/// The internal spec of a wire spec, checked.
///
/// # Errors
/// Every field that is wrong, by its wire name.
pub(crate) fn from_wire(wire: &api::InstanceSpec) -> Result<InstanceSpec, Invalid> {
    let mut report = Report::default();
    let spec = InstanceSpec {
        kind: kind(wire.kind),
        machine: wire.machine.as_ref().map(machine),
        image: wire.image.clone(),
        process: ProcessSpec {
            command: wire.command.clone(),
            entrypoint: wire.entrypoint.clone(),
            env: wire.env.clone(),
            user: wire.user.clone(),
            workdir: wire.workdir.clone(),
            terminal: wire.terminal,
            stdin: wire.stdin,
            stop_signal: wire.stop_signal.clone(),
            stop_timeout_s: wire.stop_timeout_s,
        },
        limits: limits(wire, &mut report),
        security: security(wire),
        mounts: mounts(wire, &mut report),
        network: network(wire, &mut report),
        ports: ports(wire, &mut report),
        restart: restart(wire, &mut report),
        health: wire.health.as_ref().map(|check| health(check, &mut report)),
        labels: wire.labels.clone(),
        hostname: wire.hostname.clone(),
        log: log(wire, &mut report),
        root_size: size(wire.root_size.as_deref(), "root_size", &mut report),
        remove_on_exit: wire.remove_on_exit,
    };
    report.finish()?;
    spec.validate().map_err(with_wire_names)?;
    Ok(spec)
}

/// The wire document is flat where the internal spec has groups.
fn with_wire_names(mut invalid: Invalid) -> Invalid {
    for error in &mut invalid.fields {
        for group in ["process.", "limits.", "security."] {
            if let Some(bare) = error.field.strip_prefix(group) {
                error.field = bare.to_owned();
            }
        }
    }
    invalid
}

const fn kind(kind: api::Kind) -> Kind {
    match kind {
        api::Kind::Application => Kind::Application,
        api::Kind::System => Kind::System,
    }
}

fn machine(wire: &api::Machine) -> MachineSpec {
    MachineSpec {
        accel: match wire.accel {
            api::Accel::Auto => Accel::Auto,
            api::Accel::Kvm => Accel::Kvm,
            api::Accel::Soft => Accel::Soft,
        },
        kernel: wire.kernel.clone(),
        initrd: wire.initrd.clone(),
        append: wire.append.clone(),
        user_data: wire.user_data.clone(),
        ssh_keys: wire.ssh_keys.clone(),
        ssh_user: wire.ssh_user.clone(),
    }
}

fn wire_machine(machine: &MachineSpec) -> api::Machine {
    api::Machine {
        accel: match machine.accel {
            Accel::Auto => api::Accel::Auto,
            Accel::Kvm => api::Accel::Kvm,
            Accel::Soft => api::Accel::Soft,
        },
        kernel: machine.kernel.clone(),
        initrd: machine.initrd.clone(),
        append: machine.append.clone(),
        user_data: machine.user_data.clone(),
        ssh_keys: machine.ssh_keys.clone(),
        ssh_user: machine.ssh_user.clone(),
    }
}

fn size(text: Option<&str>, field: &str, report: &mut Report) -> Option<ByteSize> {
    match text?.parse() {
        Ok(size) => Some(size),
        Err(error) => {
            report.add(field, model::units::ParseByteSizeError::to_string(&error));
            None
        }
    }
}

fn limits(wire: &api::InstanceSpec, report: &mut Report) -> Limits {
    let cpus = wire.cpus.and_then(|cpus| {
        let parsed = cpus.to_string().parse::<MilliCpus>();
        parsed
            .map_err(|error| report.add("cpus", error.to_string()))
            .ok()
    });
    let rate = |text: Option<&str>, field: &str, report: &mut Report| {
        size(text, field, report).map(|size| size.0)
    };
    Limits {
        cpus,
        cpu_weight: wire.cpu_weight,
        cpu_set: wire.cpu_set.clone(),
        memory: size(wire.memory.as_deref(), "memory", report),
        memory_high: size(wire.memory_high.as_deref(), "memory_high", report),
        swap: size(wire.swap.as_deref(), "swap", report),
        pids: wire.pids,
        io: IoLimits {
            weight: wire.io.weight,
            read_bps: rate(wire.io.read_bps.as_deref(), "io.read_bps", report),
            write_bps: rate(wire.io.write_bps.as_deref(), "io.write_bps", report),
            read_iops: wire.io.read_iops,
            write_iops: wire.io.write_iops,
        },
        net: NetLimits {
            ingress_bps: rate(wire.net.ingress_bps.as_deref(), "net.ingress_bps", report),
            egress_bps: rate(wire.net.egress_bps.as_deref(), "net.egress_bps", report),
            ingress_burst: rate(
                wire.net.ingress_burst.as_deref(),
                "net.ingress_burst",
                report,
            ),
            egress_burst: rate(wire.net.egress_burst.as_deref(), "net.egress_burst", report),
        },
    }
}

fn security(wire: &api::InstanceSpec) -> Security {
    let device = |device: &api::Device| DeviceSpec {
        host_path: device.host_path.clone(),
        path: device
            .path
            .clone()
            .unwrap_or_else(|| device.host_path.clone()),
        permissions: device
            .permissions
            .clone()
            .unwrap_or_else(|| "rwm".to_owned()),
    };
    let ulimit = |limit: &api::Ulimit| Ulimit {
        name: limit.name.clone(),
        soft: limit.soft,
        hard: limit.hard,
    };
    Security {
        read_only: wire.read_only,
        cap_add: wire.cap_add.clone(),
        cap_drop: wire.cap_drop.clone(),
        user_namespace: wire.user_namespace,
        seccomp: wire.seccomp,
        allow_new_privileges: wire.allow_new_privileges,
        devices: wire.devices.iter().map(device).collect(),
        ulimits: wire.ulimits.iter().map(ulimit).collect(),
        sysctls: wire.sysctls.clone(),
    }
}

fn mounts(wire: &api::InstanceSpec, report: &mut Report) -> Vec<Mount> {
    let mut mounts = Vec::new();
    for (index, mount) in wire.mounts.iter().enumerate() {
        let field = format!("mounts[{index}].source");
        let source = match (mount.kind, &mount.source) {
            (api::MountType::Bind, Some(path)) => MountSource::Bind { path: path.clone() },
            (api::MountType::Volume, Some(name)) => match name.parse() {
                Ok(name) => MountSource::Volume { name },
                Err(error) => {
                    report.add(field, model::name::InvalidName::to_string(&error));
                    continue;
                }
            },
            (api::MountType::Tmpfs, None) => MountSource::Tmpfs {
                size: size(
                    mount.size.as_deref(),
                    &format!("mounts[{index}].size"),
                    report,
                ),
            },
            (api::MountType::Bind, None) => {
                report.add(field, "name a path of the host");
                continue;
            }
            (api::MountType::Volume, None) => {
                report.add(field, "name a volume");
                continue;
            }
            (api::MountType::Tmpfs, Some(_)) => {
                report.add(field, "a tmpfs has no source");
                continue;
            }
        };
        mounts.push(Mount {
            source,
            target: mount.target.clone(),
            read_only: mount.read_only,
        });
    }
    mounts
}

fn network(wire: &api::InstanceSpec, report: &mut Report) -> NetworkMode {
    match wire.network.as_deref() {
        Some("none") => NetworkMode::None,
        Some("host") => NetworkMode::Host,
        other => {
            let address = wire
                .address
                .as_deref()
                .and_then(|text| address(text, "address", report));
            match other.unwrap_or(DEFAULT_NETWORK).parse() {
                Ok(name) => NetworkMode::Network { name, address },
                Err(error) => {
                    report.add("network", model::name::InvalidName::to_string(&error));
                    NetworkMode::None
                }
            }
        }
    }
}

fn address(text: &str, field: &str, report: &mut Report) -> Option<IpAddr> {
    let parsed = text.parse().ok();
    report.require(
        parsed.is_some(),
        field,
        format!("{text:?} is not an IP address"),
    );
    parsed
}

fn ports(wire: &api::InstanceSpec, report: &mut Report) -> Vec<PortSpec> {
    let mut ports = Vec::new();
    for (index, port) in wire.ports.iter().enumerate() {
        let field = format!("ports[{index}].host_address");
        let host_address = port
            .host_address
            .as_deref()
            .and_then(|text| address(text, &field, report));
        ports.push(PortSpec {
            host_address,
            host_port: port.host_port,
            port: port.port,
            protocol: match port.protocol {
                api::Protocol::Tcp => Protocol::Tcp,
                api::Protocol::Udp => Protocol::Udp,
            },
        });
    }
    ports
}

fn restart(wire: &api::InstanceSpec, report: &mut Report) -> RestartPolicy {
    let Some(text) = wire.restart.as_deref() else {
        return match wire.kind {
            api::Kind::System if !wire.remove_on_exit => RestartPolicy::UnlessStopped,
            _ => RestartPolicy::No,
        };
    };
    match text.split_once(':') {
        None if text == "no" => RestartPolicy::No,
        None if text == "always" => RestartPolicy::Always,
        None if text == "unless-stopped" => RestartPolicy::UnlessStopped,
        None if text == "on-failure" => RestartPolicy::OnFailure { max_retries: None },
        Some(("on-failure", most)) if most.parse::<u32>().is_ok() => RestartPolicy::OnFailure {
            max_retries: most.parse().ok(),
        },
        _ => {
            report.add(
                "restart",
                "use no, on-failure, on-failure:N, always or unless-stopped",
            );
            RestartPolicy::No
        }
    }
}

fn health(check: &api::HealthCheck, report: &mut Report) -> HealthCheck {
    let mut millis = |seconds: f64, field: &str| {
        let fits = (0.0..=86_400.0).contains(&seconds);
        report.require(fits, field, "between 0 and 86400 seconds");
        if fits {
            (seconds * 1000.0).round() as u64
        } else {
            1000
        }
    };
    HealthCheck {
        command: check.command.clone(),
        interval_ms: millis(check.interval_s, "health.interval_s"),
        timeout_ms: millis(check.timeout_s, "health.timeout_s"),
        retries: check.retries,
        start_period_ms: millis(check.start_period_s, "health.start_period_s"),
    }
}

fn log(wire: &api::InstanceSpec, report: &mut Report) -> LogSpec {
    let usual = LogSpec::default();
    let Some(log) = &wire.log else { return usual };
    let max = size(Some(&log.max_size), "log.max_size", report);
    LogSpec {
        max_bytes: max.map_or(usual.max_bytes, |size| size.0),
        files: log.files,
    }
}

/// The wire spec of an internal one; [`from_wire`] makes the same internal spec of it again.
pub(crate) fn to_wire(spec: &InstanceSpec) -> api::InstanceSpec {
    let bytes = |size: Option<ByteSize>| size.map(|size| exact(size.0));
    let (network, address) = match &spec.network {
        NetworkMode::None => ("none".to_owned(), None),
        NetworkMode::Host => ("host".to_owned(), None),
        NetworkMode::Network { name, address } => (name.to_string(), *address),
    };
    let usual_log = LogSpec::default();
    api::InstanceSpec {
        kind: wire_kind(spec.kind),
        machine: spec.machine.as_ref().map(wire_machine),
        image: spec.image.clone(),
        command: spec.process.command.clone(),
        entrypoint: spec.process.entrypoint.clone(),
        env: spec.process.env.clone(),
        user: spec.process.user.clone(),
        workdir: spec.process.workdir.clone(),
        terminal: spec.process.terminal,
        stdin: spec.process.stdin,
        stop_signal: spec.process.stop_signal.clone(),
        stop_timeout_s: spec.process.stop_timeout_s,
        cpus: spec.limits.cpus.map(|cpus| f64::from(cpus.0) / 1000.0),
        cpu_weight: spec.limits.cpu_weight,
        cpu_set: spec.limits.cpu_set.clone(),
        memory: bytes(spec.limits.memory),
        memory_high: bytes(spec.limits.memory_high),
        swap: bytes(spec.limits.swap),
        pids: spec.limits.pids,
        io: api::Io {
            weight: spec.limits.io.weight,
            read_bps: spec.limits.io.read_bps.map(exact),
            write_bps: spec.limits.io.write_bps.map(exact),
            read_iops: spec.limits.io.read_iops,
            write_iops: spec.limits.io.write_iops,
        },
        net: api::Net {
            ingress_bps: spec.limits.net.ingress_bps.map(exact),
            egress_bps: spec.limits.net.egress_bps.map(exact),
            ingress_burst: spec.limits.net.ingress_burst.map(exact),
            egress_burst: spec.limits.net.egress_burst.map(exact),
        },
        read_only: spec.security.read_only,
        cap_add: spec.security.cap_add.clone(),
        cap_drop: spec.security.cap_drop.clone(),
        user_namespace: spec.security.user_namespace,
        seccomp: spec.security.seccomp,
        allow_new_privileges: spec.security.allow_new_privileges,
        devices: spec.security.devices.iter().map(wire_device).collect(),
        ulimits: spec.security.ulimits.iter().map(wire_ulimit).collect(),
        sysctls: spec.security.sysctls.clone(),
        mounts: spec.mounts.iter().map(wire_mount).collect(),
        network: Some(network),
        address: address.map(|address| address.to_string()),
        ports: spec.ports.iter().map(wire_port).collect(),
        restart: Some(wire_restart(spec.restart)),
        health: spec.health.as_ref().map(wire_health),
        labels: spec.labels.clone(),
        hostname: spec.hostname.clone(),
        log: (spec.log != usual_log).then(|| api::Log {
            max_size: exact(spec.log.max_bytes),
            files: spec.log.files,
        }),
        root_size: bytes(spec.root_size),
        remove_on_exit: spec.remove_on_exit,
    }
}

/// A size that reads back as the same number of bytes, with the largest unit that allows it.
fn exact(bytes: u64) -> String {
    for (unit, shift) in [("T", 40), ("G", 30), ("M", 20), ("K", 10)] {
        if bytes > 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

pub(super) const fn wire_kind(kind: Kind) -> api::Kind {
    match kind {
        Kind::Application => api::Kind::Application,
        Kind::System => api::Kind::System,
    }
}

fn wire_device(device: &DeviceSpec) -> api::Device {
    api::Device {
        host_path: device.host_path.clone(),
        path: (device.path != device.host_path).then(|| device.path.clone()),
        permissions: (device.permissions != "rwm").then(|| device.permissions.clone()),
    }
}

fn wire_ulimit(limit: &Ulimit) -> api::Ulimit {
    api::Ulimit {
        name: limit.name.clone(),
        soft: limit.soft,
        hard: limit.hard,
    }
}

fn wire_mount(mount: &Mount) -> api::Mount {
    let (kind, source, size) = match &mount.source {
        MountSource::Bind { path } => (api::MountType::Bind, Some(path.clone()), None),
        MountSource::Volume { name } => (api::MountType::Volume, Some(name.to_string()), None),
        MountSource::Tmpfs { size } => {
            (api::MountType::Tmpfs, None, size.map(|size| exact(size.0)))
        }
    };
    api::Mount {
        kind,
        source,
        target: mount.target.clone(),
        read_only: mount.read_only,
        size,
    }
}

pub(super) fn wire_port(port: &PortSpec) -> api::Port {
    api::Port {
        host_address: port.host_address.map(|address| address.to_string()),
        host_port: port.host_port,
        port: port.port,
        protocol: match port.protocol {
            Protocol::Tcp => api::Protocol::Tcp,
            Protocol::Udp => api::Protocol::Udp,
        },
    }
}

fn wire_restart(policy: RestartPolicy) -> String {
    match policy {
        RestartPolicy::No => "no".to_owned(),
        RestartPolicy::OnFailure { max_retries: None } => "on-failure".to_owned(),
        RestartPolicy::OnFailure {
            max_retries: Some(most),
        } => format!("on-failure:{most}"),
        RestartPolicy::Always => "always".to_owned(),
        RestartPolicy::UnlessStopped => "unless-stopped".to_owned(),
    }
}

fn wire_health(check: &HealthCheck) -> api::HealthCheck {
    let seconds = |millis: u64| millis as f64 / 1000.0;
    api::HealthCheck {
        command: check.command.clone(),
        interval_s: seconds(check.interval_ms),
        timeout_s: seconds(check.timeout_ms),
        retries: check.retries,
        start_period_s: seconds(check.start_period_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> api::InstanceSpec {
        serde_json::from_value(serde_json::json!({
            "image": "debian:12", "command": ["a"], "entrypoint": [], "env": {"A": "1"},
            "user": "me:us", "workdir": "/srv", "terminal": true, "stdin": true,
            "stop_signal": "SIGINT", "stop_timeout_s": 5,
            "cpus": 1.5, "cpu_weight": 50, "cpu_set": "0-1", "memory": "512M",
            "memory_high": "256M", "swap": "0", "pids": 10,
            "io": {"weight": 10, "read_bps": "1M", "write_bps": "1500", "read_iops": 5},
            "read_only": true, "cap_add": ["NET_ADMIN"], "cap_drop": ["ALL"],
            "user_namespace": false, "seccomp": false, "allow_new_privileges": true,
            "devices": [{"host_path": "/dev/fuse", "path": "/dev/f", "permissions": "r"}],
            "ulimits": [{"name": "nofile", "soft": 1, "hard": 2}],
            "sysctls": {"net.ipv4.ip_forward": "1"},
            "mounts": [
                {"type": "bind", "source": "/srv", "target": "/a", "read_only": true},
                {"type": "volume", "source": "data", "target": "/b"},
                {"type": "tmpfs", "target": "/c", "size": "64M"}
            ],
            "network": "backend", "address": "10.0.0.9",
            "ports": [{"host_address": "127.0.0.1", "host_port": 80, "port": 8080, "protocol": "udp"}],
            "restart": "on-failure:3",
            "health": {"command": ["true"], "interval_s": 0.5, "timeout_s": 1.0, "retries": 2},
            "labels": {"a": "b"}, "hostname": "h", "log": {"max_size": "1M", "files": 2},
            "root_size": "10G"
        }))
        .unwrap()
    }

    #[test]
    fn a_full_spec_survives_both_ways() {
        let wire = full();
        let spec = from_wire(&wire).unwrap();
        assert_eq!(to_wire(&spec), wire);
        assert_eq!(from_wire(&to_wire(&spec)).unwrap(), spec);
    }

    #[test]
    fn a_machine_survives_both_ways() {
        let wire: api::InstanceSpec = serde_json::from_value(serde_json::json!({
            "image": "debian", "machine": {
                "accel": "soft", "kernel": "/k", "initrd": "/i", "append": "quiet",
                "user_data": "#cloud-config\n", "ssh_user": "me",
                "ssh_keys": [format!("ssh-ed25519 AAAA{}", "a".repeat(60))],
            },
            "net": {"ingress_bps": "1M", "egress_bps": "1500", "ingress_burst": "64K", "egress_burst": "1M"},
        }))
        .unwrap();
        let spec = from_wire(&wire).unwrap();
        assert_eq!(to_wire(&spec).machine, wire.machine);
        assert_eq!(to_wire(&spec).net, wire.net);
    }

    #[test]
    fn an_empty_spec_is_refused_for_its_image_only() {
        let error = from_wire(&api::InstanceSpec::default()).unwrap_err();
        let fields: Vec<_> = error
            .fields
            .iter()
            .map(|error| error.field.as_str())
            .collect();
        assert_eq!(fields, ["image"]);
    }

    #[test]
    fn wrong_fields_have_their_wire_names() {
        let mut wire = full();
        wire.memory = Some("much".to_owned());
        wire.restart = Some("sometimes".to_owned());
        wire.address = Some("here".to_owned());
        let error = from_wire(&wire).unwrap_err();
        let fields: Vec<_> = error
            .fields
            .iter()
            .map(|error| error.field.as_str())
            .collect();
        assert_eq!(fields, ["memory", "address", "restart"]);
        let mut wire = full();
        wire.workdir = Some("srv".to_owned());
        wire.memory = Some("1K".to_owned());
        let error = from_wire(&wire).unwrap_err();
        let fields: Vec<_> = error
            .fields
            .iter()
            .map(|error| error.field.as_str())
            .collect();
        assert_eq!(fields, ["workdir", "memory", "memory_high"]);
    }
}
