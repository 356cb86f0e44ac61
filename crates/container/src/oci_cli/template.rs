//! `spec`: a configuration to start from.

use std::path::Path;

use super::{Call, Exit, Result};
use crate::spec::{
    Capabilities, DeviceRule, IdMapping, Linux, Mount, Namespace, NamespaceKind, OCI_VERSION,
    Process, Resources, Rlimit, Root, Spec,
};

/// `spec`.
pub(super) fn write(call: &Call) -> Result<Exit> {
    let values = &call.parsed.values;
    let path = Path::new(values.get("bundle").unwrap_or(".")).join("config.json");
    let spec = example(values.has("rootless"));
    let mut text = serde_json::to_string_pretty(&spec)?;
    text.push('\n');
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    Ok(Exit::SUCCESS)
}

/// A shell in a directory `rootfs`, with the mounts and rights the field agrees on.
pub(crate) fn example(rootless: bool) -> Spec {
    let caps = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
        .map(str::to_owned)
        .to_vec();
    let mut kinds = vec![
        NamespaceKind::Pid,
        NamespaceKind::Ipc,
        NamespaceKind::Uts,
        NamespaceKind::Mount,
    ];
    kinds.extend([NamespaceKind::Cgroup]);
    kinds.push(if rootless {
        NamespaceKind::User
    } else {
        NamespaceKind::Network
    });
    let map = |id: u32| {
        vec![IdMapping {
            container_id: 0,
            host_id: id,
            size: 1,
        }]
    };
    let (uid, gid) = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    Spec {
        oci_version: OCI_VERSION.into(),
        process: Some(Process {
            terminal: true,
            args: vec!["sh".into()],
            env: vec![
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
                "TERM=xterm".into(),
            ],
            cwd: "/".into(),
            capabilities: Some(Capabilities {
                bounding: caps.clone(),
                effective: caps.clone(),
                permitted: caps,
                ..Capabilities::default()
            }),
            rlimits: vec![Rlimit {
                kind: "RLIMIT_NOFILE".into(),
                hard: 1024,
                soft: 1024,
            }],
            no_new_privileges: true,
            ..Process::default()
        }),
        root: Some(Root {
            path: "rootfs".into(),
            readonly: true,
        }),
        hostname: "berth".into(),
        mounts: mounts(rootless),
        linux: Linux {
            uid_mappings: if rootless { map(uid) } else { Vec::new() },
            gid_mappings: if rootless { map(gid) } else { Vec::new() },
            resources: (!rootless).then(|| Resources {
                devices: vec![DeviceRule {
                    access: "rwm".into(),
                    ..DeviceRule::default()
                }],
                ..Resources::default()
            }),
            namespaces: kinds.into_iter().map(Namespace::new).collect(),
            masked_paths: [
                "/proc/acpi",
                "/proc/asound",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/proc/sched_debug",
                "/sys/firmware",
                "/proc/scsi",
            ]
            .map(Into::into)
            .to_vec(),
            readonly_paths: [
                "/proc/bus",
                "/proc/fs",
                "/proc/irq",
                "/proc/sys",
                "/proc/sysrq-trigger",
            ]
            .map(Into::into)
            .to_vec(),
            ..Linux::default()
        },
        ..Spec::default()
    }
}

fn mounts(rootless: bool) -> Vec<Mount> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: source.into(),
        options: options.iter().map(|option| option.to_string()).collect(),
        ..Mount::default()
    };
    let pts: &[&str] = &[
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
        "gid=5",
    ];
    let pts = if rootless { &pts[..5] } else { pts };
    let sys = match rootless {
        true => mount(
            "/sys",
            "none",
            "/sys",
            &["rbind", "nosuid", "noexec", "nodev", "rro"],
        ),
        false => mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
    };
    let mut all = vec![
        mount("/proc", "proc", "proc", &[]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount("/dev/pts", "devpts", "devpts", pts),
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
        sys,
    ];
    if !rootless {
        all.push(mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ));
    }
    all
}
