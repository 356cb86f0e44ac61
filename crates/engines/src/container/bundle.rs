//! A guest as an OCI bundle: `config.json` for the runtime, `shim.json` for the shim.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use ::container::{
    shim::{CONFIG_VERSION, LogConfig, Rootfs, ShimConfig},
    spec::{
        BlockIo, Capabilities, ConsoleSize, Cpu, Device, DeviceRule, IdMapping, Linux, Memory,
        Mount, Namespace, NamespaceKind, OCI_VERSION, Pids, Process, Resources, Rlimit, Root, Spec,
        ThrottleDevice, User,
    },
};
use engine::{EngineError, Guest, GuestDevice, GuestMount, GuestNetwork, GuestProcess, MountKind};
use model::{instance::Limits, record::IdMap};
use serde_json::{Value, json};

use super::{failed, users};

/// Microseconds of a processor period.
const CPU_PERIOD_US: u64 = 100_000;

/// Paths that tell of the host, or let it be changed, made unreadable inside.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths of the kernel that may be looked at only.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Writes all a shim needs to set `guest` up in `dir`, its program finding `descriptors` open.
pub(super) fn write(
    guest: &Guest,
    descriptors: Vec<PathBuf>,
    dir: &Path,
    cgroup: &str,
    exit_record: &Path,
    state_root: &Path,
) -> Result<(), EngineError> {
    let bundle = dir.join("bundle");
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&bundle);
    made.map_err(|error| failed(guest.id, "making its directory", error))?;
    let shim_cgroup = Some(format!("{cgroup}-shims"));
    let cgroup = format!("{cgroup}/{}", guest.id);
    let spec = spec(guest, &cgroup)?;
    let text =
        serde_json::to_vec(&spec).map_err(|error| failed(guest.id, "writing its bundle", error))?;
    fs::write(bundle.join("config.json"), text)
        .map_err(|error| failed(guest.id, "writing its bundle", error))?;
    let config = ShimConfig {
        version: CONFIG_VERSION,
        instance: guest.id.to_string(),
        generation: guest.generation,
        bundle,
        rootfs: Rootfs::Overlay {
            lower: guest.root.layers.clone(),
            upper: guest.root.upper.clone(),
            work: guest.root.work.clone(),
            idmap: guest.idmap.is_some(),
        },
        terminal: guest.process.terminal,
        stdin_open: guest.process.stdin,
        log: Some(LogConfig {
            path: Guest::log_path(&guest.directory),
            max_bytes: guest.log.max_bytes,
            max_files: guest.log.files,
        }),
        exit_record: exit_record.to_owned(),
        state_root: state_root.to_owned(),
        cgroup,
        shim_cgroup,
        default_seccomp: guest.seccomp,
        descriptors,
        oom_score_adj: Some(-900),
    };
    config
        .save(dir)
        .map_err(|error| failed(guest.id, "writing its configuration", error))
}

fn spec(guest: &Guest, cgroup: &str) -> Result<Spec, EngineError> {
    Ok(Spec {
        oci_version: OCI_VERSION.to_owned(),
        process: Some(process(guest)?),
        root: Some(Root {
            path: PathBuf::from("rootfs"),
            readonly: guest.root.read_only,
        }),
        hostname: guest.hostname.clone(),
        mounts: mounts(guest),
        linux: linux(guest, cgroup)?,
        ..Spec::default()
    })
}

fn process(guest: &Guest) -> Result<Process, EngineError> {
    let asked = &guest.process;
    let roots = std::iter::once(&guest.root.upper)
        .chain(&guest.root.layers)
        .cloned();
    let identity = users::resolve(asked.user.as_deref(), &users::Files::below(roots))
        .map_err(|message| EngineError::Refused { message })?;
    let all: Vec<String> = guest
        .capabilities
        .iter()
        .map(|name| format!("CAP_{name}"))
        .collect();
    let rlimit = |limit: &model::instance::Ulimit| Rlimit {
        kind: format!("RLIMIT_{}", limit.name.to_ascii_uppercase()),
        hard: limit.hard,
        soft: limit.soft,
    };
    Ok(Process {
        terminal: asked.terminal,
        console_size: asked
            .size
            .map(|(height, width)| ConsoleSize { height, width }),
        args: asked.args.clone(),
        env: with_home(&asked.env, &identity.home),
        cwd: PathBuf::from(&asked.cwd),
        capabilities: Some(Capabilities {
            bounding: all.clone(),
            effective: all.clone(),
            permitted: all,
            ..Capabilities::default()
        }),
        rlimits: guest.ulimits.iter().map(rlimit).collect(),
        no_new_privileges: !guest.allow_new_privileges,
        user: user(&identity),
        ..Process::default()
    })
}

fn user(identity: &users::Identity) -> User {
    User {
        uid: identity.uid,
        gid: identity.gid,
        additional_gids: identity.groups.clone(),
        ..User::default()
    }
}

fn with_home(env: &[String], home: &str) -> Vec<String> {
    let mut env = env.to_vec();
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={home}"));
    }
    env
}

/// Another program for a guest whose first process is `pid`: what the shim is sent, and whether
/// input is. What is left out is as for the guest's own program.
pub(super) fn exec_process(process: &GuestProcess, pid: u32) -> Result<(Value, bool), EngineError> {
    let files = users::Files::below([PathBuf::from(format!("/proc/{pid}/root"))]);
    let mut value = json!({
        "args": process.args,
        "cwd": process.cwd,
        "terminal": process.terminal,
        // Only the guest's own limits are set again by the runtime.
        "rlimits": [],
    });
    if process.terminal
        && let Some((height, width)) = process.size
    {
        value["consoleSize"] = json!({ "height": height, "width": width });
    }
    if let Some(name) = &process.user {
        let identity = users::resolve(Some(name), &files)
            .map_err(|message| EngineError::Refused { message })?;
        value["user"] = json!(user(&identity));
        value["env"] = json!(with_home(&process.env, &identity.home));
    } else if !process.env.is_empty() {
        let identity = users::resolve(None, &files).unwrap_or_default();
        value["env"] = json!(with_home(&process.env, &identity.home));
    }
    Ok((value, process.stdin))
}

fn mounts(guest: &Guest) -> Vec<Mount> {
    let own_network = guest.network == GuestNetwork::Own;
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "noexec", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
    ];
    // Only who owns a network namespace may mount its view of the devices.
    mounts.push(match (own_network, guest.system) {
        (true, true) => mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev"]),
        (true, false) => mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        (false, _) => mount(
            "/sys",
            "none",
            "/sys",
            &["rbind", "rro", "nosuid", "noexec", "nodev"],
        ),
    });
    let groups: &[&str] = &["nosuid", "noexec", "nodev", "relatime", "ro"];
    let groups = if guest.system { &groups[..4] } else { groups };
    mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", groups));
    if guest.system {
        mounts.push(mount(
            "/run",
            "tmpfs",
            "tmpfs",
            &["nosuid", "nodev", "mode=755"],
        ));
        mounts.push(mount(
            "/run/lock",
            "tmpfs",
            "tmpfs",
            &["nosuid", "nodev", "noexec", "mode=1777", "size=5120k"],
        ));
    }
    mounts.extend(
        guest
            .mounts
            .iter()
            .map(|asked| guest_mount(asked, guest.idmap)),
    );
    mounts
}

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: PathBuf::from(target),
        kind: kind.to_owned(),
        source: PathBuf::from(source),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Mount::default()
    }
}

fn guest_mount(asked: &GuestMount, idmap: Option<IdMap>) -> Mount {
    let mut options: Vec<String> = vec!["nosuid".to_owned(), "nodev".to_owned()];
    let (kind, source) = match &asked.kind {
        MountKind::Bind { source } => {
            options.push("rbind".to_owned());
            options.push(if asked.read_only { "rro" } else { "rw" }.to_owned());
            ("none", source.clone())
        }
        MountKind::Tmpfs { size_bytes } => {
            options.push(if asked.read_only { "ro" } else { "rw" }.to_owned());
            options.push("mode=1777".to_owned());
            if let Some(size) = size_bytes {
                options.push(format!("size={size}"));
            }
            ("tmpfs", PathBuf::from("tmpfs"))
        }
    };
    let map = idmap
        .filter(|_| asked.id_mapped)
        .map(mapping)
        .into_iter()
        .collect::<Vec<_>>();
    if !map.is_empty() {
        // One mount is mapped, not those that others made below it.
        options.retain(|option| option != "rbind");
        options.push("bind".to_owned());
    }
    Mount {
        destination: PathBuf::from(&asked.target),
        kind: kind.to_owned(),
        source,
        options,
        uid_mappings: map.clone(),
        gid_mappings: map,
    }
}

fn mapping(map: IdMap) -> IdMapping {
    IdMapping {
        container_id: 0,
        host_id: map.base,
        size: map.count,
    }
}

fn linux(guest: &Guest, cgroup: &str) -> Result<Linux, EngineError> {
    let map: Vec<IdMapping> = guest.idmap.map(mapping).into_iter().collect();
    let mut kinds = vec![
        NamespaceKind::Pid,
        NamespaceKind::Mount,
        NamespaceKind::Ipc,
        NamespaceKind::Uts,
        NamespaceKind::Cgroup,
    ];
    let mut sysctl = guest.sysctls.clone();
    if guest.network == GuestNetwork::Own {
        kinds.push(NamespaceKind::Network);
        // Ports below 1024 are the host's to guard, not the instance's own.
        let unprivileged = "net.ipv4.ip_unprivileged_port_start".to_owned();
        sysctl.entry(unprivileged).or_insert_with(|| "0".to_owned());
    }
    if guest.idmap.is_some() {
        kinds.push(NamespaceKind::User);
    }
    let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect();
    let mut resources = resources(&guest.limits, &guest.directory);
    resources.devices = device_rules(&guest.devices);
    Ok(Linux {
        uid_mappings: map.clone(),
        gid_mappings: map,
        sysctl,
        resources: Some(resources),
        cgroups_path: cgroup.to_owned(),
        namespaces: kinds.into_iter().map(Namespace::new).collect(),
        devices: guest.devices.iter().map(device).collect::<Result<_, _>>()?,
        // An init manages the kernel's view of its own namespaces.
        masked_paths: if guest.system {
            Vec::new()
        } else {
            paths(&MASKED)
        },
        readonly_paths: if guest.system {
            Vec::new()
        } else {
            paths(&READ_ONLY)
        },
        ..Linux::default()
    })
}

fn device(asked: &GuestDevice) -> Result<Device, EngineError> {
    let (kind, major, minor, mode) = node(&asked.host_path)?;
    Ok(Device {
        path: PathBuf::from(&asked.path),
        kind: kind.to_owned(),
        major,
        minor,
        file_mode: Some(mode & 0o777),
        ..Device::default()
    })
}

fn node(path: &Path) -> Result<(&'static str, i64, i64, u32), EngineError> {
    let refused = |why: &str| EngineError::Refused {
        message: format!("the device {} cannot be passed on: {why}", path.display()),
    };
    let metadata = fs::metadata(path).map_err(|error| refused(&error.to_string()))?;
    let kind = match metadata.mode() & 0o170_000 {
        0o020_000 => "c",
        0o060_000 => "b",
        _ => return Err(refused("it is no device")),
    };
    let number = metadata.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    Ok((kind, i64::from(major), i64::from(minor), metadata.mode()))
}

/// Every device is denied but those asked for; the runtime adds those every container may use.
fn device_rules(devices: &[GuestDevice]) -> Vec<DeviceRule> {
    let deny = DeviceRule {
        allow: false,
        access: "rwm".to_owned(),
        ..DeviceRule::default()
    };
    let allow = |device: &GuestDevice| {
        let (kind, major, minor, _) = node(&device.host_path).ok()?;
        Some(DeviceRule {
            allow: true,
            kind: kind.to_owned(),
            major: Some(major),
            minor: Some(minor),
            access: device.permissions.clone(),
        })
    };
    std::iter::once(deny)
        .chain(devices.iter().filter_map(allow))
        .collect()
}

/// Limits as the OCI specification has them. `directory` tells which disk the rates are for. What
/// is not limited is said to be so, so that an update takes a former limit away.
pub(super) fn resources(limits: &Limits, directory: &Path) -> Resources {
    let bytes = |size: Option<model::ByteSize>| size.map(|size| clamp(size.0));
    let limit = bytes(limits.memory);
    // The specification counts memory and swap together.
    let swap = match (limits.memory, limits.swap) {
        (Some(memory), Some(swap)) => Some(clamp(memory.0.saturating_add(swap.0))),
        _ => Some(-1),
    };
    let quota = limits
        .cpus
        .map(|cpus| i64::from(cpus.0) * CPU_PERIOD_US as i64 / 1000);
    Resources {
        memory: Some(Memory {
            limit: Some(limit.unwrap_or(-1)),
            reservation: Some(bytes(limits.memory_high).unwrap_or(-1)),
            swap: if limit.is_some() || limits.swap.is_some() {
                swap
            } else {
                Some(-1)
            },
            ..Memory::default()
        }),
        cpu: Some(Cpu {
            shares: Some(cgroup::convert::shares_from_weight(
                limits.cpu_weight.map_or(0, u64::from),
            )),
            quota: Some(quota.unwrap_or(-1)),
            period: Some(CPU_PERIOD_US),
            cpus: limits.cpu_set.clone().unwrap_or_default(),
            ..Cpu::default()
        }),
        pids: Some(Pids {
            limit: Some(limits.pids.map_or(-1, i64::from)),
        }),
        block_io: block_io(limits, directory),
        ..Resources::default()
    }
}

fn clamp(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn block_io(limits: &Limits, directory: &Path) -> Option<BlockIo> {
    let io = &limits.io;
    if *io == model::instance::IoLimits::default() {
        return None;
    }
    let disk = disk_of(directory);
    let rate = |rate: Option<u64>| {
        let (major, minor) = disk?;
        Some(vec![ThrottleDevice {
            major,
            minor,
            rate: rate?,
        }])
    };
    Some(BlockIo {
        // The specification's scale ends at 1000.
        weight: io.weight.map(|weight| (weight / 10).clamp(10, 1000)),
        throttle_read_bps_device: rate(io.read_bps).unwrap_or_default(),
        throttle_write_bps_device: rate(io.write_bps).unwrap_or_default(),
        throttle_read_iops_device: rate(io.read_iops).unwrap_or_default(),
        throttle_write_iops_device: rate(io.write_iops).unwrap_or_default(),
        ..BlockIo::default()
    })
}

/// The whole disk a directory is on: the kernel limits disks, not partitions.
fn disk_of(directory: &Path) -> Option<(i64, i64)> {
    let number = fs::metadata(directory).ok()?.dev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let entry = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let text = if entry.join("partition").exists() {
        fs::read_to_string(entry.join("../dev")).ok()?
    } else {
        format!("{major}:{minor}")
    };
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
